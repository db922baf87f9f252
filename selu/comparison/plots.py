"""Plots of a comparison: learning curves, methods by themselves and beside SELU, and how many labels were false."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selu.comparison import BESIDE, Comparison, ComparisonRow

__all__ = ["draw_plots"]

_PANELS = (
    ("critic", "A", "critic, direct verdict, probe A\nbalanced accuracy"),
    ("critic", "B", "critic, direct verdict, probe B\nbalanced accuracy"),
    ("actor", "A", "actor, probe A\nshare of tasks done"),
    ("actor", "B", "actor, probe B\nshare of tasks done"),
)
_COLOURS = {"method": "#1f4e9c", "upper bound": "#3b8b4f", "ablation": "#8a8f98"}
_BASELINES = ("#c8622b", "#a43d73", "#8a7a1d", "#5c4aa0", "#2b8f98")
_GREY = "#55595f"


def draw_plots(comparison: Comparison, folder: Path) -> list[str]:
    """Write the plots that there are figures for as PNG files into `folder` and return their names."""
    drawn = []
    for name, draw in (
        ("learning_curves.png", _learning_curves),
        ("methods.png", _bars),
        ("beside_selu.png", _beside_selu),
        ("false_labels.png", _false_labels),
    ):
        figure = draw(comparison)
        if figure is not None:
            # No version and no time in the file: equal figures, equal bytes.
            figure.savefig(folder / name, dpi=120, metadata={"Software": None})
            drawn.append(name)
    return drawn


def _panels(comparison: Comparison) -> list[tuple[str, str, str]]:
    """The panels of what is evaluated: a probe may have been left out."""
    return [panel for panel in _PANELS if comparison.plan.measures(*panel[:2])]


def _style(comparison: Comparison, name: str) -> dict[str, Any]:
    role = next(method.role for method in comparison.plan.methods if method.name == name)
    baselines = [method.name for method in comparison.plan.methods if method.role == "baseline"]
    colour = _BASELINES[baselines.index(name) % len(_BASELINES)] if role == "baseline" else _COLOURS[role]
    return {"color": colour, "linewidth": 2.2 if role == "method" else 1.3, "zorder": 4 if role == "method" else 3}


def _errors(rows: Sequence[ComparisonRow]) -> list[list[float]]:
    """Lengths of error bars below and above, 0 where there is no interval."""
    return [
        [row.rate - row.low if math.isfinite(row.low) else 0.0 for row in rows],
        [row.high - row.rate if math.isfinite(row.high) else 0.0 for row in rows],
    ]


def _range(numbers: Sequence[int]) -> str:
    """`5`, or `5 to 1` where later rounds have fewer."""
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _lines(comparison: Comparison, axes: Any, measure: str, probe: str, *, start: str | None) -> bool:
    """A line for each method but the ablations, from the row `start` in round 0 on; whether there was any."""
    names = [method.name for method in comparison.plan.methods if method.role != "ablation"]
    found = {
        name: [comparison.row(name, number, measure, probe) for number in comparison.rounds(name)] for name in names
    }
    drawn = {name: rows for name, made in found.items() if (rows := [row for row in made if row is not None])}
    for place, (name, rows) in enumerate(drawn.items()):
        first = comparison.row(start, 0, measure, probe) if start else None
        shown = [first, *rows] if first else rows
        # Side by side, so that intervals do not hide each other.
        shift = 0.05 * (place - (len(drawn) - 1) / 2)
        axes.errorbar(
            [row.round + shift for row in shown],
            [row.rate for row in shown],
            yerr=_errors(shown),
            label=f"{name} (seeds: {_range([row.seeds for row in rows])})",
            marker="o",
            markersize=4,
            capsize=2,
            elinewidth=0.9,
            **_style(comparison, name),
        )
    axes.grid(axis="y", color="#e3e5e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return bool(drawn)


def _learning_curves(comparison: Comparison) -> Figure | None:
    panels = _panels(comparison)
    down, across = (list(dict.fromkeys(panel[place] for panel in panels)) for place in (0, 1))
    if len(across) == 1:
        down, across = across, down
    figure = Figure(figsize=(11, 4 * len(down)), layout="constrained")
    some = False
    for measure, probe, title in panels:
        row, column = (measure, probe) if measure in down else (probe, measure)
        place = down.index(row) * len(across) + across.index(column) + 1
        axes = figure.add_subplot(len(down), len(across), place, sharex=figure.axes[0] if figure.axes else None)
        some |= _lines(comparison, axes, measure, probe, start="base model")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("rounds of learning")
        for name, style in (("self-asking, untrained", "-."), ("random actor", ":"), ("planner", "--")):
            level = comparison.row(name, 0, measure, probe)
            if level is not None:
                axes.axhline(level.rate, color=_GREY, linewidth=1, linestyle=style, label=name)
    if not some:
        return None
    labels = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(labels.values()), list(labels), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _by_method(
    comparison: Comparison, difference: str, title: str, draw: Callable[[Any, int, ComparisonRow], None]
) -> Figure | None:
    """A row for each method in a panel for each measure, after the last round that all are to reach.

    `difference` ends the names of the measures; `draw` draws one figure at one height of the panel.
    """
    number, panels = comparison.plan.common_round, _panels(comparison)
    measured = {
        method.name: {
            (measure, probe): row
            for measure, probe, _ in panels
            if (row := comparison.row(method.name, number, measure + difference, probe))
        }
        for method in comparison.plan.methods
    }
    names = [name for name, rows in measured.items() if rows]
    if not names:
        return None
    figure = Figure(figsize=(max(6, 3 * len(panels)), 1.8 + 0.34 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    places = list(range(len(names)))[::-1]
    for axes, (measure, probe, heading) in zip(grid, panels, strict=True):
        for place, name in zip(places, names, strict=True):
            if (measure, probe) in measured[name]:
                draw(axes, place, measured[name][measure, probe])
        base = None if difference else comparison.row("base model", 0, measure, probe)
        if base is not None or difference:
            axes.axvline(base.rate if base is not None else 0, color=_GREY, linewidth=1, linestyle=":")
        axes.set_title(heading, fontsize=9)
        axes.grid(axis="x", color="#e3e5e8")
        axes.tick_params(axis="x", labelsize=8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    labels = [f"{name} ({_range([row.seeds for row in measured[name].values()])})" for name in names]
    grid[0].set_yticks(places, labels, fontsize=9)
    figure.suptitle(f"after round {number}{title}", fontsize=9)
    return figure


def _bars(comparison: Comparison) -> Figure | None:
    def bar(axes: Any, place: int, row: ComparisonRow) -> None:
        colour = _style(comparison, row.method)["color"]
        axes.barh(
            place, row.rate, xerr=_errors([row]), height=0.7, color=colour, error_kw={"elinewidth": 1, "capsize": 2}
        )

    return _by_method(comparison, "", " (in brackets: seeds); dotted: the base model; 95 % intervals", bar)


def _beside_selu(comparison: Comparison) -> Figure | None:
    def point(axes: Any, place: int, row: ComparisonRow) -> None:
        colour = _style(comparison, row.method)["color"]
        axes.errorbar(
            row.rate, place, xerr=_errors([row]), fmt="o", markersize=5, color=colour, elinewidth=1.3, capsize=3
        )

    title = ": how much more than SELU (dotted), paired item by item (in brackets: seeds of both); 95 % intervals"
    return _by_method(comparison, BESIDE, title, point)


def _false_labels(comparison: Comparison) -> Figure | None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    some = _lines(comparison, axes, "false_rate", "", start=None)
    axes.set_title("labels that say “done” and are false, as a share (95 % intervals)", fontsize=10)
    axes.set_xlabel("round")
    axes.set_ylim(bottom=0)
    if not some:
        return None
    axes.legend(fontsize=8, frameon=False)
    return figure
