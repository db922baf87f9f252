"""What can be refused is refused before anything is collected."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from selu.errors import ConfigError
from selu.rounds import Workspace
from selu.tasks.stages import Model

__all__ = ["check_models"]


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
