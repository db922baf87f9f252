"""What a store keeps, what may go, and what is made again on demand."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selu import processes
from selu.cli.main import app
from selu.config import Settings
from selu.flows.crashes import longest_at_work
from selu.flows.learning_round import learning_round
from selu.housekeeping import altered, forget_from, prunable, reference, survey
from selu.rounds import Round, Workspace, finished_rounds
from selu.store import Store
from tests.dummy_world import small_settings

pytestmark = pytest.mark.usefixtures("dummies")


@pytest.fixture(scope="module")
def made_once(
    prefect_server: None, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, list[Round]]:
    """A run that is not to be kept, and one of another seed that is."""
    from tests.dummy_world import install

    settings = small_settings(tmp_path_factory.mktemp("kept"), small_model)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        seeds = (settings.seed + 1, settings.seed)
        return settings, [learning_round(settings.model_copy(update={"seed": seed})) for seed in seeds]


@pytest.fixture
def two_runs(made_once: tuple[Settings, list[Round]], tmp_path: Path) -> tuple[Settings, Store, list[Round]]:
    """The same in a folder of the test's own."""
    settings, rounds = made_once
    # Without the notes of runs: their process, which is this one, lives on.
    shutil.copytree(settings.data_dir, tmp_path / "data", ignore=shutil.ignore_patterns("running"))
    settings = settings.model_copy(update={"data_dir": tmp_path / "data"})
    return settings, Workspace.of(settings).store(), rounds


def test_what_a_kept_round_needs_stays_and_the_rest_may_go(two_runs: tuple[Settings, Store, list[Round]]) -> None:
    settings, store, (other, kept) = two_runs
    assert prunable(store, [other, kept], timedelta(0)) == []
    doomed = prunable(store, [kept], timedelta(0))
    assert {"adapter", "episodes", "oracle", "round"} <= {manifest.kind for manifest in doomed}
    assert prunable(store, [kept], timedelta(hours=1)) == [], "a run that is still at work has no record yet"
    before = sum(item.count for item in survey(store))
    for manifest in doomed:
        store.remove(reference(manifest))
    assert sum(item.count for item in survey(store)) == before - len(doomed)
    assert [item.run for item in finished_rounds(store)] == [kept.run]
    assert all(stage.cached for stage in learning_round(settings).stages)
    again = learning_round(other.settings.model_copy(update={"data_dir": settings.data_dir}))
    assert again.actor_adapter == other.actor_adapter, "what was pruned is made again, to the same bytes"


def test_what_a_run_has_found_counts_as_just_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.create("frames", "0" * 32, {"stage": "frames"}) as draft:
        (draft.path / "a").write_bytes(b"1")
    long_ago = time.time() - 7 * 24 * 3600
    os.utime(store.path(draft.ref), (long_ago, long_ago))
    assert [item.key for item in prunable(store, [], timedelta(days=2))] == [draft.ref.key]
    assert store.find("frames", "0" * 32) == draft.ref
    assert prunable(store, [], timedelta(days=2)) == []
    store.verify(draft.ref)


def test_whatever_a_run_at_work_has_used_is_spared(tmp_path: Path) -> None:
    note = tmp_path / "running" / str(uuid.uuid4())
    note.parent.mkdir()
    assert longest_at_work(tmp_path) == timedelta()
    note.write_text(processes.own_name())
    began = time.time() - 3 * 24 * 3600
    os.utime(note, (began, began))
    assert timedelta(days=3) <= longest_at_work(tmp_path) < timedelta(days=3, minutes=5)


def test_from_a_stage_on_everything_is_made_again(two_runs: tuple[Settings, Store, list[Round]]) -> None:
    settings, store, (_, finished) = two_runs
    assert forget_from(store, finished, "critic_finetuning") > 0
    again = learning_round(settings)
    made = [stage.name for stage in again.stages if not stage.cached]
    assert made == ["critic_finetuning", "rejudging", "actor_finetuning", "evaluation"]
    assert (again.critic_adapter, again.actor_adapter) == (finished.critic_adapter, finished.actor_adapter)


def test_a_flipped_byte_is_found(two_runs: tuple[Settings, Store, list[Round]]) -> None:
    _, store, (_, finished) = two_runs
    assert not any(said for _, said in altered(store))
    file = store.path(finished.episodes[0]) / "steps.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    ((ref, said),) = [(ref, said) for ref, said in altered(store) if said]
    assert ref == finished.episodes[0]
    assert "steps.parquet is altered" in said
    file.write_bytes(content[:-10])
    assert [ref.key for ref, said in altered(store) if said] == [finished.episodes[0].key], "cut short"


def test_a_round_that_cannot_be_read_here_is_kept(
    two_runs: tuple[Settings, Store, list[Round]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store, (other, kept) = two_runs
    monkeypatch.setattr("selu.housekeeping.finished_rounds", lambda store: [kept])
    assert prunable(store, [kept], timedelta(0)) == [], f"{other.run} is of another version"


def test_the_command_lists_verifies_and_prunes(two_runs: tuple[Settings, Store, list[Round]], tmp_path: Path) -> None:
    settings, store, (_, kept) = two_runs
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps(settings.model_dump(mode="json")))

    def selu(*words: str) -> str:
        done = CliRunner().invoke(app, ["artifacts", *words, "--config", str(config)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "episodes" in selu("list")
    assert "0 of them altered" in selu("verify")
    told = selu("prune", "--keep", "1", "--hours", "0")
    assert "would be deleted" in told
    assert len(finished_rounds(store)) == 2
    assert "deleted; 1 rounds are kept" in selu("prune", "--keep", "1", "--hours", "0", "--yes")
    assert [item.run for item in finished_rounds(store)] == [kept.run]
    refused = CliRunner().invoke(app, ["rerun", "--config", str(config), "--from", "training"])
    assert refused.exit_code == 2
    assert "expected one of rollout, frames" in refused.output.replace("\n", " ")
