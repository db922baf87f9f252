"""The pretraining corpus of the embedded base model: frames of *base* scenes and questions about them.

Three phases. :func:`render_frames` draws random states of the base scenes and notes what can be seen (the player knows
the segmentation, so labels are free). :func:`question_turns` asks about a frame: what is held, in view, open, on,
broken, sliced, where things are. :func:`language_turns` holds what an MLLM knows without looking: which questions tell
whether an instruction was done. Whether an instruction *was* done is never asked: the model has seen no verdict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selu.config import scenes_of_split
from selu.player.household import HOLLOW, Household, Thing
from selu.player.layouts import LAYOUTS_FILE, load_layout
from selu.player.shapes import ALIASES
from selu.records import Task
from selu.worlds.base import World
from selu.worlds.tasks import BREAKABLE, MANY, OPENABLE, PICKUPABLE, SLICEABLE, TOGGLEABLE, put_instruction
from selu.worlds.tasks import RECEPTACLES as TASK_RECEPTACLES
from selu.worlds.vocabulary import NAMES, spoken_name

__all__ = [
    "TYPES",
    "Demonstrations",
    "FrameSet",
    "Turn",
    "corpus_texts",
    "language_turns",
    "question_turns",
    "record_demonstrations",
    "render_frames",
]

TYPES: tuple[str, ...] = tuple(NAMES)
INDEX = {t: i + 1 for i, t in enumerate(TYPES)}
"""Type -> label; 0 is everything without a name."""
RECEPTACLES = (*TASK_RECEPTACLES, "Drawer", "Box")
OPEN, ON, BROKEN, SLICED = 1, 2, 4, 8
SEEN = 32
"""Pixels (of 96x96) from which a thing counts as in view; between 1 and this it is neither asked about nor denied."""


@dataclass(frozen=True)
class FrameSet:
    """N frames with what can be seen in them. T is ``len(TYPES) + 1``; column 0 stands for everything unnamed."""

    rgb: NDArray[np.uint8]
    """``(N, S, S, 3)``"""
    types: NDArray[np.uint8]
    """``(N, S, S)`` label of each pixel's type (the held object's pixels too)"""
    states: NDArray[np.uint8]
    """``(N, S, S)`` bits OPEN, ON, BROKEN, SLICED of each pixel's object"""
    held: NDArray[np.uint8]
    """``(N,)`` label of the held type, 0: nothing"""
    pixels: NDArray[np.int32]
    """``(N, T)`` pixels of each type in the room (not the held object's)"""
    state_pixels: NDArray[np.int32]
    """``(N, 4, T)`` of these, those of things that are open, on, broken, sliced"""
    column: NDArray[np.float32]
    """``(N, T)`` mean column of the type's pixels, 0..1 from the left"""
    distance: NDArray[np.float32]
    """``(N, T)`` metres to the nearest visible one"""
    support: NDArray[np.uint8]
    """``(N, T)`` label of what the visible thing of that type is in or on; 0 where unknown or not unique"""
    scene: NDArray[np.int16]
    """``(N,)`` number of the FloorPlan"""

    def __len__(self) -> int:
        return len(self.rgb)

    def first(self, count: int) -> FrameSet:
        """The first ``count`` frames."""
        return FrameSet(**{f.name: getattr(self, f.name)[:count] for f in fields(self)})

    def save(self, path: Path) -> None:
        """Write as npz."""
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, paths: Sequence[Path]) -> FrameSet:
        """Read and join npz files."""
        parts = [np.load(p, allow_pickle=False) for p in paths]
        return cls(**{f.name: np.concatenate([p[f.name] for p in parts]) for f in fields(cls)})


def label_of(object_type: str) -> int:
    """The label of an AI2-THOR type; 0 for one without a name."""
    return INDEX.get(ALIASES.get(object_type, object_type), 0)


def render_frames(scenes: Sequence[str], count: int, seed: int, size: int = 96, poses: int = 6) -> FrameSet:
    """Draw ``count`` frames of random states of the scenes; the seed decides everything."""
    rng = np.random.default_rng(seed)
    household = Household(size, size)
    household.initialize({"fieldOfView": 75, "visibilityDistance": 1.5})
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        household.reset(scenes[int(rng.integers(len(scenes)))])
        household.random_spawn({"randomSeed": int(rng.integers(2**31))})
        randomise_states(household, rng)
        for _ in range(poses):
            if len(rows) == count:
                break
            if rng.random() < 0.55:
                look_at_something(household, rng)
            else:
                wander(household, rng)
            rows.append(_label(household))
    return FrameSet(**{f.name: np.stack([r[f.name] for r in rows]) for f in fields(FrameSet)})


