"""What people see of a comparison: files for them, and its table in Prefect's UI."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from selu.comparison import Plan
from selu.comparison.runs import RunRecord, read_records
from selu.rounds import Workspace
from selu.tasks.planning import all_stages

__all__ = ["draw_comparison", "records_in"]

logger = logging.getLogger("selu.comparison")


def records_in(out: Path | None) -> dict[str, RunRecord]:
    """Records of runs that an earlier comparison left in `out`, on this machine or another, as far as they still count.

    One that was made by other versions of the stages is of another recipe, and left out with a warning.

    Raises:
        ArtifactError: a record is incomplete or altered.
    """
    from selu.comparison.writing import RECORDS

    if out is None:
        return {}
    now = {stage.name: stage.version for stage in all_stages()}
    kept = {}
    for key, record in read_records(out / RECORDS).items():
        other = sorted(name for name, version in record.recipe.items() if now.get(name) != version)
        if other:
            logger.warning("%s/%s is left out: other versions of %s made it", RECORDS, key, ", ".join(other))
        else:
            kept[key] = record
    return kept


@task(name="comparison", task_run_name="draw the comparison", cache_policy=NO_CACHE, persist_result=False)
def draw_comparison(workspace: Workspace, plan: Plan, out: Path | None = None) -> Path:
    """Write table and plots of what is finished by now, copy them to `out`, and return the path of the README.

    Raises:
        ArtifactError: figures of a finished round are no longer there.
        TerminalError: a folder cannot be written.
    """
    from selu.comparison.writing import draw, table_rows

    readme, drawn = draw(workspace, plan, out, records_in(out))
    try:
        create_table_artifact(table_rows(drawn), key="comparison", description="SELU beside other methods")
    except (PrefectException, OSError) as error:
        logger.warning("the comparison could not be shown in Prefect's UI: %s", error)
    return readme
