"""The sealed oracle: what the world knows never reaches what trains a model.

Two whole rounds in the real household, with guards, are run twice from empty stores, once as they are and once with
noise in place of everything that the world tells beside pixels: :meth:`World.oracle` (success of actions, error texts,
facts, poses), :meth:`World.candidates`, rewards, infos, and the goals of all tasks. Everything that trains a model must
stay the same to the byte, the guards' decisions included, and the evaluation must not.

Two things use the truth by design, and are not what is sealed: the skills inside :class:`ThorWorld` look an object up in
the simulator's metadata, as a robot's low level would; and tasks are drawn with the planner's proof that they can be
solved, which is why they are drawn once, before either run.

That the comparison can fail is shown by leaks: stages that are made to read the truth, in ways that are easy to fall into.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from selu.base_model.corpus import instructions
from selu.base_model.packaging import REPLAY_FILE
from selu.config import ModelSettings, TaskSettings, WorldSettings
from selu.flows.evaluation import Evaluated
from selu.flows.self_learning import self_learning
from selu.models.base import Prompt, Reply
from selu.prompting import PromptStyle, ask_prompt
from selu.records import Condition, Episode, OracleEpisode, OracleStep, Relabel, Task, Verdict
from selu.rounds import Round, Workspace, round_metrics
from selu.store import ArtifactRef, OracleRef, Store, read_table
from selu.tasks.datasets import read_dataset
from selu.worlds.base import PREDICATES, OracleState, World, holds
from selu.worlds.tasks import BREAKABLE, OPENABLE, PICKUPABLE, TOGGLEABLE, frozen_tasks, generate_tasks
from selu.worlds.thor import PlayerSimulator, ThorWorld
from selu.worlds.vocabulary import NAMES, spoken_name, type_of
from tests.dummy_world import small_settings

pytestmark = pytest.mark.usefixtures("prefect_server")

EPISODES = 24
WORLD = {"max_steps": 14}
KINDS = ("open", "toggle_on", "close", "toggle_off", "two_step")


# --- noise -----------------------------------------------------------------------------------------------------------


class NoisyWorld(World):
    """Another world as seen, with noise in place of everything that it tells: in each episode its own, so that a run's
    figures do not hang on which of the worlds took which episode."""

    def __init__(self, inside: World) -> None:
        self.inside = inside
        self.rng = np.random.default_rng(0)

    def _some(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.rng.random() < 0.5]

    def _info(self) -> dict[str, Any]:
        return {"success": bool(self.rng.random() < 0.5), "facts": self._facts()}

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {predicate: self._some(list(NAMES)) for predicate in (*PREDICATES, "in_view")}
        facts["inside"] = [[thing, place] for thing in NAMES for place in self._some(list(NAMES))]
        return facts | {
            "position": self.rng.normal(size=3).tolist(),
            "rotation": float(self.rng.normal()),
            "horizon": float(self.rng.normal()),
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        frame, _ = self.inside.reset(seed=seed, options=options)
        self.rng = np.random.default_rng([zlib.crc32(self.task.task_id.encode()), seed or 0])
        return frame, self._info()

    def step(self, action: str) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        frame, _, terminated, truncated, _ = self.inside.step(action)
        return frame, float(self.rng.normal()), terminated, truncated, self._info()

    def oracle(self) -> OracleState:
        return OracleState(bool(self.rng.random() < 0.5), f"error {self.rng.integers(1000)}", self._facts())

    @property
    def task(self) -> Task:
        return self.inside.task

    def candidates(self) -> Mapping[str, Any]:
        truth = copy.deepcopy(dict(self.inside.candidates()))
        for thing in truth["metadata"]["objects"]:
            for name, value in thing.items():
                if isinstance(value, bool):
                    thing[name] = bool(self.rng.random() < 0.5)
            thing["distance"] = float(self.rng.random() * 5)
            thing["position"] = dict(zip("xyz", self.rng.normal(size=3).tolist(), strict=True))
        truth["areas"] = {name: int(self.rng.integers(500)) for name in truth["areas"]}
        return truth

    def close(self) -> None:
        self.inside.close()


def with_another_goal(task: Task, number: int) -> Task:
    """The same task with a random goal."""
    rng = np.random.default_rng([7, number])
    predicate = ("held", "open", "closed", "on", "off")[int(rng.integers(5))]
    goal = Condition.model_validate({"predicate": predicate, "object_type": str(rng.choice(list(NAMES)))})
    return task.model_copy(update={"goal": (goal,)})


# --- models ----------------------------------------------------------------------------------------------------------

_KNOWN = dict(instructions())
_LISTS = {
    "What is open?": ("open", OPENABLE),
    "What is switched on?": ("on", TOGGLEABLE),
    "What is broken?": ("broken", BREAKABLE),
    "What are you holding?": ("held", PICKUPABLE),
    "What is in your hand?": ("held", PICKUPABLE),
}
_VERBS = {"pick up": "PickUp", "open": "Open", "close": "Close", "turn on": "ToggleOn", "turn off": "ToggleOff"}
_REVERSALS = {"Open": "Close", "Close": "Open", "ToggleOn": "ToggleOff", "ToggleOff": "ToggleOn"}
_NEGATIONS = {"closed": "open", "off": "on"}


class DreamingModel:
    """Acts at random around the instruction, and sees in each picture what a hash of its pixels says, without
    contradicting itself: so it labels and relabels plenty, from pixels and text alone, and within milliseconds."""

    prompt_style: PromptStyle = "brief"

    def __init__(self, revision: str) -> None:
        self.revision = revision

    @staticmethod
    def _drawn(prompt: Prompt, *salt: object) -> int:
        text = b"".join(picture.tobytes() for picture in prompt.images) + repr(salt).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")

    def _sees(self, prompt: Prompt, predicate: str, name: str) -> bool:
        if predicate in _NEGATIONS:
            return not self._sees(prompt, _NEGATIONS[predicate], name)
        return self._drawn(prompt, predicate, name) % 2 == 0

    def _answer(self, prompt: Prompt) -> str:
        text = prompt.text
        if text in _LISTS:
            predicate, types = _LISTS[text]
            seen = [name for name in map(spoken_name, types) if self._sees(prompt, predicate, name)]
            return ", ".join(seen) or "nothing"
        return "nothing"

    def _act(self, prompt: Prompt, seed: int | None) -> str:
        rng = np.random.default_rng([self._drawn(prompt, prompt.text) if seed is None else seed])
        first = prompt.text.removeprefix("Instruction: ").split("\n")[0].split(" and then ")[0]
        phrase, name = first.split(" the ")
        target, last = type_of(name), prompt.text.split("\n")[-2].split(" ")[-1]
        if last == f"Approach({target})":
            return f"{_VERBS[phrase]}({target})"
        if last in (reverse := {f"{one}({target})": f"{other}({target})" for one, other in _REVERSALS.items()}):
            # Back and forth: much happens that was not asked for.
            return str(rng.choice([reverse[last], "RotateRight", "Done"], p=(0.6, 0.3, 0.1)))
        return str(rng.choice([f"Approach({target})", "RotateRight", "Done"], p=(0.5, 0.48, 0.02)))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        replies = []
        for number, prompt in enumerate(prompts):
            if prompt.text.endswith("Action?"):
                said = self._act(prompt, seeds[number] if seeds is not None and temperature else None)
            elif "Which questions" in prompt.text:
                parts = prompt.text.removeprefix("Instruction: ").split(" Which questions")[0].split(" and then ")
                assert prompt.text == ask_prompt(" and then ".join(parts))
                said = "; ".join(_KNOWN[part] for part in parts)
            else:
                said = self._answer(prompt)
            replies.append(Reply(said, -0.01))
        return replies

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        rows = []
        for prompt in prompts:
            yes = 0.98 if self._says_yes(prompt) else 0.02
            rows.append([np.log(yes if choice == "yes" else 1 - yes) for choice in choices])
        return np.asarray(rows, dtype=np.float64)

    def _says_yes(self, prompt: Prompt) -> bool:
        text = prompt.text
        if text.endswith("Was it done?"):
            parts = text.removeprefix("Instruction: ").removesuffix(" Was it done?").split(" and then ")
            asked = [item.split("? ") for part in parts for item in _KNOWN[part].split("; ")]
            return all(self._agrees(prompt, question + "?") == (answer == "yes") for question, answer in asked)
        return self._agrees(prompt, text)

    def _agrees(self, prompt: Prompt, question: str) -> bool:
        if question.endswith(" in view?") or question.startswith("Can you see "):
            return True
        if found := re.fullmatch(r"(?:Are you holding|Is) the (.+?)(?: in your hand)?\?", question):
            name, _, state = found[1].rpartition(" ")
            if state in ("open", "closed", "on", "off", "broken", "sliced"):
                return self._sees(prompt, state, name)
            return self._sees(prompt, "held", found[1])
        return self._drawn(prompt, question) % 2 == 0

    def with_adapter(self, path: Path | None) -> DreamingModel:
        return self


# --- rounds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """Finished rounds and their store."""

    rounds: tuple[Round, ...]
    store: Store

    @property
    def made(self) -> Round:
        """The first round."""
        return self.rounds[0]


Leak = Callable[[pytest.MonkeyPatch, Path], None]


def _thor() -> ThorWorld:
    settings = WorldSettings.model_validate(WORLD)
    return ThorWorld(PlayerSimulator(settings), settings)


@pytest.fixture(scope="module")
def drawn() -> list[Task]:
    """Practice tasks, drawn before the oracle is sealed."""
    return generate_tasks(TaskSettings(kinds=KINDS), _thor(), 0, EPISODES)


def run_rounds(
    folder: Path,
    model: Path,
    drawn: list[Task],
    *,
    noisy: bool,
    leak: Leak | None = None,
    evaluated: bool = True,
    rounds: int = 1,
) -> Ran:
    """Rounds from an empty store."""
    import selu.flows.learning_round
    import selu.models
    import selu.rollout
    import selu.worlds.tasks

    revision, made = selu.models.model_revision, []

    def make_world(settings: WorldSettings) -> World:
        made.append(_thor())
        return NoisyWorld(made[-1]) if noisy else made[-1]

    def hidden(tasks: Sequence[Task]) -> list[Task]:
        return [with_another_goal(task, number) if noisy else task for number, task in enumerate(tasks)]

    def load(settings: ModelSettings, adapter: Path | None = None) -> DreamingModel:
        return DreamingModel(revision(settings, adapter))

    settings = small_settings(
        folder,
        model,
        world=WORLD,
        tasks={"episodes": EPISODES},
        rollout={"history": 3, "shard_size": 8},
        evaluation={"general_questions": 0},
        dataset={"corpus_pictures": 12, "corpus": str(REPLAY_FILE)},
        # In a dream much is seen in blank pictures.
        guard={"episodes": 8, "blank": 0.0},
        rounds=rounds,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selu.rollout, "make_world", make_world)
        patch.setattr(selu.rollout, "_pools", {})
        patch.setattr(selu.worlds.tasks, "generate_tasks", lambda settings, world, seed, count, **_: hidden(drawn))
        probes = {name: hidden([task for task in frozen_tasks(name) if task.kind in KINDS]) for name in _PROBES}
        patch.setattr(selu.worlds.tasks, "frozen_tasks", probes.__getitem__)
        patch.setattr(selu.models, "load_model", load)
        if not evaluated:
            nothing = Evaluated(metrics=(), made=())
            patch.setattr(selu.flows.learning_round, "evaluation", lambda *given: nothing)
        if leak is not None:
            leak(patch, Workspace.of(settings).store_root)
        finished = self_learning(settings)
        assert made, "the flow took its worlds from elsewhere"
    return Ran(tuple(finished), Workspace.of(settings).store())


_PROBES = ("probe_a", "probe_b")
_TRAINS = (
    "episodes", "frames", "judgements", "relabels", "contrasts", "corpus_pictures", "corpus_judgements", "critic_dataset",
    "critic_candidate", "rejudgements", "rerelabels", "actor_dataset", "actor_candidate", "guard_artifacts",
    "critic_adapter", "actor_adapter",
)  # fmt: skip
"""All that a round makes but its tasks (they hold the goals), the oracle and the metrics."""


def file_hashes(ran: Ran, role: str) -> dict[str, str]:
    """sha256 of every file of the artifacts of one role, as they lie on disk; manifests hold times and are left out."""
    refs: list[ArtifactRef | OracleRef] = []
    for made in ran.rounds:
        value: Any = getattr(made, role)
        refs += [ref for ref in (value if isinstance(value, tuple) else (value,)) if ref is not None]
    return {
        f"{number}/{path.relative_to(folder)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for number, ref in enumerate(refs)
        for folder in [ran.store.path(ref)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def what_differs(first: Ran, second: Ran) -> list[str]:
    """Roles of what trains a model whose bytes differ, in the order of the round."""
    return [role for role in _TRAINS if file_hashes(first, role) != file_hashes(second, role)]


@pytest.fixture(scope="module")
def plain(prefect_server: None, small_model: Path, drawn: list[Task], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_rounds(tmp_path_factory.mktemp("plain"), small_model, drawn, noisy=False, rounds=2)


@pytest.fixture(scope="module")
def noisy(prefect_server: None, small_model: Path, drawn: list[Task], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_rounds(tmp_path_factory.mktemp("noisy"), small_model, drawn, noisy=True, rounds=2)


# --- proof -----------------------------------------------------------------------------------------------------------


def test_what_trains_a_model_is_the_same_bytes_under_noise(plain: Ran, noisy: Ran) -> None:
    for role in _TRAINS:
        hashes = file_hashes(plain, role)
        assert hashes, role
        assert file_hashes(noisy, role) == hashes, role
    for one, other in zip(plain.rounds, noisy.rounds, strict=True):
        assert other.revisions == one.revisions
        assert other.guards == one.guards


def test_guards_decided_in_both_rounds_and_the_second_starts_from_what_was_promoted(plain: Ran) -> None:
    first, second = plain.rounds
    for made in (first, second):
        assert [report.who for report in made.guards] == ["critic", "actor"]
        assert all(signal.after is not None for report in made.guards for signal in report.signals if signal.n)
    for who, adapter in (("critic", first.critic_adapter), ("actor", first.actor_adapter)):
        promoted = next(report.passed for report in first.guards if report.who == who)
        assert (adapter is not None) == promoted
        assert ("+" in second.revisions[f"{who}_before"]) == promoted


def test_the_noise_replaced_everything_that_the_world_tells(plain: Ran, noisy: Ran) -> None:
    def truth(ran: Ran) -> dict[tuple[str, int], OracleStep]:
        rows = [row for ref in ran.made.oracle for row in _table(ran, ref, "oracle_steps", OracleStep)]
        return {(row.episode_id, row.frame_index): row for row in rows}

    known, noise = truth(plain), truth(noisy)
    assert known.keys() == noise.keys()
    assert all(known[key].facts != noise[key].facts for key in known)
    for field in ("action_success", "error_message", "goal_holds"):
        assert len({getattr(row, field) for row in known.values()}) > 1, f"{field} says nothing in this round"
        assert any(getattr(known[key], field) != getattr(noise[key], field) for key in known), field
    goals = [[task.goal for task in _table(ran, ran.made.tasks, "tasks", Task)] for ran in (plain, noisy)]
    assert all(one != other for one, other in zip(*goals, strict=True))


def test_the_evaluation_sees_the_noise(plain: Ran, noisy: Ran) -> None:
    def figures(ran: Ran, subject: str, metric: str) -> list[float]:
        rows = [row for made in ran.rounds for row in round_metrics(ran.store, made)]
        return [row.rate for row in rows if (row.subject, row.metric) == (subject, metric)]

    for subject, metric in (("actor", "success_rate"), ("critic", "balanced_accuracy"), ("labels", "false_rate")):
        assert figures(plain, subject, metric)
        assert figures(plain, subject, metric) != figures(noisy, subject, metric), subject


def test_the_round_had_labels_to_spoil(plain: Ran) -> None:
    verdicts = [row for ref in plain.made.rejudgements for row in _table(plain, ref, "verdicts", Verdict)]
    relabels = [row for ref in plain.made.rerelabels for row in _table(plain, ref, "relabels", Relabel)]
    assert {row.verdict for row in verdicts if row.accepted} == {"yes", "no"}
    assert any(row.accepted for row in relabels)
    assert len(read_dataset(plain.store, plain.made.critic_dataset, "critic")) > 10
    assert len(read_dataset(plain.store, plain.made.actor_dataset, "actor")) > 10


def _table(ran: Ran, ref: ArtifactRef | OracleRef, name: str, record_type: Any) -> list[Any]:
    return read_table(ran.store.path(ref) / f"{name}.parquet", record_type)


# --- leaks -----------------------------------------------------------------------------------------------------------


def episodes_end_at_the_goal(patch: pytest.MonkeyPatch, store: Path) -> None:
    """The classic one: success shows in an episode's length."""
    import selu.rollout

    make_world = selu.rollout.make_world

    def eager(settings: WorldSettings) -> World:
        world = make_world(settings)
        step = world.step

        def until_done(action: str) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
            frame, reward, terminated, truncated, info = step(action)
            return frame, reward, terminated or holds(world.task.goal, world.oracle().facts), truncated, info

        patch.setattr(world, "step", until_done)
        return world

    patch.setattr(selu.rollout, "make_world", eager)


