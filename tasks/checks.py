"""What can be refused is refused before anything is collected."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from selu.rounds import Workspace
from selu.tasks.stages import Model

__all__ = ["check_models"]


@task(name="check", task_run_name="check models", cache_policy=NO_CACHE, persist_result=False)
def check_models(workspace: Workspace, models: Mapping[str, Model]) -> dict[str, str]:
    """Revisions of models by the names given.

    Raises:
        ConfigError: a model is missing or incomplete, its device is not there, or an adapter is for another one.
        TerminalError: the data folder cannot be written.
    """
    from selu.models.transformers_engine import resolve_device

    store = workspace.store()
    for model in models.values():
        resolve_device(model.settings.device)
    return {name: model.revision(store) for name, model in models.items()}
