"""Stages that make the embedded base model. They run once; what they make is shipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from selu.config import TaskSettings, WorldSettings, scenes_of_split
from selu.rounds import Workspace
from selu.store import ArtifactRef, Json
from selu.tasks.progress import Meter
from selu.tasks.stages import Made, Shard, Stage, Value, make, stage_task

__all__ = ["BaseModelRecipe", "demonstrate", "package_model", "pretrain", "render_shard"]

_CORPUS = ("selu.base_model.corpus", "selu.player.household", "selu.player.shapes", "selu.player.renderer")
RENDERING = Stage(name="base-frames", version=1, modules=_CORPUS)
DEMONSTRATING = Stage(name="base-demonstrations", version=1, modules=(*_CORPUS, "selu.worlds.planner"))
PRETRAINING = Stage(name="base-pretraining", version=1, modules=("selu.base_model.training", *_CORPUS))
PACKAGING = Stage(name="base-package", version=1, modules=("selu.base_model.packaging", "selu.base_model.processor"))

KINDS = ("pick_up", "open", "close", "toggle_on", "toggle_off", "put", "two_step", "break", "slice")


class BaseModelRecipe(Value):
    """How the embedded base model is made. The defaults made the shipped one, but for sittings: see its card."""

    frames: int = Field(default=72_000, ge=1, description="frames of base scenes")
    frames_per_shard: int = Field(default=12_000, ge=1)
    measured_frames: int = Field(default=2_000, ge=1, description="frames of unseen scenes")
    demonstrations: int = Field(default=2_000, ge=1, description="weakly demonstrated episodes in base scenes")
    noise: float = Field(default=0.3, ge=0.0, le=1.0, description="share of random actions in the demonstrations")
    seeing_steps: int = Field(default=1_400, ge=1, description="steps with the dense loss alone")
    speaking_steps: int = Field(default=2_900, ge=1, description="steps with questions too")
    following_steps: int = Field(default=600, ge=1, description="steps with demonstrations too")
    following_frames: int = Field(
        default=6_000, ge=1, description="frames whose questions are asked in the following phase"
    )
    following_batch: int = Field(default=16, ge=1, description="of these, frames a step, against forgetting")
    following_demonstrations: int = Field(default=64, ge=1, description="demonstrated steps a step")
    following_language_share: float = Field(
        default=0.5, ge=0.0, le=1.0, description="of these, share that also carry a language turn"
    )
    replay_questions: int = Field(default=2_200, ge=0)
    replay_steps: int = Field(default=800, ge=0)
    threads: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)


Phase = Literal["seeing", "speaking", "following"]


@stage_task(RENDERING)
def render_shard(workspace: Workspace, shard: Shard, split: Literal["base", "unseen"], count: int, seed: int) -> Made:
    """Draw frames of the base scenes, or of those that are measured in, with what can be seen in them."""
    splits = ("base",) if split == "base" else ("learning", "transfer")
    scenes = [scene for name in splits for scene in scenes_of_split(name)]  # type: ignore[arg-type]

    def compute(path: Path, report: Meter) -> None:
        from selu.base_model.corpus import render_frames

        render_frames(scenes, count, seed).save(path / "frames.npz")

    return make(
        workspace, RENDERING, shard, "base_frames", compute, config={"scenes": scenes, "count": count, "seed": seed}
    )


@stage_task(DEMONSTRATING)
def demonstrate(
    workspace: Workspace, shard: Shard, world: WorldSettings, episodes: int, noise: float, seed: int
) -> Made:
    """Record the planner, with random actions among its own, on tasks in the base scenes."""

    def compute(path: Path, report: Meter) -> None:
        from selu.base_model.corpus import record_demonstrations
        from selu.worlds.tasks import generate_tasks
        from selu.worlds.thor import PlayerSimulator, ThorWorld

        inside = ThorWorld(PlayerSimulator(world), world)
        settings = TaskSettings.model_validate({"split": "base", "kinds": KINDS})
        tasks = generate_tasks(settings, inside, seed, episodes)
        record_demonstrations(tasks, inside, seed, noise).save(path / "demonstrations.npz")

    config: dict[str, Json] = {
        "world": world.model_dump(mode="json"),
        "episodes": episodes,
        "noise": noise,
        "seed": seed,
    }
    return make(workspace, DEMONSTRATING, shard, "base_demonstrations", compute, config=config)


@stage_task(PRETRAINING)
def pretrain(
    workspace: Workspace,
    shard: Shard,
    phase: Phase,
    recipe: BaseModelRecipe,
    frames: Sequence[ArtifactRef],
    demonstrations: ArtifactRef,
    start: ArtifactRef | None,
) -> Made:
    """One phase of the pretraining, from random weights or from the phase before."""
    steps = {
        "seeing": recipe.seeing_steps,
        "speaking": recipe.speaking_steps,
        "following": recipe.following_steps,
    }[phase]

    def compute(path: Path, report: Meter) -> None:
        import torch

        from selu.base_model.corpus import Demonstrations, FrameSet
        from selu.base_model.training import Pretrainer, Recipe, build_model, household_tokenizer

        torch.set_num_threads(recipe.threads)
        store, tokenizer = workspace.store(), household_tokenizer()
        training = Recipe(
            steps=steps,
            seed=recipe.seed + ("seeing", "speaking", "following").index(phase),
            seeing_share=1.0 if phase == "seeing" else 0.0,
            constant_share={"seeing": 1.0, "speaking": 0.45, "following": 0.3}[phase],
            learning_rate=1e-3,
            demonstration_batch_size=recipe.following_demonstrations,
            batch_size=recipe.following_batch if phase == "following" else 32,
            language_share=recipe.following_language_share if phase == "following" else 0.2,
        )
        trainer = Pretrainer(training, tokenizer, build_model(training, tokenizer))
        if start is not None:
            trainer.load(store.path(start) / "weights.pt")
        rows: list[dict[str, Any]] = []

        def log(row: dict[str, Any]) -> None:
            rows.append({"phase": phase, **row})
            report(row["step"], steps)

        seen = FrameSet.load([store.path(ref) / "frames.npz" for ref in frames])
        if phase == "following":
            shown = Demonstrations.load(store.path(demonstrations) / "demonstrations.npz")
            trainer.follow(seen.first(recipe.following_frames), shown, report=log)
        else:
            trainer.train(seen, report=log, report_every=50)
        trainer.save(path / "weights.pt")
        (path / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    inputs = [*frames, demonstrations, *([start] if start is not None else [])]
    config = {"phase": phase, "steps": steps, "recipe": recipe.model_dump(mode="json", exclude={"measured_frames"})}
    return make(workspace, PRETRAINING, shard, "base_weights", compute, config=config, inputs=inputs)


@stage_task(PACKAGING)
def package_model(
    workspace: Workspace,
    shard: Shard,
    recipe: BaseModelRecipe,
    phases: Sequence[ArtifactRef],
    frames: Sequence[ArtifactRef],
    unseen: ArtifactRef,
    demonstrations: ArtifactRef,
) -> Made:
    """Measure the last phase's weights on unseen scenes and write the model folder."""

    def compute(path: Path, report: Meter) -> None:
        from selu.base_model.corpus import Demonstrations, FrameSet, recipe_facts
        from selu.base_model.packaging import package, replay_table
        from selu.base_model.training import Pretrainer, Recipe, build_model, household_tokenizer

        store, tokenizer, training = workspace.store(), household_tokenizer(), Recipe()
        trainer = Pretrainer(training, tokenizer, build_model(training, tokenizer))
        trainer.load(store.path(phases[-1]) / "weights.pt")
        measured = FrameSet.load([store.path(unseen) / "frames.npz"])
        curves = [
            json.loads(line)
            for ref in phases
            for line in (store.path(ref) / "curves.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        replay = replay_table(
            FrameSet.load([store.path(frames[0]) / "frames.npz"]),
            Demonstrations.load(store.path(demonstrations) / "demonstrations.npz"),
            recipe.replay_questions,
            recipe.replay_steps,
            recipe.seed,
        )
        package(
            path,
            trainer.model,
            tokenizer,
            replay,
            {**recipe.model_dump(mode="json"), **recipe_facts()},
            curves,
            {
                "frames": len(measured),
                "unseen_scenes": trainer.measure(measured, len(measured)),
                "unseen_scenes_blank_picture": trainer.measure(measured, len(measured), blank=True),
            },
        )

    inputs = [*phases, frames[0], unseen, demonstrations]
    return make(
        workspace, PACKAGING, shard, "base_model", compute, config=recipe.model_dump(mode="json"), inputs=inputs
    )
