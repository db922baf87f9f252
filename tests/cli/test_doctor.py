"""What `selu doctor` finds, and what it says then."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import selu.cli.doctor
from selu.cli.doctor import Finding, examine, grammar_of
from selu.cli.main import app
from selu.config import Settings, validate_settings
from selu.models import EMBEDDED_MODEL
from selu.worlds import World
from selu.worlds.actions import GRAMMAR
from tests.dummy_world import DummyWorld, small_settings
from tests.local_server import Answering, serving

OWN_WORLD = """
from selu.worlds.actions import Grammar
from tests.dummy_world import DummyWorld

GRAMMAR = Grammar(("MoveAhead", "Done"), ("Open",))
OTHER = Grammar(("MoveAhead", "Done"), ())


class Raises(DummyWorld):
    skill_set = "own_world:GRAMMAR"

    def __init__(self, settings):
        super().__init__()

    def reset(self, **_):
        raise KeyError("rooms")


class Inherits(Raises):
    pass


class NamesNone(DummyWorld):
    pass


def factory(settings):
    return Raises(settings)
"""
MISBEHAVING = f"{sys.executable} {Path(__file__).parents[1] / 'misbehaving_player.py'}"


@pytest.fixture
def settings(tmp_path: Path, small_model: Path) -> Settings:
    return small_settings(tmp_path / "data", small_model)


@pytest.fixture
def old_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home in which a player of an older run has printed something."""
    monkeypatch.setenv("HOME", str(tmp_path))
    log = tmp_path / ".ai2thor/log/unity.log"
    log.parent.mkdir(parents=True)
    log.write_text("of an older run\n")


