"""What people see of a comparison: files for them, and its table in Prefect's UI."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from selu.comparison import Plan
from selu.comparison.runs import CORPUS, PROMPTS, RunRecord, read_records
from selu.errors import ConfigError
from selu.prompting import prompts_digest
from selu.rounds import Workspace
from selu.tasks.datasets import replay_digest
from selu.tasks.planning import all_stages
from selu.tasks.stages import Model

__all__ = ["draw_comparison", "records_in"]

logger = logging.getLogger("selu.comparison")


def records_in(workspace: Workspace, plan: Plan, out: Path | None) -> dict[str, RunRecord]:
    """Records of a plan's runs that an earlier comparison left in `out`, on this machine or another, as far as they count.

    One that was made by other versions of the stages, with other prompts, another corpus or another base model is of
    another recipe, and left out with a warning.

    Raises:
        ArtifactError: a record is incomplete or cannot be read.
        ConfigError: a run of the plan is recorded there with other settings, so that its tables would be lost; or a model or
            the corpus of the plan cannot be found.
    """
    from selu.comparison.writing import RECORDS

    found = {} if out is None else read_records(out / RECORDS)
    stages, store = {stage.name: stage.version for stage in all_stages()}, workspace.store()
    kept = {}
    for run in plan.runs:
        if (record := found.get(run.key)) is None:
            # A key ends with a digest of the settings.
            name = run.key.rpartition("-")[0]
            other_settings = next((key for key in found if key.rpartition("-")[0] == name), None)
            if other_settings is not None:
                raise ConfigError(
                    f"{out} holds the comparison of other settings ({RECORDS}/{other_settings}), which this one would "
                    "overwrite; give its settings (they stand in results.json there) or another folder with --out"
                )
            continue
        settings = run.settings
        now = stages | {PROMPTS: prompts_digest(), CORPUS: replay_digest(settings.dataset)}
        bases = {
            who: Model(settings=model).revision(store)
            for who, model in (("actor", settings.actor), ("critic", settings.critic))
        }
        other = [name for name, made in record.recipe.items() if now.get(name) != made]
        other += [f"base model of the {who}" for who, made in record.base_models.items() if bases[who] != made]
        if other:
            logger.warning("%s/%s is left out, for it was made with another %s", RECORDS, run.key, ", ".join(other))
        else:
            kept[run.key] = record
    return kept


@task(name="comparison", task_run_name="draw the comparison", cache_policy=NO_CACHE, persist_result=False)
def draw_comparison(workspace: Workspace, plan: Plan, out: Path | None = None) -> Path:
    """Write table and plots of what is finished by now, copy them to `out`, and return the path of the README.

    Raises:
        ArtifactError: figures of a finished round are no longer there.
        TerminalError: a folder cannot be written.
    """
    from selu.comparison.writing import draw, table_rows

    readme, drawn = draw(workspace, plan, out, records_in(workspace, plan, out))
    try:
        create_table_artifact(table_rows(drawn), key="comparison", description="SELU beside other methods")
    except (PrefectException, OSError) as error:
        logger.warning("the comparison could not be shown in Prefect's UI: %s", error)
    return readme
