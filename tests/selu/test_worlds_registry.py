"""A world of a user's own: named in the settings by where it is imported from, and no line of ours changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from selu.config import TaskSettings, WorldSettings, load_settings
from selu.errors import ConfigError
from selu.rollout import RandomPolicy, roll_out
from selu.worlds import World, make_world
from selu.worlds.actions import Action, Grammar, parse_action
from selu.worlds.tasks import frozen_tasks, generate_tasks, has_probes, probe_set

OWN = WorldSettings(name="tests.minigrid_world:MiniGridWorld", skill_set="tests.minigrid_world:GRAMMAR")
NO_DONE = Grammar(("Fly",), ())


def not_a_world(settings: WorldSettings) -> str:
    return settings.name


@pytest.fixture
def minigrid() -> World:
    pytest.importorskip("minigrid", reason="minigrid comes with the dev extra")
    return make_world(OWN)


def test_a_world_of_ones_own_is_practised_in_by_ones_own_instructions(minigrid: World, tmp_path: Path) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("pick up the ball\nopen the door\n")
    tasks = generate_tasks(TaskSettings(instructions=listed), minigrid, 5, 4)
    made = roll_out(tasks, range(4), RandomPolicy(), [minigrid])
    assert [episode.instruction for episode in made.episodes] == ["pick up the ball", "open the door"] * 2
    assert all(step.well_formed for step in made.steps)
    assert {step.action for step in made.steps} <= {
        "TurnLeft", "TurnRight", "MoveAhead", "PickUp", "Drop", "Toggle", "Done",
    }  # fmt: skip


def test_without_them_it_is_said_what_to_do(minigrid: World) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.instructions"):
        generate_tasks(TaskSettings(), minigrid, 5, 4)


def test_the_actions_of_ones_own_grammar_are_read() -> None:
    pytest.importorskip("minigrid", reason="minigrid comes with the dev extra")
    assert load_settings(None, [f"world.skill_set={OWN.skill_set}"]).world.skill_set == OWN.skill_set
    assert parse_action("Toggle", OWN.skill_set) == Action("Toggle")
    assert parse_action("Toggle", "household") is None
    assert parse_action("Open(Door)", OWN.skill_set) is None


@pytest.mark.parametrize("verb", ["move_forward", "Turn30", "open"])
def test_a_verb_that_could_never_be_read_is_refused(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = f"from selu.worlds.actions import Grammar\nGRAMMAR = Grammar(('Done', {verb!r}), ())\n"
    (tmp_path / "spoken.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spoken", raising=False)
    with pytest.raises(ConfigError, match=f"the verb '{verb}' could never be read"):
        load_settings(None, ["world.skill_set=spoken:GRAMMAR"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no.such.module:World", "no.such.module cannot be found; install .* or name its folder in PYTHONPATH"),
        ("selu.worlds.base:Wrold", "selu.worlds.base has no Wrold"),
        ("selu.worlds.base:PREDICATES", "must be a class or function that takes WorldSettings, got tuple"),
        (f"{__name__}:not_a_world", "must make a selu.worlds.World, got str"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_world(WorldSettings(name=name))


def test_a_module_that_breaks_is_not_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_world.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=r"cannot be imported \(ModuleNotFoundError.*no_such_package.*mend what its code"
    ):
        make_world(WorldSettings(name="broken_world:World"))


def test_a_world_whose_actions_are_others_is_refused(minigrid: World) -> None:
    with pytest.raises(ConfigError, match=r"set world\.skill_set=tests\.minigrid_world:GRAMMAR"):
        make_world(WorldSettings(name=OWN.name))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("world.name=thro", "must be one of thor, virtualhome, or package.module:Name .*; did you mean thor"),
        ("world.skill_set=houshold", "did you mean household"),
        ("world.skill_set=no.such.module:GRAMMAR", "cannot be found"),
        ("world.skill_set=selu.worlds.base:PREDICATES", "must be a selu.worlds.actions.Grammar, got tuple"),
        (f"world.skill_set={__name__}:NO_DONE", "must have Done"),
    ],
)
def test_a_name_that_cannot_work_is_refused_with_the_settings(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_settings(None, [override])


def test_of_a_world_of_ones_own_there_are_no_frozen_probes() -> None:
    assert not has_probes(OWN.name)
    for world in ("thor", "virtualhome"):
        assert has_probes(world)
        assert frozen_tasks(probe_set(world, "a")) != frozen_tasks(probe_set(world, "b"))
