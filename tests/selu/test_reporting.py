"""The report of a round: that all of it is shown, right and wrong alike, and that what models wrote stays text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import markupsafe
import numpy as np
import pytest
from PIL import Image

from selu.catalog import Catalog
from selu.config import Settings, validate_settings
from selu.datasets import FEATURES, DatasetCard, save_dataset_version
from selu.errors import ArtifactError, TerminalError
from selu.evaluation import MetricRow
from selu.frames import encode_picture
from selu.records import (
    Answer,
    Condition,
    Episode,
    Frame,
    Judgement,
    OracleEpisode,
    OracleStep,
    Question,
    Record,
    Relabel,
    Setup,
    Step,
    Task,
    Verdict,
)
from selu.reporting import write_report
from selu.reporting.content import gather
from selu.reporting.drawing import curve_plot, interval_plot, points, seconds
from selu.reporting.episodes import kind_of_reason, picture_uri
from selu.rounds import ROUND_STAGES, Round, StageRecord
from selu.seen_rows import SeenPiece, SeenRow, write_seen_row
from selu.store import ArtifactRef, OracleRef, Store, artifact_key, write_table
from selu.worlds.actions import parse_action

HOSTILE = "<script>alert('x')</script><img src=//evil onerror=alert(1)>"


@dataclass(frozen=True)
class Played:
    """An episode with what the critic said about it and what was true."""

    name: str
    instruction: str
    actions: tuple[str, ...]
    said: Judgement
    accepted: bool
    truth: bool | None
    relabel: str = ""
    relabel_accepted: bool = True
    start: bool = False
    open_types: tuple[str, ...] = ()
    question: str = "Is the fridge open?"
    answer: str = "yes"
    reason: str = "all 1 questions were answered as expected"


ALL_OUTCOMES = (
    Played("a", "open the fridge", ("Open(Fridge)", "Done"), "yes", True, True, open_types=("Fridge",)),
    Played("b", "open the microwave", ("Approach(Microwave)", "Done"), "yes", True, False),
    Played(
        "c", "pick up the mug", ("Open(Drawer)", "Done"), "no", True, False, "open the drawer", open_types=("Drawer",)
    ),
    Played("d", "pick up the vase", ("Open(Cabinet)", "Done"), "no", True, False, "open the cabinet"),
    Played("e", "turn on the desk lamp", ("ToggleOn(DeskLamp)", "Done"), "no", True, True),
    Played(
        "f", "close the box", ("MoveAhead", "jump around", "Done"), "unsure", False, False,
        reason="ways of asking disagree about 'Is the box closed?'",
    ),
)  # fmt: skip


def _picture(played: Played, index: int) -> bytes:
    shade = (ord(played.name[0]) * 7 + 20 * index) % 256
    return encode_picture(np.full((8, 8, 3), shade, dtype=np.uint8))


def _facts(played: Played) -> str:
    facts: dict[str, list[str]] = {name: [] for name in ("held", "closed", "on", "off", "broken", "sliced", "inside")}
    return json.dumps(facts | {"open": list(played.open_types)})


def _put(store: Store, kind: str, name: str, **tables: tuple[Sequence[Record], type[Record]]) -> ArtifactRef:
    with store.create(kind, artifact_key(kind, 1, {"name": name}, []), {"stage": kind}) as draft:
        for table, (records, record_type) in tables.items():
            write_table(draft.path / f"{table}.parquet", records, record_type)
    return draft.ref


def _put_tasks(store: Store, name: str, tasks: Sequence[Task]) -> OracleRef:
    with store.create_oracle("oracle_tasks", artifact_key("tasks", 1, {"name": name}, []), {"stage": "tasks"}) as draft:
        write_table(draft.path / "tasks.parquet", tasks, Task)
    return draft.ref


def _said(episodes: Sequence[Played], kind: str, critic: str) -> dict[str, tuple[Sequence[Record], type[Record]]]:
    questions, answers, verdicts = [], [], []
    for played in episodes:
        asked = Question(
            question_id=f"q-{critic}-{played.name}",
            episode_id=played.name,
            frame_index=len(played.actions),
            instruction=played.instruction,
            kind="verification",
            text=played.question,
            expected="yes",
        )
        entry = {"question_id": asked.question_id, "group": 0, "spoke_for": played.said, "answer": played.answer}
        questions.append(asked)
        answers.append(Answer(question_id=asked.question_id, text=played.answer, confidence=0.9, critic=critic))
        verdicts.append(
            Verdict(
                verdict_id=f"v-{critic}-{played.name}",
                episode_id=played.name,
                frame_index=len(played.actions),
                instruction=played.instruction,
                verdict=played.said,
                confidence=0.9,
                evidence=json.dumps(
                    {"by": "self-asking", "questions": [entry | {"confidence": 0.9}], "critic": critic}
                ),
                accepted=played.accepted,
                reason=played.reason,
            )
        )
    return {"questions": (questions, Question), "answers": (answers, Answer), "verdicts": (verdicts, Verdict)}


def _relabeled(episodes: Sequence[Played], critic: str) -> dict[str, tuple[Sequence[Record], type[Record]]]:
    questions, answers, relabels = [], [], []
    for played in episodes:
        if not played.relabel:
            continue
        entries = []
        for index, expected in ((0, "no"), (1, "yes")):
            asked = Question(
                question_id=f"h-{critic}-{played.name}-{index}",
                episode_id=played.name,
                frame_index=index,
                instruction=played.relabel,
                kind="verification",
                text=f"Hindsight: {played.relabel}?",
                expected=expected,
            )
            questions.append(asked)
            answers.append(Answer(question_id=asked.question_id, text=expected, confidence=0.95, critic=critic))
            entries.append(
                {"question_id": asked.question_id, "frame_index": index, "spoke_for": "yes", "answer": expected}
                | {"confidence": 0.95}
            )
        relabels.append(
            Relabel(
                relabel_id=f"r-{critic}-{played.name}",
                episode_id=played.name,
                frame_index=1,
                original_instruction=played.instruction,
                instruction=played.relabel,
                partial=played.start,
                confidence=0.95,
                evidence=json.dumps({"by": "hindsight", "questions": entries, "critic": critic}),
                accepted=played.relabel_accepted,
                reason="every question about it was answered as expected"
                if played.relabel_accepted
                else "'What is open?' was answered 'nothing' (0.93)",
            )
        )
    return {"questions": (questions, Question), "answers": (answers, Answer), "relabels": (relabels, Relabel)}


class CurveRow(Record):
    """What fine-tuning leaves of a step."""

    step: int
    loss: float


class ValidatedRow(CurveRow):
    """The same with rows held out."""

    validation_loss: float | None


class SelectedRow(Record):
    """A frame that the critic looks at."""

    episode_id: str
    frame_index: int


def _metric(subject: Any, phase: Any, probe: Any, method: str, metric: str, rate: float, spread: float) -> MetricRow:
    return MetricRow(
        run="selu thor seed 0",
        round=1,
        subject=subject,
        phase=phase,
        probe=probe,
        method=method,
        metric=metric,
        rate=rate,
        n=200,
        low=rate - spread,
        high=rate + spread,
    )


def metric_rows() -> list[MetricRow]:
    """Figures as an evaluation leaves them."""
    rows = []
    for probe, less in (("A", 0.0), ("B", 0.04)):
        for method, before, after in (("direct", 0.583, 0.712), ("self_asking", 0.69, 0.742)):
            rows += [
                _metric("critic", "before", probe, method, "balanced_accuracy", before - less, 0.06),
                _metric("critic", "after", probe, method, "balanced_accuracy", after - less, 0.055),
                _metric("critic", "after", probe, method, "balanced_accuracy_gain", after - before, 0.07),
            ]
        rows += [
            _metric("actor", "before", probe, "selu", "success_rate", 0.18 - less, 0.05),
            _metric("actor", "after", probe, "selu", "success_rate", 0.31 - less, 0.06),
            _metric("actor", "after", probe, "selu", "success_rate_gain", 0.13, 0.06),
            _metric("actor", "before", probe, "random", "success_rate", 0.04, 0.02),
            _metric("actor", "before", probe, "planner", "success_rate", 0.985, 0.015),
            _metric("critic", "before", probe, "blind:blank", "balanced_accuracy", 0.5, 0.02),
            _metric("critic", "after", probe, "blind:blank", "balanced_accuracy", 0.53, 0.04),
        ]
    for phase, false_rate in (("before", 0.12), ("after", 0.07)):
        rows += [
            _metric("labels", phase, "learning", "selu", "false_rate", false_rate, 0.04),
            _metric("labels", phase, "learning", "selu", "coverage", 0.41, 0.05),
        ]
    # Nobody judged anything: not a number, and no interval.
    rows.append(_metric("labels", "after", "learning", "selu", "false_rate_no", float("nan"), float("nan")))
    return rows


def _dataset(store: Store, who: str, rows: Sequence[tuple[str, str, str, bytes]]) -> ArtifactRef:
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for prompt, completion, source, image in rows:
        given: dict[str, Any] = dict.fromkeys(FEATURES, "") | {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion}],
            "images": [{"bytes": image, "path": None}],
            "source": source,
            "frame_indices": [0],
        }
        for name, values in columns.items():
            values.append(given[name])
    card = DatasetCard(name="selu/test", pretty_name="test", description="made up", round=1)
    with store.create(f"{who}_dataset", artifact_key(who, 1, {}, []), {"stage": f"{who}-dataset"}) as draft:
        save_dataset_version(draft.path, {who: datasets.Dataset.from_dict(columns, features=FEATURES)}, card)
    return draft.ref


def _adapter(store: Store, who: str) -> ArtifactRef:
    generator = np.random.default_rng(ord(who[0]))
    points = [
        CurveRow(step=step, loss=float(2.2 * np.exp(-step / 40) + 0.35 + 0.12 * generator.random()))
        for step in range(1, 241)
    ]
    if who == "actor":
        # As adapters were before there was more to tell.
        return _put(store, "adapter", who, curves=(points, CurveRow))
    validated = [
        ValidatedRow(**dict(point), validation_loss=None if point.step % 60 else 0.6 + abs(point.step - 120) / 600)
        for point in points
    ]
    pieces = (
        SeenPiece(text="<image>", times=36, learned=False),
        SeenPiece(text=f"\nUser: {HOSTILE}\nAssistant: ", learned=False),
        SeenPiece(text=f"yes{HOSTILE}</s>", learned=True),
    )
    with store.create("adapter", artifact_key("adapter", 1, {"name": who}, []), {"stage": "adapter"}) as draft:
        write_table(draft.path / "curves.parquet", validated, ValidatedRow)
        picture = Image.fromarray(np.full((96, 96, 3), 77, dtype=np.uint8))
        write_seen_row(draft.path, SeenRow(row=17, tokens=61, learned=2, pieces=pieces), picture)
    return draft.ref


def make_round(
    store: Store,
    episodes: Sequence[Played] = ALL_OUTCOMES,
    picture: Callable[[Played, int], bytes] = _picture,
    rows: Sequence[MetricRow] | None = None,
    cached: Sequence[str] = ("rollout",),
    **settings: Any,
) -> Round:
    """A finished round with these episodes."""
    chosen: Settings = validate_settings({"data_dir": str(store.root), **settings})
    key = artifact_key("rollout", 1, {}, [])
    steps = [
        Step(
            episode_id=played.name,
            step=number,
            prompt=f"Instruction: {played.instruction}\nAction?",
            action=action,
            well_formed=parse_action(action, "household") is not None,
            log_probability=-0.5,
        )
        for played in episodes
        for number, action in enumerate(played.actions)
    ]
    frames = [
        Frame(episode_id=played.name, frame_index=index, image=picture(played, index))
        for played in episodes
        for index in range(len(played.actions) + 1)
    ]
    lived = [
        Episode(
            episode_id=played.name,
            task_id=f"task-{played.name}",
            scene="FloorPlan21",
            instruction=played.instruction,
            seed=0,
            policy="base",
            length=len(played.actions),
            finish_reason="done" if played.actions[-1] == "Done" else "step_limit",
        )
        for played in episodes
    ]
    drawn = [
        Task(
            task_id=f"task-{played.name}",
            scene="FloorPlan21",
            kind="open",
            instruction=played.instruction,
            goal=(Condition(predicate="open", object_type="Fridge"),),
            setup=Setup(spawn_seed=0, position=(0.0, 0.9, 0.0), rotation=0.0),
        )
        for played in episodes
    ]
    with store.create_oracle("oracle", key, {"stage": "rollout"}) as sealed:
        write_table(
            sealed.path / "oracle_episodes.parquet",
            [OracleEpisode(episode_id=played.name, success=played.truth) for played in episodes],
            OracleEpisode,
        )
        write_table(
            sealed.path / "oracle_steps.parquet",
            [
                OracleStep(
                    episode_id=played.name,
                    frame_index=index,
                    action_success=index != 1,
                    error_message="" if index != 1 else f"refused <b>{played.name}</b>",
                    goal_holds=False,
                    facts=_facts(played),
                )
                for played in episodes
                for index in range(len(played.actions) + 1)
            ],
            OracleStep,
        )
    oracle: OracleRef = sealed.ref
    recorded = _put(store, "episodes", "e", episodes=(lived, Episode), steps=(steps, Step), frames=(frames, Frame))
    looked_at = [
        SelectedRow(episode_id=played.name, frame_index=index)
        for played in episodes
        for index in {1, len(played.actions)}
    ]
    rehearsal = ("What is open?", "nothing", "rehearsal", frames[0].image)
    first = frames[0].image
    verdict_rows = [
        ("Instruction: open the fridge Was it done?", "yes", "verdict", first),
        ("Instruction: open the drawer Was it done?", "no", "before_relabel", frames[-1].image),
        (f"Is the {HOSTILE} open?", "yes", "question", first),
        rehearsal,
    ]
    action_rows = [("Instruction: open the fridge\nAction?", "Open(Fridge)", "step", first), rehearsal]
    ref = {
        "tasks": _put_tasks(store, "t", drawn),
        "critic_dataset": _dataset(store, "critic", verdict_rows),
        "actor_dataset": _dataset(store, "actor", action_rows),
        "critic_adapter": _adapter(store, "critic"),
        "actor_adapter": _adapter(store, "actor"),
    }
    times = dict(zip(ROUND_STAGES, (71.0, 0.6, 38.0, 29.0, 4.2, 92.0, 68.0, 84.0, 120.0), strict=True))
    return Round(
        run="selu thor seed 0",
        round=1,
        started="2026-01-31T11:30:00.000+00:00",
        finished="2026-01-31T11:40:00.000+00:00",
        settings=chosen,
        stages=tuple(
            StageRecord(
                name=name,
                seconds=0.02 if name in cached else times[name],
                made_in_seconds=times[name],
                cached=name in cached,
                reused=8 if name in cached else 0,
                tasks=8,
                artifacts=(),
            )
            for name in ROUND_STAGES
        ),
        episodes=(recorded,),
        oracle=(oracle,),
        frames=(_put(store, "frames", "f", selected_frames=(looked_at, SelectedRow)),),
        judgements=(_put(store, "judgements", "before", **_said(episodes, "before", "base")),),
        relabels=(_put(store, "relabels", "before", **_relabeled(episodes, "base")),),
        contrasts=(),
        rejudgements=(_put(store, "judgements", "after", **_said(episodes, "after", "improved")),),
        rerelabels=(_put(store, "relabels", "after", **_relabeled(episodes, "improved")),),
        revisions={"actor_before": "base", "critic_after": "base+lora"},
        metrics=(_put(store, "metrics", "m", metrics=(metric_rows() if rows is None else list(rows), MetricRow)),),
        **ref,
    )


class _Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _read(store: Store, finished: Round, folder: Path) -> _Page:
    return _Page(write_report(store, finished, folder).read_text(encoding="utf-8"))


def test_the_headline_and_the_table_say_what_the_round_brought(store: Store, tmp_path: Path) -> None:
    page = _read(store, make_round(store), tmp_path)
    assert "the critic went from 58.3\N{NO-BREAK SPACE}% to 71.2\N{NO-BREAK SPACE}% of verdicts right" in page.text
    assert "the actor went from 18.0\N{NO-BREAK SPACE}% to 31.0\N{NO-BREAK SPACE}% of tasks done" in page.text
    assert "The critic got better in the rooms it practised in (+12.9 points" in page.text
    for shown in (
        "Critic, asked directly, probe A",
        "Critic, by self-asking, probe B",
        "Actor, probe B",
        "+13.0",
        "200",
    ):
        assert shown in page.text
    assert "52.3\u202f% to 64.3\u202f%" in page.text


def test_what_a_model_forgot_stands_in_the_table(store: Store, tmp_path: Path) -> None:
    rows = [
        *metric_rows(),
        _metric("general", "before", "A+B", "critic", "accuracy", 0.8, 0.03),
        _metric("general", "after", "A+B", "critic", "accuracy", 0.65, 0.04),
        _metric("general", "after", "A+B", "critic", "accuracy_gain", -0.15, 0.04),
    ]
    page = _read(store, make_round(store, rows=rows), tmp_path)
    assert "General questions, critic, A+B" in page.text
    assert "\u221215.0" in page.text


def test_a_change_within_its_interval_is_not_called_one(store: Store, tmp_path: Path) -> None:
    rows = [
        row.model_copy(update={"rate": 0.01, "low": -0.05, "high": 0.07}) if row.metric.endswith("_gain") else row
        for row in metric_rows()
    ]
    page = _read(store, make_round(store, rows=rows), tmp_path)
    assert "The actor did not change measurably in the rooms it practised in" in page.text
    assert "got better" not in page.text


def test_right_and_wrong_labels_stand_beside_each_other(store: Store) -> None:
    pairs = {pair.title: pair for pair in gather(store, make_round(store)).pairs}
    shown = {
        title: [[film.episode.episode_id for film in group.films] for group in pair.groups]
        for title, pair in pairs.items()
    }
    assert shown == {
        "“Done”": [["a"], ["b"]],
        "Relabeled in hindsight": [["c"], ["d"]],
        # The episode that has not been shown yet comes first.
        "“Not done”": [["c", "d"], ["e"]],
        "No label": [["f"]],
    }
    assert [group.tone for group in pairs["“Done”"].groups] == ["right", "wrong"]


def test_a_good_start_is_no_relabel_that_was_false(store: Store, tmp_path: Path) -> None:
    told = "put the mug in the sink"
    made = make_round(store, [Played("a", told, ("Approach(Sink)", "Done"), "no", True, False, told, start=True)])
    report = gather(store, made)
    groups = [group.films for pair in report.pairs if pair.title == "Relabeled in hindsight" for group in pair.groups]
    assert groups == [(), ()]
    assert [(one.relabels_wrong, one.starts) for one in report.labels] == [(0, 1), (0, 1)]
    page = _read(store, made, tmp_path)
    assert "good start" in page.text
    assert "✗ false" not in page.text


def test_a_film_strip_carries_actions_questions_and_the_truth_for_the_reader(store: Store, tmp_path: Path) -> None:
    page = _read(store, make_round(store), tmp_path)
    for shown in ("ToggleOn(DeskLamp)", "jump around", "Is the fridge open?", "Hindsight: open the drawer?"):
        assert shown in page.text
    assert "Shown to the reader only" in page.text
    assert "ways of asking disagree about a question" in page.text
    assert len([image for image in page.all("img") if str(image["src"]).startswith("data:image/png")]) > 15


def test_the_page_asks_nothing_of_any_server_and_runs_no_script(store: Store, tmp_path: Path) -> None:
    path = write_report(store, make_round(store), tmp_path)
    page = _Page(path.read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        if tag != "a":
            assert str(attributes.get("src") or "data:").startswith("data:")
            assert "href" not in attributes
    assert "url(" not in path.read_text(encoding="utf-8")
    assert any("default-src 'none'" in str(meta.get("content")) for meta in page.all("meta"))
    assert path.stat().st_size < 6_000_000
    assert [entry.name for entry in path.parent.iterdir()] == ["index.html"]


def test_what_models_wrote_stays_text(store: Store, tmp_path: Path) -> None:
    hostile = Played(
        "a", HOSTILE, (HOSTILE, f"Open({HOSTILE})", "Done"), "yes", True, True, relabel=HOSTILE, question=f"{HOSTILE}?",
        answer=HOSTILE, reason=HOSTILE,
    )  # fmt: skip
    path = write_report(store, make_round(store, [hostile]), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img src=//evil" not in text
    assert "refused <b>" not in text
    page = _Page(text)
    assert page.text.count("<script>alert('x')</script>") >= 6
    assert "<script>" in page.text


def test_a_row_is_shown_as_the_model_saw_it(store: Store, tmp_path: Path) -> None:
    finished = make_round(store)
    page = _read(store, finished, tmp_path)
    assert "row 17: 61 tokens, 2 of them learned" in page.text
    assert "<image> × 36" in page.text
    text = write_report(store, finished, tmp_path).read_text(encoding="utf-8")
    assert f"<mark>yes{markupsafe.escape(HOSTILE)}&lt;/s&gt;</mark>" in text
    assert "lowest at step 120 (0.600), whose adapter was kept" in page.text
    dots = [str(element.get("class")) for element in page.all("circle")]
    assert [kind for kind in dots if "held" in kind] == ["held", "held kept", "held", "held"]
    assert [row.who for row in gather(store, finished).seen] == ["critic"], "an older adapter has no such row"


def test_a_round_without_hindsight_or_any_label_is_still_a_report(store: Store, tmp_path: Path) -> None:
    unsure = [Played(name, "open the fridge", ("Done",), "unsure", False, False) for name in "abcd"]
    finished = make_round(store, unsure, rows=[], hindsight={"enabled": False})
    finished = finished.model_copy(update={"rerelabels": (), "relabels": ()})
    page = _read(store, finished, tmp_path)
    assert "Hindsight relabeling was switched off" in page.text
    assert "This round has no figures of the probe sets" in page.text
    assert page.text.count("No such episode in this round.") == 6
    assert "4 episodes, 3 shown" in page.text


def test_reused_stages_are_marked(store: Store) -> None:
    report = gather(store, make_round(store, cached=("rollout", "evaluation")))
    assert [stage.title for stage in report.stages if stage.cached] == ["Rollout", "Evaluation"]
    assert report.stages[0].bar_seconds == 71.0
    assert len(report.stages) == 9


def test_truth_the_world_cannot_tell_is_called_unknown(store: Store) -> None:
    finished = make_round(store, [Played("a", "make me happy", ("Done",), "yes", True, None)])
    aimless = Task(
        task_id="task-a",
        scene="FloorPlan21",
        kind="user",
        instruction="make me happy",
        setup=Setup(spawn_seed=0, position=(0.0, 0.9, 0.0), rotation=0.0),
    )
    tasks = _put_tasks(store, "user's own", [aimless])
    report = gather(store, finished.model_copy(update={"tasks": tasks}))
    assert [film.truth for pair in report.pairs for group in pair.groups for film in group.films] == [None]


def test_a_long_episode_keeps_its_start_its_end_and_what_the_critic_saw(store: Store) -> None:
    long = Played("a", "open the fridge", ("MoveAhead",) * 60, "no", True, False)
    (film,) = gather(store, make_round(store, [long])).pairs[2].groups[0].films
    shown = [picture.index for picture in film.pictures if not picture.skipped]
    assert {0, 1, 60} <= set(shown)
    assert len(shown) == 14
    assert sum(picture.skipped for picture in film.pictures) == 61 - 14


def test_the_report_tells_what_the_catalog_tells(store: Store) -> None:
    report = gather(store, make_round(store))
    with Catalog(store.root) as catalog:
        accepted = catalog.query("SELECT count(*) FROM relabels WHERE accepted").rows
    counted = sum(one.relabels_right + one.relabels_wrong for one in report.labels)
    assert [(counted,)] == accepted
    after = report.labels[1].confusion
    assert (after.yes_done, after.yes_not, after.no_done, after.no_not, after.none_not) == (1, 1, 1, 2, 1)


def test_the_same_round_gives_the_same_page(store: Store, tmp_path: Path) -> None:
    finished = make_round(store)
    one, two = (write_report(store, finished, tmp_path / name).read_bytes() for name in "ab")
    assert one == two


_THEIRS = {"name": "tests.minigrid_world:MiniGridWorld", "skill_set": "tests.minigrid_world:GRAMMAR"}
_VIRTUALHOME = {"name": "virtualhome", "skill_set": "virtualhome"}


@pytest.mark.parametrize(
    ("world", "claim"),
    [
        ({}, "The rooms have the layouts of AI2-THOR's scenes"),
        (_VIRTUALHOME, "these are not VirtualHome results"),
        ({"commit_id": "x"}, None),
        (_VIRTUALHOME | {"server": "127.0.0.1:8080"}, None),
        (_THEIRS, None),
    ],
)
def test_what_stood_in_for_a_simulator_is_said_of_no_other_world(
    store: Store, tmp_path: Path, world: dict[str, str], claim: str | None
) -> None:
    page = _read(store, make_round(store, world=world, rollout={"players": 1}), tmp_path)
    for sentence in ("The rooms have the layouts of AI2-THOR's scenes", "these are not VirtualHome results"):
        assert (sentence in page.text) == (sentence == claim)
    assert ("Figures belong to the player" in page.text) == (claim is None)


def test_a_lost_artifact_and_a_forbidden_folder_are_said(store: Store, tmp_path: Path) -> None:
    finished = make_round(store)
    (tmp_path / "file").write_text("")
    with pytest.raises(TerminalError, match="selu report"):
        write_report(store, finished, tmp_path / "file")
    (store.path(finished.critic_adapter) / "curves.parquet").unlink()
    with pytest.raises(ArtifactError, match="adapter"):
        write_report(store, finished, tmp_path)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("ways of asking disagree about 'Is the fridge open?'", "ways of asking disagree about a question"),
        ("the critic's own questions cannot be read: 'x'", "the critic's own questions cannot be read"),
        (
            "'Is the box open?' must be a sure 'no' before the action, was 'yes' (0.93)",
            "a question must be a sure 'no' before the action",
        ),
        ("'What is open?' was answered 'fridge, box' (0.71)", "a question was not answered as expected"),
        ("the picture did not change", "the picture did not change"),
    ],
)
def test_reasons_are_counted_by_kind(reason: str, kind: str) -> None:
    assert kind_of_reason(reason) == kind


def test_a_large_picture_is_scaled_down_and_a_broken_one_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    uri = picture_uri(encode_picture(noise))
    assert uri.startswith("data:image/webp")
    assert len(uri) < 100_000
    with pytest.raises(ArtifactError):
        picture_uri(b"no picture")


def test_plots_take_what_is_undefined() -> None:
    undefined = _metric("actor", "after", "A", "selu", "success_rate", float("nan"), float("nan"))
    assert "circle" not in interval_plot(undefined, None)
    assert curve_plot([1, 2], [float("nan"), float("nan")]) == ""
    assert "polyline" in curve_plot([1], [0.0])
    assert "nan" not in curve_plot([1, 2, 3], [2.0, float("nan"), 1.0])


def test_figures_read_as_a_person_says_them() -> None:
    assert points(-0.034) == "\u22123.4"
    assert points(0.0001) == "±0.0"
    assert seconds(200).replace("\u202f", " ") == "3 min 20 s"
    assert seconds(3900).replace("\u202f", " ") == "1 h 05 min"
