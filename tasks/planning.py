"""What a run would make and what it would find, said beforehand: by its settings beside those of finished rounds.

Keys of artifacts hang on the bytes of what they are made of, so that only running tells them all. But a stage whose own
settings, code and predecessors are those of a finished round, and whose artifacts are whole, is found.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import selu.tasks
from selu.config import DatasetSettings, ModelSettings, Settings
from selu.rounds import ROUND_STAGES, Round, StageName, Workspace, finished_rounds
from selu.store import Store
from selu.tasks.datasets import ACTORS_ALONE
from selu.tasks.stages import Stage

__all__ = ["PlannedStage", "all_stages", "memory_of", "plan"]

_READS: dict[StageName, tuple[str, ...]] = {
    "rollout": ("seed", "tasks", "world", "rollout", "actor"),
    "frames": ("frames",),
    "self_asking": ("self_asking", "critic"),
    "hindsight": ("hindsight", "critic_finetuning.enabled", "dataset.corpus_pictures"),
    "critic_dataset": tuple(
        f"dataset.{name}" for name in DatasetSettings.model_fields if name not in (*ACTORS_ALONE, "corpus_pictures")
    ),
    "critic_finetuning": ("critic_finetuning",),
    "rejudging": ("guard", *(f"dataset.{name}" for name in ACTORS_ALONE)),
    "actor_finetuning": ("actor_finetuning",),
    "evaluation": ("evaluation",),
}
"""The settings that each stage is the first to read; those after it hang on it."""
_NO_MATTER = {
    "world.start_timeout",
    "world.step_timeout",
    "world.restarts",
    "world.x_display",
    "guard.stop",
    *(
        f"{who}.{name}"
        for who in ("actor", "critic")
        for name in ("batch_size", "timeout", "retries", "concurrency", "gpu_memory", "api_key_variable", "device_map")
    ),
}
"""Settings that change no result."""

_LIBRARIES = 1_000
_PLAYER = 60
_FRAMES = 500
"""Megabytes: the libraries, one embedded player, a default round's pictures and rows (measured)."""


_ROWS: dict[StageName, int] = {"critic_finetuning": 19, "actor_finetuning": 11}
"""Rows of a dataset version for each episode, roughly (measured in a first round of 200)."""


class PlannedStage(NamedTuple):
    """A stage of a round to come."""

    round: int
    name: StageName
    state: Literal["found", "made", "perhaps"]
    """`perhaps`: made again if what comes before it comes out otherwise than it did."""
    why: str
    seconds: float | None
    """What making it took the last time, by the size it had then and has now; None where nobody knows."""


def plan(settings: Settings) -> list[PlannedStage]:
    """The stages of all rounds that these settings ask for, in order. Makes no folder."""
    workspace = Workspace.of(settings)
    if not workspace.store_root.exists() and not workspace.data_dir.is_file():
        why = "nothing was ever made in this data_dir"
        return [
            PlannedStage(number, name, "made", why, None)
            for number in range(1, settings.rounds + 1)
            for name in ROUND_STAGES
        ]
    store = workspace.store()
    finished = finished_rounds(store)
    versions = {stage.name: stage.version for stage in all_stages()}
    planned: list[PlannedStage] = []
    for number in range(1, settings.rounds + 1):
        follows = any(stage.state != "found" for stage in planned)
        planned += _round(number, settings, finished, store, versions, follows=follows)
    return planned


def _round(
    number: int, settings: Settings, finished: list[Round], store: Store, versions: Mapping[str, int], *, follows: bool
) -> Iterator[PlannedStage]:
    like = [item for item in finished if item.round == number]
    nearest = max(like, key=lambda item: (_unchanged(item.settings, settings), item.finished), default=None)
    known = nearest or (finished[-1] if finished else None)
    seconds = (
        {
            stage.name: stage.made_in_seconds
            * _work(stage.name, settings)
            / max(1.0, _work(stage.name, known.settings))
            for stage in known.stages
        }
        if known
        else {}
    )
    why = "what comes before may come out otherwise" if follows else ""
    state: Literal["found", "made", "perhaps"] = "perhaps" if follows else "found"
    for name in ROUND_STAGES:
        if nearest is None:
            yield PlannedStage(number, name, "made", f"no round {number} is finished yet", seconds.get(name))
            continue
        changed = [] if follows else _changed(nearest.settings, settings, name)
        gone = _gone(nearest, name, store, versions)
        if changed or gone:
            yield PlannedStage(number, name, "made", "; ".join([*changed, *gone]), seconds.get(name))
            state, why = "perhaps", f"{name} may come out otherwise"
        else:
            yield PlannedStage(number, name, state, why, seconds.get(name))