def the_actor_is_told_whether_its_action_succeeded(patch: pytest.MonkeyPatch, store: Path) -> None:
    """In its prompt, as one more word of its history."""
    import selu.rollout

    situation = selu.rollout._Lane.situation

    def told(lane: selu.rollout._Lane) -> selu.rollout.Situation:
        seen = situation(lane)
        verb = "Done" if lane.world.oracle().action_success else "MoveAhead"
        return selu.rollout.Situation(seen.instruction, seen.frame, (*seen.history, verb), seen.seed, seen.world)

    patch.setattr(selu.rollout._Lane, "situation", told)


def _truth(store: Path) -> dict[str, bool]:
    """What any stage could read, were it to look."""
    return {
        row.episode_id: row.success
        for path in sorted((store / "oracle").rglob("oracle_episodes.parquet"))
        for row in read_table(path, OracleEpisode)
    }


def self_asking_reads_the_outcome(patch: pytest.MonkeyPatch, store: Path) -> None:
    """Verdicts under the original instruction are put right."""
    import selu.tasks.self_asking

    ask = selu.tasks.self_asking.ask

    def knowing(episodes: Sequence[Episode], *given: Any, **options: Any) -> Any:
        questions, answers, verdicts = ask(episodes, *given, **options)
        truth = _truth(store)
        said = ("no", "yes")
        return questions, answers, [
            row.model_copy(update={"verdict": said[truth[row.episode_id]], "accepted": True})
            if row.episode_id in truth  # and no picture of the corpus
            else row
            for row in verdicts
        ]  # fmt: skip

    patch.setattr(selu.tasks.self_asking, "ask", knowing)


