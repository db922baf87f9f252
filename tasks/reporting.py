"""What people see of a finished round: the HTML report, and the same figures in Prefect's UI."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from selu.rounds import Round, Workspace, round_metrics, summary

__all__ = ["publish_round", "write_html_report"]

logger = logging.getLogger("selu.reporting")


@task(name="report", task_run_name="report of round {finished.round}", cache_policy=NO_CACHE, persist_result=False)
def write_html_report(workspace: Workspace, finished: Round) -> Path:
    """Write the self-contained HTML report and return its path."""
    from selu.reporting import write_report

    path = write_report(workspace.store(), finished, workspace.reports)
    try:
        create_link_artifact(
            key="report", link=path.absolute().as_uri(), link_text="HTML report", description=finished.run
        )
    except (PrefectException, OSError) as error:
        logger.warning("the report %s could not be linked in Prefect's UI: %s", path, error)
    return path


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["rate"] is None:
        return "-"
    low, high = figure["ci95"]
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{figure['rate']:.3f}{interval} (n={figure['n']})"


def _markdown(figures: dict[str, Any]) -> str:
    rows = [
        ("critic, direct verdict, probe A", figures["critic"]),
        ("critic, self-asking, probe A", figures["critic"]["self_asking"]),
        ("critic, direct verdict, probe B", figures["critic"]["probe_b"]),
        ("actor, probe A", figures["actor"]),
        ("actor, probe B", figures["actor"]["probe_b"]),
        ("critic, general questions", figures["general"]["critic"]),
        ("actor, general questions", figures["general"]["actor"]),
    ]
    lines = [f"# {figures['run']}, round {figures['round']}", "", "| | before | after | gain |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {_cell(part['before'])} | {_cell(part['after'])} | {_cell(part['gain'])} |" for name, part in rows
    ]
    labels = figures["labels"]
    lines += [
        "",
        f"Labels: {labels['n']} that say done, from a share of {labels['coverage']} of the episodes, false rate "
        f"{labels['false_rate']}; any accepted label from a share of {labels['labelled']}.",
        "",
        f"False among all labels that the critic learned from: {_cell(labels['before']['critic_labels'])}.",
        "",
        f"Reused stages: {', '.join(figures['cached']) or 'none'}.",
    ]
    return "\n".join(lines)


@task(name="publish", task_run_name="publish round {finished.round}", cache_policy=NO_CACHE, persist_result=False)
def publish_round(workspace: Workspace, finished: Round) -> None:
    """Show a round's summary and all its figures as artifacts in Prefect's UI."""
    store = workspace.store()
    rows = round_metrics(store, finished)
    table = [
        {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in row.model_dump(mode="json", exclude={"run", "round"}).items()
        }
        for row in rows
    ]
    try:
        create_markdown_artifact(_markdown(summary(store, finished)), key="round", description=finished.run)
        create_table_artifact(table, key="metrics", description=finished.run)
    except (PrefectException, OSError) as error:
        # The round is finished and recorded; its figures are in the report.
        logger.warning("the round's figures could not be shown in Prefect's UI: %s", error)
