"""Deployments as one file says them, for a worker's pool and for one machine alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from selu.cli.serving import _alone, _flow, _read
from selu.config import Settings, load_settings
from selu.errors import ConfigError

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"


def test_every_deployment_names_a_flow_and_parameters_that_it_takes() -> None:
    found = _read(FILE, Settings())
    assert set(found) == {"nightly", "weekly", "by hand", "retention"}
    for item in found.values():
        flow = _flow(item["entrypoint"])
        assert item["description"]
        validated = flow.validate_parameters(item["parameters"])
        assert isinstance(validated["settings"], Settings)


def test_the_form_in_the_ui_is_made_of_the_settings_own_descriptions() -> None:
    schema = _flow("flows/self_learning.py:self_learning").parameters.model_dump()
    settings = schema["definitions"]["RolloutSettings"]["properties"]
    assert settings["temperature"]["description"] == "the actor's; 0 is greedy"


def test_settings_given_by_hand_lie_below_what_the_file_says(tmp_path: Path) -> None:
    given = load_settings(None, ["rounds=7", "tasks.episodes=80", f"data_dir={tmp_path}"])
    settings = _read(FILE, given)["nightly"]["parameters"]["settings"]
    assert settings["rounds"] == 1, "the file says so"
    assert settings["tasks"]["episodes"] == 80
    assert settings["data_dir"] == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("deployments: 3", "has no list `deployments`"),
        ("deployments: [{name: a}]", "needs a name and an entrypoint"),
        ("deployments: [{name: a, entrypoint: 'flows/none.py:none'}]", "there is no such flow"),
        ("deployments: [{name: a, entrypoint: 'flows/self_learning.py:self_learning', parameters: {settings: {sede: 1}}}]",
         "sede"),
        ("{", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_file_is_said_before_anything_starts(
    tmp_path: Path, content: str, sentence: str
) -> None:
    path = tmp_path / "prefect.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        _read(path, Settings())


def test_nobody_is_scheduled_before_somebody_says_so() -> None:
    for item in yaml.safe_load(FILE.read_text())["deployments"]:
        assert all(schedule["active"] is False for schedule in item.get("schedules", ()))


def test_the_automations_are_such_as_the_server_takes() -> None:
    from prefect.events.schemas.automations import AutomationCore

    given = yaml.safe_load((FILE.parent / "automations.yaml").read_text())["automations"]
    silent, failed = (AutomationCore.model_validate(item) for item in given)
    assert silent.actions[0].type == "change-flow-run-state"
    # Heartbeats come every 30 seconds: three may be missed, and two minutes are the most that a dead run may look alive.
    assert 90 <= silent.trigger.within.total_seconds() < 120
    assert set(given[1]["trigger"]["match_related"]["prefect.resource.name"].split()) <= set(_read(FILE, Settings()))
    assert failed.actions[0].type == "send-notification"


def test_two_do_not_serve_one_data_folder(tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    with _alone(home), pytest.raises(ConfigError, match="another `selu serve` is at work"), _alone(home):
        pass
    with _alone(home):
        pass
    home.mkdir(exist_ok=True)
    (home / "serving").write_text("0-0-0.1.1")  # of a process that nobody knows
    with _alone(home):
        pass
