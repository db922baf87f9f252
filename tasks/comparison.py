"""What people see of a comparison: files for them, and its table in Prefect's UI."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from selu.comparison import Plan
from selu.rounds import Workspace

__all__ = ["draw_comparison"]

logger = logging.getLogger("selu.comparison")


@task(name="comparison", task_run_name="draw the comparison", cache_policy=NO_CACHE, persist_result=False)
def draw_comparison(workspace: Workspace, plan: Plan, out: Path | None = None) -> Path:
    """Write table and plots of what is finished by now, copy them to `out`, and return the path of the README.

    Raises:
        ArtifactError: figures of a finished round are no longer there.
        TerminalError: a folder cannot be written.
    """
    from selu.comparison.writing import draw, table_rows

    readme, drawn = draw(workspace, plan, out)
    try:
        create_table_artifact(table_rows(drawn), key="comparison", description="SELU beside other methods")
    except (PrefectException, OSError) as error:
        logger.warning("the comparison could not be shown in Prefect's UI: %s", error)
    return readme