def randomise_states(household: Household, rng: np.random.Generator) -> None:
    """Open, switch, break, slice, fill, fill with things, and take something in hand, at random."""
    things = [t for t in household.things.values() if label_of(t.object_type)]
    for t in things:
        if t.can("openable") and t.object_type in OPENABLE:
            t.is_open = bool(rng.random() < (0.15 if t.object_type in MANY else 0.5))
        if t.can("toggleable"):
            t.is_on = bool(rng.random() < 0.5)
        if t.object_type in BREAKABLE and t.can("breakable"):
            t.is_broken = bool(rng.random() < 0.35)
        if t.object_type in SLICEABLE:
            t.is_sliced = bool(rng.random() < 0.4)
        if t.can("dirtyable"):
            t.is_dirty = bool(rng.random() < 0.06)
        if t.can("canFillWithLiquid"):
            t.is_filled = bool(rng.random() < 0.06)
    small = [t for t in things if t.can("pickupable") and t.object_type in PICKUPABLE and not t.contents]
    holders = [
        t
        for t in things
        if t.can("receptacle") and not t.can("pickupable") and (t.object_type in HOLLOW or t.can("openable"))
    ]
    for t in small:
        if holders and rng.random() < 0.25:
            holder = holders[int(rng.integers(len(holders)))]
            if len(holder.contents) < 3:
                household.place(t, holder, np.array(holder.centre)[[0, 2]])
                holder.is_open = bool(holder.can("openable") and rng.random() < 0.8)
    household.held = None
    if small and rng.random() < 0.4:
        t = small[int(rng.integers(len(small)))]
        household._detach(t)
        household.held = t.object_id
    household.changed()


def wander(household: Household, rng: np.random.Generator) -> None:
    """Stand anywhere and look anywhere, preferring a view of something with a name."""
    for _ in range(3):
        x, z = household.layout.reachable[int(rng.integers(len(household.layout.reachable)))]
        _stand(household, float(x), float(z), float(rng.integers(8) * 45), float(rng.choice([0, 0, 30])))
        named = [label_of(household.things[n].object_type) > 0 for n in household.instance_ids()]
        if household.pixels()[named].sum() > 0.05 * household.renderer.width**2:
            return


def look_at_something(household: Household, rng: np.random.Generator) -> None:
    """Stand before a random thing (each type as likely as the others), as after walking up to it."""
    by_type: dict[int, list[Thing]] = {}
    for t in household.things.values():
        label = label_of(t.object_type)
        if label and t.object_id != household.held and not household.hidden(t):
            by_type.setdefault(label, []).append(t)
    labels = list(by_type)
    weights = np.array([3.0 if TYPES[k - 1] in TOGGLEABLE + OPENABLE + BREAKABLE + SLICEABLE else 1.0 for k in labels])
    things = by_type[labels[int(rng.choice(len(labels), p=weights / weights.sum()))]]
    thing = things[int(rng.integers(len(things)))]
    offsets = household.layout.reachable - np.array([thing.centre[0], thing.centre[2]], np.float32)
    gap = np.hypot(*np.maximum(np.abs(offsets) - np.array([thing.size[0], thing.size[2]]) / 2, 0).T)
    limit = rng.choice([1.2, 1.2, 2.5])
    near = np.flatnonzero((gap >= 0.2) & (gap < limit))
    if len(near) == 0:
        near = np.argsort(gap)[:5]
    k = int(rng.choice(near))
    x, z = household.layout.reachable[k]
    yaw = np.degrees(np.arctan2(thing.centre[0] - x, thing.centre[2] - z)) + rng.normal(0, 8)
    pitch = np.degrees(np.arctan2(1.575 - thing.centre[1], np.hypot(*offsets[k])))
    _stand(
        household,
        float(x),
        float(z),
        float(round(yaw / 45) * 45 % 360),
        float(np.clip(round(pitch / 30) * 30, -30, 30)),
    )


def _stand(household: Household, x: float, z: float, yaw: float, pitch: float) -> None:
    household.teleport({"position": {"x": x, "z": z}, "rotation": yaw, "horizon": pitch, "forceAction": True})


