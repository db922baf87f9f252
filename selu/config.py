"""The tree of settings, and how it is loaded: defaults, then a YAML file, then dotted ``key=value`` overrides.

One tree serves the YAML files, the command line and Prefect's form for flow parameters. Unknown names are refused.
:func:`load_settings` gathers every error before it raises, so that a user mends a file once.
``settings.model_dump(mode="json")`` is the canonical form; stages hash the parts that shape their result.
Relative paths are meant from the working directory.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from selu.errors import ConfigError, first_line

__all__ = [
    "DatasetSettings",
    "EvaluationSettings",
    "FinetuningSettings",
    "FrameSettings",
    "GuardSettings",
    "HindsightSettings",
    "ModelSettings",
    "OrchestrationSettings",
    "RolloutSettings",
    "SelfAskingSettings",
    "Settings",
    "Split",
    "TaskKind",
    "TaskSettings",
    "WorldSettings",
    "load_settings",
    "read_yaml",
    "scenes_of_split",
    "validate_settings",
]

TaskKind = Literal[
    "pick_up", "open", "close", "toggle_on", "toggle_off", "put", "break", "slice", "two_step", "three_step", "sit"
]
Split = Literal["base", "development", "learning", "transfer"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "clearml", "swanlab", "dvclive"]

# First scene of each iTHOR room type less one: kitchens, living rooms, bedrooms, bathrooms.
_ROOM_OFFSETS = (0, 200, 300, 400)
# Scene numbers within a room type; docs: method, point 2 of "what the paper's readers asked for".
_SPLIT_NUMBERS: dict[Split, range] = {
    "base": range(1, 17),
    "development": range(17, 21),
    "learning": range(21, 26),
    "transfer": range(26, 31),
}


def scenes_of_split(split: Split) -> tuple[str, ...]:
    """iTHOR scene names of a split, kitchens first (e.g. ``learning`` has 20: FloorPlan21 ... FloorPlan425)."""
    return tuple(f"FloorPlan{offset + number}" for offset in _ROOM_OFFSETS for number in _SPLIT_NUMBERS[split])


_SPLIT_OF_SCENE: dict[str, Split] = {scene: split for split in _SPLIT_NUMBERS for scene in scenes_of_split(split)}


def _existing_scene(scene: str) -> str:
    if scene not in _SPLIT_OF_SCENE:
        plain = re.sub(r"[\s_-]", "", scene).lower()
        hint = next((f"; did you mean {known}?" for known in _SPLIT_OF_SCENE if known.lower() == plain), "")
        raise ValueError(
            f"no such scene: {scene!r}{hint} (FloorPlan1-30 kitchens, 201-230 living rooms, 301-330 bedrooms, "
            "401-430 bathrooms)"
        )
    return scene


def _list_of_names(value: object) -> object:
    """``a,b`` on a command line means ``[a, b]``."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _with_home(value: object) -> object:
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value


def _each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is named more than once")
    return values


_WORLDS = ("thor", "virtualhome")
_SKILL_SETS = ("household", "primitives", "virtualhome")
# package.module:Name
_IMPORTABLE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _known_world(name: str) -> str:
    if name not in _WORLDS and not _IMPORTABLE.fullmatch(name):
        raise ValueError(
            f"must be one of {', '.join(_WORLDS)}, or package.module:Name of a world of your own, got {name!r}"
            + _nearest(name, _WORLDS)
        )
    return name


def _known_skill_set(name: str) -> str:
    if name in _SKILL_SETS:
        return name
    if not _IMPORTABLE.fullmatch(name):
        raise ValueError(
            f"must be one of {', '.join(_SKILL_SETS)}, or package.module:NAME of a grammar of your own, got {name!r}"
            + _nearest(name, _SKILL_SETS)
        )
    # Imported here, so that a grammar that does not work is refused with the other settings.
    from selu.worlds.actions import SKILL_SETS

    try:
        SKILL_SETS[name]
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return name


