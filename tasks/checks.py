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


_BEFORE_MODELS: tuple[Need, ...] = ("practice", "probes")
"""What is looked at first, as the libraries of models take seconds to load."""
_MODELS: tuple[Need, ...] = ("actor", "critic")


def check_settings(settings: Settings, needs: Collection[Need] | None = None) -> None:
    """Refuse what settings and files tell beforehand, all that is wrong at once; models are looked at if nothing else is.

    `needs` is what a command has of a round; None: all of it.

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
    for some in (_BEFORE_MODELS, _MODELS):
        faults = [fault for need in some if needs is None or need in needs for fault in _faults(looks[need])]
        if faults:
            raise ConfigError("\n".join(faults))


def _faults(look: Callable[[], None]) -> list[str]:
    try:
        look()
    except ConfigError as error:
        return [str(error)]
    return []


def strangers(settings: Settings) -> str | None:
    """A note where the embedded model is to act or judge in a world that it was not trained in; what it says there is noise."""
    models = {"actor": settings.actor, "critic": settings.critic}
    who = [name for name, model in models.items() if model.is_stranger_to(settings.world)]
    if not who:
        return None
    paths = " ".join(f"{name}.path=FOLDER_OR_ID" for name in who)
    return (
        f"The embedded model is the {' and '.join(who)}, and knows neither the words nor the frames of {settings.world.name}: "
        f"expect no labels of worth, or bring a larger one ({paths})."
    )


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
        if count < each:
            raise ConfigError(f"evaluation.{setting}={count}: a balanced set needs at least {each}; 0 leaves it out")
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
