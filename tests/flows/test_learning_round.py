"""A whole small round: what it leaves, what it does again, and where it goes on after a failure."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from numpy.typing import NDArray

import selu.models
from selu.catalog import Catalog
from selu.config import ModelSettings, Settings
from selu.datasets import FEATURES, Lineage
from selu.errors import ConfigError, TerminalError, WorldError
from selu.flows.learning_round import learning_round
from selu.flows.self_learning import self_learning
from selu.frames import decode_picture, encode_picture
from selu.models.base import Prompt, Reply
from selu.records import Frame
from selu.reporting import report_path
from selu.reporting.content import gather
from selu.rounds import (
    ROUND_STAGES,
    Round,
    Workspace,
    latest_round,
    round_line,
    round_metrics,
    run_summary,
    summary,
)
from selu.store import read_table
from tests.dummy_world import SeeingModel, small_settings

pytestmark = pytest.mark.usefixtures("dummies")


@pytest.fixture(scope="module")
def finished_once(
    prefect_server: None, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Round]:
    """A round that the tests of this module may copy and build on."""
    from tests.dummy_world import install

    settings = small_settings(tmp_path_factory.mktemp("round"), small_model)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        return settings, learning_round(settings)


@pytest.fixture
def again(finished_once: tuple[Settings, Round], tmp_path: Path) -> tuple[Settings, Round]:
    """The same, in a folder of the test's own."""
    settings, made = finished_once
    shutil.copytree(settings.data_dir, tmp_path / "data")
    return settings.model_copy(update={"data_dir": tmp_path / "data"}), made


def _digests(made: Round) -> dict[str, object]:
    return {
        "episodes": made.episodes,
        "critic_dataset": made.critic_dataset,
        "actor_dataset": made.actor_dataset,
        "critic_adapter": made.critic_adapter,
        "actor_adapter": made.actor_adapter,
        "metrics": made.metrics,
    }


def test_a_round_runs_nine_stages_and_makes_both_models_better(finished_once: tuple[Settings, Round]) -> None:
    settings, made = finished_once
    assert [stage.name for stage in made.stages] == list(ROUND_STAGES)
    assert made.cached == []
    figures = summary(Workspace.of(settings).store(), made)
    assert figures["critic"]["before"]["rate"] == 0.5
    assert figures["critic"]["after"] == {"rate": 1.0, "n": 8, "ci95": [None, None]}
    assert figures["actor"]["before"]["rate"] == 0.0
    assert figures["actor"]["after"]["rate"] == 1.0
    assert figures["actor"]["gain"]["rate"] == 1.0
    assert figures["labels"]["false_rate"] == 0.0
    assert figures["labels"]["coverage"] > 0.5
    assert figures["labels"]["labelled"] >= figures["labels"]["coverage"]
    # Contrasts too: more labels than those that say done.
    assert figures["labels"]["before"]["critic_labels"]["rate"] == 0.0
    assert figures["labels"]["before"]["critic_labels"]["n"] > 12
    for who in ("actor", "critic"):
        assert {phase: figures["general"][who][phase]["n"] for phase in ("before", "after", "gain")} == {
            "before": 20,
            "after": 20,
            "gain": 20,
        }
    assert set(figures["seconds"]) == set(ROUND_STAGES)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_the_catalog_knows_what_the_round_made(finished_once: tuple[Settings, Round]) -> None:
    settings, _ = finished_once
    with Catalog(Workspace.of(settings).store_root) as catalog:
        counted = {
            name: catalog.query(f"SELECT count(*) FROM {name}").rows[0][0]
            for name in ("verdicts", "relabels", "critic_rows", "actor_rows", "curves", "metrics", "oracle_episodes")
        }
        learning = catalog.query("SELECT count(*) FROM episodes WHERE policy NOT IN ('planner', 'random')").rows
    assert all(counted.values()), counted
    assert learning[0][0] >= 12


def test_a_second_run_finds_every_stage_in_the_store(again: tuple[Settings, Round]) -> None:
    settings, first = again
    second = learning_round(settings)
    assert second.cached == list(ROUND_STAGES)
    assert _digests(second) == _digests(first)
    assert latest_round(Workspace.of(settings).store()).finished == second.finished


def test_two_runs_from_nothing_make_the_same_bytes(
    finished_once: tuple[Settings, Round], small_model: Path, tmp_path: Path
) -> None:
    made = learning_round(small_settings(tmp_path, small_model))
    assert _digests(made) == _digests(finished_once[1])


