"""What a setting does, on development scenes: one model, fine-tuned anew on what a finished round labelled, and measured.

    selu learn --rounds 2 tasks.split=development data_dir=DATA_DIR
    python benchmarks/on_development.py DATA_DIR actor --round 2 actor_finetuning.rank=16

Settings after the command (of `dataset`, `actor_finetuning` or `critic_finetuning`) replace the round's own; without any it
measures the round's recipe. The actor plays tasks of the development scenes that nobody practised; the critic judges
trajectories of scripted policies there, directly and by its own questions; both answer general questions about frames of
these scenes. Nothing of the probe sets is looked at. Whatever is made is kept in DATA_DIR, so that a line that was measured
costs nothing the second time. Intervals are 95 %, from a bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from prefect import flow

from selu.base_model.corpus import render_frames
from selu.base_model.make_general_probe import FRAMES, general_probe
from selu.config import Settings, TaskSettings, scenes_of_split, validate_settings
from selu.errors import ConfigError
from selu.flows.evaluation import MIXED_POLICIES
from selu.flows.ledger import Account, one_at_a_time
from selu.general_probe import GeneralQuestion, general_prompts
from selu.records import OracleEpisode
from selu.rounds import Round, Workspace, finished_rounds
from selu.seeds import derived_seed
from selu.statistics import Rate, bootstrap_balanced_accuracy, bootstrap_mean
from selu.store import ArtifactRef, OracleRef, Store, read_table, write_table
from selu.tasks.datasets import make_actor_dataset, make_critic_dataset
from selu.tasks.evaluation import freeze_critic_probe
from selu.tasks.finetuning import finetune_model
from selu.tasks.judging import ProbeVerdict, judge_probe, read_probe
from selu.tasks.rollout import PolicyChoice, draw_tasks, roll_out_shard
from selu.tasks.stages import Model, Shard, read_episodes, read_oracle, shards
from selu.worlds.tasks import steps_of

Who = Literal["actor", "critic"]
SEED = derived_seed(0, "on development scenes")
RESAMPLES = 2_000
WAYS = ("direct", "self_asking")
ANSWER_TOKENS = 12
CHANGEABLE = ("dataset", "actor_finetuning", "critic_finetuning")


def retrained(account: Account, who: Who, settings: Settings, finished: Round, before: Round | None) -> Model:
    """The model that fine-tuning makes of the round's labels under other settings."""
    workspace, number = Workspace.of(settings), finished.round
    name = f"{who} on development scenes"
    if who == "actor":
        made = make_actor_dataset.submit(
            workspace,
            Shard(stage=f"{name}: dataset"),
            number,
            finished.episodes,
            finished.rejudgements,
            finished.rerelabels,
            before.actor_dataset if before else None,
            settings.dataset,
            settings.rollout.history,
            settings.actor.prompt_style,
            settings.world.skill_set,
            derived_seed(settings.seed, "round", number, "actor dataset"),
        )
        base, finetuning = settings.actor, settings.actor_finetuning
    else:
        made = make_critic_dataset.submit(
            workspace,
            Shard(stage=f"{name}: dataset"),
            number,
            finished.episodes,
            finished.frames,
            [*finished.judgements, *finished.contrasts],
            finished.relabels,
            before.critic_dataset if before else None,
            settings.dataset,
            settings.critic.prompt_style,
            derived_seed(settings.seed, "round", number, "critic dataset"),
        )
        base, finetuning = settings.critic, settings.critic_finetuning
    adapter = account.one(
        finetune_model.submit(
            workspace,
            Shard(stage=name),
            who,
            account.one(made).ref,
            Model(settings=base),
            finetuning,
            [],
            "on_development",
            derived_seed(settings.seed, "round", number, f"{who} finetuning"),
        )
    ).ref
    return Model(settings=base, adapter=adapter)


def played(
    account: Account, settings: Settings, label: str, count: int, policy: PolicyChoice
) -> tuple[list[ArtifactRef], list[OracleRef]]:
    """What a policy does with tasks of the development scenes that no round practises."""
    workspace = Workspace.of(settings)
    drawn = TaskSettings(kinds=settings.tasks.kinds, split="development", episodes=count)
    tasks = account.one(
        draw_tasks.submit(
            workspace, Shard(stage=f"{label}: tasks"), drawn, settings.world, settings.rollout.players, SEED
        )
    )
    made = account.all(
        roll_out_shard.submit(workspace, shard, tasks.oracle, policy, settings.world, settings.rollout, SEED)
        for shard in shards(label, count, settings.rollout.shard_size)
    )
    return [item.ref for item in made], [item.oracle for item in made]


