"""What can be refused is refused before anything is collected."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal

from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from selu.config import ModelSettings, Settings
from selu.errors import ConfigError
from selu.general_probe import general_questions
from selu.rounds import Workspace
from selu.tasks.stages import Model
from selu.worlds.registry import check_server
from selu.worlds.tasks import (
    THREE_STEPS,
    TRAJECTORIES_A_TASK,
    has_probes,
    probe_set,
    probe_size,
    probe_tasks,
    read_instructions,
)

__all__ = ["Need", "check_models", "check_settings", "strangers"]

Need = Literal["practice", "probes", "actor", "critic"]
"""What a command may need of the settings."""


def check_settings(settings: Settings, needs: Collection[Need] = ("practice", "probes", "actor", "critic")) -> None:
    """Refuse what settings and files tell beforehand: of the command's needs, all that are not met, at once.

    Raises:
        ConfigError: a list of instructions is empty or cannot be read, nobody listens at the address of a simulator, a
            probe is larger than what was frozen, or a model, its engine, device or options cannot be had here.
    """
    looks: dict[Need, Callable[[], None]] = {
        "practice": lambda: _check_practice(settings),
        "probes": lambda: _check_probes(settings),
        "actor": lambda: _check_model("actor", settings.actor),
        "critic": lambda: _check_model("critic", settings.critic),
    }
    # Models are looked at last, and not where something else is wrong: their libraries take seconds to load.
    for some in (("practice", "probes"), ("actor", "critic")):
        faults = []
        for need, look in looks.items():
            if need in needs and need in some:
                try:
                    look()
                except ConfigError as error:
                    faults.append(str(error))
        if faults:
            raise ConfigError("\n".join(faults))


def strangers(settings: Settings) -> list[str]:
    """A note where the embedded model is to act or judge in a world that it was not trained in; what it says there is noise."""
    world = settings.world
    if world.name == "thor" and world.embedded:
        return []
    who = [
        name
        for name, model in (("actor", settings.actor), ("critic", settings.critic))
        if model.path == "embedded" and model.adapter is None
    ]
    named = " and ".join(who)
    paths = " ".join(f"{name}.path=FOLDER_OR_ID" for name in who)
    return [
        f"The embedded model is the {named}, and knows neither the words nor the frames of {world.name}: expect no labels of "
        f"worth, or bring a larger one ({paths})."
    ] * bool(who)


def _check_practice(settings: Settings) -> None:
    if settings.tasks.instructions is not None:
        read_instructions(settings.tasks.instructions)
    check_server(settings.world)


def _check_probes(settings: Settings) -> None:
    """Refuse what no frozen set can serve at a round's end."""
    world, sizes = settings.world.name, settings.evaluation
    wanted: list[tuple[str, int, str, int]] = []
    if has_probes(world):
        for probe in ("a", "b"):
            for who, each in (("actor", 1), ("critic", TRAJECTORIES_A_TASK)):
                setting = f"{who}_episodes_{probe}"
                wanted.append((setting, getattr(sizes, setting), probe_set(world, probe), each))
    if world == "thor":
        wanted.append(("three_step_episodes", sizes.three_step_episodes, THREE_STEPS, 1))
    for setting, count, name, each in wanted:
        if count == 0:
            continue
        most = each * probe_size(name)
        if count > most:
            raise ConfigError(f"evaluation.{setting}={count}: the frozen set {name} is enough for {most} at most")
        kinds = ("three_step",) if name == THREE_STEPS else settings.tasks.kinds
        probe_tasks(name, 1, kinds)
    if sizes.general_questions:
        general_questions(sizes.general_questions)


def _check_model(who: str, model: ModelSettings) -> None:
    from selu.models import model_revision
    from selu.models.transformers_engine import resolve_device

    try:
        resolve_device(model.device)
        model_revision(model)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from error


@task(name="check", task_run_name="check models", cache_policy=NO_CACHE, persist_result=False)
def check_models(workspace: Workspace, models: Mapping[str, Model]) -> dict[str, str]:
    """Revisions of models by the names given.

    Raises:
        ConfigError: a model is missing or incomplete, its device is not there, or an adapter is for another one.
            Or the limit that `orchestration.gpu_slot` names is not there.
        TerminalError: the data folder cannot be written.
    """
    from selu.models.transformers_engine import resolve_device

    store = workspace.store()
    for model in models.values():
        resolve_device(model.settings.device)
    if workspace.gpu_slot is not None:
        _check_slot(workspace.gpu_slot)
    return {name: model.revision(store) for name, model in models.items()}


def _check_slot(name: str) -> None:
    if PREFECT_API_URL.value() is None:
        raise ConfigError(
            f"orchestration.gpu_slot={name} wants a Prefect server that all runs share: start one with `selu ui`, or name one "
            "in PREFECT_API_URL."
        )
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            raise ConfigError(
                f"orchestration.gpu_slot={name}: there is no such global concurrency limit on Prefect's server; make it with "
                f"`PREFECT_API_URL={PREFECT_API_URL.value()} prefect gcl create {name} --limit 1`."
            ) from None
