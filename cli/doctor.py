"""Examines whether this machine can run a round. Each finding says what is wrong and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from selu.config import ModelSettings, Settings, WorldSettings
from selu.errors import ConfigError, SeluError, WorldError
from selu.rounds import Workspace, finished_rounds

if TYPE_CHECKING:
    from selu.worlds.base import Frame, World

__all__ = ["Finding", "examine", "grammar_of"]

_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "prefect", "duckdb", "pyarrow", "ai2thor", "gymnasium")
# A round of the default settings leaves about 300 MB; adapters of large models are far larger.
_DISK_BYTES = 2 * 1024**3
_MEMORY_BYTES = 3 * 1024**3
_VULKAN_SECONDS = 10.0
_PLAYER_LOG = Path("~/.ai2thor/log/unity.log")


class Finding(NamedTuple):
    """One thing that was looked at. A `note` stops nothing; `mend` is a command or a setting, if there is one."""

    what: str
    state: Literal["ok", "note", "bad"]
    text: str
    mend: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything that a round with these settings needs; what takes longest comes last."""
    yield Finding(
        "Python",
        "ok" if sys.version_info >= (3, 11) else "bad",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    )
    yield _packages()
    yield _memory()
    yield _gpu(settings)
    yield from _disk(settings)
    yield _prefect(settings)
    yield from _screen(settings)
    frames: list[Frame] = []
    yield _tried_world(settings, frames)
    looked_at = frames[-1] if frames else np.full((settings.world.height, settings.world.width, 3), 127, dtype=np.uint8)
    roles: list[tuple[str, tuple[str, ...], ModelSettings]] = [
        ("actor's model", ("actor",), settings.actor),
        ("critic's model", ("critic",), settings.critic),
    ]
    if settings.actor == settings.critic:
        roles = [("model of actor and critic", ("actor", "critic"), settings.actor)]
    for what, who, model in roles:
        finding = _tried(what, partial(_model, model, looked_at), _mend_model(who, model))
        yield finding if finding.state == "bad" else _noted(finding, who, model, settings.world)


def grammar_of(world: str) -> str | None:
    """The skill set that a world (of :class:`~selu.config.WorldSettings`) knows; None if it does not say.

    Raises:
        ConfigError: a world of a user's own cannot be imported.
    """
    # Imported here, so that a missing package is a finding.
    from selu.worlds.base import World
    from selu.worlds.own import imported

    if ":" not in world:
        return "virtualhome" if world == "virtualhome" else None
    made = imported(world, "world.name")
    if not (isinstance(made, type) and issubclass(made, World)):
        return None
    # What stands in World itself is a default, and no word about this one.
    own = made.__mro__[: made.__mro__.index(World)]
    told = next((vars(part)["skill_set"] for part in own if "skill_set" in vars(part)), None)
    return told if isinstance(told, str) else None


def _tried(what: str, look: Callable[[], str], mend: str) -> Finding:
    try:
        return Finding(what, "ok", look())
    except SeluError as error:
        return Finding(what, "bad", str(error), mend)
    except Exception as error:  # a world or a model of a user's own may raise anything
        return Finding(what, "bad", f"{type(error).__name__}: {error}", mend)


def _tried_world(settings: Settings, frames: list[Frame]) -> Finding:
    log = _PLAYER_LOG.expanduser()
    before = log.stat().st_size if log.is_file() else 0
    finding = _tried("world", lambda: _world(settings, frames), _mend_world(settings))
    if finding.state == "ok" or settings.world.name != "thor":
        return finding
    # Its errors send to the doctor, where the reader is already, and to the log, which is read for him.
    text = finding.text.partition(" Run `selu doctor`")[0]
    printed = _lines_after(log, before)
    return finding._replace(text=f"{text} Last line of {_PLAYER_LOG}: {printed[-1]}" if printed else text)


