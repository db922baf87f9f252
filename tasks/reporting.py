"""What people see of a finished round: the HTML report, and the same figures and film strips in Prefect's UI.

The UI renders markdown, in descriptions and in the cells of tables too: a picture that a model names in an answer would
make the browser ask for it, so what models wrote goes there escaped, and into no table.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from selu.evaluation import MetricRow
from selu.rounds import Round, Workspace, round_metrics, summary
from selu.store import ArtifactRef, Store

if TYPE_CHECKING:
    from selu.reporting.views import Asked, Film, Pair

__all__ = ["PAGES", "artifact_link", "as_text", "publish_round", "report_link", "write_html_report"]

logger = logging.getLogger("selu.reporting")

PAGES = "/selu"
"""Where `selu ui` and `selu serve` show reports and artifacts, on the address of Prefect's UI itself: its links can be
relative, and hold whatever the port and whatever the name of the machine."""

_MOST_STRIPS = 8


def report_link(report: Path) -> str:
    """Address of a report on the pages."""
    return f"{PAGES}/reports/{report.parent.name}/"


def artifact_link(ref: ArtifactRef) -> str:
    """Address of an artifact on the pages."""
    return f"{PAGES}/artifacts/{ref.kind}/{ref.key}/"


_MARKUP = re.compile(r"[\\`*\[\]<>|!~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def as_text(text: object) -> str:
    """Any text as markdown that shows just this text, within a line. By backslashes: UI v1 knows no entities."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))


@task(name="report", task_run_name="report of round {finished.round}", cache_policy=NO_CACHE, persist_result=False)
def write_html_report(workspace: Workspace, finished: Round) -> Path:
    """Write the self-contained HTML report, link it in Prefect's UI and return its path."""
    from selu.reporting import write_report

    path = write_report(workspace.store(), finished, workspace.reports)
    try:
        create_link_artifact(
            key="report",
            link=report_link(path),
            link_text="Open the report",
            description=f"{_name(finished)}. On disk: {as_text(path.absolute())}",
        )
    except (PrefectException, OSError) as error:
        logger.warning("the report %s could not be linked in Prefect's UI: %s", path, error)
    return path


@task(name="publish", task_run_name="publish round {finished.round}", cache_policy=NO_CACHE, persist_result=False)
def publish_round(workspace: Workspace, finished: Round) -> None:
    """Show a round's summary, all its figures, film strips and dataset versions as artifacts in Prefect's UI."""
    from selu.reporting import report_path

    store = workspace.store()
    report = report_path(finished, workspace.reports)
    try:
        create_markdown_artifact(
            _summary(store, finished, report_link(report)), key="summary", description=_name(finished)
        )
        create_table_artifact(
            [_row(row) for row in round_metrics(store, finished)], key="metrics", description=_name(finished)
        )
        create_markdown_artifact(_film_strips(store, finished), key="film-strips", description=_name(finished))
        for who, ref in _dataset_versions(finished):
            create_link_artifact(
                key=f"dataset-version-{who}",
                link=artifact_link(ref),
                link_text=f"Open the {who}'s dataset version {ref.digest[:12]}",
                description=f"{_name(finished)}: {_rows(store, ref)} rows. On disk: {as_text(store.path(ref))}",
            )
    except Exception as error:
        # The round is finished and recorded, its figures are in the report: nothing that is only for show may fail it.
        logger.warning("the round's figures could not be shown in Prefect's UI: %s", error)


def _name(finished: Round) -> str:
    return as_text(f"{finished.run}, round {finished.round}")


def _dataset_versions(finished: Round) -> Iterator[tuple[str, ArtifactRef]]:
    for who, ref in (("critic", finished.critic_dataset), ("actor", finished.actor_dataset)):
        if ref is not None:
            yield who, ref


def _rows(store: Store, ref: ArtifactRef) -> int:
    facts = json.loads((store.path(ref) / "lineage.json").read_text(encoding="utf-8"))
    return sum(facts["rows"].values())


# Figures -------------------------------------------------------------------------------------------------------------


def _percent(value: float | None, *, signed: bool = False) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:{'+' if signed else ''}.1f}"


def _cell(figure: dict[str, Any] | None, *, signed: bool = False) -> str:
    if figure is None or figure["rate"] is None:
        return "-"
    low, high = figure["ci95"]
    if low is None or high is None:
        return _percent(figure["rate"], signed=signed)
    return (
        f"{_percent(figure['rate'], signed=signed)} ({_percent(low, signed=signed)} to {_percent(high, signed=signed)})"
    )


