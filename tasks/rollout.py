"""Step 1: tasks are drawn and the actor plays them. Also records the scripted policies of the critic's probe.

Tasks hold goals and the states that an episode starts from, so they are ground truth themselves
(:class:`~selu.store.OracleRef`) and no stage but the rollout is given them. What the world knows goes to an artifact of
its own, beside the episodes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from selu.config import RolloutSettings, TaskKind, TaskSettings, WorldSettings
from selu.memory import NO_MEMORY, Memory
from selu.prompting import prompts_digest
from selu.records import Episode, Frame, OracleEpisode, OracleStep, Step
from selu.records import Task as HouseholdTask
from selu.rounds import Workspace
from selu.seeds import derived_seed
from selu.store import Json, OracleRef, Store, read_table, write_table
from selu.tasks.progress import Meter
from selu.tasks.stages import (
    ENGINE,
    MadeWithTruth,
    Model,
    Sealed,
    Shard,
    Stage,
    Value,
    file_digest,
    make_sealed,
    make_with_truth,
    model_config_of,
    stage_task,
    world_config_of,
)

if TYPE_CHECKING:
    from selu.rollout import Policy

__all__ = ["FrozenTasks", "PolicyChoice", "draw_tasks", "freeze_probe", "roll_out_shard"]

logger = logging.getLogger("selu.rollout")

_WORLD = (
    "selu.worlds.thor",
    "selu.worlds.supervision",
    "selu.worlds.virtualhome",
    "selu.worlds.base",
    "selu.worlds.actions",
    "selu.worlds.planner",
    "selu.worlds.vocabulary",
    "selu.player.household",
    "selu.player.layouts",
    "selu.player.renderer",
    "selu.player.shapes",
    "selu.player.virtualhome",
    "selu.player.virtualhome_homes",
)
DRAWING = Stage(name="tasks", version=1, modules=("selu.worlds.tasks", *_WORLD))
PROBE_TASKS = Stage(name="probe-tasks", version=1, modules=("selu.worlds.tasks",))
ROLLOUT = Stage(
    name="rollout",
    version=2,
    modules=(
        "selu.rollout",
        *_WORLD,
        "selu.prompting",
        "selu.memory",
        "selu.deeds",
        "selu.frames",
        *ENGINE,
    ),
)


class PolicyChoice(Value):
    """Who acts."""

    kind: Literal["actor", "planner", "near_miss", "sibling", "random"] = "actor"
    model: Model | None = Field(default=None, description="the actor's; None for a scripted policy")
    temperature: float = 0.0
    memory: Memory = NO_MEMORY
    by_parts: bool = Field(default=False, description="instructions of several steps are put to it step by step")
    noise: float = Field(default=0.0, description="share of the planner's actions that are replaced by random ones")

    def config(self) -> dict[str, Json]:
        """What shapes its actions beside the model's revision."""
        config: dict[str, Json] = self.model_dump(mode="json", exclude={"model"})
        if self.model is None:
            return config
        return config | {"model": model_config_of(self.model.settings), "prompts": prompts_digest()}


class FrozenTasks(Sealed):
    """A frozen set of tasks."""

    count: int


@stage_task(DRAWING)
def draw_tasks(
    workspace: Workspace, shard: Shard, tasks: TaskSettings, world: WorldSettings, players: int, seed: int
) -> Sealed:
    """Draw solvable tasks (or take the user's own instructions) and freeze them; in at most so many worlds at a time."""
    from selu.worlds.tasks import FROZEN, generate_tasks, instructions_text

    listed = None if tasks.instructions is None else instructions_text(tasks.instructions)

    def compute(path: Path, report: Meter) -> None:
        from selu.rollout import shared_pool

        with shared_pool(world).worlds(min(os.cpu_count() or 1, players)) as worlds:
            drawn = generate_tasks(tasks, worlds, seed, tasks.episodes, restarts=world.restarts, progress=report)
        write_table(path / "tasks.parquet", drawn, HouseholdTask)

    config: dict[str, Json] = {
        "tasks": tasks.model_dump(mode="json", exclude={"instructions"}),
        "instructions": listed,
        "world": world_config_of(world),
        "reserved": {path.name: file_digest(path) for path in sorted(FROZEN.glob("*probe_a.jsonl"))},
        "seed": seed,
    }
    return make_sealed(workspace, DRAWING, shard, "oracle_tasks", compute, config=config)


