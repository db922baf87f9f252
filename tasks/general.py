"""Step 9, what is outside the tasks: do the models forget? Both answer the frozen general probe, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from selu.config import EvaluationSettings
from selu.errors import ArtifactError
from selu.evaluation import ItemOutcome, MetricRow, Phase, Series, difference_metric, rate_metric
from selu.general_probe import GENERAL_FILE, general_prompts, general_questions, general_questions_digest
from selu.prompting import prompts_digest, without_full_stop
from selu.records import Record
from selu.rounds import Workspace
from selu.store import ArtifactRef, read_table, write_table
from selu.tasks.progress import Meter
from selu.tasks.stages import ENGINE, Made, Model, Shard, Stage, Value, make, model_config_of, stage_task

__all__ = ["GeneralAnswer", "GeneralRun", "answer_general_questions", "measure_general"]

GENERAL_ANSWERS = Stage(
    name="general-answers",
    version=1,
    modules=(
        "selu.general_probe",
        "selu.prompting",
        "selu.frames",
        *ENGINE,
    ),
    on_gpu=True,
)
GENERAL_METRICS = Stage(
    name="general-metrics", version=2, modules=("selu.general_probe", "selu.evaluation", "selu.statistics")
)


class GeneralAnswer(Record):
    """What a model wrote to one question of the general probe."""

    number: int = Field(description="place of the question in the probe, from 0")
    kind: str
    question: str
    text: str
    confidence: float = Field(description="probability of the answer under the model, 0..1")


class GeneralRun(Value):
    """One model's answers to the general probe."""

    phase: Phase
    who: Literal["actor", "critic"]
    answers: ArtifactRef


@stage_task(GENERAL_ANSWERS)
def answer_general_questions(
    workspace: Workspace, shard: Shard, model: Model, count: int, file: Path = GENERAL_FILE
) -> Made:
    """Let a model answer the first `count` questions (of the frozen probe, or of another file) in its own words, greedily.

    Actor and critic are asked alike: as long as they are one base model, one answers for both.
    """
    asked = general_questions(count, file)

    def compute(path: Path, report: Meter) -> None:
        style = model.settings.prompt_style
        replies = model.load(workspace.store()).generate(
            general_prompts(asked, style), max_new_tokens=model.settings.max_new_tokens
        )
        rows = [
            GeneralAnswer(
                number=number,
                kind=row.kind,
                question=row.question,
                text=without_full_stop(reply.text, style),
                confidence=reply.confidence,
            )
            for number, (row, reply) in enumerate(zip(asked, replies, strict=True))
        ]
        write_table(path / "general_answers.parquet", rows, GeneralAnswer)

    return make(
        workspace,
        GENERAL_ANSWERS,
        shard,
        "general_answers",
        compute,
        config={
            "questions": general_questions_digest(file),
            "count": count,
            "model": model_config_of(model.settings),
            "prompts": prompts_digest(),
        },
        models=[model],
    )


@stage_task(GENERAL_METRICS)
def measure_general(
    workspace: Workspace,
    shard: Shard,
    runs: Sequence[GeneralRun],
    evaluation: EvaluationSettings,
    run: str,
    round_number: int,
    seed: int,
) -> Made:
    """Share of exactly right answers of each model, and the paired gain from `before` to `after`."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        known = general_questions(evaluation.general_questions)
        rows: list[MetricRow] = []
        items: list[ItemOutcome] = []
        right: dict[tuple[str, Phase], list[bool]] = {}
        for item in runs:
            answers = read_table(store.path(item.answers) / "general_answers.parquet", GeneralAnswer)
            if [answer.question for answer in answers] != [row.question for row in known]:
                raise ArtifactError(f"the {item.who} answered another general probe than the one it is measured on")
            outcomes = right[item.who, item.phase] = [
                answer.text.strip() == row.answer for answer, row in zip(answers, known, strict=True)
            ]
            series = Series(run, round_number, "general", item.phase, "A+B", item.who)
            rows.append(rate_metric(series, "accuracy", outcomes))
            items += [
                series.outcome(str(answer.number), row.scene, row.kind, float(good))
                for answer, row, good in zip(answers, known, outcomes, strict=True)
            ]
        for (who, phase), after in right.items():
            before = right.get((who, "before"))
            if phase == "before" or before is None:
                continue
            rows.append(
                difference_metric(
                    Series(run, round_number, "general", phase, "A+B", who),
                    "accuracy",
                    [float(value) for value in before],
                    [float(value) for value in after],
                    [row.scene for row in known],
                    seed=seed,
                    samples=evaluation.bootstrap,
                )
            )
        write_table(path / "metrics.parquet", rows, MetricRow)
        write_table(path / "outcomes.parquet", items, ItemOutcome)

    return make(
        workspace,
        GENERAL_METRICS,
        shard,
        "metrics",
        compute,
        config={
            "questions": general_questions_digest(),
            "runs": [[item.phase, item.who] for item in runs],
            "bootstrap": evaluation.bootstrap,
            "run": run,
            "round": round_number,
            "seed": seed,
        },
        inputs=[item.answers for item in runs],
    )