def test_a_failed_stage_is_gone_on_from(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import selu.finetuning

    settings = small_settings(tmp_path, small_model)

    def fail(*args: object, **kwargs: object) -> None:
        raise TerminalError("the power went off")

    with monkeypatch.context() as broken:
        broken.setattr(selu.finetuning, "finetune", fail)
        with pytest.raises(TerminalError, match="the power went off"):
            learning_round(settings)
    made = learning_round(settings)
    assert made.cached == ["rollout", "frames", "self_asking", "hindsight", "critic_dataset"]


def test_where_nothing_is_accepted_a_model_keeps_what_it_knows(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import selu.datasets

    rows = selu.datasets.actor_rows
    monkeypatch.setattr(selu.datasets, "actor_rows", lambda *args, **kwargs: rows(*args, **kwargs).select([]))
    settings = small_settings(tmp_path, small_model)
    made = learning_round(settings)
    assert made.actor_dataset is made.actor_candidate is made.actor_adapter is None
    assert made.critic_adapter is not None
    figures = summary(Workspace.of(settings).store(), made)
    assert figures["actor"]["after"]["rate"] == figures["actor"]["before"]["rate"]
    assert report_path(made, Workspace.of(settings).reports).exists()


def test_a_dead_simulator_is_tried_again(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import selu.tasks.rollout
    from tests.dummy_world import DummyWorld

    deaths = []
    step = DummyWorld.step

    def die_once(world: DummyWorld, action: str) -> object:
        if not deaths:
            deaths.append(action)
            raise WorldError("the player is gone")
        return step(world, action)

    monkeypatch.setattr(DummyWorld, "step", die_once)
    monkeypatch.setattr(selu.tasks.rollout.roll_out_shard, "retry_delay_seconds", [0.0, 0.0])
    made = learning_round(small_settings(tmp_path, small_model))
    assert deaths
    assert len(made.episodes) == 3


@pytest.mark.parametrize(
    ("changes", "reused"),
    [
        ({"hindsight": {"confidence": 0.8}}, ["rollout", "frames", "self_asking"]),
        ({"actor_finetuning": {"max_steps": 3}}, list(ROUND_STAGES[:7])),
        ({"critic": {"batch_size": 7}, "world": {"step_timeout": 9.0}, "report_to": []}, list(ROUND_STAGES)),
        ({"evaluation": {"bootstrap": 200}}, list(ROUND_STAGES[:8])),
    ],
)
def test_a_changed_setting_runs_again_what_hangs_on_it(
    again: tuple[Settings, Round], changes: dict[str, object], reused: list[str]
) -> None:
    settings, _ = again
    data = settings.model_dump(mode="json")
    for name, change in changes.items():
        data[name] = {**data[name], **change} if isinstance(change, dict) else change
    made = learning_round(Settings.model_validate(data))
    assert made.cached[: len(reused)] == reused
    following = ROUND_STAGES[len(reused)] if len(reused) < len(ROUND_STAGES) else None
    assert following not in made.cached


@pytest.mark.parametrize("part", ["episodes", "oracle"])
def test_a_lost_half_of_a_recording_is_made_again(part: str, again: tuple[Settings, Round]) -> None:
    settings, first = again
    shutil.rmtree(Workspace.of(settings).store().path(getattr(first, part)[1]))
    made = learning_round(settings)
    assert made.stage("rollout").reused == made.stage("rollout").tasks - 1
    assert (made.episodes, made.oracle) == (first.episodes, first.oracle)


def test_floor_and_ceiling_play_the_actors_tasks(finished_once: tuple[Settings, Round]) -> None:
    settings, made = finished_once
    rates = {
        row.method: (row.rate, row.n)
        for row in round_metrics(Workspace.of(settings).store(), made)
        if (row.subject, row.phase, row.probe, row.metric) == ("actor", "before", "A", "success_rate")
    }
    # Eight tasks are the actor's; half as many as the critic's trajectories are the scripted policies'.
    assert rates["selu"][1] == 8
    assert rates["planner"] == (1.0, 4)
    assert rates["random"][1] == 4


def test_a_lost_shard_is_made_again_and_nothing_else(again: tuple[Settings, Round]) -> None:
    settings, first = again
    store = Workspace.of(settings).store()
    shutil.rmtree(store.path(first.episodes[1]))
    made = learning_round(settings)
    assert made.stage("rollout").reused == made.stage("rollout").tasks - 1
    assert made.cached == list(ROUND_STAGES[1:])
    assert made.episodes == first.episodes


def test_an_altered_artifact_is_made_again_before_anybody_reads_it(again: tuple[Settings, Round]) -> None:
    settings, first = again
    store = Workspace.of(settings).store()
    shutil.rmtree(store.path(first.actor_adapter))
    rows = store.path(first.actor_dataset) / "data" / "actor-train.parquet"
    content = bytearray(rows.read_bytes())
    content[len(content) // 2] ^= 1
    rows.write_bytes(content)
    made = learning_round(settings)
    assert _digests(made) == _digests(first)
    assert made.cached == [name for name in ROUND_STAGES if name not in ("rejudging", "actor_finetuning")]
    assert len(list((store.root / "quarantine").iterdir())) == 1
    store.verify(made.actor_dataset)


def test_the_second_round_starts_where_the_first_ended(again: tuple[Settings, Round]) -> None:
    settings, first = again
    rounds = self_learning(settings.model_copy(update={"rounds": 2}))
    assert rounds[0].cached == list(ROUND_STAGES)
    assert rounds[1].revisions["actor_before"] == first.revisions["actor_after"]
    assert rounds[1].revisions["actor_after"] != rounds[1].revisions["actor_before"]
    figures = summary(Workspace.of(settings).store(), rounds[1])
    assert figures["actor"]["before"]["rate"] == 1.0


def test_several_rounds_are_told_together(again: tuple[Settings, Round]) -> None:
    settings, _ = again
    rounds = self_learning(settings.model_copy(update={"rounds": 2}))
    store = Workspace.of(settings).store()
    assert [[(report.who, report.passed) for report in made.guards] for made in rounds] == [
        [("critic", True), ("actor", True)]
    ] * 2
    figures = run_summary(store, rounds[-1])
    assert figures["rounds"] == [summary(store, made) for made in rounds]
    assert {name: figures[name] for name in figures["rounds"][-1]} == figures["rounds"][-1]
    # The second round gained nothing more, and from the base to it is what the first one gained.
    assert figures["critic"]["gain"]["rate"] == 0.0
    assert figures["gain_from_base"]["critic"] == {"rate": 0.5, "n": 8, "ci95": [None, None]}
    assert figures["gain_from_base"]["actor"] == {"rate": 1.0, "n": 8, "ci95": [None, None]}
    assert figures["gain_from_base"]["actor_probe_b"]["n"] == 4
    told = gather(store, rounds[-1]).sentences
    assert told[0].startswith("Over all 2 rounds, beside the base model: critic +50.0 points on probe A; critic ")
    assert "Over all" not in " ".join(gather(store, rounds[0]).sentences)
    assert "were false (95 % interval 0.0 to " in " ".join(told)
    assert figures["stopped"] is None
    assert round_line(figures["rounds"][0]).startswith(
        "Round 1: critic A 50.0 -> 100.0, B 50.0 -> 100.0; actor A 0.0 ->"
    )
    page = report_path(rounds[-1], Workspace.of(settings).reports).read_text()
    assert "Over the rounds" in page
    assert page.count('<svg class="curve trend"') == 3 + sum(
        signal.after is not None for report in rounds[0].guards for signal in report.signals
    )


class BrokenModel(SeeingModel):
    """Whatever it is taught, it says yes to everything and turns on the spot ever after."""

    def generate(self, prompts: Sequence[Prompt], **given: Any) -> list[Reply]:
        replies = super().generate(prompts, **given)
        return [
            Reply("RotateLeft", -0.01) if prompt.text.endswith("Action?") else reply
            for prompt, reply in zip(prompts, replies, strict=True)
        ]

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        return np.log([[0.97 if choice == "yes" else 0.03 for choice in choices] for _ in prompts])


def test_what_guards_refuse_is_not_taken_into_use_and_two_such_rounds_end_it(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = selu.models.load_model

    def broken(settings: ModelSettings, adapter: Path | None = None) -> SeeingModel:
        model = load(settings, adapter)
        return BrokenModel(model.revision) if adapter is not None else model

    monkeypatch.setattr(selu.models, "load_model", broken)
    settings = small_settings(tmp_path, small_model, rounds=4)
    rounds = self_learning(settings)
    store = Workspace.of(settings).store()
    assert len(rounds) == 2
    for made in rounds:
        assert [report.passed for report in made.guards] == [False, False]
        assert made.critic_adapter is None
        assert made.actor_adapter is None
        assert made.critic_candidate is not None
        assert made.actor_candidate is not None
        # What trains the actor was judged by the critic from before.
        assert made.rejudgements == made.judgements
        assert made.revisions["critic_after"] == made.revisions["critic_before"]
    assert rounds[1].revisions["actor_before"] == rounds[0].revisions["actor_before"]
    figures = run_summary(store, rounds[-1])
    assert figures["stopped"] == (
        "Self-learning stopped after round 2 of 4: no new adapter was taken into use in 2 rounds in a row (guard.stop=2)."
    )
    # The candidates were evaluated, and the oracle finds them no better.
    critic, actor = figures["guards"]
    assert critic["gain"]["rate"] == 0.0
    assert actor["gain"]["rate"] == 0.0
    assert critic["right"] is actor["right"] is True
    assert figures["critic"]["gain"]["rate"] == 0.0
    page = report_path(rounds[-1], Workspace.of(settings).reports).read_text()
    assert figures["stopped"] in page
    assert "The guard was" in page
    assert "The new critic was refused" in page
    assert "The improved critic" not in page
    # Left alone, what is broken is taken into use.
    unguarded = learning_round(small_settings(tmp_path, small_model, guard={"enabled": False}))
    assert unguarded.guards == ()
    assert unguarded.critic_adapter == rounds[0].critic_candidate


def test_pictures_of_the_corpus_are_judged_once_and_teach_the_critic_of_every_round(
    again: tuple[Settings, Round],
) -> None:
    settings, made = again
    store = Workspace.of(settings).store()
    frames = [row for ref in made.episodes for row in read_table(store.path(ref) / "frames.parquet", Frame)]
    pictures = [decode_picture(frame.image).copy() for frame in frames]
    for picture in pictures:
        picture[0, 0] = 7  # the same rooms, but no picture of practice
    corpus = datasets.Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "What is open?"}]] * len(frames),
            "completion": [[{"role": "assistant", "content": "nothing"}]] * len(frames),
            "images": [[{"bytes": encode_picture(picture), "path": None}] for picture in pictures],
        },
        features=datasets.Features({name: FEATURES[name] for name in ("prompt", "completion", "images")}),
    )
    corpus.to_parquet(settings.data_dir / "corpus.parquet")
    data = settings.model_dump(mode="json")
    data["dataset"] |= {"corpus_pictures": 60, "corpus": str(settings.data_dir / "corpus.parquet")}
    # In this world a critic finds nothing to say "no" to on a picture that it has no instruction for.
    data["dataset"]["negatives_per_positive"] = 0.0
    wider = Settings.model_validate(data)
    # Also in a run whose first round had none.
    for first in (learning_round(wider), learning_round(wider, 2, made)):
        second = learning_round(wider, first.round + 1, first)
        assert len(first.corpus_judgements) > 1  # shards
        assert first.corpus_pictures is not None
        assert (second.corpus_pictures, second.corpus_judgements) == (first.corpus_pictures, first.corpus_judgements)
        for item in (first, second):
            assert item.critic_dataset is not None
            rows = read_table(store.path(item.critic_dataset) / "critic_rows.parquet", Lineage)
            assert {row.scene for row in rows if row.source == "corpus"} == {""}
    first = learning_round(wider)
    assert first.cached == list(ROUND_STAGES)
    # What was played is what was played without them, and so are its labels.
    assert (first.episodes, first.judgements, first.contrasts) == (made.episodes, made.judgements, made.contrasts)
    assert (made.corpus_pictures, made.corpus_judgements) == (None, ())
    assert summary(store, first)["labels"]["before"] == summary(store, made)["labels"]["before"]