Scene = Annotated[str, AfterValidator(_existing_scene)]
UserPath = Annotated[Path, BeforeValidator(_with_home)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    """Frozen, no unknown names, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


VLLM_HIGHEST_RANK = 64
"""vLLM keeps room for adapters of this rank beforehand."""


class WorldSettings(_Section):
    """The world, its camera, and how coarse one action is."""

    name: Annotated[str, AfterValidator(_known_world)] = Field(
        default="thor",
        description="which world: thor is AI2-THOR's controller, virtualhome its namesake; package.module:Name is one of "
        "your own",
    )
    skill_set: Annotated[str, AfterValidator(_known_skill_set)] = Field(
        default="household",
        description="household: Approach(T) walks up to something in view; primitives: single steps and turns only "
        "(the frozen probes were proven solvable under household); virtualhome: that world's programs; "
        "package.module:NAME: a grammar of your own",
    )
    width: int = Field(default=96, ge=32, le=2048, description="width of a frame in pixels")
    height: int = Field(default=96, ge=32, le=2048, description="height of a frame in pixels")
    field_of_view: float = Field(default=75.0, ge=30.0, le=140.0, description="vertical field of view in degrees")
    max_steps: int = Field(default=10, ge=1, le=1000, description="actions after which an episode ends by itself")
    visibility_distance: float = Field(
        default=1.5, gt=0.0, le=20.0, description="metres within which an object can be seen as reachable"
    )
    grid_size: float = Field(default=0.25, gt=0.0, le=2.0, description="length of one step in metres")
    rotate_degrees: int = Field(default=45, ge=1, le=180, description="one turn in degrees; 360 is a multiple of it")
    local_executable_path: str | None = Field(
        default=None,
        description="command line that starts a player, e.g. a Unity build of AI2-THOR; unset: the embedded player",
    )
    commit_id: str | None = Field(default=None, description="AI2-THOR build to download in place of a local player")
    platform: Literal["CloudRendering", "Linux64", "OSXIntel64"] | None = Field(
        default=None, description="platform of the downloaded build; CloudRendering needs a GPU and no display"
    )
    x_display: str | None = Field(default=None, description="X display of a real player, e.g. ':99'")
    server: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9.-]+:\d{1,5}$",
        description="host:port of a VirtualHome simulator that runs already (unset: its embedded player)",
    )
    quality: Literal["Very Low", "Low", "Medium", "MediumCloseFitShadows", "High", "Very High", "Ultra"] = Field(
        default="Low", description="AI2-THOR's render quality; the embedded player has one quality"
    )
    start_timeout: float = Field(default=60.0, gt=0.0, le=3600.0, description="seconds a player may take to start")
    step_timeout: float = Field(default=30.0, gt=0.0, le=3600.0, description="seconds a player may take for one step")
    restarts: int = Field(
        default=2, ge=0, le=100, description="times that a lost player is started again, for one start, task or episode"
    )

    @property
    def embedded(self) -> bool:
        """Whether an embedded player is used: neither a player nor a build nor a running simulator is named."""
        return all(named is None for named in (self.local_executable_path, self.commit_id, self.platform, self.server))


class TaskSettings(_Section):
    """What the actor is asked to do, and where."""

    kinds: Annotated[tuple[TaskKind, ...], BeforeValidator(_list_of_names), AfterValidator(_each_once)] = Field(
        default=("pick_up", "open", "close", "toggle_on", "toggle_off", "put", "two_step"),
        min_length=1,
        description="kinds of task to draw from",
    )
    split: Split = Field(default="learning", description="which scenes are practised in (see the method, point 2)")
    scenes: Annotated[tuple[Scene, ...], BeforeValidator(_list_of_names), AfterValidator(_each_once)] = Field(
        default=(), description="only these scenes of the split; empty: all of it"
    )
    instructions: UserPath | None = Field(
        default=None, description="a file with one instruction a line, taken as it is in place of drawn tasks"
    )
    episodes: int = Field(default=400, ge=1, le=1_000_000, description="trajectories collected in a round")
    unsolvable: Share = Field(
        default=0.0, description="share of instructions that name an object which is not in the scene (an ablation)"
    )


class RolloutSettings(_Section):
    """How episodes are collected."""

    shard_size: int = Field(
        default=40, ge=1, le=1000, description="episodes in a shard: the unit of retry, progress and loss"
    )
    players: int = Field(default=8, ge=1, le=64, description="worlds stepped side by side in a shard")
    temperature: float = Field(default=0.6, ge=0.0, le=5.0, description="the actor's; 0 is greedy")
    history: int = Field(default=4, ge=0, le=50, description="own actions that the actor's prompt carries")
    remember: Literal["last", "interactions"] = Field(
        default="interactions",
        description="which: the last ones; interactions: up to half of them are interactions from before those",
    )
    by_parts: bool = Field(
        default=True,
        description="in practice, put an instruction of several steps to the actor step by step, each until it says Done",
    )


class FrameSettings(_Section):
    """Which frames the critic looks at."""

    select: Literal["last", "interactions", "all"] = Field(
        default="interactions",
        description="last: the final frame, as in the paper; interactions: around the actor's interactions too; all",
    )
    limit: int = Field(default=8, ge=1, le=1000, description="most frames of one episode; the last is always kept")


class ModelSettings(_Section):
    """A vision-language model and how it is run."""

    path: str = Field(
        default="embedded",
        min_length=1,
        description="embedded, a folder, a model id on the Hugging Face hub, or with engine=openai its name at the server",
    )
    engine: Literal["transformers", "vllm", "openai"] = Field(
        default="transformers",
        description="what runs the model: transformers in this process; vllm: in batches on a GPU; openai: any server that "
        "speaks the OpenAI protocol (whose weights cannot be fine-tuned)",
    )
    revision: str | None = Field(default=None, description="commit of a hub model; unset: the newest")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="type of the weights")
    device: str = Field(default="cpu", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="cpu, cuda, cuda:1 or auto")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, int | str] | None = Field(
        default=None,
        description="spreads a model over several GPUs, as accelerate does, by itself or as a map from module to device; "
        "unset: all of it is on the device",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto", description="implementation of attention; auto: what transformers takes for the architecture"
    )
    quantization: Literal["none", "4bit"] = Field(
        default="none", description="4bit: weights are held in NF4 (bitsandbytes, CUDA only)"
    )
    batch_size: int = Field(default=64, ge=1, le=4096, description="prompts in a batch; halved when memory runs out")
    max_new_tokens: int = Field(
        default=12,
        ge=1,
        le=4096,
        description="longest action in tokens; of a critic, longest answer to a general question",
    )
    prompts: Literal["auto", "brief", "full"] = Field(
        default="auto",
        description="brief: as the embedded model was trained; full: with actions and answer format; auto: brief for it",
    )
    threads: int = Field(default=2, ge=1, le=256, description="inference threads, pinned")
    adapter: UserPath | None = Field(default=None, description="folder of a LoRA adapter (PEFT) to start from")
    gpu_memory: float = Field(
        default=0.9, gt=0.0, le=1.0, description="for engine=vllm: share of the GPU's memory that it takes and keeps"
    )
    base_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s?#@/]+(/[^\s?#]*)?$",
        description="for engine=openai: address of the server, such as http://127.0.0.1:8000/v1, without user and password",
    )
    api_key_variable: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="for engine=openai: name of the environment variable with the server's key; the key itself is no setting",
    )
    timeout: float = Field(
        default=120.0, gt=0.0, le=3600.0, description="for engine=openai: seconds until an answer is given up"
    )
    retries: int = Field(default=5, ge=0, le=100, description="for engine=openai: further tries of a failed request")
    concurrency: int = Field(default=16, ge=1, le=1024, description="for engine=openai: requests under way at a time")

    @property
    def trainable(self) -> bool:
        """Whether the weights are at hand, so that an adapter can be trained for them and taken into use."""
        return self.engine != "openai"

    @property
    def prompt_style(self) -> Literal["brief", "full"]:
        """Which of the two sets of prompts the model reads."""
        if self.prompts == "auto":
            return "brief" if self.path == "embedded" else "full"
        return self.prompts

    @property
    def as_it_comes(self) -> bool:
        """Whether this is the embedded model without an adapter."""
        return self.path == "embedded" and self.adapter is None

    def is_stranger_to(self, world: WorldSettings) -> bool:
        """Whether this is the embedded model as it comes, before a world in whose rooms it was not trained."""
        return self.as_it_comes and not (world.name == "thor" and world.embedded)


class SelfAskingSettings(_Section):
    """How the critic finds out whether an instruction was done."""

    by: Literal["self_asking", "direct", "voting", "refinement", "deeds", "oracle"] = Field(
        default="self_asking",
        description="self_asking: its own questions; direct: one question; voting: the majority of sampled direct "
        "verdicts; refinement: the direct verdict, revised by its own questions; deeds: what the actor did, without "
        "asking the critic at all; oracle: the truth (an upper bound, refused unless method=oracle_labels)",
    )
    votes: int = Field(default=5, ge=1, le=101, description="direct verdicts that are sampled for one of by=voting")
    paraphrases: bool = Field(default=True, description="ask each question a second way, and want the same answer")
    confidence: float = Field(
        default=0.7, ge=0.0, le=1.0, description="probability below which an answer counts as unsure"
    )
    agreement: float = Field(
        default=1.0, gt=0.0, le=1.0, description="share of a question's phrasings that must agree on its answer"
    )
    max_questions: int = Field(default=6, ge=1, le=64, description="most questions about one instruction")
    max_new_tokens: int = Field(default=48, ge=1, le=4096, description="longest list of questions in tokens")
    deeds: bool = Field(
        default=True, description="what the actor did is evidence too: no done label without an action that showed"
    )
    contrasts: int = Field(
        default=16,
        ge=0,
        le=1000,
        multiple_of=4,
        description="further claims judged for each episode, for labels of both kinds, by fours; 0: none",
    )


class HindsightSettings(_Section):
    """How a failed trajectory gets the instruction that it did achieve."""

    enabled: bool = Field(default=True, description="off: failures teach nothing (an ablation)")
    confidence: float = Field(
        default=0.7, ge=0.0, le=1.0, description="probability below which an answer is no evidence"
    )
    verify: bool = Field(
        default=True, description="ask the critic about the new instruction as if it had been the original one"
    )
    two_step: bool = Field(default=True, description="join two achievements in order into one two-step instruction")
    partial: bool = Field(default=True, description="a failure's good beginning teaches the actor its steps")


class DatasetSettings(_Section):
    """What enters a dataset version."""

    replay: Share = Field(default=0.4, description="share of rows that rehearse the base model's frozen corpus")
    corpus: UserPath | None = Field(
        default=None,
        description="Parquet file of the rows to rehearse, a part of what the base model was trained on before any learning, "
        "from scenes that nobody practises in (columns prompt, completion, images; kind `act` marks demonstrations); unset: "
        "the embedded model's",
    )
    corpus_pictures: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="pictures of the corpus on which the critic, before its first fine-tuning, judges instructions too; it "
        "learns from these verdicts beside what `max_rows` allows; as many as there are, at most; 0: none; unset: six for "
        "each episode of a round, if the corpus is the critic's own and of the world that is practised in",
    )
    negatives_per_positive: float = Field(
        default=1.0, ge=0.0, le=100.0, description="`no` rows kept for each `yes` row in the critic's dataset"
    )
    repeats: int = Field(
        default=5, ge=1, le=100, description="times that a `yes` row may come, each time with other `no` rows"
    )
    questions_per_verdict: float = Field(
        default=0.2, ge=0.0, le=100.0, description="rows of the critic's own questions kept for each verdict row"
    )
    compositions: int = Field(
        default=2,
        ge=0,
        le=100,
        description="two-step instructions made of each one-step trajectory and another; 0: none",
    )
    recoveries: bool = Field(
        default=True, description="teach the actor to look on where it tried to walk up to something too early"
    )
    max_rows: int = Field(default=8_000, ge=1, le=10_000_000, description="most rows of a dataset version")
    reuse_previous_rounds: bool = Field(default=True, description="also take what earlier rounds of this run labelled")


class FinetuningSettings(_Section):
    """LoRA fine-tuning of one model."""

    enabled: bool = Field(default=True, description="off: the model stays as it is (an ablation)")
    start: Literal["base", "previous"] = Field(
        default="base",
        description="each round's adapter starts afresh from the base model, or from that of the round before",
    )
    rank: int = Field(default=16, ge=1, le=1024, description="LoRA rank")
    alpha: int = Field(default=32, ge=1, le=4096, description="LoRA scale: updates are multiplied by alpha / rank")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="LoRA dropout")
    target: Literal["language", "language+connector", "all"] = Field(
        default="language", description="which linear layers get an adapter: the text side, with the connector, or all"
    )
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0, description="peak learning rate")
    epochs: float = Field(default=9.0, gt=0.0, le=1000.0, description="passes over the dataset version")
    max_steps: int = Field(
        default=900, ge=-1, description="no more optimiser steps than these, however many rows; -1: as epochs say"
    )
    batch_size: int = Field(default=32, ge=1, le=4096, description="rows in an optimiser step")
    weigh: Literal["rows", "tokens"] = Field(
        default="rows", description="what counts the same in the loss: each row, however long, or each token of it"
    )
    warmup_ratio: float = Field(default=0.05, ge=0.0, lt=1.0, description="share of the steps that warm up")
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0, description="AdamW's weight decay")
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="recompute activations in place of keeping them: slower, in less memory; unset: on a GPU only",
    )
    mixed_precision: Literal["bfloat16"] | None = Field(
        default=None,
        description="bfloat16: compute in it over weights kept as they are (autocast), on a GPU that has it or a CPU; LoRA's "
        "own weights are float32 either way",
    )
    threads: int = Field(
        default=2, ge=1, le=256, description="CPU threads; pinned, because sums in another order give other bytes"
    )
    checkpoint_steps: int = Field(
        default=50,
        ge=0,
        description="optimiser steps between checkpoints, from which a stopped training goes on with the same result; 0: none",
    )
    validation: float = Field(
        default=0.0,
        ge=0.0,
        le=0.5,
        description="share of the rows held out, by whole episodes; the adapter with the lowest loss on them is kept. 0: all "
        "rows train, and the last adapter is kept",
    )
    validate_every: int = Field(
        default=50, ge=1, description="optimiser steps between two measurements on the rows held out"
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="training stops after so many measurements in a row without a new lowest loss; 0: never",
    )

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1 (as epochs say) or at least 1")
        return value


class ActorFinetuningSettings(FinetuningSettings):
    """The actor's, which learns more that it did not know, from fewer rows."""

    rank: int = Field(default=32, ge=1, le=1024, description="LoRA rank")
    alpha: int = Field(default=64, ge=1, le=4096, description="LoRA scale: updates are multiplied by alpha / rank")
    epochs: float = Field(default=12.0, gt=0.0, le=1000.0, description="passes over the dataset version")
    weigh: Literal["rows", "tokens"] = Field(
        default="tokens", description="what counts the same in the loss: each row, however long, or each token of it"
    )


class GuardSettings(_Section):
    """When a fine-tuned adapter is taken into use. Every signal is one that the loop sees by itself, without truth.

    A guard is there to catch what is broken, not to pick the better of two that work, so limits lie well beyond what
    healthy rounds showed. Two critics fine-tuned on 320 episodes of development scenes: right about blank pictures .95
    (base .66), of the base corpus .87 and .88 (.885), agreement .79 and .81 (.47), shares of yes apart by .23 and .27
    (.40), entropy .35 and .69 bits (.72). A critic that always says yes: 0, -, .5, .75 and 0. Two actors on 60 tasks there:
    success in the critic's eyes .20 and .20 (base .23; 60 episodes tell no less than 10 points apart), malformed 0 (0),
    verbs 2.3 and 2.4 bits (2.5), one repeated action .23 and .23 (.17), own Done .65 and .55 (.52).
    """

    enabled: bool = Field(default=True, description="off: every adapter is taken into use")
    episodes: int = Field(
        default=60,
        ge=1,
        le=100_000,
        description="practice tasks that old and new actor play greedily, at most a round's",
    )
    blank: Share = Field(default=0.75, description="critic: least share of right answers about blank pictures")
    forgetting: Share = Field(
        default=0.1, description="critic: most that may be lost in answering its own base corpus, as a share"
    )
    agreement: Share = Field(
        default=0.6,
        description="critic: least agreement of direct verdict and self-asking (mean over its yes and its no; 0.5 is "
        "chance)",
    )
    yes_excess: Share = Field(
        default=0.4, description="critic: most that the shares of yes of direct verdict and self-asking may differ"
    )
    entropy: Share = Field(default=0.95, description="critic: most mean entropy of the direct verdict in bits")
    success_loss: Share = Field(
        default=0.1, description="actor: most that may be lost in success as the promoted critic sees it"
    )
    malformed: Share = Field(default=0.05, description="actor: most that the share of malformed actions may rise")
    diversity: Share = Field(default=0.5, description="actor: least share of the entropy over verbs that must be kept")
    repeated: Share = Field(
        default=0.25, description="actor: most that the share of episodes of one repeated action may rise"
    )
    done_loss: Share = Field(default=0.25, description="actor: most that the share of own Done may fall")
    approval: bool = Field(
        default=False,
        description="wait in Prefect's UI for a person to approve of each adapter that would be promoted",
    )
    stop: int = Field(
        default=2, ge=0, le=1000, description="self-learning stops after so many rounds without a promotion; 0: never"
    )


class OrchestrationSettings(_Section):
    """How Prefect runs the stages. Nothing here shapes a result."""

    task_runner: Literal["threads", "dask", "ray"] = Field(
        default="threads",
        description="threads: one shard after the other, in the run's own process; dask, ray: shards side by side in other "
        "processes and on other machines that share data_dir",
    )
    workers: int = Field(
        default=2, ge=1, le=10_000, description="processes that dask or ray start where no address is given"
    )
    address: str | None = Field(
        default=None,
        min_length=1,
        description="of a Dask scheduler or a Ray head that is up; unset: started for the run",
    )
    gpu_slot: str | None = Field(
        default=None,
        min_length=1,
        description="name of a global concurrency limit of Prefect: fine-tuning and judging wait for a slot of it, while "
        "rollouts go on; unset: nobody waits",
    )


class EvaluationSettings(_Section):
    """Size of the frozen, held-out probes; A lies in the learning scenes, B in the transfer scenes."""

    actor_episodes_a: int = Field(default=200, ge=1, le=100_000, description="actor's episodes in probe set A")
    actor_episodes_b: int = Field(default=100, ge=0, le=100_000, description="actor's episodes in probe set B")
    critic_episodes_a: int = Field(default=200, ge=1, le=100_000, description="trajectories judged in probe set A")
    critic_episodes_b: int = Field(default=100, ge=0, le=100_000, description="trajectories judged in probe set B")
    three_step_episodes: int = Field(
        default=60,
        ge=0,
        le=100_000,
        description="actor's episodes of three steps each, in the learning scenes; AI2-THOR's alone",
    )
    temperature: float = Field(default=0.0, ge=0.0, le=5.0, description="the actor's; 0 is greedy")
    general_questions: int = Field(
        default=400, ge=0, le=100_000, description="questions outside the tasks that show whether a model forgets"
    )
    bootstrap: int = Field(
        default=2000, ge=100, le=1_000_000, description="resamples, clustered by scene, behind a difference's interval"
    )


_CORPUS_PICTURES_AN_EPISODE = 6
"""2,400 for 400 episodes: more than 800, measured on development scenes (results/looks.md)."""


class Settings(_Section):
    """Everything a run hangs on."""

    name: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="a name for the run of letters, digits, dots, dashes and underscores (64 at most)",
    )
    method: str = Field(
        default="selu",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="a label for the method of letters, digits, dots, dashes and underscores (64 at most); it changes "
        "no setting by itself, selu compare gives each method its own",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="the one seed that all randomness comes from")
    rounds: int = Field(default=1, ge=1, le=1000, description="rounds of self-learning")
    data_dir: UserPath = Field(default=Path(".selu"), description="folder of the artifacts; several runs may share it")
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_list_of_names), AfterValidator(_each_once)] = Field(
        default=("tensorboard",), description="where training curves go besides the report; empty: nowhere"
    )
    world: WorldSettings = Field(default_factory=WorldSettings, description="the world, its camera and step sizes")
    tasks: TaskSettings = Field(default_factory=TaskSettings, description="what the actor is asked to do, and where")
    rollout: RolloutSettings = Field(default_factory=RolloutSettings, description="how episodes are collected")
    frames: FrameSettings = Field(default_factory=FrameSettings, description="which frames the critic looks at")
    actor: ModelSettings = Field(default_factory=ModelSettings, description="the model that acts")
    critic: ModelSettings = Field(default_factory=ModelSettings, description="the model that judges")
    self_asking: SelfAskingSettings = Field(
        default_factory=SelfAskingSettings, description="how the critic questions itself"
    )
    hindsight: HindsightSettings = Field(default_factory=HindsightSettings, description="how failures are relabeled")
    dataset: DatasetSettings = Field(default_factory=DatasetSettings, description="what enters a dataset version")
    critic_finetuning: FinetuningSettings = Field(
        default_factory=FinetuningSettings, description="the critic's LoRA fine-tuning"
    )
    actor_finetuning: ActorFinetuningSettings = Field(
        default_factory=ActorFinetuningSettings, description="the actor's LoRA fine-tuning"
    )
    guard: GuardSettings = Field(
        default_factory=GuardSettings, description="when a fine-tuned adapter is taken into use"
    )
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="sizes of the frozen, held-out probes"
    )
    orchestration: OrchestrationSettings = Field(
        default_factory=OrchestrationSettings, description="how Prefect runs the stages"
    )

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.dataset.corpus_pictures is None:
            foreign = not self.corpus_is_known or self.critic.is_stranger_to(self.world)
            pictures = 0 if foreign else _CORPUS_PICTURES_AN_EPISODE * self.tasks.episodes
            object.__setattr__(self, "dataset", self.dataset.model_copy(update={"corpus_pictures": pictures}))
        conflicts = list(_conflicts(self))
        if conflicts:
            raise PydanticCustomError(
                "conflict", "{text}", {"text": "; ".join(text for _, text in conflicts), "conflicts": conflicts}
            )
        return self

    @property
    def corpus_is_known(self) -> bool:
        """Whether the settings name what the critic was trained on: its own corpus, or the embedded model's."""
        return self.dataset.corpus is not None or self.critic.path == "embedded"