def _summary(store: Store, finished: Round, report: str) -> str:
    figures = summary(store, finished)
    rows = [
        ("critic, direct verdict, probe A", figures["critic"]),
        ("critic, self-asking, probe A", figures["critic"]["self_asking"]),
        ("critic, direct verdict, probe B", figures["critic"]["probe_b"]),
        ("actor, probe A", figures["actor"]),
        ("actor, probe B", figures["actor"]["probe_b"]),
        ("critic, general questions", figures["general"]["critic"]),
        ("actor, general questions", figures["general"]["actor"]),
    ]
    links = [f"[Report]({report})"]
    links += [f"[{who}'s dataset version]({artifact_link(ref)})" for who, ref in _dataset_versions(finished)]
    lines = [
        f"# {_name(finished)}",
        "",
        " · ".join(links),
        "",
        "Percent right or done, with 95 % intervals; the gain is paired, in points.",
        "",
        "| measured | before | after | gain | n |",
        "|---|---|---|---|---|",
    ]
    for name, part in rows:
        n = next((part[when]["n"] for when in ("after", "before") if part[when] is not None), "-")
        lines.append(
            f"| {name} | {_cell(part['before'])} | {_cell(part['after'])} | {_cell(part['gain'], signed=True)} | {n} |"
        )
    labels = figures["labels"]
    lines += [
        "",
        f"- Labels that say *done*: {labels['n']}, on {_percent(labels['coverage'])} % of the episodes; "
        f"{_percent(labels['false_rate'])} % of them false. Any accepted label: {_percent(labels['labelled'])} %.",
        f"- False among all labels that the critic learned from, in percent: {_cell(labels['before']['critic_labels'])}.",
    ]
    lines += [f"- Guard: {as_text(item['reason'])}" for item in figures["guards"]]
    lines += ["", "| stage | seconds | parts | found in the store |", "|---|---|---|---|"]
    lines += [
        f"| {number}. {stage.name.replace('_', ' ')} | {stage.seconds:.1f} | {stage.tasks} | {stage.reused} |"
        for number, stage in enumerate(finished.stages, 1)
    ]
    return "\n".join(lines)


def _row(row: MetricRow) -> dict[str, Any]:
    """A figure as people read it; the report and `selu report --json` have all digits."""

    def rounded(value: float) -> float | None:
        return round(value, 4) if math.isfinite(value) else None

    low, high = rounded(row.low), rounded(row.high)
    return {
        "subject": row.subject,
        "phase": row.phase,
        "probe": row.probe,
        "method": row.method,
        "metric": row.metric.replace("_", " "),
        "value": rounded(row.rate),
        "95 %": "-" if low is None or high is None else f"{low:g} to {high:g}",
        "n": row.n,
    }


# Film strips ---------------------------------------------------------------------------------------------------------


def _film_strips(store: Store, finished: Round) -> str:
    """One episode of each outcome, then a second one, until there are enough."""
    from selu.reporting.episodes import Practice

    lines = [
        f"# Film strips: {_name(finished)}",
        "",
        "What the critic that was taken into use made of the actor's practice, in the order of the episodes' ids, which "
        "are hashes. Below "
        "each picture stands what the actor wrote on seeing it. Blue frames are those that the critic looked at, a green "
        "frame is where a relabel was achieved.",
    ]
    for pair, title, film in _chosen(Practice(store, finished).pairs()):
        lines += ["", f"## {pair.title}. {title}", "", *_strip(film)]
    return "\n".join(lines)


def _chosen(pairs: tuple[Pair, ...]) -> list[tuple[Pair, str, Film]]:
    groups = [(pair, group) for pair in pairs for group in pair.groups if group.films]
    wanted = [len(group.films) for _, group in groups]
    taken = [0] * len(groups)
    for _ in range(min(_MOST_STRIPS, sum(wanted))):
        place = min((at for at in range(len(groups)) if taken[at] < wanted[at]), key=lambda at: (taken[at], at))
        taken[place] += 1
    return [
        (pair, f"{group.title} ({number} of {group.count})", film)
        for (pair, group), count in zip(groups, taken, strict=True)
        for number, film in enumerate(group.films[:count], 1)
    ]


def _strip(film: Film) -> list[str]:
    from selu.reporting.strips import strip_picture

    picture = base64.b64encode(strip_picture(film)).decode()
    episode = film.episode
    lines = [
        f"The actor was told: **{as_text(episode.instruction)}** ({as_text(episode.scene)}, episode "
        f"{as_text(episode.episode_id)})",
        "",
        f"![film strip of {len(film.pictures)} pictures](data:image/webp;base64,{picture})",
        "",
    ]
    if film.verdict is None:
        lines.append("- The critic gave no verdict.")
    else:
        said = {"yes": "done", "no": "not done"}.get(film.verdict.verdict, "unsure")
        sure = "" if said == "unsure" else f", {_percent(film.verdict.confidence)} % sure"
        label = "" if film.verdict.accepted else "; no label"
        lines.append(f"- The critic: **{said}**{sure}{label} ({as_text(film.verdict.reason)})")
        lines += _asked(film.verdict.asked)
    for relabel in film.relabels:
        lines.append(
            f"- Relabeled in hindsight: **{as_text(relabel.instruction)}** at picture {relabel.frame_index}, "
            f"{_percent(relabel.confidence)} % sure; the truth, for the reader only: {_truth(relabel.truth)}"
        )
        lines += _asked(relabel.asked)
    lines += [
        f"- A good start up to picture {start.frame_index}: the actor learns its first steps, and nobody that it was done"
        for start in film.starts
    ]
    lines.append(f"- The truth, for the reader only: {_truth(film.truth)}")
    return lines


def _asked(asked: tuple[Asked, ...]) -> list[str]:
    return [
        f"    - picture {one.frame_index}: {as_text(one.text)} *{as_text(one.answer)}*, {_percent(one.confidence)} %"
        for one in asked
    ]


def _truth(done: bool | None) -> str:
    return "unknown" if done is None else "it was done" if done else "it was not done"
