"""What runs that practised in the development scenes gained there: the place to choose a setting, away from the probe sets.

    cut="evaluation.actor_episodes_a=4 evaluation.critic_episodes_a=4 evaluation.actor_episodes_b=0 \
         evaluation.critic_episodes_b=0 evaluation.three_step_episodes=0 evaluation.general_questions=0"
    selu learn --rounds 2 tasks.split=development data_dir=DATA_DIR $cut
    selu learn --rounds 2 tasks.split=development data_dir=DATA_DIR $cut actor_finetuning.rank=16 actor_finetuning.alpha=32
    python benchmarks/on_development.py DATA_DIR --round 2

The second run makes again only what its setting touches. Each run is told by what sets it apart from the first; its figures
stand beside those of its base model and of the run that finished first, paired item by item. Actors play, greedily, tasks drawn
anew in all development scenes (the rooms that were practised, perhaps from a start that was practised, too); critics judge
trajectories of scripted policies there, directly and by questions of their own (an unsure one counts half); both answer general
questions about frames of these rooms. This script looks at nothing of the probe sets; a run evaluates on A all the same, as
little as `cut` says, which is a look for the log. What was played, judged and answered is kept in DATA_DIR. Intervals are 95 %,
from a bootstrap over scenes; one seed of a few points decides nothing.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from prefect import flow

from selu.base_model.corpus import render_frames
from selu.base_model.make_general_probe import FRAMES, general_probe
from selu.config import TaskSettings, scenes_of_split
from selu.flows.evaluation import MIXED_POLICIES, asking_of_all
from selu.flows.ledger import Account, one_at_a_time
from selu.general_probe import GeneralQuestion
from selu.memory import Memory
from selu.rounds import Round, Workspace, figure, finished_rounds, run_folder, same_training
from selu.seeds import derived_seed
from selu.statistics import Rate, bootstrap_mean, cluster_bootstrap_difference, without_empty_interval
from selu.store import ArtifactRef, OracleRef, read_table, write_table
from selu.tasks.evaluation import freeze_critic_probe, read_judged
from selu.tasks.general import GeneralAnswer, answer_general_questions
from selu.tasks.judging import judge_probe, read_probe
from selu.tasks.rollout import PolicyChoice, draw_tasks, roll_out_shard
from selu.tasks.stages import Model, Shard, read_episodes, read_oracle, shards
from selu.worlds.tasks import TRAJECTORIES_A_TASK, kind_of_instruction

SEED = derived_seed(0, "on development scenes")
WAYS = {"direct": "critic, direct verdict", "self_asking": "critic, its own questions"}
SEVERAL = {"two_step": "actor, two steps", "three_step": "actor, three steps"}

Measured = dict[str, dict[str, tuple[str, float]]]
"""By figure and item: the item's scene, and what it earned, 0..1."""


class _Scenes:
    """The tasks, trajectories and questions of the development scenes, for the models of one round."""

    def __init__(self, finished: Round, tasks: int, questions: Path) -> None:
        self.settings, self.tasks, self.questions = finished.settings, tasks, questions
        self.workspace, self.account = Workspace.of(finished.settings), Account()
        self.store = self.workspace.store()

    def played(self, label: str, policy: PolicyChoice) -> tuple[list[ArtifactRef], list[OracleRef]]:
        """What a policy does with the tasks."""
        settings = self.settings
        wanted = TaskSettings(kinds=settings.tasks.kinds, split="development", episodes=self.tasks)
        drawn = self.account.one(
            draw_tasks.submit(
                self.workspace,
                Shard(stage="development: tasks"),
                wanted,
                settings.world,
                settings.rollout.players,
                SEED,
            )
        )
        made = self.account.all(
            roll_out_shard.submit(self.workspace, shard, drawn.oracle, policy, settings.world, settings.rollout, SEED)
            for shard in shards(f"development: {label}", self.tasks, settings.rollout.shard_size)
        )
        return [item.ref for item in made], [item.oracle for item in made]

    def of_actor(self, actor: Model) -> Measured:
        """Success, of tasks of one step and of several."""
        policy = PolicyChoice(model=actor, memory=Memory.of(self.settings.rollout))
        episodes, oracle = self.played("actor", policy)
        done = {row.episode_id: row.success is True for row in read_oracle(self.store, oracle)[0]}
        found: Measured = {"actor, all tasks": {}, "actor, one step": {}}
        for row in read_episodes(self.store, episodes):
            name = SEVERAL.get(kind_of_instruction(row.instruction), "actor, one step")
            for place in ("actor, all tasks", name):
                found.setdefault(place, {})[row.task_id] = row.scene, float(done[row.episode_id])
        return found

    def of_critic(self, critic: Model) -> Measured:
        """What its verdicts earn; the trajectories are balanced, so that the mean is balanced accuracy."""
        recordings, truths = {}, {}
        for name, policy in MIXED_POLICIES.items():
            recordings[name], truths[name] = self.played(name, policy)
        frozen = self.account.one(
            freeze_critic_probe.submit(
                self.workspace,
                Shard(stage="development: trajectories"),
                recordings,
                truths,
                TRAJECTORIES_A_TASK * self.tasks,
                SEED,
            )
        )
        judged = self.account.one(
            judge_probe.submit(
                self.workspace,
                Shard(stage="development: critic"),
                frozen.ref,
                critic,
                asking_of_all(self.settings.self_asking),
                SEED,
            )
        )
        ways = read_judged(self.store, frozen.ref, frozen.oracle, judged.ref)
        names = [row.episode_id for row in read_probe(self.store, frozen.ref)[0]]
        return {
            figure_name: {name: (item.scene, item.credit) for name, item in zip(names, ways[way], strict=True)}
            for way, figure_name in WAYS.items()
        }

    def of_general(self, who: str, model: Model) -> Measured:
        """Whether it answers general questions exactly right."""
        asked = read_table(self.questions, GeneralQuestion)
        answered = self.account.one(
            answer_general_questions.submit(
                self.workspace, Shard(stage=f"development: general, {who}"), model, len(asked), self.questions
            )
        )
        replies = read_table(self.store.path(answered.ref) / "general_answers.parquet", GeneralAnswer)
        right = {
            str(number): (row.scene, float(reply.text.strip() == row.answer))
            for number, (row, reply) in enumerate(zip(asked, replies, strict=True))
        }
        return {f"general, {who}": right}