def _conflicts(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Settings that are fine alone but not together: the keys involved, and a sentence with the way out.

    All rules stand here, and not with their sections, so that one wrong value does not hide the others.
    """
    world, tasks = settings.world, settings.tasks
    if 360 % world.rotate_degrees:
        yield (
            ("world.rotate_degrees",),
            f"world.rotate_degrees={world.rotate_degrees}: 360 is not a multiple of it, so the agent could never face "
            "the same way again; use 30, 45, 60 or 90",
        )
    if settings.dataset.corpus_pictures and not settings.corpus_is_known:
        yield (
            ("dataset.corpus_pictures", "dataset.corpus", "critic.path"),
            f"dataset.corpus_pictures={settings.dataset.corpus_pictures} wants pictures that the critic was trained on, and of "
            f"critic.path={settings.critic.path} no corpus is named; set dataset.corpus, or dataset.corpus_pictures=0",
        )
    if settings.guard.approval and settings.self_asking.by == "oracle":
        yield (
            ("guard.approval", "self_asking.by"),
            "guard.approval with self_asking.by=oracle: an upper bound that learns from the truth is promoted unasked; set "
            "guard.approval=false",
        )
    if settings.orchestration.address is not None and settings.orchestration.task_runner == "threads":
        yield (
            ("orchestration.address", "orchestration.task_runner"),
            f"orchestration.address={settings.orchestration.address} with task_runner=threads: threads are in the run's own "
            "process; set task_runner to dask or ray",
        )
    if world.local_executable_path is not None and world.commit_id is not None:
        yield (
            ("world.local_executable_path", "world.commit_id"),
            "world.local_executable_path and world.commit_id are both set: a local player is started as it is, a "
            "build is downloaded; keep one",
        )
    if world.x_display is not None and world.platform == "CloudRendering":
        yield (
            ("world.x_display", "world.platform"),
            "world.x_display is set but world.platform=CloudRendering uses no display; keep one",
        )
    if (world.name == "virtualhome") != (world.skill_set == "virtualhome"):
        yield (
            ("world.name", "world.skill_set"),
            f"world.skill_set={world.skill_set} with world.name={world.name}: VirtualHome has actions of its own, so set "
            "both to virtualhome (configs/virtualhome.yaml does) or neither",
        )
    if world.name == "virtualhome":
        named = [key for key in ("local_executable_path", "commit_id", "platform") if getattr(world, key) is not None]
        if named:
            yield (
                ("world.name", *(f"world.{key}" for key in named)),
                f"world.{named[0]} is about AI2-THOR; start VirtualHome yourself and say where in world.server",
            )
        # Of these it has its own; one that is given would be stored with the episodes and change nothing.
        ignored = [
            key
            for key in ("quality", "visibility_distance", "grid_size", "rotate_degrees")
            if getattr(world, key) != WorldSettings.model_fields[key].default
        ]
        if ignored:
            yield (
                ("world.name", *(f"world.{key}" for key in ignored)),
                f"world.{ignored[0]}={getattr(world, ignored[0])} is about AI2-THOR, VirtualHome has its own; leave it out",
            )
        if world.server is not None and settings.rollout.players > 1:
            yield (
                ("world.server", "rollout.players"),
                f"world.server={world.server} is one simulator with one home in it, but rollout.players="
                f"{settings.rollout.players} would drive it at once; set rollout.players=1",
            )
        if world.server is not None and settings.orchestration.task_runner != "threads":
            yield (
                ("world.server", "orchestration.task_runner"),
                f"world.server={world.server} is one simulator, but orchestration.task_runner="
                f"{settings.orchestration.task_runner} would drive it from several processes; set it to threads",
            )
        if tasks.unsolvable:
            yield (
                ("world.name", "tasks.unsolvable"),
                f"tasks.unsolvable={tasks.unsolvable}: what is not there is drawn from iTHOR's objects; leave it out in "
                "VirtualHome",
            )
    elif world.server is not None:
        yield (
            ("world.name", "world.server"),
            f"world.server={world.server} says where VirtualHome runs; set world.name=virtualhome too or leave it out",
        )
    if tasks.split == "transfer":
        yield (
            ("tasks.split",),
            "tasks.split=transfer: probe set B lies in these scenes and is about homes never visited, so nobody practises "
            "there; use learning or development",
        )
    for scene in tasks.scenes:
        split = _SPLIT_OF_SCENE[scene]
        if split != tasks.split:
            other = "" if split == "transfer" else f"set tasks.split={split} or "
            yield (
                ("tasks.scenes", "tasks.split"),
                f"tasks.scenes: {scene} belongs to the split {split}, not to tasks.split={tasks.split}; the splits "
                f"keep practice and probes apart, so {other}leave {scene} out",
            )
    if settings.rollout.players > settings.rollout.shard_size:
        yield (
            ("rollout.players", "rollout.shard_size"),
            f"rollout.players={settings.rollout.players} is more than rollout.shard_size="
            f"{settings.rollout.shard_size}: some players would never start; lower the first or raise the second",
        )
    if (settings.self_asking.by == "oracle") != (settings.method == "oracle_labels"):
        yield (
            ("self_asking.by", "method"),
            f"self_asking.by={settings.self_asking.by} with method={settings.method}: labels by the truth are an upper "
            "bound to measure against and no self-learning, so a run has both self_asking.by=oracle and "
            "method=oracle_labels, or neither",
        )
    if settings.self_asking.by == "deeds" and (settings.critic_finetuning.enabled or settings.hindsight.enabled):
        yield (
            ("self_asking.by", "critic_finetuning.enabled", "hindsight.enabled"),
            "self_asking.by=deeds asks no critic, so that there is nothing to fine-tune it on and nobody to relabel; set "
            "critic_finetuning.enabled=false and hindsight.enabled=false too",
        )
    if settings.tasks.instructions is not None and settings.tasks.unsolvable:
        yield (
            ("tasks.instructions", "tasks.unsolvable"),
            f"tasks.unsolvable={settings.tasks.unsolvable} is about drawn tasks, but tasks.instructions names your own "
            "list, which is taken as it is; leave one of them out",
        )
    for name, model in (("actor", settings.actor), ("critic", settings.critic)):
        if model.path == "embedded" and model.revision is not None:
            yield (
                (f"{name}.path", f"{name}.revision"),
                f"{name}.revision={model.revision}: the embedded model has no other revision; set {name}.path to a "
                "model on the hub or leave the revision out",
            )
        if model.engine == "openai":
            plain: dict[str, Any] = {"quantization": "none", "attention": "auto", "device_map": None}
            for key, unset in plain.items():
                if getattr(model, key) != unset:
                    yield (
                        (f"{name}.engine", f"{name}.{key}"),
                        f"{name}.{key}={getattr(model, key)} is about weights on this machine, but {name}.engine=openai asks "
                        "a server; leave it out and set it there",
                    )
        elif model.base_url is not None:
            yield (
                (f"{name}.engine", f"{name}.base_url"),
                f"{name}.base_url={model.base_url} is a server's address, but {name}.engine={model.engine} asks none; set "
                f"{name}.engine=openai or leave it out",
            )
        if model.dtype == "float16" and model.device == "cpu":
            yield (
                (f"{name}.dtype", f"{name}.device"),
                f"{name}.dtype=float16 does not run on {name}.device=cpu; use float32 or bfloat16",
            )
    served = {
        (model.path, model.revision, model.dtype, model.quantization, model.gpu_memory, model.device_map is None)
        for model in (settings.actor, settings.critic)
    }
    shares = settings.actor.gpu_memory + settings.critic.gpu_memory
    if settings.actor.engine == settings.critic.engine == "vllm" and len(served) > 1 and shares > 1:
        yield (
            ("actor.gpu_memory", "critic.gpu_memory"),
            f"actor.gpu_memory={settings.actor.gpu_memory:g} and critic.gpu_memory={settings.critic.gpu_memory:g} of two models "
            "in vLLM come to more than one GPU; lower them, or let one model be both",
        )
    for name, finetuning, model in (
        ("critic_finetuning", settings.critic_finetuning, settings.critic),
        ("actor_finetuning", settings.actor_finetuning, settings.actor),
    ):
        if finetuning.enabled and not model.trainable:
            who = name.removesuffix("_finetuning")
            yield (
                (f"{who}.engine", f"{name}.enabled"),
                f"{who}.engine={model.engine}: weights behind a server cannot be fine-tuned; set {name}.enabled=false, or "
                f"{who}.path to a folder or hub id with {who}.engine=transformers",
            )
        if finetuning.enabled and model.engine == "vllm" and finetuning.rank > VLLM_HIGHEST_RANK:
            yield (
                (f"{name}.rank", f"{name.removesuffix('_finetuning')}.engine"),
                f"{name}.rank={finetuning.rank}: vLLM serves adapters up to rank {VLLM_HIGHEST_RANK}; lower it or use "
                "engine=transformers",
            )
        if finetuning.enabled and model.engine == "vllm" and finetuning.target != "language":
            yield (
                (f"{name}.target", f"{name.removesuffix('_finetuning')}.engine"),
                f"{name}.target={finetuning.target}: vLLM applies an adapter to the language model alone; set "
                f"{name}.target=language or use engine=transformers",
            )
        if finetuning.enabled and finetuning.patience and not finetuning.validation:
            yield (
                (f"{name}.patience", f"{name}.validation"),
                f"{name}.patience={finetuning.patience} with {name}.validation=0: without rows held out nothing tells when "
                f"to stop; set {name}.validation to a share such as 0.1 or leave patience out",
            )
        if finetuning.batch_size > settings.dataset.max_rows:
            yield (
                (f"{name}.batch_size", "dataset.max_rows"),
                f"{name}.batch_size={finetuning.batch_size} is more than dataset.max_rows={settings.dataset.max_rows}: "
                "no batch could be filled; lower the first or raise the second",
            )


# Loading -------------------------------------------------------------------------------------------------------------


def load_settings(config: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a run: defaults, then ``config`` (YAML), then ``overrides`` such as ``world.width=224``.

    A file names only what it changes. An override's value is YAML (``tasks.kinds=[open, close]``, ``actor.adapter=``
    for null); for a text setting it is the text itself, and a list of names may be given as ``a,b``. Of two
    overrides of one key the later counts.

    Raises:
        ConfigError: the file cannot be read, or settings are unknown, out of range, contradict each other, or name a
            file that does not exist; all of them are in its text, one a line.
    """
    data: dict[str, Any] = {} if config is None else read_yaml(config)
    settings, problems = _overridden(data, overrides)
    if settings is None or problems:
        # A file that is fine without the overrides is not to blame.
        to_blame = config is not None and bool(not overrides or _overridden(data, ())[1])
        raise _refusal(problems, source=str(config) if to_blame else None)
    return settings


def _overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Settings | None, list[str]]:
    """Settings, None if there are none to speak of, and what is wrong with them."""
    problems: list[str] = []
    known = _known_part(data, problems)
    for override in overrides:
        _apply_override(known, override, problems)
    settings = _validated(known, problems)
    if settings is not None:
        problems += _missing_files(settings)
    return settings, problems