@stage_task(PROBE_TASKS)
def freeze_probe(workspace: Workspace, shard: Shard, name: str, count: int, kinds: tuple[TaskKind, ...]) -> FrozenTasks:
    """The first `count` tasks of a frozen probe set that are of the practised kinds, or all of them if there are fewer."""
    from selu.worlds.tasks import probe_tasks

    chosen = probe_tasks(name, count, kinds)
    if len(chosen) < count:
        logger.warning(
            "%s has %d tasks of the kinds %s, all of which are taken; %d were asked for",
            name,
            len(chosen),
            ", ".join(kinds),
            count,
        )

    def compute(path: Path, report: Meter) -> None:
        write_table(path / "tasks.parquet", chosen, HouseholdTask)

    config: dict[str, Json] = {
        "probe": name,
        "kinds": list(kinds),
        "tasks": [task.model_dump(mode="json") for task in chosen],
    }
    made = make_sealed(workspace, PROBE_TASKS, shard, "oracle_tasks", compute, config=config)
    return FrozenTasks(oracle=made.oracle, cached=made.cached, seconds=made.seconds, count=len(chosen))


@stage_task(ROLLOUT)
def roll_out_shard(
    workspace: Workspace,
    shard: Shard,
    tasks: OracleRef,
    policy: PolicyChoice,
    world: WorldSettings,
    rollout: RolloutSettings,
    seed: int,
) -> MadeWithTruth:
    """Play a shard's tasks, its worlds side by side; record what was seen and done, and apart from it what was true."""

    def compute(path: Path, report: Meter) -> Callable[[Path], None]:
        from selu.rollout import roll_out, shared_pool

        store = workspace.store()
        played = read_table(store.path(tasks) / "tasks.parquet", HouseholdTask)[shard.start : shard.stop]
        seeds = [derived_seed(seed, "episode", shard.start + offset) for offset in range(len(played))]
        with shared_pool(world).worlds(min(rollout.players, len(played))) as worlds:
            acting = _acting(policy, store)
            recording = roll_out(played, seeds, acting, worlds, restarts=world.restarts, progress=report)
            simulator = worlds[0].metadata.get("simulator")
        write_table(path / "episodes.parquet", recording.episodes, Episode)
        write_table(path / "steps.parquet", recording.steps, Step)
        write_table(path / "frames.parquet", recording.frames, Frame)
        if simulator:  # of the embedded player the provenance says all that there is
            described = {"simulator": simulator, "settings": world_config_of(world)}
            (path / "world.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")

        def write_truth(sealed: Path) -> None:
            write_table(sealed / "oracle_episodes.parquet", recording.oracle_episodes, OracleEpisode)
            write_table(sealed / "oracle_steps.parquet", recording.oracle_steps, OracleStep)

        return write_truth

    return make_with_truth(
        workspace,
        ROLLOUT,
        shard,
        ("episodes", "oracle"),
        compute,
        config={
            "policy": policy.config(),
            "world": world_config_of(world),
            "players": rollout.players,
            "start": shard.start,
            "stop": shard.stop,
            "seed": seed,
        },
        inputs=[tasks],
        models=[] if policy.model is None else [policy.model],
    )


def _acting(policy: PolicyChoice, store: Store) -> Policy:
    from selu.rollout import ActorPolicy, NearMissPolicy, PlannerPolicy, RandomPolicy, SiblingPolicy

    if policy.kind == "planner":
        return PlannerPolicy(policy.noise)
    if policy.kind == "near_miss":
        return NearMissPolicy()
    if policy.kind == "sibling":
        return SiblingPolicy()
    if policy.kind == "random" or policy.model is None:
        return RandomPolicy()
    return ActorPolicy(
        policy.model.load(store),
        temperature=policy.temperature,
        max_new_tokens=policy.model.settings.max_new_tokens,
        memory=policy.memory,
        by_parts=policy.by_parts,
    )