def of_actor(account: Account, settings: Settings, actor: Model, count: int) -> dict[str, Rate]:
    """Success, of all tasks and by their kinds."""
    policy = PolicyChoice(model=actor, history=settings.rollout.history)
    episodes, oracle = played(account, settings, "development: actor", count, policy)
    store = Workspace.of(settings).store()
    known = read_episodes(store, episodes)
    done = {row.episode_id: row.success is True for row in read_oracle(store, oracle)[0]}
    two_step = {True: "success, two steps", False: "success, one step"}
    found = {"success": known} | {
        name: [row for row in known if (len(steps_of(row.instruction)) > 1) is several]
        for several, name in two_step.items()
    }
    return {
        name: bootstrap_mean([float(done[row.episode_id]) for row in rows], [row.scene for row in rows], 0, RESAMPLES)
        for name, rows in found.items()
        if rows
    }


def of_critic(account: Account, settings: Settings, critic: Model, count: int) -> dict[str, Rate]:
    """Balanced accuracy of its direct verdict, and of its own questions (unsure counts half)."""
    workspace = Workspace.of(settings)
    recordings, truths = {}, {}
    for name, policy in MIXED_POLICIES.items():
        recordings[name], truths[name] = played(account, settings, f"development: {name}", count, policy)
    frozen = account.one(
        freeze_critic_probe.submit(
            workspace, Shard(stage="development: trajectories"), recordings, truths, 2 * count, SEED
        )
    )
    judged = account.one(
        judge_probe.submit(
            workspace, Shard(stage="development: critic"), frozen.ref, critic, settings.self_asking, SEED
        )
    )
    store = workspace.store()
    episodes, _ = read_probe(store, frozen.ref)
    truth = {
        row.episode_id: row.success is True
        for row in read_table(store.path(frozen.oracle) / "probe_truth.parquet", OracleEpisode)
    }
    said = {
        (row.method, row.episode_id): {"unsure": 0.5}.get(
            row.verdict, float((row.verdict == "yes") is truth[row.episode_id])
        )
        for row in read_table(store.path(judged.ref) / "probe_verdicts.parquet", ProbeVerdict)
    }
    labels, scenes = [truth[row.episode_id] for row in episodes], [row.scene for row in episodes]
    return {
        way: bootstrap_balanced_accuracy([said[way, row.episode_id] for row in episodes], labels, scenes, 0, RESAMPLES)
        for way in WAYS
    }


def of_general(store: Store, model: Model, kept: Path) -> dict[str, Rate]:
    """Share of general questions that it answers exactly right."""
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_table(
            kept, general_probe(render_frames(scenes_of_split("development"), FRAMES, SEED), SEED), GeneralQuestion
        )
    asked = read_table(kept, GeneralQuestion)
    replies = model.load(store).generate(general_prompts(asked), max_new_tokens=ANSWER_TOKENS)
    right = [float(reply.text.strip() == row.answer) for reply, row in zip(replies, asked, strict=True)]
    return {"general": bootstrap_mean(right, [row.scene for row in asked], 0, RESAMPLES)}


@flow(name="on development scenes", task_runner=one_at_a_time(), persist_result=False)
def trial(
    who: Who, settings: Settings, finished: Round, before: Round | None, count: int, untrained: bool
) -> dict[str, Rate]:
    """Fine-tune anew and measure."""
    account = Account()
    base = settings.actor if who == "actor" else settings.critic
    model = Model(settings=base) if untrained else retrained(account, who, settings, finished, before)
    measured = (of_actor if who == "actor" else of_critic)(account, settings, model, count)
    workspace = Workspace.of(settings)
    return measured | of_general(workspace.store(), model, settings.data_dir / "on_development" / "general.parquet")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line of JSON: what was changed, and each figure with its interval and n."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("who", choices=("actor", "critic"))
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--seed", type=int, help="that of the run, where DATA_DIR has several")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--untrained", action="store_true", help="measure the base model in place of a trained one")
    parser.add_argument("changed", nargs="*", metavar="key=value")
    told = parser.parse_intermixed_args(arguments)
    runs = {
        (item.settings.seed, item.round): item
        for item in finished_rounds(Store(told.data_dir / "store"))
        if item.settings.tasks.split == "development"
    }
    seed = told.seed if told.seed is not None else min((seed for seed, _ in runs), default=0)
    if (seed, told.round) not in runs:
        parser.error(f"no finished round {told.round} of seed {seed} on development scenes in {told.data_dir}")
    finished = runs[seed, told.round]
    data = finished.settings.model_dump(mode="json") | {"data_dir": str(told.data_dir)}
    for item in told.changed:
        key, _, value = item.partition("=")
        section, _, name = key.partition(".")
        if section not in CHANGEABLE:
            parser.error(f"{key}: only settings of {', '.join(CHANGEABLE)} can be changed here")
        data[section][name] = yaml.safe_load(value)
    try:
        settings = validate_settings(data)
    except ConfigError as error:
        parser.error(str(error))
    measured = trial(told.who, settings, finished, runs.get((seed, told.round - 1)), told.tasks, told.untrained)
    figures = {
        name: {"rate": round(rate.rate, 4), "ci95": [round(rate.low, 4), round(rate.high, 4)], "n": rate.n}
        for name, rate in measured.items()
    }
    print(json.dumps({"who": told.who, "seed": seed, "round": told.round, "changed": told.changed, **figures}))


if __name__ == "__main__":
    main()