def validate_settings(data: Mapping[str, Any]) -> Settings:
    """Settings from a nested mapping (a notebook, a flow's parameters), with the errors of :func:`load_settings`.

    Raises:
        ConfigError: as :func:`load_settings`, except that no file is looked for.
    """
    problems: list[str] = []
    settings = _validated(_known_part(dict(data), problems), problems)
    if settings is None or problems:
        raise _refusal(problems, source=None)
    return settings


def _refusal(problems: Sequence[str], source: str | None) -> ConfigError:
    origin = f"{source}: " if source else ""
    if len(problems) == 1:
        return ConfigError(origin + problems[0])
    return ConfigError(f"{origin}{len(problems)} settings cannot work:\n" + "\n".join(f"  - {p}" for p in problems))


class _Loader(yaml.SafeLoader):
    """YAML as its users expect it: ``1e-3`` is a number, ``1:30`` is text, a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML speaks, reads 1e-3 as text, 010 as eight and 1:30 as ninety; these are YAML 1.2's numbers.
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBER_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBER_TAGS[0], re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _NUMBER_TAGS[1],
    re.compile(
        r"^[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        there = f"; in {path.parent} there are {', '.join(siblings)}" if siblings else ""
        raise ConfigError(f"no such config file: {path}{there}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8, so it cannot be a config") from None
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not valid YAML: {first_line(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold settings as `key: value` lines, got a {_kind_of(data)}")
    return data


# Names ---------------------------------------------------------------------------------------------------------------


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel] | None, Any]]:
    """Dotted key, the section's type (None for a single setting), and the annotation of every setting."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield f"{prefix}{name}", annotation, annotation
            yield from _known_keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", None, annotation


