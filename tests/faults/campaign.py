"""The campaign: rounds that are killed at random moments until they end, hundreds of times.

    python -m tests.faults.campaign --kills 200 --seed 0 --out results/faults

Kills what `--kind` says: the flow's process (the default); a `simulator`, which the run must survive by itself; the
Prefect `server` that the flow reports to; the whole `command` as a shell starts it, imports and server of its own
included; the `runner` of a deployment's run, or only the process of that `runner's flow`; the flow's process in
`training`, where all but one adapter is there. Stopped, it goes on where it stopped: each kill is a line in
`kills.jsonl`. The table of `README.md` is drawn from these lines at each end, and with `--draw-only`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selu.rounds import ROUND_STAGES
from tests.faults.disturbed import Disturbed, Kill, Reference, Trigger, Watch, arguments, draw_trigger
from tests.faults.launching import Nursery, PlainCommands, Run, Server
from tests.faults.stored import look

__all__ = ["Campaign", "draw_table", "main"]

KINDS = ("flow", "training", "simulator", "server", "command", "runner", "runner's flow")
_RUN_ENDS_WITHIN = 1800.0
_UNDER_WAY = {"SCHEDULED", "PENDING", "RUNNING"}


class Campaign:
    """Everything that lives as long as a campaign: a server, a nursery, the reference, the log.

    Args:
        work: a folder for stores, logs and Prefect's database; emptied at will.
        out: where `kills.jsonl` and `reference.json` are kept.
        seed: of all randomness.
    """

    def __init__(self, work: Path, out: Path, seed: int) -> None:
        self.work, self.out, self.seed = work, out, seed
        work.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "kills.jsonl"
        self.server = Server(work / "prefect", work / "server.log")
        self.server.start()
        self.nursery = Nursery(work / "prefect", self.server.api, work / "nursery.log")
        self._running: Run | None = None
        self.plain = PlainCommands(work / "prefect-plain")
        self.reference = self._reference()

    def close(self) -> None:
        """End server, nursery and what is at work."""
        if self._running is not None:
            self._running.end()
        self.nursery.close()
        self.server.kill()

    def done(self, kind: str) -> list[dict[str, Any]]:
        """What was logged of a kind."""
        return [line for line in _lines(self.log) if line["kind"] == kind]

    def go_on(self, kind: str, kills: int) -> None:
        """Run rounds of a kind, each from an empty store, until so many kills are logged."""
        while (missing := kills - sum(line["outcome"] != "ended" for line in self.done(kind))) > 0:
            logged = self.done(kind)
            series = max((line["series"] for line in logged), default=0) + 1
            if kind.startswith("runner"):
                self._served(kind, series)
            else:
                self._series(kind, series, missing)

    @property
    def finished(self) -> Path:
        """Data folder of the undisturbed round."""
        return self.work / "reference"

    # Inside

    def _reference(self) -> Reference:
        path = self.out / "reference.json"
        before = Reference.load(path) if path.exists() else None
        if before is not None and self.finished.exists():
            return before
        data = self._fresh(self.finished.name)
        run = self.nursery.start(arguments(data), self.work / "reference.log")
        code = run.wait(_RUN_ENDS_WITHIN)
        seconds = time.monotonic() - run.started
        if code != 0:
            raise RuntimeError(f"the undisturbed round failed:\n{run.output()}")
        reference = Reference.of(look(data / "store"), seconds, run.cpu)
        if before is not None:
            if reference.digests != before.digests:
                raise RuntimeError(f"{path} is of other code or another machine; begin anew with another --out")
            return before
        reference.save(path)
        _say(f"undisturbed: {seconds:.1f} s, {len(reference.order)} artifacts")
        return reference

    def _fresh(self, name: str) -> Path:
        data = self.work / name
        shutil.rmtree(data, ignore_errors=True)
        return data

    def _series(self, kind: str, series: int, most: int) -> None:
        """One round, killed at most so many times; what is killed later than that is let be."""
        draw = random.Random(f"{self.seed} {kind} {series}")
        data = self._fresh("data")
        (self.work / "run.log").unlink(missing_ok=True)
        if kind == "training":
            # All is there but one adapter.
            shutil.copytree(self.finished, data)
            name = draw.choice([name for name in self.reference.order if name.kind == "adapter"])
            shutil.rmtree(data / "store" / name.kind / name.key[:2] / name.key)
        round_ = Disturbed(data / "store", self.reference, kind, series)
        began = time.monotonic()
        while True:
            run = self._start(kind, data)
            watch = Watch(run, round_.root)
            # With its adapter the training is over, and this kind with it.
            going = kind != "training" or not self.reference.digests.keys() <= watch.before
            struck = self._disturb(kind, round_, watch, draw) if going and round_.kills < most else None
            if struck and struck.outcome == "killed":
                self._note(struck)
                continue
            code = self._let_end(run, watch)
            wrong = round_.ended(watch, code)
            if struck:
                said = "ended with a sentence" if _one_sentence(run.output()) else "ended with a traceback"
                struck.outcome = "survived" if code == 0 else said
                # A run may end with a sentence when what it needs is gone; the same command then goes on.
                if code != 0 and _one_sentence(run.output()):
                    wrong = [item for item in wrong if "exit code" not in item]
                struck.violations += wrong
                self._note(struck)
                if kind == "server":
                    self._revive_server()
                if code != 0:
                    continue
                wrong = []
            end = Kill(kind, series, round_.kills, "", "", "", round(time.monotonic() - began, 1), 0, 0, 0, None)
            end.outcome, end.violations = "ended", wrong
            end.whole_after = len(round_.known)
            self._note(end)
            return

    def _served(self, kind: str, series: int) -> None:
        """One round as a deployment's run: `selu serve` is killed, or the process in which its flow runs."""
        draw = random.Random(f"{self.seed} {kind} {series}")
        data = self._fresh("data")
        round_ = Disturbed(data / "store", self.reference, kind, series)
        began = time.monotonic()
        serving = self._serve(data)
        watch = Watch(serving, round_.root)
        trigger = Trigger("draft", draw.randint(1, 30), draw.uniform(0.0, 0.5))
        self._order()
        watch.until(trigger)
        flows = serving.flows()
        stage, part = round_.stage(watch)
        seconds, whole = round(time.monotonic() - serving.started, 3), len(watch.visible)
        if not flows:
            raise RuntimeError(f"the flow's process is not to be found; the log is {serving.log}")
        os.kill(serving.leader if kind == "runner" else flows[0], signal.SIGKILL)
        time.sleep(3.0)  # time to notice: a flow that goes on without its runner would still be there
        on_its_own = kind == "runner" and bool(serving.flows())
        self._until(lambda: not serving.flows(), serving)
        self._until(lambda: not serving.players(), serving)
        stored, wrong = round_.check()
        round_.kills = 1
        kill = Kill(kind, series, 1, str(trigger), stage, part, seconds, whole, len(stored.whole), 0, None)
        kill.outcome = "its flow went on" if on_its_own else "killed"
        kill.violations = wrong
        self._note(kill)
        if kind == "runner":
            serving.end()
            serving = self._serve(data)
        ordered = self._order()
        again = Watch(serving, round_.root)

        def ended() -> bool:
            again.glance()
            return str(self.server.ask(f"flow_runs/{ordered}")["state"]["type"]) not in _UNDER_WAY

        self._until(ended, serving)
        state = self.server.ask(f"flow_runs/{ordered}")["state"]["type"]
        self._until(lambda: not serving.flows(), serving)
        serving.end()
        wrong = round_.ended(again, 0) + ([] if state == "COMPLETED" else [f"the run that followed is {state}"])
        end = Kill(kind, series, 1, "", "", "", round(time.monotonic() - began, 1), 0, len(round_.known), 0, None)
        end.outcome, end.violations = "ended", wrong
        self._note(end)

    def _serve(self, data: Path) -> Run:
        file = self.work / "deployments.yaml"
        file.write_text(
            "deployments:\n- {name: fault, entrypoint: 'flows/self_learning.py:self_learning', parameters: {}}\n"
        )
        log = self.work / "serve.log"
        self._running = self.nursery.start(["serve", "--file", str(file), *arguments(data)[1:]], log)
        self._until(lambda: self._deployment(self._running) is not None, self._running)
        return self._running

    def _deployment(self, run: Run) -> str | None:
        """Id of the deployment, once the runner that serves it listens."""
        with contextlib.suppress(urllib.error.HTTPError):
            if "Ctrl-C ends it" in run.output():
                return str(self.server.ask("deployments/name/self-learning/fault")["id"])
        return None

    def _order(self) -> str:
        found = self.server.ask("deployments/name/self-learning/fault")["id"]
        return str(self.server.ask(f"deployments/{found}/create_flow_run", {})["id"])

    def _until(self, come: Callable[[], bool], run: Run) -> None:
        until = time.monotonic() + _RUN_ENDS_WITHIN
        while not come():
            if time.monotonic() > until:
                raise TimeoutError(f"waited {_RUN_ENDS_WITHIN:g} s in vain; the log is {run.log}")
            time.sleep(0.1)

    def _start(self, kind: str, data: Path) -> Run:
        log = self.work / "run.log"
        self._running = (self.plain if kind == "command" else self.nursery).start(arguments(data), log)
        return self._running

    def _let_end(self, run: Run, watch: Watch) -> int:
        until = time.monotonic() + _RUN_ENDS_WITHIN
        while (code := run.poll()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"the run does not end; its log is {run.log}")
            time.sleep(0.02)
            watch.glance()
        return code

    def _disturb(self, kind: str, round_: Disturbed, watch: Watch, draw: random.Random) -> Kill | None:
        """Wait for a random moment and kill; None if the run ended before."""
        if kind in ("flow", "command", "training"):
            trigger = draw_trigger(draw)
            if kind == "training":
                trigger = draw.choices(
                    [
                        Trigger("cpu", draw.uniform(0.0, 1.4), draw.uniform(0.0, 0.1)),
                        Trigger("manifest", 1),
                        Trigger("artifact", 1, draw.uniform(0.0, 0.03)),
                    ],
                    [8, 1, 1],
                )[0]
            if kind == "command" and draw.random() < 0.5:
                # Anywhere in the start too: imports, the start of its own server, the first requests.
                trigger = Trigger("start", draw.uniform(0.0, 40.0))
            return round_.struck(watch, trigger, watch.run.kill) if watch.until(trigger) else None
        trigger = Trigger("cpu", draw.uniform(0.0, self.reference.cpu), draw.uniform(0.0, 0.3))
        if not watch.until(trigger):
            return None
        if kind == "simulator":
            players = self._players(watch)
            if not players:
                return None
            victim = draw.choice(players)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        else:
            self.server.kill()
        stage, part = round_.stage(watch)
        round_.kills += 1
        seconds = round(time.monotonic() - watch.run.started, 3)
        whole = len(watch.visible)
        if kind == "server" and draw.random() < 0.5:
            trigger = Trigger(trigger.what, trigger.value, trigger.wait)
            time.sleep(draw.uniform(0.0, 3.0))
            self.server.start()
            stage = stage or "start"
            return Kill(kind, round_.series, round_.kills, f"{trigger}; server comes back", stage, part, seconds, whole,
                        whole, 0, None, "?")  # fmt: skip
        return Kill(kind, round_.series, round_.kills, str(trigger), stage, part, seconds, whole, whole, 0, None, "?")

    def _players(self, watch: Watch) -> list[int]:
        until = time.monotonic() + 60
        while time.monotonic() < until and watch.run.poll() is None:
            if players := watch.run.players():
                return players
            time.sleep(0.05)
            watch.glance()
        return []

    def _revive_server(self) -> None:
        if not self.server.alive():
            self.server.start()

    def _note(self, kill: Kill) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(kill.line() + "\n")
        where = kill.part or kill.stage
        _say(
            f"{kill.kind} {kill.series}.{kill.number} {kill.outcome}: {where} ({kill.trigger}), {kill.whole_after} whole"
        )
        for item in kill.violations:
            _say(f"    VIOLATION {item}")