def _label(household: Household) -> dict[str, Any]:
    view, ids = household.view(), household.instance_ids()
    things = [household.things[n] for n in ids]
    label = np.array([label_of(t.object_type) for t in things] + [0], np.uint8)
    bits = [
        OPEN * (t.is_open and t.object_type in OPENABLE)
        + ON * (t.is_on and t.object_type in TOGGLEABLE)
        + BROKEN * (t.is_broken and t.object_type in BREAKABLE)
        + SLICED * (t.is_sliced and t.object_type in SLICEABLE)
        for t in things
    ]
    state = np.array([*bits, 0], np.uint8)
    held = household.held
    seg = view.segmentation
    hand = seg == (ids.index(held) if held else -2)
    types, states = label[seg], state[seg]
    room_types = np.where(hand, 0, types)
    n = len(TYPES) + 1
    size = seg.shape[0]
    pixels = np.bincount(room_types.ravel(), minlength=n)
    columns = np.broadcast_to((np.arange(size) + 0.5) / size, seg.shape)
    column = np.bincount(room_types.ravel(), columns.ravel(), minlength=n) / np.maximum(pixels, 1)
    by_state = [np.bincount(room_types[(states & bit > 0) & ~hand], minlength=n) for bit in (OPEN, ON, BROKEN, SLICED)]
    areas = household.pixels()
    distance = np.zeros(n, np.float32)
    support = np.zeros(n, np.uint8)
    seen: dict[int, list[Thing]] = {}
    for i, t in enumerate(things):
        if label[i] and areas[i] >= SEEN and t.object_id != held:
            seen.setdefault(int(label[i]), []).append(t)
    for k, present in seen.items():
        distance[k] = min(household.distance(t) for t in present)
        if len(present) == 1 and present[0].parent in household.things:
            parent = label_of(household.things[present[0].parent].object_type)
            support[k] = parent if pixels[parent] >= SEEN else 0
    return {
        "rgb": view.rgb,
        "types": types,
        "states": states,
        "held": np.uint8(label_of(household.things[held].object_type) if held else 0),
        "pixels": pixels.astype(np.int32),
        "state_pixels": np.stack(by_state).astype(np.int32),
        "column": column.astype(np.float32),
        "distance": distance,
        "support": support,
        "scene": np.int16(int(household.layout.scene.removeprefix("FloorPlan"))),
    }


@dataclass(frozen=True)
class Demonstrations:
    """Weak demonstrations: frames ``(N, S, S, 3) uint8`` and, for each, what the actor reads and what was done next."""

    rgb: NDArray[np.uint8]
    prompts: NDArray[np.str_]
    actions: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.rgb)

    def save(self, path: Path) -> None:
        """Write as npz."""
        np.savez(path, rgb=self.rgb, prompts=self.prompts, actions=self.actions)

    @classmethod
    def load(cls, path: Path) -> Demonstrations:
        """Read what :meth:`save` wrote."""
        part = np.load(path, allow_pickle=False)
        return cls(part["rgb"], part["prompts"], part["actions"])


def record_demonstrations(tasks: Sequence[Task], world: World, seed: int, noise: float) -> Demonstrations:
    """The planner at work with a share of random actions, all of them kept; half of the prompts carry a history."""
    from selu.prompting import act_prompt
    from selu.worlds.planner import next_action, random_action

    rng = np.random.default_rng(seed)
    frames, prompts, actions = [], [], []
    for task in tasks:
        frame, _ = world.reset(options={"task": task})
        before: list[str] = []
        over = False
        while not over:
            text = random_action(rng) if rng.random() < noise else next_action(world, before)
            frames.append(frame)
            prompts.append(act_prompt(task.instruction, before[-4:] if rng.random() < 0.5 else ()))
            actions.append(text)
            before.append(text)
            frame, _, terminated, truncated, _ = world.step(text)
            over = terminated or truncated
    return Demonstrations(np.stack(frames), np.array(prompts), np.array(actions))


# --- questions -------------------------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """A question about a frame, its answer, its kind, and the labels it is balanced by."""

    kind: str
    question: str
    answer: str


NOTHING = "nothing"
STATED = 0.25
"""Share of the yes/no questions that are put as a statement to be confirmed."""
SIDES = ("left", "centre", "right")


