"""A comparison as files: ``README.md``, ``results.json``, ``table.csv`` and the plots."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selu.comparison import BESIDE, GAIN, Comparison, ComparisonRow, Plan, PlannedRun, RunState, State, compare, runs_of
from selu.comparison.runs import RunRecord
from selu.errors import TerminalError
from selu.rounds import Workspace

__all__ = ["RECORDS", "Notes", "draw", "read_notes", "table_rows", "write_notes"]

logger = logging.getLogger("selu.comparison")

RECORDS = "runs"
"""Folder of the records beside a copied table."""

_FILES = (
    "README.md",
    "results.json",
    "table.csv",
    "learning_curves.png",
    "methods.png",
    "beside_selu.png",
    "false_labels.png",
)

Notes = Mapping[str, tuple[State, str]]
"""By :attr:`~selu.comparison.PlannedRun.note`: how a run ended, or that it is at work, and what was said about it."""

_RUNS = (
    "One row for each method and round. **A** are the rooms that were practised in, from other starts; **B** are rooms "
    "never visited. In brackets: 95 % intervals, from a bootstrap over scenes with all seeds pooled: they are about other "
    "scenes, with these very seeds. Where all outcomes are alike (.000, 1.000) it is Wilson's interval over the distinct items."
)
_GUIDE = (
    "critic: balanced accuracy of its direct verdict (guessing gives .500); self-asking: that of the same critic where it "
    "asks itself questions, unsure counting half; actor: share of tasks whose goal holds at the end"
)

_SEEDS_OF_BOTH = (
    "What a method has more than SELU after as many rounds, paired item by item, of the seeds that both ran (so many): "
    "below zero SELU is better."
)

_Column = tuple[str, str, str, str]
"""heading, measure, probe, kind"""

_RESULTS: tuple[_Column, ...] = (
    ("critic A", "critic", "A", "all"),
    ("critic B", "critic", "B", "all"),
    ("self-asking A", "critic_self_asking", "A", "all"),
    ("self-asking B", "critic_self_asking", "B", "all"),
    ("actor A", "actor", "A", "all"),
    ("actor B", "actor", "B", "all"),
)
_GAINS, _BESIDE = (
    tuple((heading, f"{measure}{difference}", probe, kind) for heading, measure, probe, kind in _RESULTS)
    for difference in (GAIN, BESIDE)
)
_KINDS: tuple[_Column, ...] = (
    *(
        (f"{who} {probe}, {word}", who, probe, kind)
        for who in ("critic", "actor")
        for probe in ("A", "B")
        for word, kind in (("one step", "one_step"), ("two steps", "two_step"))
    ),
    ("actor A, three steps", "actor_three_steps", "A", "all"),
)
_LABELS: tuple[_Column, ...] = (
    ("false “done” labels", "false_rate", "", "all"),
    ("episodes with one", "coverage", "", "all"),
    ("false labels of the critic's", "false_rate_critic_labels", "", "all"),
    ("general, critic", "general_critic", "A+B", "all"),
    ("general, actor", "general_actor", "A+B", "all"),
)
_BUDGETS: tuple[_Column, ...] = (
    ("environment steps", "environment_steps", "", "all"),
    ("tokens read", "tokens_read", "", "all"),
    ("tokens written", "tokens_written", "", "all"),
    ("tokens trained on", "tokens_trained", "", "all"),
)


def draw(
    workspace: Workspace,
    plan: Plan,
    out: Path | None = None,
    records: Mapping[str, RunRecord] | None = None,
    counts: Callable[[PlannedRun, RunRecord], bool] = lambda run, record: True,
) -> tuple[Path, Comparison]:
    """Write table and plots of what there is by now; the path of the README that was written last, and the figures.

    What there is are the runs in the store that `counts` and `records` of others. With `out`, all is copied there, with a
    record of each run in its folder ``runs``; not if nothing is there to be drawn, but records that do not count.

    Raises:
        ArtifactError: figures of a finished round are no longer there.
        TerminalError: a folder cannot be written.
    """
    found = runs_of(workspace.store(), plan, records, counts)
    comparison = compare(plan, found, read_notes(workspace))
    readme = _write(comparison, _folder(workspace))
    if out is not None and not found and any((out / RECORDS).glob("*")):
        logger.warning("no run that is recorded in %s counts for this comparison; its tables are left as they are", out)
    elif out is not None:
        _copy(readme.parent, out)
        readme = out / readme.name
        for key, record in found.items():
            kept = (records or {}).get(key)
            if kept is None or kept.rounds < record.rounds:
                _keep(record, out / RECORDS / key)
    return readme, comparison


def _folder(workspace: Workspace) -> Path:
    return workspace.reports / "comparison"


def read_notes(workspace: Workspace) -> dict[str, tuple[State, str]]:
    """What was noted about runs; nothing if there are no notes that can be read."""
    try:
        noted = json.loads((_folder(workspace) / "runs.json").read_text(encoding="utf-8"))
        return {str(key): (state, str(said)) for key, (state, said) in noted.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_notes(workspace: Workspace, notes: Notes) -> None:
    """Keep what was noted about runs, so that a table drawn later says it too.

    Raises:
        TerminalError: the folder cannot be written.
    """
    path = _folder(workspace) / "runs.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(notes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise TerminalError(
            f"{path} cannot be written ({error.strerror}); free the disk or make the folder writable, and run again"
        ) from error


def _write(comparison: Comparison, folder: Path) -> Path:
    """Write everything into `folder`, each file in one step, and return the path of its README.

    Raises:
        TerminalError: the folder cannot be written.
    """
    from selu.comparison.plots import draw_plots

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing-") as scratch:
            new = Path(scratch)
            plots = draw_plots(comparison, new)
            (new / "README.md").write_text(_readme(comparison, plots), encoding="utf-8")
            (new / "results.json").write_text(
                json.dumps(_results(comparison), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
            )
            with (new / "table.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(ComparisonRow.model_fields)
                writer.writerows([_plain(value) for value in row.model_dump().values()] for row in comparison.rows)
            _hand_on(new, folder, os.replace)
    except OSError as error:
        raise TerminalError(
            f"the comparison cannot be written to {folder} ({error.strerror}); free the disk or make the folder writable, "
            "and run `selu compare --draw-only`: finished rounds are kept"
        ) from error
    return folder / "README.md"


def _hand_on(folder: Path, to: Path, how: Callable[[Path, Path], object]) -> None:
    """Move or copy what was drawn to another folder, where a plot that is not drawn any more goes."""
    for name in _FILES:
        if (folder / name).exists():
            how(folder / name, to / name)
        else:
            (to / name).unlink(missing_ok=True)


def _copy(folder: Path, out: Path) -> None:
    """Copy what was written to another folder; nothing else there is touched.

    Raises:
        TerminalError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _hand_on(folder, out, shutil.copyfile)
    except OSError as error:
        raise TerminalError(
            f"the comparison cannot be copied to {out} ({error.strerror}); give another folder"
        ) from error