_SECTION_OF_KEY: dict[str, type[BaseModel] | None] = {key: section for key, section, _ in _known_keys(Settings)}
_ANNOTATION_OF_KEY: dict[str, Any] = {key: annotation for key, _, annotation in _known_keys(Settings)}


def _nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def _unknown(key: str) -> str:
    """Sentence about an unknown key: the nearest known one, or what is known beside it."""
    section, _, leaf = key.rpartition(".")
    if section in _SECTION_OF_KEY and _SECTION_OF_KEY[section] is None:
        return f"{key}: {section} is a single setting and has nothing below it"
    beside = [known for known in _SECTION_OF_KEY if known.rpartition(".")[0] == section]
    leaf_of = {known.rpartition(".")[2]: known for known in beside}
    matches = difflib.get_close_matches(leaf, list(leaf_of), n=1, cutoff=0.6)
    if matches:
        return f"{key}: unknown setting; did you mean {leaf_of[matches[0]]}?"
    namesakes = [known for known in _SECTION_OF_KEY if known.rpartition(".")[2] == leaf]
    if namesakes:
        return f"{key}: unknown setting; did you mean {' or '.join(namesakes)}?"
    if (not section or not beside) and (hint := _nearest(key, _SECTION_OF_KEY)):
        return f"{key}: unknown setting{hint}"
    if not beside:
        beside = [known for known in _SECTION_OF_KEY if "." not in known]
    return f"{key}: unknown setting; known here: {', '.join(sorted(beside))}"


