"""After steps 6 and 8: guards decide whether a new adapter is taken into use. No ground truth comes here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from selu.config import GuardSettings, SelfAskingSettings
from selu.frames import FrameTable
from selu.guards import (
    CriticSigns,
    GuardReport,
    Rehearsed,
    actor_signs,
    critic_signs,
    guard_actor,
    guard_critic,
)
from selu.prompting import prompts_digest
from selu.records import Judgement, Verdict
from selu.rounds import Workspace
from selu.store import ArtifactRef, Json, Store
from selu.tasks.frames import read_selected_frames
from selu.tasks.progress import Meter
from selu.tasks.stages import (
    ENGINE,
    Made,
    Model,
    Shard,
    Stage,
    Value,
    file_digest,
    find,
    make,
    model_config_of,
    read_all,
    read_episodes,
    read_steps,
    stage_task,
)

__all__ = ["Candidacy", "Guarded", "approval_of", "decide_on_actor", "decide_on_critic", "record_approval"]

_MODULES = ("selu.guards", "selu.judging", "selu.prompting", "selu.frames")
CRITIC_GUARD = Stage(
    name="critic-guard", version=2, modules=(*_MODULES, "selu.base_model.packaging", *ENGINE), on_gpu=True
)
APPROVAL = Stage(name="approval", version=1, modules=())
ACTOR_GUARD = Stage(name="actor-guard", version=1, modules=(*_MODULES, "selu.worlds.actions"))

_FILE = "guard.json"
_TRAJECTORIES = 320
"""Most trajectories that the direct verdict is asked about: rates over these are sure to about 3 points."""


class Guarded(Made):
    """A guard's decision, and the artifact that it stands in."""

    report: GuardReport


def _guarded(workspace: Workspace, made: Made) -> Guarded:
    path = workspace.store().path(made.ref) / _FILE
    return Guarded(**dict(made), report=GuardReport.model_validate_json(path.read_bytes()))


def _write(path: Path, report: GuardReport) -> None:
    (path / _FILE).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _limits(guard: GuardSettings) -> dict[str, Json]:
    """What of a guard's settings shapes a decision; how many episodes there are shows in its inputs."""
    return guard.model_dump(mode="json", exclude={"enabled", "episodes", "stop", "approval"})


def _rehearsed(corpus: Path) -> list[Rehearsed]:
    """Questions of the base model's corpus that no dataset version draws from; demonstrations are no critic's matter."""
    import datasets

    from selu.base_model.packaging import load_replay, split_replay
    from selu.frames import decode_picture

    kept_back = split_replay(load_replay(corpus))[1].cast_column("images", datasets.List(datasets.Image(decode=False)))
    return [
        Rehearsed(
            decode_picture(row["images"][0]["bytes"]), row["prompt"][0]["content"], row["completion"][0]["content"]
        )
        for row in kept_back
        if row["kind"] != "act"
    ]


@stage_task(CRITIC_GUARD)
def decide_on_critic(
    workspace: Workspace,
    shard: Shard,
    episodes: Sequence[ArtifactRef],
    frames: Sequence[ArtifactRef],
    judgements: Sequence[ArtifactRef],
    rejudgements: Sequence[ArtifactRef],
    before: Model,
    candidate: Model,
    self_asking: SelfAskingSettings,
    guard: GuardSettings,
    size: tuple[int, int],
    corpus: Path | None,
) -> Guarded:
    """Decide on a critic's new adapter.

    `judgements` are those of the critic from before, `rejudgements` those of the candidate, on the same `episodes`; `size`
    is height and width of a frame in pixels; `corpus` is that of its base model, None if there is none that it knows.
    """

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        known = read_episodes(store, episodes)[:_TRAJECTORIES]
        table = FrameTable(read_selected_frames(store, episodes, frames))
        items = [((table.picture(row.episode_id, row.length),), row.instruction) for row in known]
        rehearsed = _rehearsed(corpus) if corpus is not None else []
        signs: list[CriticSigns] = []
        for model, refs in ((before, judgements), (candidate, rejudgements)):
            # What the answers alone say: a verdict that already contains the direct one would agree with itself.
            said: dict[tuple[str, str, int], Judgement] = {
                (row.episode_id, row.instruction, row.frame_index): json.loads(row.evidence).get(
                    "answers_say", row.verdict
                )
                for row in read_all(store, refs, "verdicts", Verdict)
            }
            asked = [said[row.episode_id, row.instruction, row.length] for row in known]
            signs.append(
                critic_signs(
                    model.load(store),
                    items,
                    None if self_asking.by == "direct" else asked,
                    rehearsed,
                    height=size[0],
                    width=size[1],
                )
            )
            report(len(signs), 2)
        old, new = signs
        _write(path, guard_critic(old, new, guard, revisions=_revisions(store, before, candidate)))

    made = make(
        workspace,
        CRITIC_GUARD,
        shard,
        "guard",
        compute,
        config={
            "limits": _limits(guard),
            "trajectories": _TRAJECTORIES,
            "by": self_asking.by,
            "size": list(size),
            "rehearsed": file_digest(corpus) if corpus is not None else None,
            "critic": model_config_of(candidate.settings),
            "prompts": prompts_digest(),
        },
        inputs=[*episodes, *frames, *judgements, *rejudgements],
        models=[before, candidate],
    )
    return _guarded(workspace, made)