def _keep(record: RunRecord, folder: Path) -> None:
    """Write a record in one step in the place of an older one.

    Raises:
        TerminalError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".record-") as scratch:
            record.write(Path(scratch) / "new")
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            (Path(scratch) / "new").rename(folder)
    except OSError as error:
        if (folder / "run.json").is_file():
            return  # another process was quicker
        raise TerminalError(
            f"the record of a run cannot be written to {folder} ({error.strerror}); give another folder"
        ) from error


def _plain(value: Any) -> Any:
    """A value of a table: figures to six places, an undefined one empty."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _results(comparison: Comparison) -> dict[str, Any]:
    return {
        "settings": comparison.plan.settings.model_dump(
            mode="json", exclude={"data_dir", "method", "seed", "rounds", "report_to"}
        ),
        "methods": [
            method.model_dump(mode="json")
            | {"seeds": comparison.plan.seeds(method.name), "rounds": comparison.rounds(method.name)}
            for method in comparison.plan.methods
        ],
        "runs": [state.model_dump(mode="json") for state in comparison.states],
        "rows": [{name: _plain(value) for name, value in row.model_dump().items()} for row in comparison.rows],
    }


# Text ----------------------------------------------------------------------------------------------------------------


def _share(value: float) -> str:
    """``.690``, ``1.000``, ``-.035``; a dash where it is undefined."""
    if not math.isfinite(value):
        return "–"
    text = f"{round(value, 3) + 0.0:.3f}"  # no -.000
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def _count(value: float) -> str:
    return f"{round(value):,}" if math.isfinite(value) else "unknown"


def _cell(row: ComparisonRow | None, column: _Column) -> str:
    if row is None:
        return "–"
    if column in _BUDGETS:
        return _count(row.rate)
    sign = "+" if column[1].endswith((GAIN, BESIDE)) and round(row.rate, 3) > 0 else ""
    interval = f" ({_share(row.low)} to {_share(row.high)})" if math.isfinite(row.low) else ""
    return f"{sign}{_share(row.rate)}{interval}"


def _places(comparison: Comparison) -> Iterator[tuple[str, int]]:
    """Method and round of each row of a table: what needs no training first."""
    named = {method.name for method in comparison.plan.methods}
    for name in dict.fromkeys(row.method for row in comparison.rows if row.method not in named):
        yield name, 0
    for method in comparison.plan.methods:
        for number in comparison.rounds(method.name):
            yield method.name, number


def _measured(comparison: Comparison, columns: Sequence[_Column]) -> list[_Column]:
    """The columns of what is evaluated."""
    return [column for column in columns if comparison.plan.measures(*column[1:3])]