def _known_part(data: Mapping[Any, Any], problems: list[str], prefix: str = "") -> dict[str, Any]:
    """``data`` without unknown keys, which are added to ``problems``; a section left empty keeps its defaults."""
    known: dict[str, Any] = {}
    for name, value in data.items():
        key = f"{prefix}{name}"
        if not isinstance(name, str) or "." in name or key not in _SECTION_OF_KEY:
            dotted = isinstance(name, str) and key in _SECTION_OF_KEY
            problems.append(
                f"{key}: dotted names are for the command line; in a file write the section and indent below it"
                if dotted
                else _unknown(key)
            )
        elif _SECTION_OF_KEY[key] is None:
            known[name] = value
        elif value is None:
            known[name] = {}
        elif isinstance(value, BaseModel):
            known[name] = value.model_dump()
        elif isinstance(value, Mapping):
            known[name] = _known_part(value, problems, f"{key}.")
        else:
            problems.append(f"{key}: must be a section with settings below it, got {value!r}")
    return known


def _apply_override(data: dict[str, Any], override: str, problems: list[str]) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        problems.append(f"{override}: an override is written key=value, e.g. seed=7 or world.width=224")
        return
    if key not in _SECTION_OF_KEY:
        problems.append(_unknown(key))
        return
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        # Any text will do for a text setting, e.g. a command line with a colon; elsewhere validation will refuse it.
        value = text
    if _takes_text(key) and value is not None and not isinstance(value, str):
        value = text.strip()
    *sections, leaf = key.split(".")
    target = data
    for section in sections:
        target = target.setdefault(section, {})
    if _SECTION_OF_KEY[key] is None:
        target[leaf] = value
    elif isinstance(value, dict):
        _merge(target.setdefault(leaf, {}), _known_part(value, problems, f"{key}."))
    else:
        first = next(name for name in _SECTION_OF_KEY if name.startswith(f"{key}."))
        problems.append(f"{key}: is a section; set one of its settings, e.g. {first}=...")


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _takes_text(key: str) -> bool:
    annotation = _ANNOTATION_OF_KEY[key]
    options = get_args(annotation) if get_origin(annotation) is not Literal else (annotation,)
    return annotation in (str, Path) or str in options or Path in options


