"""SELU beside its baselines and ablations, over seeds.

Runs are in turns: the first seed of every method, then the second, so that a table is worth reading early. Stages that
runs share (the first rollout of a seed, the base model's evaluation) are made once and found by the others; run again,
it goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from selu.comparison import PlannedRun, State, is_whole, plan_comparison
from selu.comparison.writing import read_notes, write_notes
from selu.config import Settings
from selu.flows.crashes import note_process
from selu.flows.ledger import one_at_a_time
from selu.flows.self_learning import self_learning
from selu.rounds import Workspace
from selu.tasks.comparison import draw_comparison, records_in
from selu.tasks.progress import interrupted

__all__ = ["comparison"]


@flow(
    name="comparison",
    flow_run_name="comparison from seed {settings.seed}",
    task_runner=one_at_a_time(),
    persist_result=False,
    on_running=[note_process],
)
def comparison(
    settings: Settings,
    methods: list[str] | None = None,
    seeds: int = 5,
    rounds: int = 8,
    baseline_seeds: int = 3,
    baseline_rounds: int = 2,
    out: Path | None = None,
) -> Path:
    """Run every method with its seeds, and draw table and plots after each run; the path of the README comes back.

    `settings` are everybody's; a method changes what its file in ``selu/methods`` says. `methods` are names of such
    files, all of them if none is given. SELU runs `seeds` seeds of `rounds` rounds, the others `baseline_seeds` of
    `baseline_rounds`. A run that fails is said in the table and stops no other. Table and plots are copied to `out`, with a
    record of each run; a run whose record there is whole is not made again, wherever it was made.

    Raises:
        ConfigError: a method does not exist or does not fit the settings.
        Exception: what stopped the last run, if none has finished a round.
    """
    plan = plan_comparison(
        settings,
        methods or (),
        seeds=seeds,
        rounds=rounds,
        baseline_seeds=baseline_seeds,
        baseline_rounds=baseline_rounds,
    )
    workspace = Workspace.of(settings)
    readme, last, fruitful = None, None, False

    def note(run: PlannedRun, state: State, said: str = "") -> None:
        # Read again each time: another process may be at other seeds.
        write_notes(workspace, {**read_notes(workspace), run.note: (state, said)})

    for run in plan.runs:
        # Read again each time, too.
        if is_whole(run, records_in(workspace, plan, out).get(run.key)):
            fruitful = True
            continue
        try:
            note(run, "running")
            self_learning(run.settings)
            note(run, "finished")
            fruitful = True
        except Exception as error:
            if interrupted():
                raise
            # The files are for others to read: no path of this machine.
            said = str(error).replace(str(workspace.data_dir), "data_dir")
            note(run, "failed", said or type(error).__name__)
            last = error
        readme = draw_comparison(workspace, plan, out)
    if last is not None and not fruitful:
        raise last
    return readme or draw_comparison(workspace, plan, out)
