"""Steps 6 and 8: a dataset version becomes a LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from selu.config import FinetuningSettings
from selu.rounds import Workspace
from selu.store import ArtifactRef
from selu.tasks.datasets import read_dataset
from selu.tasks.progress import Meter
from selu.tasks.stages import Made, Model, Shard, Stage, device_type_of, make, stage_task

__all__ = ["finetune_model"]

FINETUNING = Stage(
    name="finetuning", version=3, modules=("selu.finetuning", "selu.examples", "selu.models.transformers_engine")
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
    """Fine-tune a model on a dataset version, going on from its adapter if it has one."""

    def compute(path: Path, report: Meter) -> None:
        from selu.finetuning import finetune

        store = workspace.store()
        finetune(
            model.settings,
            read_dataset(store, dataset, who),
            finetuning,
            seed=seed,
            out=path,
            log_dir=workspace.tensorboard / run_folder / str(shard).replace(" ", "-"),
            report_to=report_to,
            adapter=model.adapter_path(store) or model.settings.adapter,
            progress=lambda step, steps, loss: report(step, steps),
        )

    return make(
        workspace,
        FINETUNING,
        shard,
        "adapter",
        compute,
        config={
            "finetuning": finetuning.model_dump(mode="json", exclude={"enabled"}),
            "dtype": model.settings.dtype,
            "device": device_type_of(model.settings),
            "who": who,
            "seed": seed,
        },
        inputs=[dataset],
        models=[model],
    )
