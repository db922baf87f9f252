"""Builds the embedded base model: hours of CPU, run once, its product shipped in ``selu/base_models/household``.

python -m selu.flows.base_model --data-dir .selu/base --out selu/base_models/household

Another one, of another seed and strength, is `... --out my_base seed=1 speaking_steps=1600`; a round takes it by
`actor.path=my_base critic.path=my_base actor.prompts=brief critic.prompts=brief dataset.corpus=my_base/replay.parquet`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from prefect import flow
from pydantic import ValidationError

from selu.config import Settings, WorldSettings
from selu.flows.crashes import note_process
from selu.rounds import Workspace
from selu.store import ArtifactRef
from selu.tasks.base_model import BaseModelRecipe, Phase, demonstrate, package_model, pretrain, render_shard
from selu.tasks.stages import Shard, shards

__all__ = ["base_model"]


@flow(name="base model", flow_run_name="base model seed {recipe.seed}", persist_result=False, on_running=[note_process])
def base_model(settings: Settings, recipe: BaseModelRecipe, out: Path) -> ArtifactRef:
    """Render the base scenes, demonstrate weakly, train in three phases, measure on unseen scenes, package."""
    workspace, world = Workspace.of(settings), WorldSettings()
    frames = [
        render_shard(workspace, shard, "base", shard.stop - shard.start, recipe.seed * 1000 + shard.index).ref
        for shard in shards("frames of base scenes", recipe.frames, recipe.frames_per_shard)
    ]
    unseen = render_shard(
        workspace, Shard(stage="frames of unseen scenes"), "unseen", recipe.measured_frames, recipe.seed + 990_000
    ).ref
    shown = demonstrate(
        workspace, Shard(stage="demonstrations"), world, recipe.demonstrations, recipe.noise, recipe.seed + 77
    ).ref
    phases: list[ArtifactRef] = []
    order: tuple[Phase, ...] = ("seeing", "speaking", "following")
    for phase in order:
        start = phases[-1] if phases else None
        phases.append(pretrain(workspace, Shard(stage=phase), phase, recipe, frames, shown, start).ref)
    packaged = package_model(workspace, Shard(stage="package"), recipe, phases, frames, unseen, shown).ref
    _replace_folder(workspace.store().path(packaged), out.absolute())
    return packaged


def _replace_folder(source: Path, out: Path) -> None:
    """Copy a model folder beside `out` and swap them, so that nobody loads half of the old and half of the new one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as beside:
        new = Path(beside) / "new"
        shutil.copytree(source, new, ignore=shutil.ignore_patterns("manifest.json"))
        if out.exists():
            out.rename(Path(beside) / "old")
        new.rename(out)


def main() -> None:
    """Build one, by the default recipe but for what is named; run again, it goes on with the phase where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(".selu/base"))
    parser.add_argument("--out", type=Path, required=True)
    known = ", ".join(BaseModelRecipe.model_fields)
    parser.add_argument("recipe", nargs="*", metavar="key=value", help=f"what differs from the shipped one's: {known}")
    arguments = parser.parse_args()
    try:
        recipe = BaseModelRecipe.model_validate(dict(part.partition("=")[::2] for part in arguments.recipe))
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r} (known: {known})")
    base_model(Settings(data_dir=arguments.data_dir), recipe, arguments.out)


if __name__ == "__main__":
    main()