def _revisions(store: Store, before: Model, candidate: Model) -> tuple[str, str]:
    return before.revision(store), candidate.revision(store)


@stage_task(ACTOR_GUARD)
def decide_on_actor(
    workspace: Workspace,
    shard: Shard,
    played: tuple[Sequence[ArtifactRef], Sequence[ArtifactRef]],
    judgements: tuple[Sequence[ArtifactRef], Sequence[ArtifactRef]],
    before: Model,
    candidate: Model,
    guard: GuardSettings,
    skill_set: str,
) -> Guarded:
    """Decide on an actor's new adapter: what each of the two played, and what the promoted critic made of it."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        old, new = (
            actor_signs(
                read_episodes(store, episodes),
                read_steps(store, episodes),
                read_all(store, verdicts, "verdicts", Verdict),
                skill_set,
            )
            for episodes, verdicts in zip(played, judgements, strict=True)
        )
        _write(path, guard_actor(old, new, guard, revisions=_revisions(store, before, candidate)))

    made = make(
        workspace,
        ACTOR_GUARD,
        shard,
        "guard",
        compute,
        config={"limits": _limits(guard), "skill_set": skill_set},
        inputs=[ref for refs in (*played, *judgements) for ref in refs],
        models=[before, candidate],
    )
    return _guarded(workspace, made)


class Candidacy(Value):
    """What a person is asked about: whether `candidate` is to take the place of `before`."""

    who: Literal["actor", "critic"]
    before: Model
    candidate: Model
    guarded: Guarded | None = Field(description="the guard's decision, which passed it; None without guards")

    def key(self) -> dict[str, Any]:
        """What makes the key of a person's word, whatever it is."""
        return {
            "config": {"who": self.who},
            "inputs": [] if self.guarded is None else [self.guarded.ref],
            "models": [self.before, self.candidate],
        }


def approval_of(workspace: Workspace, shard: Shard, candidacy: Candidacy) -> Guarded | None:
    """What a person said about a candidate; None if nobody was asked yet."""
    made = find(workspace, APPROVAL, shard, "guard", **candidacy.key())
    return None if made is None else _guarded(workspace, made)


@stage_task(APPROVAL)
def record_approval(workspace: Workspace, shard: Shard, candidacy: Candidacy, promote: bool, reason: str) -> Guarded:
    """Keep what a person said about a candidate."""

    def compute(path: Path, report: Meter) -> None:
        old, new = _revisions(workspace.store(), candidacy.before, candidacy.candidate)
        said = f"a person {'approved' if promote else 'refused it'}{': ' if reason else ''}{reason}"
        signals = () if candidacy.guarded is None else candidacy.guarded.report.signals
        decision = GuardReport(
            who=candidacy.who, before=old, candidate=new, passed=promote, reason=said, signals=signals
        )
        _write(path, decision)

    return _guarded(workspace, make(workspace, APPROVAL, shard, "guard", compute, **candidacy.key()))