def test_more_probe_tasks_than_there_are_is_said(again: tuple[Settings, Round]) -> None:
    settings, _ = again
    data = settings.model_dump(mode="json")
    data["evaluation"]["actor_episodes_b"] = 17
    with pytest.raises(ConfigError, match="actor_episodes_b=17: the frozen set probe_b is enough for 16 at most"):
        learning_round(Settings.model_validate(data))


def test_without_general_questions_there_are_no_figures_of_them(again: tuple[Settings, Round]) -> None:
    settings, _ = again
    data = settings.model_dump(mode="json")
    data["evaluation"]["general_questions"] = 0
    made = learning_round(Settings.model_validate(data))
    store = Workspace.of(settings).store()
    assert not [row for row in round_metrics(store, made) if row.subject == "general"]
    nothing = {"before": None, "after": None, "gain": None}
    assert summary(store, made)["general"] == {"actor": nothing, "critic": nothing}


def test_a_model_folder_without_a_processor_is_refused_before_anything_is_collected(
    small_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (model / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="lacks a processor"):
        learning_round(small_settings(tmp_path / "data", model))
    assert not list(Workspace.of(small_settings(tmp_path / "data", model)).store().all())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_without_permission_is_said(small_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(TerminalError, match="no permission"):
        learning_round(small_settings(folder / "data", small_model))


def test_runs_have_speaking_names_and_tags(finished_once: tuple[Settings, Round]) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        flow_runs = client.read_flow_runs(limit=200)
        task_runs = client.read_task_runs(limit=200)
    assert "selu thor seed 0 round 1" in {run.name for run in flow_runs}
    names = {run.name for run in task_runs}
    assert {"rollout 1/3", "hindsight 3/3", "critic dataset"} <= names
    tagged = next(run for run in task_runs if run.name == "rollout 1/3")
    assert {"method: selu", "world: thor", "seed: 0", "round: 1"} <= set(tagged.tags)
