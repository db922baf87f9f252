"""A round that is killed again and again, and what must hold after each kill and at the end.

After a kill: what was whole is there with the same bytes, in the same file; nothing that is visible is damaged or is
something that no undisturbed run makes; whatever the command started ends by itself. After the next start: drafts of the
dead are gone, and nothing that was whole is made once more. At the end: the digests of an undisturbed round.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from selu.rounds import ROUND_STAGES
from tests.faults.launching import FAULT_CONFIG, Run
from tests.faults.stored import Name, Stored, drafts, look, names

__all__ = ["Disturbed", "Kill", "Reference", "Trigger", "Watch", "arguments", "draw_trigger"]

ENDS_WITHIN = 20.0
"""Seconds in which everything that a killed command had started must be gone. Guardians look every 0.1 s; the rest is
for a machine that is busy with something else."""
_GLANCE = 0.01
_NO_PROGRESS = 900.0

_STAGES = {
    "tasks": "rollout",
    "rollout": "rollout",
    "frames": "frames",
    "self-asking": "self_asking",
    "hindsight": "hindsight",
    "critic dataset": "critic_dataset",
    "critic finetuning": "critic_finetuning",
    "rejudging": "rejudging",
    "actor finetuning": "actor_finetuning",
    "evaluation": "evaluation",
}
assert set(_STAGES.values()) == set(ROUND_STAGES)


def arguments(data_dir: Path) -> list[str]:
    """The command of the fault configuration."""
    # Named by its folder, the embedded critic answers no rehearsal corpus for its guard.
    model = FAULT_CONFIG.parents[2] / "selu" / "base_models" / "household"
    return ["round", "-c", str(FAULT_CONFIG), f"data_dir={data_dir}", f"critic.path={model}", "critic.prompts=brief"]


@dataclass(frozen=True)
class Reference:
    """What an undisturbed round leaves."""

    digests: dict[Name, str]
    shards: dict[Name, str]
    """How the part that made an artifact is called on screen."""
    order: list[Name]
    seconds: float
    """From the start of a warm process to its end."""
    cpu: float
    """Seconds of processor time of the flow's process."""

    @classmethod
    def of(cls, stored: Stored, seconds: float, cpu: float) -> Reference:
        """The reference that a finished store is."""
        made = {name: seen for name, seen in stored.whole.items() if name.kind != "round"}
        order = sorted(made, key=lambda name: made[name].created)
        shards = {name: str(seen.provenance["shard"]) for name, seen in made.items()}
        return cls(stored.digests, shards, order, seconds, cpu)

    def save(self, path: Path) -> None:
        """Write it as JSON, in the order of making."""
        parts = [[*name, self.digests[name], self.shards[name]] for name in self.order]
        text = json.dumps({"seconds": self.seconds, "cpu": self.cpu, "artifacts": parts}, indent=0)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what :meth:`save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {Name(kind, key): (digest, shard) for kind, key, digest, shard in content["artifacts"]}
        return cls(
            {name: digest for name, (digest, _) in parts.items()},
            {name: shard for name, (_, shard) in parts.items()},
            list(parts),
            content["seconds"],
            content["cpu"],
        )

    def stage(self, name: Name) -> str:
        """The stage of a round to which an artifact belongs."""
        shard = self.shards[name]
        return next(stage for start, stage in _STAGES.items() if shard.startswith(start))

    def halves(self, name: Name) -> list[Name]:
        """The artifacts of the same key: a recording and the truth about it are one piece of work."""
        return [other for other in self.order if other.key == name.key]


# When a kill comes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trigger:
    """A moment of a run.

    `cpu`: once the flow's process has used `value` seconds since its first draft; `draft`, `artifact`: `wait` seconds
    after draft or artifact number `value` of this run appeared; `manifest`: as soon as draft number `value` has its
    manifest, right before it is renamed into place; `start`: `value` seconds after the start, whatever it does.
    """

    what: str
    value: float
    wait: float = 0.0

    def __str__(self) -> str:
        return f"{self.what} {self.value:.3g}" + (f" + {self.wait:.3f} s" if self.wait else "")


def draw_trigger(draw: random.Random) -> Trigger:
    """A random moment: anywhere in the work, or close to where something becomes visible."""
    what = draw.choices(["cpu", "draft", "artifact", "manifest", "start"], [50, 18, 13, 13, 6])[0]
    if what == "cpu":
        return Trigger(what, draw.uniform(0.0, 3.0), draw.uniform(0.0, 0.1))
    if what == "start":
        return Trigger(what, draw.uniform(0.0, 3.0))
    number = draw.randint(1, 6)
    return Trigger(what, number, {"draft": draw.uniform(0.0, 0.3), "artifact": draw.uniform(0.0, 0.02)}.get(what, 0.0))


class Watch:
    """Looks at a run from outside: which drafts came and went, which artifacts became visible."""

    def __init__(self, run: Run, root: Path) -> None:
        self.run, self.root = run, root
        self.before = names(root)
        self.visible = set(self.before)
        self.at_start = set(drafts(root))
        self.drafts: list[str] = []
        """Of this run, in the order in which they were seen."""
        self.current: list[str] = []
        self.since_work: float | None = None
        """Processor time of the flow's process when its first draft was seen."""

    def glance(self) -> None:
        """Look once."""
        now = [name for name in drafts(self.root) if name not in self.at_start and not name.startswith("removed-")]
        if now != self.current:
            self.drafts += [name for name in now if name not in self.drafts]
            self.current = now
            self.visible = names(self.root)
        if self.drafts and self.since_work is None:
            self.since_work = self.cpu()

    def cpu(self) -> float:
        """Seconds of processor time of the flow's process so far."""
        try:
            fields = Path(f"/proc/{self.run.leader}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def until(self, trigger: Trigger) -> bool:
        """Wait for a moment; False if the run ended before it came."""
        latest = time.monotonic() + _NO_PROGRESS
        while not self._come(trigger):
            if self.run.poll() is not None:
                return False
            if time.monotonic() > latest:
                raise TimeoutError(f"{trigger} did not come; the log is {self.run.log}")
            time.sleep(_GLANCE if trigger.what != "manifest" else _GLANCE / 5)
            self.glance()
        until = time.monotonic() + trigger.wait
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _GLANCE))
            self.glance()
        return trigger.what == "manifest" or self.run.poll() is None

    def _come(self, trigger: Trigger) -> bool:
        if trigger.what == "start":
            return time.monotonic() - self.run.started >= trigger.value
        if trigger.what == "cpu":
            return self.since_work is not None and self.cpu() - self.since_work >= trigger.value
        if trigger.what == "artifact":
            return len(self.visible - self.before) >= trigger.value
        if trigger.what == "draft":
            return len(self.drafts) >= trigger.value
        return any(
            (self.root / "tmp" / name / "manifest.json").exists() for name in self.drafts[int(trigger.value) - 1 :]
        )


# What must hold --------------------------------------------------------------------------------------------------------


@dataclass
class Kill:
    """One kill and what was found after it."""

    kind: str
    series: int
    number: int
    trigger: str
    stage: str
    """Of the round; `start` before the first draft of a run, `end` when all is made."""
    part: str
    """The part at work, empty between parts."""
    seconds: float
    """Since the start of the run."""
    whole_before: int
    whole_after: int
    drafts_left: int
    gone_after: float | None
    """Seconds until nothing that the command had started lived any more."""
    outcome: str = ""
    violations: list[str] = field(default_factory=list)

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


class Disturbed:
    """One round from an empty store to its end, however often it is killed on the way."""

    def __init__(self, root: Path, reference: Reference, kind: str, series: int) -> None:
        self.root, self.reference, self.kind, self.series = root, reference, kind, series
        self.known: dict[Name, tuple[str, int]] = {}
        """Digest and inode of everything that was ever seen whole."""
        self.kills = 0

    def check(self) -> tuple[Stored, list[str]]:
        """What is stored, and what is wrong with it."""
        stored = look(self.root)
        wrong = [f"damaged: {name} ({why})" for name, why in stored.damaged.items()]
        for name, (digest, inode) in self.known.items():
            seen = stored.whole.get(name)
            if seen is None:
                wrong.append(f"lost: {name}")
            elif (seen.digest, seen.inode) != (digest, inode):
                wrong.append(f"made again: {name}")
        for name, digest in stored.digests.items():
            if self.reference.digests.get(name) != digest:
                wrong.append(f"no undisturbed run makes this: {name} {digest[:12]}")
        self.known |= {name: (seen.digest, seen.inode) for name, seen in stored.whole.items()}
        return stored, wrong

    def check_work(self, watch: Watch) -> list[str]:
        """What is wrong with what a run did: made what was there, or left what its dead predecessors had begun."""
        wrong = []
        for draft in watch.drafts:
            name = _name_of(draft)
            if name in watch.before and all(half in watch.before for half in self.reference.halves(name)):
                wrong.append(f"began to make what was there: {name}")
        if watch.drafts:
            left = watch.at_start & set(drafts(self.root))
            wrong += [f"a draft of the dead was left: {name}" for name in sorted(left)]
        return wrong

    def stage(self, watch: Watch) -> tuple[str, str]:
        """The stage and the part at which a run is."""
        if not watch.drafts:
            return "start", ""
        at_work = [name for name in map(_name_of, watch.current) if name in self.reference.shards]
        if at_work:
            return self.reference.stage(at_work[-1]), self.reference.shards[at_work[-1]]
        missing = [name for name in self.reference.order if name not in watch.visible]
        return (self.reference.stage(missing[0]), "") if missing else ("end", "")

    def struck(self, watch: Watch, trigger: Trigger, strike: Callable[[], None]) -> Kill:
        """Kill the flow's process with `strike` and look at what it left."""
        seconds = time.monotonic() - watch.run.started
        strike()
        # Hashing takes longer than the windows that kills are to hit: what was visible must be whole afterwards.
        stage, part = self.stage(watch)
        gone = watch.run.wait_until_alone(ENDS_WITHIN)
        after, wrong = self.check()
        wrong += [f"lost: {name}" for name in watch.visible - after.whole.keys() - self.known.keys()]
        wrong += self.check_work(watch)
        if gone is None:
            lines = [line.replace(b"\0", b" ").decode(errors="replace") for line in watch.run.family().values()]
            left = [line.partition(" ")[2][:60] for line in lines]  # how this machine calls its Python is no matter
            wrong.append(f"still alive after {ENDS_WITHIN:g} s: {left}")
            watch.run.end()
        self.kills += 1
        return Kill(
            self.kind,
            self.series,
            self.kills,
            str(trigger),
            stage,
            part,
            round(seconds, 3),
            len(watch.visible),
            len(after.whole),
            len(drafts(self.root)),
            None if gone is None else round(gone, 3),
            "killed",
            wrong,
        )

    def ended(self, watch: Watch, code: int) -> list[str]:
        """What is wrong at the end of a run that nobody killed."""
        watch.glance()
        stored, wrong = self.check()
        wrong += self.check_work(watch)
        if code != 0:
            said = watch.run.output().strip().splitlines()
            wrong.append(f"ended with exit code {code}: {said[-1] if said else 'silence'}")
        elif stored.digests != self.reference.digests:
            missing = len(self.reference.digests.keys() - stored.digests.keys())
            wrong.append(f"its artifacts are not those of an undisturbed round: {missing} are missing")
        if drafts(self.root):
            wrong.append(f"drafts are left: {drafts(self.root)}")
        data = self.root.parent
        kept = [str(path.relative_to(data)) for path in (data / "checkpoints").rglob("*") if path.is_file()]
        if code == 0 and kept:
            wrong.append(f"checkpoints of what is finished are left: {kept}")
        if watch.run.wait_until_alone(ENDS_WITHIN) is None:
            wrong.append(f"processes are left: {list(watch.run.family().values())}")
            watch.run.end()
        return wrong


def _name_of(draft: str) -> Name:
    kind, _, key = draft.partition(".")[0].partition("-")
    return Name(kind, key)
