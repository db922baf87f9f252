"""Step 1: tasks are drawn and the actor plays them. Also records the scripted policies of the critic's probe.

What the world knows goes to an artifact of its own (:class:`~selu.store.OracleRef`), beside the episodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from selu.config import RolloutSettings, TaskSettings, WorldSettings
from selu.errors import ConfigError
from selu.records import Episode, Frame, OracleEpisode, OracleStep, Step
from selu.records import Task as HouseholdTask
from selu.rounds import Workspace
from selu.seeds import derived_seed
from selu.store import ArtifactRef, Json, OracleRef, artifact_key, read_table, write_table
from selu.tasks.progress import Meter
from selu.tasks.stages import (
    Made,
    Model,
    Shard,
    Stage,
    Value,
    make,
    model_config_of,
    stage_task,
    timed,
    world_config_of,
)

__all__ = ["PolicyChoice", "Recorded", "draw_tasks", "freeze_probe", "roll_out_shard"]

DRAWING = Stage(name="tasks", version=1, modules=("selu.worlds.tasks", "selu.worlds.planner"))
PROBE_TASKS = Stage(name="probe-tasks", version=1, modules=("selu.worlds.tasks",))
ROLLOUT = Stage(
    name="rollout",
    version=1,
    modules=("selu.rollout", "selu.worlds.thor", "selu.worlds.actions", "selu.worlds.planner"),
)


class PolicyChoice(Value):
    """Who acts."""

    kind: Literal["actor", "planner", "random"] = "actor"
    model: Model | None = Field(default=None, description="the actor's; None for a scripted policy")
    temperature: float = 0.0
    history: int = 0
    noise: float = Field(default=0.0, description="share of the planner's actions that are replaced by random ones")

    def config(self) -> dict[str, Json]:
        """What shapes its actions beside the model's revision."""
        config: dict[str, Json] = self.model_dump(mode="json", exclude={"model"})
        return config if self.model is None else config | {"model": model_config_of(self.model.settings)}


class Recorded(Made):
    """Episodes, with the truth about them under a reference that only evaluation takes."""

    oracle: OracleRef


@stage_task(DRAWING)
def draw_tasks(workspace: Workspace, shard: Shard, tasks: TaskSettings, world: WorldSettings, seed: int) -> Made:
    """Draw solvable tasks (or take the user's own instructions) and freeze them."""
    listed = None
    if tasks.instructions is not None:
        try:
            listed = tasks.instructions.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"tasks.instructions: {tasks.instructions} cannot be read as text: {error}") from error

    def compute(path: Path, report: Meter) -> None:
        from selu.rollout import shared_pool
        from selu.worlds.tasks import generate_tasks

        with shared_pool(world).worlds(1) as worlds:
            drawn = generate_tasks(tasks, worlds[0], seed, tasks.episodes)
        write_table(path / "tasks.parquet", drawn, HouseholdTask)

    config: dict[str, Json] = {
        "tasks": tasks.model_dump(mode="json", exclude={"instructions"}),
        "instructions": listed,
        "world": world_config_of(world),
        "seed": seed,
    }
    return make(workspace, DRAWING, shard, "tasks", compute, config=config)


@stage_task(PROBE_TASKS)
def freeze_probe(workspace: Workspace, shard: Shard, name: Literal["probe_a", "probe_b"], count: int) -> Made:
    """The first `count` tasks of a frozen probe set, spread evenly over it."""
    from selu.worlds.tasks import frozen_tasks

    shipped = frozen_tasks(name)
    if count > len(shipped):
        raise ConfigError(
            f"the frozen set {name} has {len(shipped)} tasks, {count} were asked for; lower evaluation.actor_episodes_"
            f"{name[-1]} and evaluation.critic_episodes_{name[-1]}"
        )
    chosen = [shipped[index * len(shipped) // count] for index in range(count)]

    def compute(path: Path, report: Meter) -> None:
        write_table(path / "tasks.parquet", chosen, HouseholdTask)

    config: dict[str, Json] = {"probe": name, "tasks": [task.model_dump(mode="json") for task in chosen]}
    return make(workspace, PROBE_TASKS, shard, "tasks", compute, config=config)


@stage_task(ROLLOUT)
def roll_out_shard(
    workspace: Workspace,
    shard: Shard,
    tasks: ArtifactRef,
    policy: PolicyChoice,
    world: WorldSettings,
    rollout: RolloutSettings,
    seed: int,
) -> Recorded:
    """Play a shard's tasks, its worlds side by side; record what was seen and done, and apart from it what was true."""
    store = workspace.store()
    revisions = [] if policy.model is None else [policy.model.revision(store)]
    config: dict[str, Json] = {
        "policy": policy.config(),
        "world": world_config_of(world),
        "players": rollout.players,
        "start": shard.start,
        "stop": shard.stop,
        "seed": seed,
    }
    key = artifact_key(ROLLOUT.name, ROLLOUT.version, config, [tasks.digest], revisions)
    found, truth = store.find("episodes", key), store.find_oracle("oracle", key)
    if found is not None and truth is not None:
        return Recorded(ref=found, oracle=truth, cached=True, seconds=store.manifest(found).seconds)

    from selu.rollout import ActorPolicy, PlannerPolicy, Policy, RandomPolicy, roll_out, shared_pool

    store.verify(tasks)
    played = read_table(store.path(tasks) / "tasks.parquet", HouseholdTask)[shard.start : shard.stop]
    seeds = [derived_seed(seed, "episode", shard.start + offset) for offset in range(len(played))]
    acting: Policy
    if policy.kind == "planner":
        acting = PlannerPolicy(policy.noise)
    elif policy.kind == "random" or policy.model is None:
        acting = RandomPolicy()
    else:
        acting = ActorPolicy(
            policy.model.load(store),
            temperature=policy.temperature,
            max_new_tokens=policy.model.settings.max_new_tokens,
            history=policy.history,
        )
    provenance: dict[str, Json] = {
        "stage": ROLLOUT.name,
        "version": ROLLOUT.version,
        "shard": str(shard),
        "config": config,
        "inputs": [tasks.model_dump(mode="json")],
        "models": revisions,
    }
    report = shard.meter()
    report(0, len(played))
    with timed() as seconds:
        with store.create("episodes", key, provenance) as draft:
            with shared_pool(world).worlds(min(rollout.players, len(played))) as worlds:
                recording = roll_out(played, seeds, acting, worlds, progress=report)
            write_table(draft.path / "episodes.parquet", recording.episodes, Episode)
            write_table(draft.path / "steps.parquet", recording.steps, Step)
            write_table(draft.path / "frames.parquet", recording.frames, Frame)
        with store.create_oracle("oracle", key, provenance) as sealed:
            write_table(sealed.path / "oracle_episodes.parquet", recording.oracle_episodes, OracleEpisode)
            write_table(sealed.path / "oracle_steps.parquet", recording.oracle_steps, OracleStep)
    return Recorded(ref=draft.ref, oracle=sealed.ref, cached=False, seconds=seconds())