@pytest.fixture
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module `own_world`, for one test."""
    (tmp_path / "own_world.py").write_text(OWN_WORLD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_world", raising=False)


def _changed(settings: Settings, **sections: Mapping[str, Any]) -> Settings:
    data = settings.model_dump(mode="json")
    return validate_settings({**data, **{name: {**data[name], **changes} for name, changes in sections.items()}})


def _found(settings: Settings) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(settings)}


def _doctor(settings: Settings, tmp_path: Path, *arguments: str) -> Result:
    config = tmp_path / "settings.yaml"
    config.write_text(settings.model_dump_json())
    return CliRunner().invoke(app, ["doctor", "--config", str(config), "--json", *arguments])


# --- the grammar that comes with a world ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "grammar"),
    [
        ("thor", None),
        ("virtualhome", "virtualhome"),
        ("own_world:Raises", "own_world:GRAMMAR"),
        ("own_world:Inherits", "own_world:GRAMMAR"),
        ("own_world:factory", None),
    ],
)
@pytest.mark.usefixtures("own_world")
def test_a_world_brings_the_grammar_that_its_class_names(world: str, grammar: str | None) -> None:
    assert grammar_of(world) == grammar


@pytest.mark.usefixtures("own_world", "dummies")
@pytest.mark.parametrize(
    ("world", "given", "wanted"),
    [
        ("virtualhome", [], "virtualhome"),
        ("own_world:Raises", [], "own_world:GRAMMAR"),
        ("own_world:NamesNone", [], "primitives"),
        ("own_world:Raises", ["world.skill_set=own_world:OTHER"], "own_world:OTHER"),
        ("own_world:Raises", ["world.skill_set =own_world:OTHER"], "own_world:OTHER"),
    ],
)
def test_the_grammar_is_set_unless_the_user_does(
    world: str, given: list[str], wanted: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined: list[Settings] = []
    monkeypatch.setattr(selu.cli.doctor, "examine", lambda settings: examined.append(settings) or ())
    settings = _changed(settings, world={"skill_set": "primitives"})
    assert _doctor(settings, tmp_path, "--world", world, *given).exit_code == 0
    assert (examined[0].world.name, examined[0].world.skill_set) == (world, wanted)


# --- what is wrong is a finding ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_world", "prefect_server")
def test_an_own_world_that_raises_is_a_finding(settings: Settings, tmp_path: Path) -> None:
    done = _doctor(settings, tmp_path, "--world", "own_world:Raises")
    assert done.exit_code == 2
    found = {item["what"]: item for item in json.loads(done.stdout)}["world"]
    assert (found["state"], found["text"]) == ("bad", "KeyError: 'rooms'")
    assert "selu.testing.check_world on own_world:Raises" in found["mend"]


@pytest.mark.usefixtures("dummies")
def test_a_world_that_ends_an_episode_by_itself_is_a_finding(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DummyWorld.step

    def eager(world: DummyWorld, action: str) -> Any:
        frame, reward, terminated, *rest = step(world, action)
        return frame, reward, terminated or action.startswith("Open"), *rest

    monkeypatch.setattr(DummyWorld, "step", eager)
    found = _found(settings)["world"]
    assert found.state == "bad"
    assert "ended an episode at Open" in found.text


def test_an_interruption_is_none(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(selu.cli.doctor, "_world", stop)
    with pytest.raises(KeyboardInterrupt):
        _found(settings)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["world.width=3"], "world.width: must be at least 32, got 3"),
        (["--world", "no.such.module:World"], "cannot be found"),
    ],
)
def test_a_wrong_setting_is_json_too(arguments: list[str], says: str, settings: Settings, tmp_path: Path) -> None:
    done = _doctor(settings, tmp_path, *arguments)
    assert done.exit_code == 2
    [found] = json.loads(done.stdout)
    assert (found["what"], found["state"]) == ("settings", "bad")
    assert says in found["text"]


@pytest.mark.usefixtures("dummies")
def test_a_missing_torch_is_a_finding(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    gpu = _found(settings)["GPU"]
    assert (gpu.state, gpu.mend) == ("bad", "pip install torch")
    assert "torch cannot be imported" in gpu.text


# --- what mends it ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_server", "old_log")
def test_a_wrong_player_is_said_with_what_it_printed(settings: Settings, tmp_path: Path) -> None:
    player = f"{sys.executable} {tmp_path / 'no_player.py'}"
    found = _found(_changed(settings, world={"local_executable_path": player, "restarts": 0}))["world"]
    assert found.state == "bad"
    assert "selu doctor" not in found.text
    assert "did not start (it ended with exit code 2)." in found.text
    assert found.text.endswith("no_player.py': [Errno 2] No such file or directory")
    assert player in found.mend
    assert "world.local_executable_path=" in found.mend


@pytest.mark.usefixtures("prefect_server", "old_log")
def test_what_older_runs_printed_is_not_said(settings: Settings) -> None:
    player = {"local_executable_path": f"{MISBEHAVING} dies_before_its_pipe", "restarts": 0}
    found = _found(_changed(settings, world=player))["world"]
    assert found.text == "The AI2-THOR simulator did not start (it ended with exit code 3)."


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("changes", "what", "mend"),
    [
        (
            {"world": {"server": "127.0.0.1:1", "start_timeout": 0.5}, "rollout": {"players": 1}},
            "world",
            "listens at 127.0.0.1:1, or world.server= ",
        ),
        ({"world": {"start_timeout": 0.001}}, "world", "pip install --no-deps virtualhome"),
        ({"actor": {"path": "no/model"}}, "actor's model", "actor.path=embedded"),
        ({"critic": {"path": "no/model"}}, "critic's model", "critic.path=embedded"),
        ({"actor": {"path": "no/m"}, "critic": {"path": "no/m"}}, "model of actor and critic", "critic.path=embedded"),
    ],
)
def test_what_fails_says_what_mends_it(
    changes: dict[str, dict[str, Any]], what: str, mend: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    if "world" in changes:
        changes = {**changes, "world": {"name": "virtualhome", "skill_set": "virtualhome", **changes["world"]}}
    else:
        monkeypatch.setattr(selu.cli.doctor, "_world", lambda *_: "not looked at")
    found = _found(_changed(settings, **changes))[what]
    assert found.state == "bad"
    assert mend in found.mend


@pytest.mark.usefixtures("readme_world")
def test_a_world_of_ones_own_may_have_few_colours_and_hears_nothing_of_ithor(settings: Settings) -> None:
    own = {"name": "corridor:Corridor", "skill_set": "corridor:GRAMMAR"}
    found = _found(_changed(settings, world=own, actor={"path": "embedded"}, critic={"path": "embedded"}))
    assert (found["world"].state, found["model of actor and critic"].state) == ("ok", "note")
    assert "with up to 2 colours" in found["world"].text
    assert "world.skill_set=corridor:GRAMMAR and tasks.instructions=FILE" in found["world"].text
    assert "knows nothing of this world" in found["model of actor and critic"].text


def test_a_copy_of_the_embedded_model_wants_its_prompts(settings: Settings, tmp_path: Path) -> None:
    copy = {"path": str(shutil.copytree(EMBEDDED_MODEL, tmp_path / "copy"))}
    for prompts, state in (("auto", "note"), ("brief", "ok")):
        told = {**copy, "prompts": prompts}
        found = _found(_changed(settings, actor=told, critic=told))["model of actor and critic"]
        assert found.state == state
    found = _found(_changed(settings, actor={**copy, "prompts": "auto"}, critic={**copy, "prompts": "auto"}))
    assert found["model of actor and critic"].mend == "actor.prompts=brief critic.prompts=brief"


def test_one_simulator_is_tried_with_one_player(settings: Settings, tmp_path: Path) -> None:
    done = _doctor(settings, tmp_path, "--world", "virtualhome", "world.server=127.0.0.1:1", "world.start_timeout=0.5")
    found = {item["what"]: item for item in json.loads(done.stdout)}
    assert "set rollout.players=1" not in done.output
    assert "127.0.0.1:1: nothing listens there" in found["world"]["text"]


# --- the looks --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_server")
def test_a_player_that_stalls_on_one_action_alone_is_found(settings: Settings) -> None:
    player = f"{MISBEHAVING} stalls --at ThrowObject"
    found = _found(_changed(settings, world={"local_executable_path": player, "step_timeout": 2.0, "restarts": 0}))
    assert found["world"].state == "bad"
    assert "lost in ThrowObject: it did not answer within 2 s" in found["world"].text


@pytest.mark.usefixtures("dummies")
def test_every_verb_is_played_once_on_what_is_in_view(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    acted: list[str] = []
    step = DummyWorld.step
    objects = [{"objectId": name, "objectType": name} for name in ("Teapot", "Hidden")]

    def noted(self: World, action: str) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        acted.append(action)
        return step(self, action)

    monkeypatch.setattr(DummyWorld, "step", noted)
    monkeypatch.setattr(DummyWorld, "candidates", lambda _: {"metadata": {"objects": objects}, "areas": {"Teapot": 9}})
    assert _found(settings)["world"].state == "ok"
    alone = [text for text in acted if "(" not in text]
    assert sorted(alone) == sorted(GRAMMAR.verbs_alone)
    assert acted[len(alone) :] == [f"{verb}(Teapot)" for verb in GRAMMAR.verbs_with_object]


@pytest.mark.usefixtures("dummies")
@pytest.mark.parametrize(
    ("script", "state", "says"),
    [
        ('test "$*" = --summary', "ok", "vulkaninfo"),
        ("echo '  deviceName = Some GPU'", "ok", "Some GPU"),
        ("echo no driver >&2; exit 1", "bad", "it said: no driver"),
        ("echo ERROR_INCOMPATIBLE_DRIVER; exit 1", "bad", "ERROR_INCOMPATIBLE_DRIVER"),
        ("exec sleep 60", "bad", "timed out after 0.5 seconds"),
    ],
)
def test_vulkan_is_judged_by_how_vulkaninfo_ends(
    script: str, state: str, says: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vulkaninfo"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(selu.cli.doctor, "_VULKAN_SECONDS", 0.5)
    found = _found(_changed(settings, world={"platform": "CloudRendering"}))["Vulkan"]
    assert found.state == state
    assert says in found.text
    assert bool(found.mend) == (state == "bad")


# --- a model behind a server ------------------------------------------------------------------------------------------


class _Server(Answering):
    """Says yes."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        words = [{"token": word, "logprob": -0.7} for word in ("yes", "no")]
        content = [{**words[0], "top_logprobs": words}]
        choice = {"message": {"content": "yes"}, "logprobs": {"content": content}}
        self.answer(200, json.dumps({"choices": [choice]}).encode())


def test_a_model_behind_a_server_is_said_with_its_address(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selu.cli.doctor, "_world", lambda *_: "not looked at")
    model = {"engine": "openai", "path": "some-model", "retries": 0}
    off = {"enabled": False}
    with serving(_Server) as url:
        model["base_url"] = url
        served = _changed(settings, actor=model, critic=model, actor_finetuning=off, critic_finetuning=off)
        found = _found(served)["model of actor and critic"]
    assert found.state == "ok", found.text
    assert f" at {url}: " in found.text
    assert "float32" not in found.text
    lost = _found(served)["model of actor and critic"]
    assert lost.state == "bad"
    assert url in lost.mend
    assert "critic.base_url=ADDRESS" in lost.mend
