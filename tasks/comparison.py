"""What people see of a comparison: files for them, and its table in Prefect's UI."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from selu.comparison import Comparison, Plan, PlannedRun
from selu.comparison.runs import CORPUS, PICTURED, PROMPTS, RunRecord, read_records
from selu.errors import ConfigError
from selu.methods import load_methods, method_settings
from selu.prompting import prompts_digest
from selu.rounds import Workspace, run_folder
from selu.tasks.datasets import corpus_digest, replay_digest
from selu.tasks.planning import all_stages
from selu.tasks.stages import Model

__all__ = ["draw_comparison", "draw_what_counts", "records_in"]

logger = logging.getLogger("selu.comparison")


def records_in(workspace: Workspace, plan: Plan, out: Path | None) -> dict[str, RunRecord]:
    """Records of a plan's runs that an earlier comparison left in `out`, on this machine or another, as far as they count.

    One that was made by other versions of the stages, with other prompts, another corpus or another base model is of
    another recipe, and left out with a warning.

    Raises:
        ArtifactError: a record is incomplete or cannot be read.
        ConfigError: runs of other settings are recorded there, so that their tables would be lost; or a model or the corpus
            of the plan cannot be found.
    """
    from selu.comparison.writing import RECORDS

    found = {} if out is None else read_records(out / RECORDS)
    strange = sorted(found.keys() - _keys_beside(plan, found))
    if strange:
        raise ConfigError(
            f"{out} holds the comparison of other settings or methods ({RECORDS}/{strange[0]}), which this one would "
            "overwrite; give its settings (they stand in results.json there) or another folder with --out"
        )
    kept = {}
    for run in plan.runs:
        if (record := found.get(run.key)) is not None:
            if other := _other_recipe(workspace, run, record):
                logger.warning("%s/%s is left out, for it was made with another %s", RECORDS, run.key, ", ".join(other))
            else:
                kept[run.key] = record
    return kept


def _keys_beside(plan: Plan, keys: Iterable[str]) -> set[str]:
    """Keys of runs with a plan's settings: its own, and those of whichever method with a seed that `keys` speak of."""
    own = {run.key for run in plan.runs}
    seeds = {int(found[1]) for key in set(keys) - own if (found := re.search(r"-seed-(\d+)-[0-9a-f]+$", key))}
    for method in load_methods() if seeds else ():
        for seed in seeds:
            with suppress(ConfigError):  # one that does not fit these settings has no run with them
                own.add(run_folder(method_settings(plan.settings, method, seed=seed)))
    return own


def _other_recipe(workspace: Workspace, run: PlannedRun, record: RunRecord) -> list[str]:
    """What of today's recipe did not make a run; nothing if it counts."""
    settings, store = run.settings, workspace.store()
    now: dict[str, int | str | None] = {stage.name: stage.version for stage in all_stages()}
    now |= {PROMPTS: prompts_digest(), CORPUS: replay_digest(settings.dataset)}
    if settings.dataset.corpus_pictures:
        now[PICTURED] = corpus_digest(settings.dataset)
    bases = {
        who: Model(settings=model).revision(store)
        for who, model in (("actor", settings.actor), ("critic", settings.critic))
    }
    other = [name for name, made in record.recipe.items() if now.get(name) != made]
    return other + [f"base model of the {who}" for who, made in record.base_models.items() if bases[who] != made]


def draw_what_counts(workspace: Workspace, plan: Plan, out: Path | None = None) -> tuple[Path, Comparison]:
    """Draw a comparison from the records in `out` and the runs in the store that today's recipe made.

    Raises:
        ArtifactError: figures of a finished round are no longer there, or a record cannot be read.
        ConfigError: as :func:`records_in`.
        TerminalError: a folder cannot be written.
    """
    from selu.comparison.writing import draw

    def counts(run: PlannedRun, record: RunRecord) -> bool:
        if other := _other_recipe(workspace, run, record):
            logger.warning(
                "what the store holds of %s is left out, for it was made with another %s", run.key, ", ".join(other)
            )
        return not other

    return draw(workspace, plan, out, records_in(workspace, plan, out), counts)


@task(name="comparison", task_run_name="draw the comparison", cache_policy=NO_CACHE, persist_result=False)
def draw_comparison(workspace: Workspace, plan: Plan, out: Path | None = None) -> Path:
    """Write table and plots of what is finished by now, copy them to `out`, and return the path of the README.

    Raises:
        SeluError: as :func:`draw_what_counts`.
    """
    from selu.comparison.writing import table_rows

    readme, drawn = draw_what_counts(workspace, plan, out)
    try:
        create_table_artifact(table_rows(drawn), key="comparison", description="SELU beside other methods")
    except (PrefectException, OSError) as error:
        logger.warning("the comparison could not be shown in Prefect's UI: %s", error)
    return readme