def _lines_after(log: Path, start: int) -> list[str]:
    """The lines, without empty ones, that were written to a log since it had ``start`` bytes."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(start)
        return [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]


def _mend_world(settings: Settings) -> str:
    from selu.player.virtualhome_wheel import INSTALL

    world = settings.world
    if ":" in world.name:
        return f"run selu.testing.check_world on {world.name}; it says where it breaks the contract"
    if world.server is not None:
        return f"start VirtualHome so that it listens at {world.server}, or world.server= for the embedded player"
    if world.name == "virtualhome":
        return f"{INSTALL}, or world.start_timeout=300 world.step_timeout=120 on a slow machine"
    if world.embedded:
        return "world.start_timeout=300 world.step_timeout=120 on a slow machine, else install this project again"
    if world.local_executable_path is not None:
        return (
            f"run {world.local_executable_path} by hand to see what it prints, or world.local_executable_path= for the "
            "embedded player"
        )
    return "world.commit_id= world.platform= world.x_display= for the embedded player"


def _mend_model(who: tuple[str, ...], model: ModelSettings) -> str:
    def each(setting: str) -> str:
        return " ".join(f"{name}.{setting}" for name in who)

    if model.engine == "openai":
        return f"start the server at {model.base_url}, or {each('base_url=ADDRESS')} {each('path=NAME')} of another"
    if model.path == "embedded":
        return f"{each('device=cpu')} {each('engine=transformers')} {each('adapter=')}, with which it runs anywhere"
    return f"mend what it says, or {each('path=embedded')} to see all else run"


# The machine -----------------------------------------------------------------------------------------------------------


def _packages() -> Finding:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "bad", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Finding("packages", "ok", ", ".join(found))


def _memory() -> Finding:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        whole, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Finding("memory", "note", "this system does not tell how much memory it has")
    text = f"{whole / 1024**3:.1f} GiB, {free / 1024**3:.1f} GiB of it unused"
    if whole < _MEMORY_BYTES:
        return Finding("memory", "note", f"{text}; a default round wants 3 GiB", "rollout.players=2 needs less")
    return Finding("memory", "ok", text)


def _gpu(settings: Settings) -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it links to is missing
        return Finding("GPU", "bad", f"torch cannot be imported ({error})", "pip install torch")

    devices = [model.device for model in (settings.actor, settings.critic) if model.engine != "openai"]
    wanted = [device for device in devices if device not in ("cpu", "auto")]
    if torch.cuda.is_available():
        cards = []
        for number in range(torch.cuda.device_count()):
            free, whole = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            cards.append(f"{name}, {free / 1024**3:.0f} of {whole / 1024**3:.0f} GiB free")
        idle = set(devices) == {"cpu"}
        unused = "; the settings use the CPU: actor.device=cuda critic.device=cuda take it" if idle else ""
        return Finding("GPU", "ok", f"torch {torch.__version__}: {'; '.join(cards)}{unused}")
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", f"torch {torch.__version__}: Apple GPU (mps)")
    if shutil.which("nvidia-smi"):
        return Finding(
            "GPU",
            "bad" if wanted else "note",
            f"there is an NVIDIA driver, but torch {torch.__version__} does not see its GPU",
            "install a torch build for CUDA (see pytorch.org), or check the driver with nvidia-smi",
        )
    return Finding(
        "GPU",
        "bad" if wanted else "ok",
        f"none, torch {torch.__version__} computes on the CPU"
        + (f"; the settings ask for {wanted[0]}" if wanted else ""),
        "actor.device=cpu critic.device=cpu" if wanted else "",
    )


def _disk(settings: Settings) -> Iterator[Finding]:
    workspace = Workspace.of(settings)
    try:
        store = workspace.store()
    except SeluError as error:
        yield Finding("data", "bad", str(error))
        return
    free = shutil.disk_usage(workspace.data_dir).free
    rounds = len(finished_rounds(store))
    text = f"{workspace.data_dir}, {free / 1024**3:.1f} GiB free, {rounds} finished rounds"
    if not os.access(store.root, os.W_OK):
        yield Finding("data", "bad", f"{store.root} may not be written", "data_dir=FOLDER")
    elif free < _DISK_BYTES:
        yield Finding("data", "bad", f"{text}; a round wants 2 GiB", "free some, or data_dir=FOLDER on another disk")
    else:
        yield Finding("data", "ok", text)


def _prefect(settings: Settings) -> Finding:
    from selu.cli.profile import running_server

    url = os.environ.get("PREFECT_API_URL") or running_server(Workspace.of(settings).prefect_home)
    if url is None:
        return Finding("Prefect", "ok", "no server: each command brings its own (`selu ui` starts one that stays)")
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5.0) as answer:
            healthy = answer.status == 200
    except (OSError, ValueError, urllib.error.URLError) as error:
        return Finding("Prefect", "bad", f"no server answers at {url} ({error})", "start it, or unset PREFECT_API_URL")
    if not healthy:
        return Finding("Prefect", "bad", f"the server at {url} says that it is not healthy", "look at its log")
    return Finding("Prefect", "ok", f"a server at {url}")


def _screen(settings: Settings) -> Iterator[Finding]:
    """What only a real build of AI2-THOR needs."""
    world = settings.world
    if world.name != "thor":
        yield Finding(
            "display and Vulkan", "ok", f"{world.name}'s own matter: only AI2-THOR's builds are looked at here"
        )
        return
    if world.embedded:
        yield Finding("display and Vulkan", "ok", "not needed: the embedded player computes its pictures on the CPU")
        return
    if world.platform == "CloudRendering":
        yield _vulkan()
    elif world.local_executable_path is None and not (world.x_display or os.environ.get("DISPLAY")):
        yield Finding(
            "display",
            "bad",
            "this build draws on an X display and there is none",
            "world.platform=CloudRendering, or world.x_display=:0",
        )
    else:
        yield Finding("display", "ok", world.x_display or os.environ.get("DISPLAY") or "the player's own matter")


def _vulkan() -> Finding:
    program = shutil.which("vulkaninfo")
    if program is None:
        text = "CloudRendering needs Vulkan, vulkaninfo is missing"
        return Finding("Vulkan", "bad", text, "apt-get install vulkan-tools")
    try:
        asked = subprocess.run(
            [program, "--summary"], check=False, capture_output=True, text=True, timeout=_VULKAN_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("Vulkan", "bad", f"vulkaninfo cannot tell: {error}", "install the GPU's driver with Vulkan")
    if asked.returncode:
        said = (asked.stderr.strip() or asked.stdout.strip() or "nothing").splitlines()[-1]
        text = f"vulkaninfo found no device that draws; it said: {said}"
        return Finding(
            "Vulkan", "bad", text, "install the GPU's driver with Vulkan, e.g. apt-get install libnvidia-gl-550"
        )
    devices = [line.partition("=")[2].strip() for line in asked.stdout.splitlines() if "deviceName" in line]
    return Finding("Vulkan", "ok", ", ".join(devices) or "vulkaninfo answers")


# The world and the models ------------------------------------------------------------------------------------------------


def _world(settings: Settings, frames: list[Frame]) -> str:
    """Start it, act in it, and look at what it shows; the last frame is kept for the models and for a person."""
    from selu.frames import encode_picture
    from selu.records import Setup, Task
    from selu.rollout import shared_pool
    from selu.worlds.actions import DONE, SKILL_SETS
    from selu.worlds.base import lacking
    from selu.worlds.registry import check_server
    from selu.worlds.tasks import scenes_of

    check_server(settings.world)
    started = time.perf_counter()
    with shared_pool(settings.world).worlds(1) as (world,):
        up = time.perf_counter()
        task = Task(
            task_id="0" * 16,
            scene=scenes_of(settings.tasks, world)[0],
            kind="own",
            instruction="look around",
            setup=Setup(spawn_seed=settings.seed, position=(0.0, 0.9, 0.0), rotation=0.0),
        )
        frame, _ = world.reset(seed=settings.seed, options={"task": task})
        frames.append(frame)
        if missing := lacking(world.oracle().facts):
            raise WorldError(
                f"{settings.world.name}'s oracle().facts must have every predicate, but lacks {', '.join(missing)}"
            )
        rng = np.random.default_rng(settings.seed)
        # Each verb once, since a player may stall on one alone; Done comes last of those that need no object.
        grammar = SKILL_SETS[world.skill_set]
        verbs = [*sorted(grammar.verbs_alone, key=lambda verb: verb == DONE), *grammar.verbs_with_object]
        spent = 0.0
        for verb in verbs:
            text = verb if verb in grammar.verbs_alone else f"{verb}({rng.choice(_types_in_view(world))})"
            begun = time.perf_counter()
            frame, _, terminated, truncated, _ = world.step(text)
            spent += time.perf_counter() - begun
            frames.append(frame)
            if terminated and verb != DONE:
                raise WorldError(
                    f"{settings.world.name} ended an episode at {text}; the actor's own {DONE} alone may, or an episode's "
                    "length would tell of its success"
                )
            if terminated or truncated:
                world.reset(seed=settings.seed, options={"task": task})
        rate = len(verbs) / spent
    shown = max(frames, key=_colours)
    frames.append(shown)
    own = ":" in settings.world.name
    if _colours(shown) < (2 if own else 3):
        needs = (
            ""
            if own
            else " A real build needs a GPU with Vulkan (world.platform=CloudRendering) or an X display (world.x_display)."
        )
        raise WorldError(
            f"{settings.world.name} starts, but its frames show {_colours(shown)} colours at most: it does not render.{needs}"
        )
    path = Workspace.of(settings).data_dir / "doctor.png"
    saved = ""
    if os.access(path.parent, os.W_OK):
        path.write_bytes(encode_picture(shown))
        saved = f"; look at one: {path}"
    takes = ""
    if own:
        takes = f"; a round of it takes world.skill_set={settings.world.skill_set} and tasks.instructions=FILE"
    elif settings.world.name == "virtualhome":
        takes = "; a round of it takes the settings of configs/virtualhome.yaml"
        takes += " and rollout.players=1" if settings.world.server is not None else ""
    return (
        f"{settings.world.name} is up after {up - started:.1f} s and makes {rate:.0f} steps/s in one player; frames of "
        f"{shown.shape[1]}x{shown.shape[0]} with up to {_colours(shown)} colours{saved}{takes}"
    )


def _types_in_view(world: World) -> list[str]:
    """Types of the objects in view; where none is, or the world does not tell, those of all that it or anybody knows."""
    from selu.worlds.vocabulary import NAMES

    truth = world.candidates()
    there = {o["objectId"]: o["objectType"] for o in truth.get("metadata", {}).get("objects", ())}
    in_view = {there[name] for name in truth.get("areas", ()) if name in there}
    return sorted(in_view or there.values() or NAMES)


def _colours(frame: Frame) -> int:
    return len(np.unique(frame.reshape(-1, 3), axis=0))


def _noted(finding: Finding, who: tuple[str, ...], model: ModelSettings, world: WorldSettings) -> Finding:
    """A note where the embedded model answers, but has seen no frame of the world or was trained on other prompts."""
    if model.engine == "transformers" and model.path != "embedded" and model.prompt_style == "full":
        from selu.models import model_revision

        base, embedded = model.model_copy(update={"adapter": None}), ModelSettings(attention=model.attention)
        if model_revision(base) == model_revision(embedded):
            text = f"{finding.text}; but it is a copy of the embedded model, which was trained on brief prompts alone"
            return finding._replace(state="note", text=text, mend=" ".join(f"{name}.prompts=brief" for name in who))
    if model.is_stranger_to(world):
        text = f"{finding.text}; but it was trained in the embedded rooms alone, and knows nothing of this world"
        return finding._replace(state="note", text=text, mend=" ".join(f"{name}.path=FOLDER_OR_ID" for name in who))
    return finding


def _model(model: ModelSettings, frame: Frame) -> str:
    """One forward pass: a written answer and a choice between yes and no."""
    from selu.models import Prompt, load_model
    from selu.prompting import question_prompt

    begun = time.perf_counter()
    loaded = load_model(model, None)
    ready = time.perf_counter()
    prompt = Prompt((frame,), question_prompt("What is in view?", loaded.prompt_style))
    reply = loaded.generate([prompt], max_new_tokens=min(model.max_new_tokens, 24))[0]
    scores = loaded.score([prompt], ("yes", "no"))
    if not np.isfinite(scores).all():
        raise ConfigError(f"{model.path} answers with numbers that are none; try dtype=float32")
    answered = time.perf_counter()
    where = f"at {model.base_url}" if model.engine == "openai" else f"{model.dtype} on {model.device}"
    return (
        f"{model.path}, revision {loaded.revision[:12]}, {where}: loaded in {ready - begun:.1f} s, "
        f"asked with {loaded.prompt_style} prompts what is in view it wrote {reply.text!r} in {answered - ready:.1f} s"
    )