@flow(name="on development scenes", task_runner=one_at_a_time(), persist_result=False)
def measured(finished: Round, tasks: int, questions: Path, untrained: bool) -> Measured:
    """The models of a round, or those that its run began with."""
    scenes, settings = _Scenes(finished, tasks, questions), finished.settings
    actor = Model(settings=settings.actor, adapter=None if untrained else finished.actor_adapter)
    critic = Model(settings=settings.critic, adapter=None if untrained else finished.critic_adapter)
    return (
        scenes.of_actor(actor)
        | scenes.of_critic(critic)
        | scenes.of_general("actor", actor)
        | scenes.of_general("critic", critic)
    )


def drawn_questions(data_dir: Path) -> Path:
    """The general questions about frames of the development scenes, drawn once."""
    path = data_dir / "on_development" / "general.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        write_table(
            draft, general_probe(render_frames(scenes_of_split("development"), FRAMES, SEED), SEED), GeneralQuestion
        )
        draft.replace(path)
    return path


def told(rate: Rate) -> dict[str, Any] | None:
    """A figure as JSON, without an interval where all its observations are alike."""
    return figure(without_empty_interval(rate))


def in_points(one: Measured, other: Measured, samples: int) -> dict[str, Any]:
    """By figure, how much more `one` earned than `other`, paired."""
    return {
        name: told(
            cluster_bootstrap_difference(
                [other[name][item][1] for item in items],
                [value for _, value in items.values()],
                [scene for scene, _ in items.values()],
                0,
                samples,
            )
        )
        for name, items in one.items()
        if name in other and other[name].keys() == items.keys()
    }


def set_apart(finished: Round, first: Round) -> dict[str, Any]:
    """The settings in which a run differs from another."""

    def flat(item: Round) -> dict[str, Any]:
        data = item.settings.model_dump(mode="json", exclude={"rounds", "evaluation", "orchestration", "data_dir"})
        return {
            f"{section}.{name}" if isinstance(part, dict) else section: value
            for section, part in data.items()
            for name, value in (part.items() if isinstance(part, dict) else [("", part)])
        }

    other = flat(first)
    return {name: value for name, value in flat(finished).items() if value != other[name]}


def main() -> None:
    """Print a line of JSON for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--round", type=int, default=1, help="of each run (default 1)")
    parser.add_argument(
        "--tasks", type=int, default=500, help="for the actor; the critic judges twice as many (default 500)"
    )
    arguments = parser.parse_args()
    if not (arguments.data_dir / "store").is_dir():
        parser.error(f"{arguments.data_dir} is no data_dir of a run: it has no store")
    there = [
        item
        for item in finished_rounds(Workspace(data_dir=arguments.data_dir.absolute()).store())
        if item.settings.tasks.split == "development" and item.settings.world.name == "thor"
    ]
    runs: dict[str, Round] = {}
    for item in there:
        if item.round == arguments.round and not any(
            same_training(item.settings, one.settings) for one in runs.values()
        ):
            runs[run_folder(item.settings)] = item
    if not runs:
        known = ", ".join(sorted({f"{item.run} round {item.round}" for item in there})) or "none"
        parser.error(
            f"no run in {arguments.data_dir} has a round {arguments.round} on development scenes (there: {known})"
        )
    rounds = [
        item.model_copy(
            update={"settings": item.settings.model_copy(update={"data_dir": arguments.data_dir.absolute()})}
        )
        for item in runs.values()
    ]
    first, questions = rounds[0], drawn_questions(arguments.data_dir)
    of_first: Measured = {}
    for item in rounds:
        base, after = (measured(item, arguments.tasks, questions, untrained) for untrained in (True, False))
        of_first = of_first or after
        samples = item.settings.evaluation.bootstrap
        figures = {
            name: {
                phase: told(bootstrap_mean([v for _, v in rows.values()], [s for s, _ in rows.values()], 0, samples))
                for phase, rows in (("base model", base[name]), ("after", after[name]))
            }
            for name in after
        }
        line: dict[str, Any] = {
            "run": item.run,
            "round": item.round,
            "set_apart": set_apart(item, first),
            "figures": figures,
        }
        line["gain"] = in_points(after, base, samples)
        if item is not first:
            line["more_than_first"] = in_points(after, of_first, samples)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
