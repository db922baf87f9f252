"""LABELS BY THE TRUTH. The one place where ground truth becomes labels: the upper bound of a comparison, no self-learning.

What a perfect critic would have labelled: every trajectory under its own instruction, every instruction that its actor
did achieve on the way, and the contrasts that balance them. A round calls this only with ``self_asking.by=oracle``,
which the settings refuse unless ``method=oracle_labels``; the tasks refuse it once more. Their artifacts are of a kind of
their own, ``labels_by_truth``, and every label says ``"by": "oracle"`` in its evidence, so that what was trained on them
can be told from its lineage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from selu.config import HindsightSettings, SelfAskingSettings
from selu.errors import TerminalError
from selu.evaluation import truth_of_instruction
from selu.frames import FrameTable, steps_by_episode
from selu.prompting import achievements, verdict_prompt
from selu.questions import Claim, canonical_json, digest, make_question
from selu.records import Answer, Episode, Frame, OracleEpisode, OracleStep, Question, Relabel, Step, Verdict
from selu.rounds import Workspace
from selu.store import ArtifactRef, OracleRef, write_table
from selu.tasks.frames import read_selected_frames
from selu.tasks.progress import Meter
from selu.tasks.stages import Made, Shard, Stage, make, read_all, read_episodes, read_oracle, read_steps, stage_task
from selu.worlds.actions import read_action
from selu.worlds.tasks import goal_of_instruction, join_steps, put_instruction, steps_of
from selu.worlds.vocabulary import spoken_name

__all__ = ["contrast_by_truth", "label_by_truth"]

_MODULES = ("selu.evaluation", "selu.questions", "selu.prompting", "selu.frames", "selu.worlds.tasks")
LABELS_BY_TRUTH = Stage(name="labels-by-truth", version=1, modules=_MODULES)
CONTRASTS_BY_TRUTH = Stage(name="contrasts-by-truth", version=2, modules=_MODULES)

_BY = "oracle"


def _refuse_unless_meant(self_asking: SelfAskingSettings) -> None:
    if self_asking.by != "oracle":
        raise TerminalError(
            f"labels by the truth were asked for with self_asking.by={self_asking.by}; they are an upper bound to measure "
            "against, for self_asking.by=oracle and method=oracle_labels alone"
        )


def _verdict(claim: Claim, done: bool) -> Verdict:
    evidence = canonical_json({"by": _BY, "critic": _BY, "questions": []})
    return Verdict(
        verdict_id=digest(claim.episode_id, claim.frame_index, claim.instruction, evidence),
        episode_id=claim.episode_id,
        frame_index=claim.frame_index,
        instruction=claim.instruction,
        verdict="yes" if done else "no",
        confidence=1.0,
        evidence=evidence,
        accepted=True,
        reason="the truth, not a judgement",
    )


def true_verdicts(
    claims: Iterable[Claim], episodes: Sequence[Episode], success: Mapping[str, bool | None], facts: Mapping[Any, str]
) -> list[Verdict]:
    """Verdicts that are right; claims whose truth is not known get none.

    `success` is by episode and counts for its own instruction at its end; `facts` are by (episode, frame index).
    """
    known = {episode.episode_id: episode for episode in episodes}
    verdicts = []
    for claim in claims:
        episode = known[claim.episode_id]
        if (claim.instruction, claim.frame_index) == (episode.instruction, episode.length):
            done = success.get(claim.episode_id)
        else:
            done = truth_of_instruction(claim.instruction, facts[claim.episode_id, claim.frame_index])
        if done is not None:
            verdicts.append(_verdict(claim, done))
    return verdicts


def _instruction(action: str, before: str) -> str | None:
    """What an action would have been told as; `before` are the facts of the frame on which it was written."""
    parsed = read_action(action)
    if parsed is None or parsed.object_type is None or parsed.verb not in achievements():
        return None
    achievement = achievements()[parsed.verb]
    if "{b}" not in achievement.instruction:
        return achievement.instruction.format(a=spoken_name(parsed.object_type))
    held = json.loads(before)["held"]
    return put_instruction(held[0], parsed.object_type) if held else None


def true_relabels(
    episodes: Sequence[Episode],
    steps: Sequence[Step],
    frames: FrameTable,
    success: Mapping[str, bool | None],
    facts: Mapping[Any, str],
    *,
    two_step: bool,
    partial: bool,
) -> tuple[list[Question], list[Answer], list[Relabel]]:
    """What failed episodes did achieve by their actor's own actions: false before the action, true after it.

    Only frames that were extracted count, as for the critic. With `two_step`, neighbouring achievements of which the
    first still holds at the second are one more; with `partial`, good beginnings are kept as such.
    """
    by_episode = steps_by_episode(steps)
    questions: list[Question] = []
    answers: list[Answer] = []
    relabels: list[Relabel] = []

    def keep(
        episode: Episode, after: int, instruction: str, entries: list[dict[str, object]], *, partial: bool = False
    ) -> None:
        evidence = canonical_json({"by": _BY, "critic": _BY, "questions": entries})
        relabels.append(
            Relabel(
                relabel_id=digest(episode.episode_id, after, instruction, evidence),
                episode_id=episode.episode_id,
                frame_index=after,
                original_instruction=episode.instruction,
                instruction=instruction,
                confidence=1.0,
                evidence=evidence,
                accepted=True,
                reason="the truth, not a judgement",
                partial=partial,
            )
        )

    def add(episode: Episode, before: int, after: int, instruction: str) -> None:
        # The frame before, as one that must be judged "no": the critic's dataset takes its hardest negatives from it.
        claim = Claim(episode.episode_id, before, instruction)
        question = make_question(claim, "direct", verdict_prompt(instruction), "no")
        questions.append(question)
        answers.append(Answer(question_id=question.question_id, text="no", confidence=1.0, critic=_BY))
        entry: dict[str, object] = {
            "question_id": question.question_id,
            "frame_index": before,
            "spoke_for": "yes",
            "answer": "no",
            "confidence": 1.0,
        }
        keep(episode, after, instruction, [entry])
        achieved.append((instruction, after))

    achieved: list[tuple[str, int]] = []
    for episode in sorted(episodes, key=lambda episode: episode.episode_id):
        name = episode.episode_id
        if success.get(name) is True:
            continue
        latest: str | None = None
        achieved.clear()
        for step in by_episode.get(name, ()):
            before, after = step.step, step.step + 1
            if (name, before) not in frames or (name, after) not in frames:
                continue
            instruction = _instruction(step.action, facts[name, before])
            if instruction is None or truth_of_instruction(instruction, facts[name, before]) is not False:
                continue
            if truth_of_instruction(instruction, facts[name, after]) is not True:
                continue
            add(episode, before, after, instruction)
            if (
                two_step
                and latest is not None
                and latest != instruction
                and truth_of_instruction(latest, facts[name, after]) is True
            ):
                add(episode, before, after, join_steps(latest, instruction))
            latest = instruction
        if partial and all(instruction != episode.instruction for instruction, _ in achieved):
            end = _good_beginning(episode, by_episode.get(name, ()), frames, facts, achieved)
            if end:
                keep(episode, end, episode.instruction, [], partial=True)
    return questions, answers, relabels


def _good_beginning(
    episode: Episode,
    steps: Sequence[Step],
    frames: FrameTable,
    facts: Mapping[Any, str],
    achieved: Sequence[tuple[str, int]],
) -> int:
    """The frame up to which a failed episode was on its way, 0 if it never was.

    Its first parts are achieved (instruction, frame), and what comes next was walked up to and is in view.
    """
    end, parts = 0, steps_of(episode.instruction)
    while len(parts) > 1:
        reached = next((index for instruction, index in achieved if instruction == parts[0] and index > end), None)
        if reached is None:
            break
        end, parts = reached, parts[1:]
    for step in steps:
        near = (episode.episode_id, step.step + 1)
        action = read_action(step.action)
        if (
            step.step >= end
            and near in frames
            and action is not None
            and action.verb == "Approach"
            and action.object_type is not None
            and parts[0].endswith(f"the {spoken_name(action.object_type)}")
            and action.object_type in json.loads(facts[near]).get("in_view", ())
        ):
            return near[1]
    return end


def _shown(instruction: str, facts: str) -> bool:
    """Whether everything that an instruction is about is in the picture, or in the hand, as far as the world tells."""
    known = json.loads(facts)
    if "in_view" not in known:
        return True
    shown = {*known["in_view"], *known["held"]}
    about = [
        name
        for condition in goal_of_instruction(instruction) or ()
        for name in (condition.object_type, condition.receptacle_type)
    ]
    return all(name is None or name in shown for name in about)


def true_contrasts(
    episodes: Sequence[Episode],
    frames: FrameTable,
    judged: Set[Claim],
    facts: Mapping[Any, str],
    *,
    instructions: Sequence[str],
    per_episode: int,
    seed: int,
) -> list[Claim]:
    """Further claims about the frames of each episode, half of them true and half false, at most `per_episode`.

    They are about things in view or in the hand alone: the truth knows what is in a cupboard across the room, a picture
    does not say it, and a critic that sees pictures cannot learn it. Deterministic in the rows and `seed`; `judged` ones
    are not asked again.
    """
    indices = frames.by_episode()
    chosen: list[Claim] = []
    for episode in episodes:
        name = episode.episode_id
        sides: dict[bool, list[Claim]] = {True: [], False: []}
        for index in indices.get(name, ()):
            for text in instructions:
                done = truth_of_instruction(text, facts[name, index])
                claim = Claim(name, index, text)
                if done is not None and claim not in judged and _shown(text, facts[name, index]):
                    sides[done].append(claim)
        for claims in sides.values():
            claims.sort(key=lambda claim: digest(seed, claim.episode_id, claim.frame_index, claim.instruction))
            chosen += claims[: per_episode // 2]
    return sorted(chosen)


def _success_and_facts(
    truth: tuple[Sequence[OracleEpisode], Sequence[OracleStep]],
) -> tuple[dict[str, bool | None], dict[tuple[str, int], str]]:
    episodes, steps = truth
    return {row.episode_id: row.success for row in episodes}, {
        (row.episode_id, row.frame_index): row.facts for row in steps
    }


def _write(
    path: Path, questions: Sequence[Question], answers: Sequence[Answer], verdicts: Sequence[Verdict],
    relabels: Sequence[Relabel],
) -> None:  # fmt: skip
    unique = list({question.question_id: question for question in questions}.values())
    write_table(path / "questions.parquet", unique, Question)
    write_table(path / "answers.parquet", list({row.question_id: row for row in answers}.values()), Answer)
    write_table(path / "verdicts.parquet", verdicts, Verdict)
    write_table(path / "relabels.parquet", relabels, Relabel)


@stage_task(LABELS_BY_TRUTH)
def label_by_truth(
    workspace: Workspace,
    shard: Shard,
    episodes: ArtifactRef,
    frames: ArtifactRef,
    oracle: OracleRef,
    self_asking: SelfAskingSettings,
    hindsight: HindsightSettings,
) -> Made:
    """Judge and relabel a shard's trajectories BY THE TRUTH; one artifact stands for judgements and relabels.

    Raises:
        TerminalError: the settings do not ask for it.
    """
    _refuse_unless_meant(self_asking)

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        played = read_episodes(store, [episodes])
        success, facts = _success_and_facts(read_oracle(store, [oracle]))
        claims = [Claim(row.episode_id, row.length, row.instruction) for row in played]
        verdicts = true_verdicts(sorted(claims), played, success, facts)
        seen: list[Frame] = read_selected_frames(store, [episodes], [frames])
        questions, answers, relabels = (
            true_relabels(
                played,
                read_steps(store, [episodes]),
                FrameTable(seen),
                success,
                facts,
                two_step=hindsight.two_step,
                partial=hindsight.partial,
            )
            if hindsight.enabled
            else ([], [], [])
        )
        _write(path, questions, answers, verdicts, relabels)

    return make(
        workspace,
        LABELS_BY_TRUTH,
        shard,
        "labels_by_truth",
        compute,
        config=hindsight.model_dump(mode="json", include={"enabled", "two_step", "partial"}),
        inputs=[episodes, frames, oracle],
    )


@stage_task(CONTRASTS_BY_TRUTH)
def contrast_by_truth(
    workspace: Workspace,
    shard: Shard,
    episodes: ArtifactRef,
    frames: ArtifactRef,
    oracle: OracleRef,
    labels: ArtifactRef,
    everything: Sequence[ArtifactRef],
    self_asking: SelfAskingSettings,
    seed: int,
) -> Made:
    """Judge BY THE TRUTH other frames under the round's instructions, as many as a critic would have been asked about.

    `labels` are those of this shard, `everything` the episodes of all shards, for their instructions.

    Raises:
        TerminalError: the settings do not ask for it.
    """
    _refuse_unless_meant(self_asking)

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        played = read_episodes(store, [episodes])
        success, facts = _success_and_facts(read_oracle(store, [oracle]))
        known = read_all(store, [labels], "verdicts", Verdict) + read_all(store, [labels], "relabels", Relabel)
        claims = true_contrasts(
            played,
            FrameTable(read_selected_frames(store, [episodes], [frames])),
            {Claim(row.episode_id, row.frame_index, row.instruction) for row in known},
            facts,
            instructions=sorted({row.instruction for row in read_episodes(store, everything)}),
            per_episode=self_asking.contrasts,
            seed=seed,
        )
        _write(path, [], [], true_verdicts(claims, played, success, facts), [])

    return make(
        workspace,
        CONTRASTS_BY_TRUTH,
        shard,
        "labels_by_truth",
        compute,
        config={"per_episode": self_asking.contrasts, "seed": seed},
        inputs=[episodes, frames, oracle, labels, *everything],
    )
