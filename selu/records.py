"""The rows that walk through the pipeline: world -> episodes -> frames -> questions -> verdicts -> relabels -> datasets.

Every record is a frozen pydantic model and one row of a Parquet table of the same name. Nothing in this module holds
ground truth except :class:`Task.goal` (read by worlds and evaluation) and the ``Oracle*`` records (read by evaluation).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Answer",
    "Condition",
    "Episode",
    "Frame",
    "OracleEpisode",
    "OracleStep",
    "Question",
    "Record",
    "Relabel",
    "Setup",
    "Step",
    "Task",
    "Verdict",
]

Judgement = Literal["yes", "no", "unsure"]


class Record(BaseModel):
    """A frozen row; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Condition(Record):
    """One fact that must hold at the end of an episode, about any (or every) instance of an object type."""

    predicate: Literal[
        "held", "open", "closed", "on", "off", "inside", "broken", "sliced", "dirty", "clean", "filled", "empty"
    ]
    object_type: str = Field(description="AI2-THOR object type, e.g. Fridge")
    receptacle_type: str | None = Field(
        default=None, description="for `inside`: type of the receptacle that must hold it"
    )


class Setup(Record):
    """How an episode starts; replays to the same bytes."""

    spawn_seed: int = Field(description="seed of the random placement of small objects")
    states: dict[str, dict[str, bool]] = Field(
        default_factory=dict, description="object id -> {isOpen|isToggled|isBroken|isDirty|isFilledWithLiquid: value}"
    )
    held: str | None = Field(default=None, description="object id in the agent's hand at the start")
    position: tuple[float, float, float] = Field(description="agent position in metres (x, y, z)")
    rotation: float = Field(description="yaw in degrees")
    horizon: float = Field(default=0.0, description="camera pitch in degrees, positive looks down")


class Task(Record):
    """An instruction in a scene with a start; `task_id` is the hash of the rest."""

    task_id: str
    scene: str = Field(description="iTHOR scene, e.g. FloorPlan21")
    kind: str = Field(description="pick_up, open, close, toggle_on, toggle_off, put, ..., two_step or three_step")
    instruction: str
    goal: tuple[Condition, ...] = Field(default=(), description="ground truth; empty where it cannot be told")
    setup: Setup


class Episode(Record):
    """One trajectory as the agent lived it: no ground truth."""

    episode_id: str = Field(description="hash of task, policy revision and seed")
    task_id: str
    scene: str
    instruction: str
    seed: int
    policy: str = Field(description="revision of the actor (base + adapter), or the name of a scripted policy")
    length: int = Field(description="number of actions T; the episode has T+1 frames")
    finish_reason: Literal["done", "step_limit"] = Field(description="the actor's own Done, or the step limit")


class Step(Record):
    """One action as the actor wrote it."""

    episode_id: str
    step: int
    prompt: str
    action: str = Field(description="the raw text")
    well_formed: bool = Field(description="parsed by the action grammar (a property of the text alone)")
    log_probability: float


class Frame(Record):
    """One egocentric picture, losslessly encoded."""

    episode_id: str
    frame_index: int = Field(description="0..T; frame t is what the actor saw before action t")
    image: bytes = Field(description="PNG, (H, W, 3) uint8", repr=False)


class OracleStep(Record):
    """What the world knows about one frame. Evaluation only."""

    episode_id: str
    frame_index: int
    action_success: bool
    error_message: str
    goal_holds: bool = Field(description="false where no goal is known")
    facts: str = Field(description="JSON: held, open, on, broken, sliced, dirty, filled, inside, visible types; pose")


class OracleEpisode(Record):
    """What the world knows about a finished episode. Evaluation only."""

    episode_id: str
    success: bool | None = Field(description="the goal holds at the end of the episode; None: no goal is known")


class Question(Record):
    """A question that the critic asks itself about frames of an episode."""

    question_id: str
    episode_id: str
    frame_index: int
    instruction: str = Field(description="the instruction it helps to judge; empty for hindsight's open questions")
    kind: Literal["direct", "verification", "open", "paraphrase"]
    text: str
    expected: str = Field(description="the answer that speaks for `yes`; empty for an open question")


class Answer(Record):
    """The critic's answer to one question."""

    question_id: str
    text: str
    confidence: float = Field(description="probability of the answer under the model, 0..1")
    critic: str = Field(description="revision of the model that answered")


class Verdict(Record):
    """The critic's judgement of one episode under its original instruction, with its evidence."""

    verdict_id: str
    episode_id: str
    frame_index: int = Field(description="the last frame it rests on")
    instruction: str
    verdict: Judgement
    confidence: float
    evidence: str = Field(description="JSON: question ids and what each spoke for")
    accepted: bool = Field(description="enters a training set")
    reason: str = Field(description="why it was accepted or rejected")


class Relabel(Record):
    """An instruction that the trajectory did achieve, found in hindsight."""

    relabel_id: str
    episode_id: str
    frame_index: int = Field(description="the frame at which it was achieved; the trajectory is cut there")
    original_instruction: str
    instruction: str
    partial: bool = Field(
        default=False, description="only the beginning of the instruction was achieved: a good start, no success"
    )
    confidence: float
    evidence: str = Field(description="JSON: question ids and what each spoke for")
    accepted: bool
    reason: str
