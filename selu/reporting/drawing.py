"""Small plots as inline SVG, and figures as text.

Colours come from the page's style sheet, so that plots follow it into the dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from selu.evaluation import MetricRow
from selu.reporting.views import Trend, TrendPoint

__all__ = [
    "breakable",
    "curve_plot",
    "file_size",
    "interval_axis",
    "interval_plot",
    "percent",
    "points",
    "seconds",
    "trend_plot",
]

_NARROW_SPACE = "\u202f"
_MINUS = "\u2212"

# Figures as text -----------------------------------------------------------------------------------------------------


def percent(value: float, digits: int = 1) -> str:
    """A share as ``58.3 %``; an undefined one is a dash."""
    return f"{100 * value:.{digits}f}{_NARROW_SPACE}%" if math.isfinite(value) else "–"


def points(value: float) -> str:
    """A difference of shares in percentage points with its sign, e.g. ``+12.9``."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(100 * value):.1f}"
    sign = "±" if float(text) == 0 else "+" if value > 0 else _MINUS
    return sign + text


def seconds(value: float) -> str:
    """A duration as a person says it: ``0.4 s``, ``48 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if value < 9.95:
        return f"{value:.1f}{_NARROW_SPACE}s"
    whole = round(value)
    if whole < 60:
        return f"{whole}{_NARROW_SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{_NARROW_SPACE}min {whole % 60}{_NARROW_SPACE}s"
    minutes = round(value / 60)
    return f"{minutes // 60}{_NARROW_SPACE}h {minutes % 60:02d}{_NARROW_SPACE}min"


def file_size(value: int) -> str:
    """Bytes as kB or MB."""
    return f"{value / 1e6:.1f}{_NARROW_SPACE}MB" if value >= 1e6 else f"{value / 1e3:.1f}{_NARROW_SPACE}kB"


def breakable(action: str) -> Markup:
    """An action as the actor wrote it, escaped, that may be broken before its bracket."""
    return Markup(escape(action).replace("(", Markup("<wbr>(")))


# Plots ---------------------------------------------------------------------------------------------------------------

_WIDTH, _INSET = 260.0, 12.0


def _x(share: float) -> float:
    return round(_INSET + min(max(share, 0.0), 1.0) * (_WIDTH - 2 * _INSET), 1)


def _interval(row: MetricRow | None, y: float, style: str) -> str:
    if row is None or not math.isfinite(row.rate):
        return ""
    whisker = ""
    if math.isfinite(row.low) and math.isfinite(row.high):
        whisker = f'<line class="whisker" x1="{_x(row.low)}" x2="{_x(row.high)}" y1="{y}" y2="{y}"/>'
    return f'<g class="{style}">{whisker}<circle cx="{_x(row.rate)}" cy="{y}" r="4.2"/></g>'


def interval_plot(before: MetricRow | None, after: MetricRow | None, marks: Sequence[tuple[str, float]] = ()) -> Markup:
    """Two dots with their 95 % intervals on a scale from 0 to 1; `marks` are named shares drawn as ticks."""
    height = 38
    grid = "".join(
        f'<line class="grid" x1="{_x(share)}" x2="{_x(share)}" y1="0" y2="{height}"/>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    ticks = "".join(
        f'<line class="mark" x1="{_x(share)}" x2="{_x(share)}" y1="2" y2="{height - 2}">'
        f"<title>{escape(name)}: {percent(share)}</title></line>"
        for name, share in marks
        if math.isfinite(share)
    )
    said = ", ".join(
        f"{name} {percent(row.rate)}" for name, row in (("before", before), ("after", after)) if row is not None
    )
    return Markup(
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {height}" role="img" aria-label="{escape(said)}">'
        f"{grid}{ticks}{_interval(before, 12, 'before')}{_interval(after, 26, 'after')}</svg>"
    )


def interval_axis() -> Markup:
    """The scale above the dots."""
    labels = "".join(
        f'<text x="{_x(share)}" y="11" text-anchor="middle">{100 * share:.0f}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    return Markup(f'<svg class="plot axis" viewBox="0 0 {_WIDTH:.0f} 14" aria-hidden="true">{labels}</svg>')


_CURVE_WIDTH, _CURVE_HEIGHT = 520.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 12.0, 12.0, 30.0
_MOST_POINTS = 400


def _smoothed(values: Sequence[float]) -> list[float]:
    """Centred moving average over about a sixteenth of the curve; narrower at its ends, so that it does not lag."""
    sums = [0.0, *itertools.accumulate(values)]
    half = len(values) // 32
    smooth = []
    for place in range(len(values)):
        reach = min(half, place, len(values) - 1 - place)
        smooth.append((sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1))
    return smooth


def _nice_step(span: float, pieces: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts `span` into about `pieces`."""
    rough = span / pieces
    power = float(10 ** math.floor(math.log10(rough)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def curve_plot(steps: Sequence[int], losses: Sequence[float], validation: Sequence[tuple[int, float]] = ()) -> Markup:
    """A training curve: every step's loss pale, a moving average over it; loss on rows held out as dots, the lowest full."""
    pairs = [(step, loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
    if not pairs:
        return Markup("")
    smooth = _smoothed([loss for _, loss in pairs])
    last = max(pairs[-1][0], 1)
    # A single spike at the start shall not flatten the rest.
    ranked = sorted(loss for _, loss in pairs)
    top = max(ranked[int(0.98 * (len(ranked) - 1))], *smooth, *(loss for _, loss in validation)) * 1.05 or 1.0
    step = _nice_step(top, 4)

    def x(at: float) -> float:
        return round(_LEFT + at / last * (_CURVE_WIDTH - _LEFT - _RIGHT), 1)

    def y(loss: float) -> float:
        return round(_TOP + (1 - min(loss, top) / top) * (_CURVE_HEIGHT - _TOP - _BOTTOM), 1)

    every = max(1, math.ceil(len(pairs) / _MOST_POINTS))
    kept = [*range(0, len(pairs) - 1, every), len(pairs) - 1]

    def line(values: Sequence[float], style: str) -> str:
        path = " ".join(f"{x(pairs[place][0])},{y(values[place])}" for place in kept)
        return f'<polyline class="{style}" points="{path}"/>'

    levels = [number * step for number in range(int(top / step) + 1)]
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_CURVE_WIDTH - _RIGHT}" y1="{y(level)}" y2="{y(level)}"/>'
        f'<text x="{_LEFT - 6}" y="{y(level) + 4}" text-anchor="end">{level:g}</text>'
        for level in (round(level, 6) for level in levels)
    )
    across = _nice_step(last, 5)
    ticks = "".join(
        f'<text x="{x(number * across)}" y="{_CURVE_HEIGHT - 12}" text-anchor="middle">{number * across:g}</text>'
        for number in range(int(last / across) + 1)
    )
    dot = f'<circle class="end" cx="{x(pairs[-1][0])}" cy="{y(smooth[-1])}" r="3.5"/>'
    lowest = min((loss for _, loss in validation), default=0.0)
    held_out = "".join(
        f'<circle class="held{" kept" if loss == lowest else ""}" cx="{x(at)}" cy="{y(loss)}" r="4"/>'
        for at, loss in validation
    )
    return Markup(
        f'<svg class="curve" viewBox="0 0 {_CURVE_WIDTH:.0f} {_CURVE_HEIGHT:.0f}" role="img" '
        f'aria-label="loss from {pairs[0][1]:.2f} to {smooth[-1]:.2f} in {last} steps">'
        f"{grid}{ticks}{line([loss for _, loss in pairs], 'raw')}{line(smooth, 'smooth')}{dot}{held_out}</svg>"
    )


_TREND_WIDTH, _TREND_HEIGHT = 360.0, 190.0


def trend_plot(trend: Trend) -> Markup:
    """Lines over rounds with their 95 % intervals as whiskers; limits are dashed, refused candidates are hollow."""
    points = [point for line in trend.lines for point in line.points if math.isfinite(point.value)]
    if not points:
        return Markup("")
    first, last = min(point.round for point in points), max(point.round for point in points)
    highest = max(max(point.value, point.high if math.isfinite(point.high) else 0.0) for point in points)
    top = min(1.0, max(0.1, highest * 1.1)) if trend.share else max(0.1, highest * 1.1)
    step = _nice_step(top, 5)
    inset = 18.0
    left, right = _LEFT + inset, _TREND_WIDTH - _RIGHT - inset

    def x(at: float) -> float:
        return round((left + right) / 2 if last == first else left + (at - first) / (last - first) * (right - left), 1)

    def y(value: float) -> float:
        shown = min(max(value, 0.0), top)
        return round(_TOP + (1 - shown / top) * (_TREND_HEIGHT - _TOP - _BOTTOM), 1)

    levels = [round(number * step, 6) for number in range(int(top / step + 1e-9) + 1)]
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_TREND_WIDTH - _RIGHT}" y1="{y(level)}" y2="{y(level)}"/>'
        f'<text x="{_LEFT - 6}" y="{y(level) + 4}" text-anchor="end">'
        f"{f'{100 * level:g}' if trend.share else f'{level:g}'}</text>"
        for level in levels
    )
    every = max(1, math.ceil((last - first + 1) / 10))
    ticks = "".join(
        f'<text x="{x(number)}" y="{_TREND_HEIGHT - 12}" text-anchor="middle">{number or "base"}</text>'
        for number in range(first, last + 1, every)
    )

    def said(value: float) -> str:
        return percent(value) if trend.share else f"{value:.3f}"

    def dot(name: str, point: TrendPoint, shift: float) -> str:
        place = round(x(point.round) + shift, 1)
        whisker = ""
        if math.isfinite(point.low) and math.isfinite(point.high):
            whisker = f'<line class="whisker" x1="{place}" x2="{place}" y1="{y(point.low)}" y2="{y(point.high)}"/>'
        title = f"{name}, {f'round {point.round}' if point.round else 'base'}: {said(point.value)}"
        return (
            f'{whisker}<circle cx="{place}" cy="{y(point.value)}" r="3.6"{" class=refused" if point.refused else ""}>'
            f"<title>{escape(title)}{', refused' if point.refused else ''}</title></circle>"
        )

    drawn, words = [], []
    figures = sum(line.tone != "limit" for line in trend.lines)
    for number, line in enumerate(trend.lines):
        known = [point for point in line.points if math.isfinite(point.value)]
        # Side by side, so that whiskers do not cover each other.
        shift = 0.0 if line.tone == "limit" else 5.0 * (number - (figures - 1) / 2)
        path = " ".join(f"{round(x(point.round) + shift, 1)},{y(point.value)}" for point in known)
        dots = "" if line.tone == "limit" else "".join(dot(line.name, point, shift) for point in known)
        if line.tone == "limit" and len(known) == 1:
            path = f"{x(first) - inset},{y(known[0].value)} {x(first) + inset},{y(known[0].value)}"
        drawn.append(f'<g class="{line.tone}"><polyline points="{path}"/>{dots}</g>')
        if known:
            words.append(f"{line.name}: {', '.join(said(point.value) for point in known)}")
    return Markup(
        f'<svg class="curve trend" viewBox="0 0 {_TREND_WIDTH:.0f} {_TREND_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape("; ".join(words))}">{grid}{ticks}{"".join(drawn)}</svg>'
    )
