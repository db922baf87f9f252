"""Drives a world by hand, or watches a policy: frames as coloured half blocks, actions as text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.text import Text

from selu.config import Settings
from selu.errors import ConfigError
from selu.frames import decode_picture
from selu.memory import Memory
from selu.records import Task
from selu.worlds.actions import SKILL_SETS
from selu.worlds.base import World

__all__ = ["play_episode", "save_gif", "shown"]

Picture = NDArray[np.uint8]

_POLICIES = ("me", "planner", "random", "actor")
_FRAME_MS = 700


def play_episode(settings: Settings, policy: str, gif: Path | None, console: Console) -> None:
    """Play one drawn task, with the user's own actions or a policy's.

    Raises:
        ConfigError: no such policy, or the GIF cannot be written.
    """
    from selu.rollout import shared_pool
    from selu.worlds.tasks import generate_tasks

    if policy not in _POLICIES:
        raise ConfigError(f"--policy must be one of {', '.join(_POLICIES)}, got {policy!r}")
    with shared_pool(settings.world).worlds(1) as worlds:
        task = generate_tasks(settings.tasks, worlds[0], settings.seed, 1, restarts=settings.world.restarts)[0]
        console.print(f"[bold]{task.instruction}[/bold] in {task.scene}")
        if policy == "me":
            film = list(_by_hand(worlds[0], task, settings, console))
        else:
            film = _watched(worlds, task, settings, policy, console)
    if gif is not None:
        save_gif(gif, film, task.instruction)
        console.print(f"Saved {gif}")


def _by_hand(world: World, task: Task, settings: Settings, console: Console) -> Iterator[tuple[Picture, str]]:
    grammar = SKILL_SETS[world.skill_set]
    with_object = " ".join(f"{verb}(T)" for verb in grammar.verbs_with_object)
    console.print(f"[dim]{' '.join(grammar.verbs_alone)}\n{with_object}, where T is a thing, such as Fridge[/dim]")
    frame, _ = world.reset(seed=settings.seed, options={"task": task})
    ended = False
    while not ended:
        console.print(shown(frame, console.width))
        try:
            action = console.input("action> ").strip()
        except EOFError:
            action = "Done"
        yield frame, action
        frame, _, terminated, truncated, _ = world.step(action)
        ended = terminated or truncated
        truth = world.oracle()
        if truth.error_message:
            console.print(f"[yellow]{truth.error_message}[/yellow]")
    yield frame, ""


def _watched(
    worlds: Sequence[World], task: Task, settings: Settings, policy: str, console: Console
) -> list[tuple[Picture, str]]:
    from selu.models import load_model
    from selu.rollout import ActorPolicy, PlannerPolicy, Policy, RandomPolicy, roll_out

    acting: Policy
    if policy == "planner":
        acting = PlannerPolicy(0.0)
    elif policy == "random":
        acting = RandomPolicy()
    else:
        acting = ActorPolicy(
            load_model(settings.actor),
            temperature=settings.rollout.temperature,
            max_new_tokens=settings.actor.max_new_tokens,
            memory=Memory.of(settings.rollout),
        )
    recording = roll_out([task], [settings.seed], acting, worlds)
    actions = [step.action for step in recording.steps]
    film = list(zip([decode_picture(frame.image) for frame in recording.frames], [*actions, ""], strict=True))
    for frame, action in film:
        if console.is_terminal:
            console.print(shown(frame, console.width))
        console.print(action)
    done = recording.oracle_episodes[0].success
    told = {True: "The goal holds.", False: "The goal does not hold.", None: "Nobody knows this instruction's goal."}
    console.print(told[done])
    return film


def shown(picture: Picture, width: int) -> Text:
    """A (H, W, 3) uint8 picture as text of half blocks, at most `width` and 64 columns wide."""
    columns = max(2, min(width, 64, picture.shape[1]))
    rows = max(2, round(picture.shape[0] * columns / picture.shape[1] / 2) * 2)
    small = np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            text.append("▀", style="rgb({},{},{}) on rgb({},{},{})".format(*top, *bottom))
        text.append("\n")
    return text


def save_gif(path: Path, film: Sequence[tuple[Picture, str]], instruction: str) -> None:
    """Write frames, each with the action that was taken in it, as a GIF at three times their size.

    Raises:
        ConfigError: the file cannot be written.
    """
    pages = []
    for picture, action in film:
        height, width = picture.shape[:2]
        page = Image.new("RGB", (3 * width, 3 * height + 36), "white")
        page.paste(Image.fromarray(picture).resize((3 * width, 3 * height), Image.Resampling.NEAREST))
        draw = ImageDraw.Draw(page)
        draw.text((4, 3 * height + 3), instruction, fill="black")
        draw.text((4, 3 * height + 19), action, fill=(0, 90, 160))
        pages.append(page)
    content = io.BytesIO()
    pages[0].save(content, format="GIF", save_all=True, append_images=pages[1:], duration=_FRAME_MS, loop=0)
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another path with --gif") from error
