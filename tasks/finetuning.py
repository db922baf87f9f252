"""Steps 6 and 8: a dataset version becomes a LoRA adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from selu.checkpoints import checkpoint_folder, remove_checkpoints
from selu.config import FinetuningSettings
from selu.rounds import Workspace
from selu.store import ArtifactRef, Json
from selu.tasks.datasets import read_dataset
from selu.tasks.progress import Meter
from selu.tasks.stages import ENGINE, Made, Model, Shard, Stage, device_type_of, key_of, make, stage_task

__all__ = ["finetune_model"]

FINETUNING = Stage(
    name="finetuning",
    version=5,
    modules=(
        "selu.finetuning",
        "selu.examples",
        "selu.seen_rows",
        *ENGINE,
    ),
    on_gpu=True,
)


@stage_task(FINETUNING)
def finetune_model(
    workspace: Workspace,
    shard: Shard,
    who: Literal["actor", "critic"],
    dataset: ArtifactRef,
    model: Model,
    finetuning: FinetuningSettings,
    report_to: Sequence[str],
    run_folder: str,
    seed: int,
) -> Made:
    """Fine-tune a model on a dataset version, going on from its adapter if it has one, and from its last checkpoint if it
    was stopped."""
    store = workspace.store()
    without_effect = {"enabled", "checkpoint_steps"}
    if finetuning.validation == 0:
        without_effect |= {"validate_every", "patience"}
    config: dict[str, Json] = {
        "finetuning": finetuning.model_dump(mode="json", exclude=without_effect),
        "dtype": model.settings.dtype,
        "device": device_type_of(model.settings),
        "who": who,
        "seed": seed,
    }

    with contextlib.ExitStack() as until_it_is_stored:

        def compute(path: Path, report: Meter) -> None:
            from selu.finetuning import finetune

            key = key_of(workspace, FINETUNING, shard, config=config, inputs=[dataset], models=[model])
            finetune(
                model.settings,
                read_dataset(store, dataset, who),
                finetuning,
                seed=seed,
                out=path,
                log_dir=workspace.tensorboard / run_folder / str(shard).replace(" ", "-"),
                report_to=report_to,
                adapter=model.adapter_path(store) or model.settings.adapter,
                checkpoints=until_it_is_stored.enter_context(checkpoint_folder(workspace.checkpoints, key)),
                progress=lambda step, steps, loss: report(step, steps),
            )

        made = make(workspace, FINETUNING, shard, "adapter", compute, config=config, inputs=[dataset], models=[model])
    if made.cached:
        # Of a process that was killed between storing the adapter and deleting these.
        remove_checkpoints(workspace.checkpoints, made.ref.key)
    return made