def _one_sentence(output: str) -> bool:
    return bool(output.strip()) and "Traceback" not in output


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# The table -------------------------------------------------------------------------------------------------------------

_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"


def draw_table(out: Path) -> str:
    """What `kills.jsonl` says, as Markdown; also put between the marks in `README.md`, if that is there."""
    lines = _lines(out / "kills.jsonl")
    reference = Reference.load(out / "reference.json")
    kills = [line for line in lines if line["outcome"] != "ended"]
    kinds = [kind for kind in KINDS if any(line["kind"] == kind for line in kills)]
    text = [
        f"The undisturbed round took {reference.seconds:.1f} s in a warm process ({reference.cpu:.1f} s of processor time "
        f"of the flow's process) and left {len(reference.order)} artifacts. Kills: {len(kills)}, in "
        f"{len({(line['kind'], line['series']) for line in lines})} rounds; those that did not end were under way when the "
        "campaign was stopped.",
        "",
        "| killed | kills | rounds that ended | outcome of the run that was hit | violations |",
        "|---|---|---|---|---|",
    ]
    for kind in kinds:
        of_kind = [line for line in kills if line["kind"] == kind]
        ends = [line for line in lines if line["kind"] == kind and line["outcome"] == "ended"]
        outcomes = Counter(line["outcome"] for line in of_kind)
        said = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
        wrong = sum(len(line["violations"]) for line in [*of_kind, *ends])
        text.append(f"| {kind} | {len(of_kind)} | {len(ends)} | {said} | {wrong} |")
    columns = ["start", *ROUND_STAGES, "end"]
    text += ["", "Kills by the stage at work:", "", f"| killed | {' | '.join(columns)} |", "|---" * 12 + "|"]
    for kind in kinds:
        at = Counter(line["stage"] for line in kills if line["kind"] == kind)
        text.append(f"| {kind} | {' | '.join(str(at[column]) for column in columns)} |")
    gone = [line["gone_after"] for line in kills if line["gone_after"] is not None]
    if gone:
        moments = Counter(line["trigger"].split()[0] for line in kills if line["outcome"] == "killed")
        text += [
            "",
            f"Simulators and whatever else a killed command had started were gone after {max(gone):.2f} s at most (median "
            f"{sorted(gone)[len(gone) // 2]:.2f} s). {sum(line['drafts_left'] > 0 for line in kills)} kills left an "
            "unfinished draft. Moments were drawn by: "
            + ", ".join(f"{what} {count}" for what, count in moments.most_common())
            + ".",
        ]
    wrong = [(line, item) for line in lines for item in line["violations"]]
    text += ["", "Violations:" if wrong else "No violation."]
    text += [
        f"- {line['kind']} {line['series']}.{line['number']} {line['stage'] or 'after the end'}: {item}"
        for line, item in wrong
    ]
    table = "\n".join(text)
    readme = out / "README.md"
    if readme.exists():
        before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
        if rest:
            readme.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{rest.partition(_END)[2]}", encoding="utf-8")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign; exit code 1 if anything that must hold did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="flow")
    parser.add_argument("--kills", type=int, default=200, help="of this kind in all, those that are logged included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selu-faults")
    parser.add_argument("--draw-only", action="store_true", help="draw the table from what is logged")
    given = parser.parse_args(argv)
    # Stopped in either way, it ends what it has started; in the background a shell has it ignore the first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(130))
    if not given.draw_only:
        _say(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        campaign = Campaign(given.work.absolute(), given.out.absolute(), given.seed)
        try:
            campaign.go_on(given.kind, given.kills)
        finally:
            campaign.close()
    print(draw_table(given.out))
    return int(any(line["violations"] for line in _lines(given.out / "kills.jsonl")))


if __name__ == "__main__":
    sys.exit(main())