# Values --------------------------------------------------------------------------------------------------------------


def _validated(data: dict[str, Any], problems: list[str]) -> Settings | None:
    """Settings, or None with the reasons added to ``problems``.

    Pydantic looks at what hangs together only where each value is fine alone. So wrong values are taken out (their
    defaults step in) and the rest is looked at again; conflicts that involve a value taken out are not reported.
    """
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
    rest, wrong = copy.deepcopy(data), set[str]()
    for details in errors:
        key = _key_of(details)
        if details["type"] == "conflict":
            problems += [text for _, text in details["ctx"]["conflicts"]]
        else:
            # A list whose only entries are wrong is also "too short": said once.
            if not (details["type"] == "too_short" and key in wrong):
                problems.append(_sentence(key, details))
            wrong.add(key)
            _remove(rest, key)
    if wrong:
        try:
            Settings.model_validate(rest)
        except ValidationError as error:
            for details in error.errors():
                if details["type"] == "conflict":
                    problems += [text for keys, text in details["ctx"]["conflicts"] if not wrong & set(keys)]
    return None


def _key_of(details: ErrorDetails) -> str:
    """The setting an error is about: its location without positions in a list and pydantic's own marks."""
    parts: list[str] = []
    for part in details["loc"]:
        if ".".join([*parts, str(part)]) not in _SECTION_OF_KEY:
            break
        parts.append(str(part))
    return ".".join(parts)