def hindsight_leaves_out_false_relabels(patch: pytest.MonkeyPatch, store: Path) -> None:
    """The most tempting one: no label is made up, only the false ones are kept from training."""
    import selu.tasks.hindsight
    from selu.evaluation import truth_of_instruction

    relabel = selu.tasks.hindsight.relabel

    def picky(*given: Any, **options: Any) -> Any:
        questions, answers, relabels = relabel(*given, **options)
        facts = {
            (row.episode_id, row.frame_index): row.facts
            for path in sorted((store / "oracle").rglob("oracle_steps.parquet"))
            for row in read_table(path, OracleStep)
        }
        return questions, answers, [
            row.model_copy(
                update={
                    "accepted": row.accepted
                    and truth_of_instruction(row.instruction, facts[row.episode_id, row.frame_index]) is True
                }
            )
            for row in relabels
        ]  # fmt: skip

    patch.setattr(selu.tasks.hindsight, "relabel", picky)


def the_guard_counts_true_successes(patch: pytest.MonkeyPatch, store: Path) -> None:
    """The new actor is taken into use if it is better indeed, and not if the critic thinks so."""
    import selu.tasks.guards

    actor_signs = selu.tasks.guards.actor_signs

    def knowing(episodes: Sequence[Episode], *given: Any) -> Any:
        truth = _truth(store)
        done = [truth[row.episode_id] for row in episodes]
        return dataclasses.replace(actor_signs(episodes, *given), success=sum(done) / len(done))

    patch.setattr(selu.tasks.guards, "actor_signs", knowing)


@pytest.mark.parametrize(
    ("leak", "spoiled"),
    [
        (episodes_end_at_the_goal, "episodes"),
        (the_actor_is_told_whether_its_action_succeeded, "episodes"),
        (self_asking_reads_the_outcome, "judgements"),
        (hindsight_leaves_out_false_relabels, "relabels"),
        (the_guard_counts_true_successes, "guard_artifacts"),
    ],
)
def test_a_stage_that_reads_the_truth_is_found(
    leak: Leak, spoiled: str, small_model: Path, drawn: list[Task], tmp_path: Path
) -> None:
    first, second = (
        run_rounds(tmp_path / name, small_model, drawn, noisy=name == "noisy", leak=leak, evaluated=False)
        for name in ("plain", "noisy")
    )
    found = what_differs(first, second)
    assert found[0] == spoiled
    assert {"critic_dataset", "critic_candidate", "actor_dataset", "actor_candidate", "guard_artifacts"} & set(found)