def _work(name: StageName, settings: Settings) -> float:
    """What a stage's time grows with: rows that are trained on, episodes of probes, or else the round's episodes."""
    tuning = {"critic_finetuning": settings.critic_finetuning, "actor_finetuning": settings.actor_finetuning}.get(name)
    if tuning is not None:
        rows = tuning.epochs * settings.tasks.episodes * _ROWS[name]
        return min(rows, tuning.max_steps * tuning.batch_size) if tuning.max_steps > 0 else rows
    if name == "evaluation":
        sizes = settings.evaluation
        one_step = sizes.actor_episodes_a + sizes.actor_episodes_b + sizes.critic_episodes_a + sizes.critic_episodes_b
        return one_step + 2 * sizes.three_step_episodes
    return settings.tasks.episodes


def _unchanged(one: Settings, other: Settings) -> int:
    """How many stages, from the first on, read the same settings."""
    count = 0
    for name in ROUND_STAGES:
        if _changed(one, other, name):
            break
        count += 1
    return count


def _changed(before: Settings, now: Settings, name: StageName) -> list[str]:
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    pictured = name == "hindsight" and now.dataset.corpus_pictures
    return [
        f"{path}: {was} -> {is_}"
        for section in (*_READS[name], *(["dataset.corpus"] if pictured else []))
        for path, was, is_ in _differences(section, _at(old, section), _at(new, section))
        if path not in _NO_MATTER
    ]


def _at(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = settings[name]
    return settings


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new:
            yield from _differences(f"{path}.{key}", old.get(key), new[key])
    elif old != new:
        yield path, old, new


def _gone(finished: Round, name: StageName, store: Store, versions: Mapping[str, int]) -> list[str]:
    found = {ref: store.find(ref.kind, ref.key) for ref in finished.stage(name).artifacts}
    missing = sum(there is None or there.digest != ref.digest for ref, there in found.items())
    said = [f"{missing} of {len(found)} artifacts are no longer there"] if missing else []
    of_old = set()
    for there in found.values():
        if there is not None:
            told = store.manifest(there).provenance
            if versions.get(told["stage"], told["version"]) != told["version"]:
                of_old.add(f"{told['stage']}: version {told['version']} -> {versions[told['stage']]}")
    return said + sorted(of_old)


def all_stages() -> list[Stage]:
    """Every stage that a module of tasks declares, with that module among those that shape its result."""
    found = {}
    for module in pkgutil.iter_modules(selu.tasks.__path__, "selu.tasks."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Stage):
                found[value.name] = value.model_copy(update={"modules": (module.name, *value.modules)})
    return [found[name] for name in sorted(found)]


def memory_of(settings: Settings) -> int | None:
    """Megabytes that a round takes, roughly: libraries, players, pictures, and each model with its gradients.

    None where a model's weights are not on this machine, so that nobody knows.
    """
    weights = {model.path: _weight(model) for model in (settings.actor, settings.critic)}
    return (
        None
        if 0.0 in weights.values()
        else round(_LIBRARIES + _FRAMES + _PLAYER * settings.rollout.players + 2 * sum(weights.values()))
    )


def _weight(model: ModelSettings) -> float:
    """Megabytes of a model's weights on disk; 0 where they are not on this machine."""
    from selu.models import EMBEDDED_MODEL

    folder = EMBEDDED_MODEL if model.path == "embedded" else Path(model.path).expanduser()
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6 if folder.is_dir() else 0.0