def table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The main table as plain values, one row for each method and round."""
    rows = []
    for name, number in _places(comparison):
        row: dict[str, Any] = {"method": name, "round": number}
        for column in _measured(comparison, (*_RESULTS, *_LABELS, *_BUDGETS)):
            heading, measure, probe, kind = column
            row[heading] = _cell(comparison.row(name, number, measure, probe, kind), column)
        rows.append(row)
    return rows


def _table(comparison: Comparison, columns: Sequence[_Column], *, count: bool = True) -> list[str]:
    """A Markdown table of the places that have any of these figures; `count`: with n, of A and of B."""
    columns = _measured(comparison, columns)
    lines = []
    for name, number in _places(comparison):
        rows = [comparison.row(name, number, measure, probe, kind) for _, measure, probe, kind in columns]
        there = [row for row in rows if row is not None]
        if there:
            cells = [name, str(number) if number else "–", str(there[0].seeds) if number else "–"]
            cells += [_cell(row, column) for row, column in zip(rows, columns, strict=True)]
            cells += [" / ".join(dict.fromkeys(f"{row.n:,}" for row in there))] if count else []
            lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return ["Nothing yet."]
    headings = ["method", "round", "seeds", *(column[0] for column in columns), *(["n"] if count else [])]
    return ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings), *lines]


def _said(states: Sequence[RunState], name: str) -> list[str]:
    lines = []
    for state in (state for state in states if state.method == name):
        how = {
            "finished": "finished",
            "running": "not finished",
            "failed": "failed",
        }[state.state]
        why = " ".join(state.said.replace("|", "/").split())
        lines.append(f"| {name} | {state.seed} | {how} | {state.rounds} of {state.wanted} | {why} |")
    return lines


def _readme(comparison: Comparison, plots: Sequence[str]) -> str:
    plan, states = comparison.plan, comparison.states
    finished = sum(state.state == "finished" for state in states)
    failed = sum(state.state == "failed" for state in states)
    account = f"{finished} of {len(states)} runs are finished"
    account += f", {failed} failed" if failed else ""
    if finished < len(states):
        account += ": figures are of what there is by now, and the number of seeds stands in each row"
    first = plan.settings
    lines = [
        "# Comparison",
        "",
        f"{account}. Every run collects {first.tasks.episodes:,} episodes a round and is evaluated on the same frozen "
        "probes; methods with guards let old and new actor play a few practice tasks more (see the budgets). "
        "Written by `selu compare`; `selu compare --draw-only` writes it again.",
        "",
    ]
    if any(method.role == "upper bound" for method in plan.methods):
        lines += ["`oracle_labels` learns from the truth. It is no self-learning and is here as an upper bound.", ""]
    lines += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in plots]
    lines += ["", "## Results", "", _RUNS, "", f"({_GUIDE}.)", "", *_table(comparison, _RESULTS)]
    lines += ["", "## Gain over the base model", "", "Paired item by item.", "", *_table(comparison, _GAINS)]
    if any(row.measure.endswith(BESIDE) for row in comparison.rows):
        lines += ["", "## Beside SELU", "", _SEEDS_OF_BOTH, "", *_table(comparison, _BESIDE)]
    three_steps = plan.measures("actor_three_steps", "A")
    lines += [
        "",
        "## Tasks of one, two and three steps" if three_steps else "## Tasks of one and two steps",
        *(["", "Those of three steps are a set of their own, which nobody practises."] if three_steps else []),
        "",
        *_table(comparison, _KINDS, count=False),
    ]
    lines += [
        "",
        "## Labels and what is forgotten",
        "",
        "“Done” labels are those of the re-judging, which teach the actor; the critic's are all on played episodes that "
        "its dataset is drawn from (Wilson's intervals). General questions lie outside the tasks.",
        "",
        *_table(comparison, _LABELS, count=False),
    ]
    lines += [
        "",
        "## Budgets",
        "",
        "Means over seeds, summed over rounds, evaluation left out. Tokens that stand for pictures count; a scored answer "
        "counts what was read; tokens trained on count once for each time that a row was trained on.",
        "",
        *_table(comparison, _BUDGETS, count=False),
    ]
    lines += ["", "## Methods", ""]
    for method in plan.methods:
        lines.append(
            f"- **{method.name}** ({method.role}). {method.description.strip()} {method.carried_over}".rstrip()
        )
        if method.settings:
            lines[-1] += f" Settings: `{json.dumps(method.settings)}`."
    lines += ["", "## Runs", "", "| method | seed | state | rounds | |", "| --- | --- | --- | --- | --- |"]
    for method in plan.methods:
        lines += _said([state for state in states if state.state != "not started"], method.name)
    waiting = [f"{state.method} {state.seed}" for state in states if state.state == "not started"]
    if waiting:
        lines += ["", f"Not started yet (method and seed): {', '.join(waiting)}."]
    return "\n".join(lines) + "\n"