def _remove(data: dict[str, Any], key: str) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        data = data.get(section, {})
    data.pop(leaf, None)


def _kind_of(value: object) -> str:
    return {dict: "section", list: "list", str: "text", bool: "true/false value", int: "number", float: "number"}.get(
        type(value), type(value).__name__
    )


def _choices(annotation: object) -> tuple[str, ...]:
    """The words of a Literal, however deep it sits in an annotation."""
    if get_origin(annotation) is Literal:
        return tuple(str(word) for word in get_args(annotation))
    return tuple(word for inside in get_args(annotation) for word in _choices(inside))


_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "tuple": "a list",
}


def _sentence(key: str, details: ErrorDetails) -> str:
    """One error of pydantic's as "key: must be X, got Y"."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    got = f", got {value!r}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{key}: must be {words} {context[name]}{got}"
    if kind == "literal_error":
        choices = _choices(_ANNOTATION_OF_KEY[key])
        return f"{key}: must be one of {', '.join(choices)}{got}{_nearest(str(value), choices)}"
    if kind == "string_pattern_mismatch":
        return f"{key}: must be {_description(key)}{got}"
    if kind == "string_type":
        return f"{key}: must be text{got} (put it in quotes)"
    if kind == "value_error":
        return f"{key}: {context['error']}"
    if kind == "finite_number":
        return f"{key}: must be a finite number{got}"
    if kind == "too_short":
        return f"{key}: must not be empty"
    for stem, words in _TYPES.items():
        if kind.startswith(f"{stem}_"):
            return f"{key}: must be {words}{got}"
    return f"{key}: {details['msg']}{got}"


def _description(key: str) -> str:
    section, _, leaf = key.rpartition(".")
    model = _SECTION_OF_KEY[section] if section else Settings
    return (model or Settings).model_fields[leaf].description or leaf


def _missing_files(settings: Settings) -> Iterator[str]:
    """Files the settings name that are not there. Only the caller's machine can tell, so no validator asks."""
    instructions = settings.tasks.instructions
    if instructions is not None and not instructions.is_file():
        yield f"tasks.instructions: no such file: {instructions}"
    if settings.dataset.corpus is not None and not settings.dataset.corpus.is_file():
        yield f"dataset.corpus: no such file: {settings.dataset.corpus}"
    elif settings.dataset.corpus is not None:
        with settings.dataset.corpus.open("rb") as file:
            if file.read(4) != b"PAR1":
                yield f"dataset.corpus: {settings.dataset.corpus} is no Parquet file; name one with prompt, completion and images"
    for name, model in (("actor", settings.actor), ("critic", settings.critic)):
        if model.adapter is not None and not model.adapter.is_dir():
            yield f"{name}.adapter: no such folder: {model.adapter}"
        if re.match(r"^(/|~|\.\.?/)", model.path) and not Path(model.path).expanduser().is_dir():
            yield f"{name}.path: no such folder: {model.path}"
    if settings.data_dir.exists() and not settings.data_dir.is_dir():
        yield f"data_dir: {settings.data_dir} is a file, not a folder"