def question_turns(
    frames: FrameSet, i: int, rng: np.random.Generator, absent: NDArray[np.float64], count: int
) -> list[Turn]:
    """``count`` questions about frame ``i``; ``absent`` are weights ``(T,)`` by which absent types are drawn.

    States are asked first, for they are rare; yes and no are drawn evenly wherever the frame allows.
    """
    say = [""] + [NAMES[t] for t in TYPES]
    pixels, held = frames.pixels[i], int(frames.held[i])
    present = [k for k in range(1, len(say)) if pixels[k] >= SEEN]
    missing = np.flatnonzero((pixels[1:] == 0) & (np.arange(1, len(say)) != held)) + 1
    weights = absent[missing] / absent[missing].sum()
    turns: list[Turn] = []

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    def pick_missing() -> int:
        return int(rng.choice(missing, p=weights))

    hand = say[held] if held else NOTHING
    turns.append(Turn("held", "What are you holding?" if rng.random() < 0.6 else "What is in your hand?", hand))
    asked = held if held and rng.random() < 0.5 else INDEX[PICKUPABLE[int(rng.integers(len(PICKUPABLE)))]]
    if rng.random() < 0.4 and pixels[INDEX["Mug"] : INDEX["Candle"] + 1].max() >= SEEN and not (held and asked == held):
        asked = max((k for k in present if TYPES[k - 1] in PICKUPABLE), key=lambda k: rng.random())
    form = ("Are you holding the {}?", "Is the {} in your hand?")[int(rng.integers(2))]
    turns.append(Turn("holding", form.format(say[asked]), yes(asked == held)))

    states = (
        ("open", 0, OPENABLE, "Is the {} open?", "Is the {} closed?"),
        ("on", 1, TOGGLEABLE, "Is the {} on?", "Is the {} off?"),
        ("broken", 2, BREAKABLE, "Is the {} broken?", None),
        ("sliced", 3, SLICEABLE, "Is the {} sliced?", None),
    )
    for kind, s, types, positive, negative in states:
        for k in (INDEX[t] for t in types):
            some = int(frames.state_pixels[i, s, k])
            if pixels[k] < SEEN or 0 < some < SEEN // 2:
                continue
            if negative is not None and rng.random() < 0.35:
                turns.append(Turn(kind, negative.format(say[k]), yes(some == 0)))
            else:
                turns.append(Turn(kind, positive.format(say[k]), yes(some > 0)))
    for kind, s, question in (
        ("what_open", 0, "What is open?"),
        ("what_on", 1, "What is switched on?"),
        ("what_broken", 2, "What is broken?"),
    ):
        amounts = frames.state_pixels[i, s]
        if rng.random() < (0.7 if amounts.sum() else 0.25):
            if ((amounts > 0) & (amounts < SEEN // 2)).any():
                continue
            order = [k for k in np.argsort(-amounts) if amounts[k] > 0]
            turns.append(Turn(kind, question, ", ".join(say[k] for k in order) or NOTHING))
    for k in present:
        parent = int(frames.support[i, k])
        if parent and TYPES[k - 1] in PICKUPABLE and TYPES[parent - 1] in RECEPTACLES:
            if rng.random() < 0.5:
                turns.append(Turn("support", f"What is the {say[k]} in or on?", say[parent]))
            others = [q for q in present if TYPES[q - 1] in RECEPTACLES and q != parent]
            true = not others or rng.random() < 0.5
            place = parent if true else others[int(rng.integers(len(others)))]
            turns.append(Turn("inside", f"Is the {say[k]} in or on the {say[place]}?", yes(true)))
    if rng.random() < 0.4:
        order = sorted(present, key=lambda k: -pixels[k])[:5]
        turns.append(Turn("list", "What is in view?", ", ".join(say[k] for k in order) or NOTHING))
    if rng.random() < 0.15:
        turns.append(Turn("caption", "Describe the picture.", _caption(say, present, pixels, hand)))
    while len(turns) < count:
        draw = rng.random()
        here = bool(present) and rng.random() < 0.5
        k = present[int(rng.integers(len(present)))] if here else pick_missing()
        if draw < 0.5:
            form = ("Is the {} in view?", "Can you see the {}?")[int(rng.random() < 0.3)]
            turns.append(Turn("view", form.format(say[k]), yes(here)))
        elif draw < 0.85:
            here = bool(present) and rng.random() < 0.8
            k = present[int(rng.integers(len(present)))] if here else pick_missing()
            side = SIDES[int(np.digitize(frames.column[i, k], (0.38, 0.62)))] if here else "not in view"
            turns.append(Turn("where", f"Where is the {say[k]}?", side))
        elif here and frames.distance[i, k] > 0:
            turns.append(
                Turn("distance", f"How far is the {say[k]}?", "near" if frames.distance[i, k] < 1.5 else "far")
            )
    return [t._replace(question=_as_statement(t.question)) if rng.random() < STATED else t for t in turns[:count]]


_STATES = re.compile(
    r"Is the (.+?) (open|closed|on|off|broken|sliced|in view|in your hand|in or on the .+)\?|Are you (holding the .+)\?"
)


def _as_statement(question: str) -> str:
    """A yes/no question as a statement to be confirmed; any other question as it is."""
    found = _STATES.fullmatch(question)
    if found is None:
        return question
    thing, state, deed = found.groups()
    return f"Statement: {f'the {thing} is {state}' if deed is None else f'you are {deed}'}. Is it true?"


def _caption(say: Sequence[str], present: Sequence[int], pixels: NDArray[np.int32], hand: str) -> str:
    order = sorted(present, key=lambda k: -pixels[k])[:3]
    seen = "I see " + ", ".join(f"a {say[k]}" for k in order) if order else "I see a wall"
    return f"{seen}. I hold {hand}." if hand != NOTHING else f"{seen}."


# --- language --------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Every one-step instruction of the vocabulary with the questions (and answers) that tell whether it was done.

    A question about a thing's state presupposes that the thing is in view; so that is asked first.
    """
    say = spoken_name
    rows = [(f"pick up the {say(t)}", f"Are you holding the {say(t)}? yes") for t in PICKUPABLE]
    for verb, types, state in (
        ("open", OPENABLE, "open"),
        ("close", OPENABLE, "closed"),
        ("turn on", TOGGLEABLE, "on"),
        ("turn off", TOGGLEABLE, "off"),
        ("break", BREAKABLE, "broken"),
        ("slice", SLICEABLE, "sliced"),
    ):
        rows += [(f"{verb} the {say(t)}", f"Is the {say(t)} in view? yes; Is the {say(t)} {state}? yes") for t in types]
    for t in PICKUPABLE:
        asked = (
            f"Is the {say(t)} in view? yes; Is the {say(t)} in or on the {{}}? yes; Are you holding the {say(t)}? no"
        )
        rows += [(put_instruction(t, r), asked.format(say(r))) for r in RECEPTACLES]
    return rows


def language_turns(rng: np.random.Generator, count: int) -> list[Turn]:
    """``count`` times: which questions tell whether an instruction was done. Nothing is looked at for it."""
    from selu.prompting import ask_prompt

    known = instructions()
    turns = []
    for _ in range(count):
        # Puts are most of the list but not of the tasks.
        pool = known[: len(known) - len(PICKUPABLE) * len(RECEPTACLES)] if rng.random() < 0.6 else known
        text, questions = pool[int(rng.integers(len(pool)))]
        if rng.random() < 0.35:
            second, more = pool[int(rng.integers(len(pool)))]
            if second != text:
                text, questions = f"{text} and then {second}", f"{questions}; {more}"
        turns.append(Turn("ask", ask_prompt(text), questions))
    return turns


_FORMS = (
    "What are you holding?",
    "What is in your hand?",
    "Are you holding the {}?",
    "Is the {} in your hand?",
    "Is the {} open?",
    "Is the {} closed?",
    "Is the {} on?",
    "Is the {} off?",
    "Is the {} broken?",
    "Is the {} sliced?",
    "What is open?",
    "What is switched on?",
    "What is broken?",
    "What is the {} in or on?",
    "Is the {} in or on the {}?",
    "What is in view?",
    "Is the {} in view?",
    "Can you see the {}?",
    "Where is the {}?",
    "How far is the {}?",
    "Statement: the {} is open. Is it true?",
    "Statement: you are holding the {}. Is it true?",
    "Describe the picture.",
    "{}, {}",
    "I see a {}, a {}. I hold {}.",
    "I see a wall.",
)


def corpus_texts() -> list[str]:
    """Every text whose words the tokenizer must know whole, each as it stands in a prompt or an answer."""
    from selu.prompting import act_prompt, ask_prompt, verdict_prompt
    from selu.worlds.actions import GRAMMAR

    answers = ("yes", "no", NOTHING, *SIDES, "not in view", "near", "far")
    # With a space before them too: a hub model's template or a user's prompt may put one there.
    texts = [*answers, *(f" {a}" for a in answers), *(form.replace("{}", n) for form in _FORMS for n in NAMES.values())]
    for text, questions in instructions():
        texts += [act_prompt(text, ("Done", "MoveAhead")), verdict_prompt(text), ask_prompt(text)]
        texts += [questions, f"{questions}; {questions}", f"{text} and then {text}"]
    for verb in GRAMMAR.verbs_with_object:
        texts += [f"{space}{verb}({t})" for t in TYPES for space in ("", " ")]
    return [*texts, *GRAMMAR.verbs_alone, *(f" {v}" for v in GRAMMAR.verbs_alone)]


def recipe_facts() -> dict[str, Any]:
    """What the corpus is made of, for the model card: sizes of the vocabulary and the layout file's digest."""
    import hashlib

    return {
        "types": list(TYPES),
        "layouts_sha256": hashlib.sha256(LAYOUTS_FILE.read_bytes()).hexdigest(),
        "reachable_positions": int(sum(len(load_layout(scene).reachable) for scene in scenes_of_split("base"))),
    }
