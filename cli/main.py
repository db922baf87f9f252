"""The `selu` command: parses, calls a flow or a query, prints. Light to import: `--help` loads no model library."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import shutil
import signal
import sys
import webbrowser
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selu.errors import SeluError, TransientError

if TYPE_CHECKING:
    from types import FrameType

    from selu.config import Settings
    from selu.rounds import Round
    from selu.tasks.checks import Need

__all__ = ["app"]

app = typer.Typer(
    name="selu",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "SELU: two multimodal models teach themselves in a world that they do not know.\n\n"
        "An [b]actor[/b] plays household tasks, a [b]critic[/b] judges and relabels what it did by asking itself "
        "questions, and both are fine-tuned on what came out. Start with [cyan]selu round[/cyan], then look at "
        "[cyan]selu report --open[/cyan]."
    ),
    epilog=(
        "Settings come after the command as [cyan]key=value[/cyan], e.g. [cyan]selu round seed=7 world.width=96[/cyan];"
        " all of them, explained, are in configs/default.yaml. A run that was stopped goes on where it stopped."
    ),
)

P = ParamSpec("P")
R = TypeVar("R")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML file with the settings that differ from the defaults."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Single settings, e.g. seed=7 data_dir=/path tasks.kinds=open,close"),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also show Prefect's log.")]

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


def _says_errors(command: Callable[P, R]) -> Callable[P, R]:
    """One sentence in place of a traceback for what a user can mend, and for Ctrl-C."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TransientError as error:
            _err.print(
                f"[red]{escape(str(error))} (tried again without luck; run again to go on)[/red]", soft_wrap=True
            )
            raise typer.Exit(2) from None
        except SeluError as error:
            _err.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
            raise typer.Exit(2) from None
        except BrokenPipeError:
            # The reader (head, less) has seen enough; keep Python from complaining when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            _err.print("Stopped. Finished work is kept; the next run goes on where this one stopped.")
            raise typer.Exit(130) from None

    return run


def _settings(config: Path | None, overrides: list[str] | None, *more: str) -> Settings:
    from selu.config import load_settings

    return load_settings(config, [*(overrides or []), *more])


def _run_flow(settings: Settings, start: Callable[[], R], *, verbose: bool, needs: Collection[Need] | None = None) -> R:
    """Call a flow with Prefect set up for it, with live progress, and stoppable by Ctrl-C.

    What it needs (None: all that a round does) is looked at before Prefect's server is started.
    """
    from selu.cli.profile import own_server, use_profile
    from selu.rounds import Workspace

    workspace = Workspace.of(settings)
    workspace.store()  # a folder that cannot be used is said before anything starts
    use_profile(workspace.prefect_home, verbose=verbose)

    import httpx

    from selu.tasks import progress
    from selu.tasks.checks import check_settings, strangers

    _err.print("[dim]Starting: models are looked up, and Prefect's server.[/dim]")
    check_settings(settings, needs)
    note = strangers(settings) if needs is None else None
    if note is not None:
        _err.print(note, style="yellow", soft_wrap=True)

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, b"\nStopping at the next sign of progress; once more ends it at once.\n")
        # Once: tasks stop at their next sign of progress. Twice: at once; nothing half-written is ever read.
        signal.signal(number, lambda *_: os._exit(128 + number))
        progress.interrupt()
        raise KeyboardInterrupt

    # Schedulers, containers and `timeout` ask with SIGTERM.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with own_server(), progress.shown_on(_err):
            from selu.flows.crashes import mark_crashed

            mark_crashed(workspace.data_dir)
            # Log lines that do not reach the server are no reason to print a traceback for each.
            logging.raiseExceptions = verbose
            return start()
    except httpx.TransportError as error:
        raise TransientError(
            f"Prefect's server ({os.environ.get('PREFECT_API_URL', 'of this command')}) does not answer any more: {error}; "
            "finished work is kept"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Learning ------------------------------------------------------------------------------------------------------------


@app.command("round")
@_says_errors
def round_(config: ConfigOption = None, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Run [b]one round[/b] of self-learning and write its report.

    Nine stages: rollout, frames, self-asking, hindsight, the critic's dataset and fine-tuning, re-judging, the actor's
    fine-tuning, evaluation. A stage that is in the store already is not run again.

    [dim]selu round
    selu round seed=7 data_dir=/big/disk
    selu round --config configs/paper.yaml tasks.episodes=200[/dim]
    """
    _learn(_settings(config, overrides, "rounds=1"), verbose)


@app.command()
@_says_errors
def learn(
    config: ConfigOption = None,
    overrides: Overrides = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", "-n", help="Rounds; each starts where the last ended.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Run [b]several rounds[/b], each from the adapters of the one before.

    [dim]selu learn --rounds 3
    selu learn --rounds 5 dataset.reuse_previous_rounds=false[/dim]
    """
    _learn(_settings(config, overrides, *([] if rounds is None else [f"rounds={rounds}"])), verbose)


def _learn(settings: Settings, verbose: bool) -> None:
    def start() -> list[Round]:
        from selu.flows.self_learning import self_learning

        return self_learning(settings)

    finished = _run_flow(settings, start, verbose=verbose)
    from selu.reporting import report_path
    from selu.rounds import Workspace, run_summary

    workspace = Workspace.of(settings)
    figures = run_summary(workspace.store(), finished[-1])
    for item in figures["rounds"]:
        _print_summary(item)
    _print_gain_from_base(figures)
    _out.print(f"Report: {report_path(finished[-1], workspace.reports)}", soft_wrap=True)


@app.command()
@_says_errors
def evaluate(
    config: ConfigOption = None,
    overrides: Overrides = None,
    base_only: Annotated[
        bool, typer.Option("--base-only", help="The models as they are set, without a round's adapters.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate actor and critic on the [b]frozen probe sets[/b] A and B.

    The models as they are set, and beside them those of the last round that these settings trained, if there is one.

    [dim]selu evaluate
    selu evaluate --base-only actor.path=/models/my-vlm critic.path=/models/my-vlm[/dim]
    """
    settings = _settings(config, overrides)

    def start() -> list[dict[str, Any]]:
        from selu.evaluation import MetricRow
        from selu.flows.operations import evaluate_latest
        from selu.rounds import Workspace
        from selu.statistics import without_empty_interval
        from selu.tasks.stages import read_all

        made = evaluate_latest(settings, base_only)
        store = Workspace.of(settings).store()
        rows = read_all(store, made.metrics, "metrics", MetricRow)
        return [without_empty_interval(row).model_dump(mode="json") for row in rows]

    rows = _run_flow(settings, start, verbose=verbose, needs=["probes", "actor", "critic"])
    if as_json:
        print(json.dumps([_without_nan(row) for row in rows], indent=2))
        return
    table = Table("subject", "phase", "probe", "method", "metric", "rate", "95 %", "n", box=None, header_style="bold")
    for row in rows:
        figure = _without_nan(row)
        interval = "" if figure["low"] is None else f"{figure['low']:.3f} .. {figure['high']:.3f}"
        rate = "-" if figure["rate"] is None else f"{figure['rate']:.3f}"
        names = [str(figure[name]) for name in ("subject", "phase", "probe", "method", "metric")]
        table.add_row(*names, rate, interval, str(figure["n"]))
    _out.print(table)


@app.command()
@_says_errors
def compare(
    config: ConfigOption = None,
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", "-m", metavar="A,B", help="Only these; they are named as the files in selu/methods."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of SELU, counted up from the setting seed.")] = 5,
    rounds: Annotated[int, typer.Option("--rounds", "-n", help="Rounds of SELU.")] = 8,
    baseline_seeds: Annotated[int, typer.Option(help="Seeds of every other method.")] = 3,
    baseline_rounds: Annotated[int, typer.Option(help="Rounds of every other method.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Copy tables and plots there, after each run, with a record of it; runs that are recorded there count.",
        ),
    ] = None,
    draw_only: Annotated[
        bool, typer.Option("--draw-only", help="Draw what there is by now, without running anything.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Run SELU [b]beside other methods[/b] over several seeds: baselines, ablations, an upper bound.

    The first seed of every method comes first, then the second; tables and plots are drawn again after each run. A run
    that was stopped goes on where it stopped, and stages that methods share are made once. With the default numbers this
    takes some twenty hours on two CPU cores.

    [dim]selu compare
    selu compare --methods selu,lmsi,self_consistency --seeds 3 --rounds 4
    selu compare --draw-only --out my_results[/dim]
    """
    settings = _settings(config, overrides)
    names = [name.strip() for name in (methods or "").split(",") if name.strip()]
    numbers = {
        "seeds": seeds,
        "rounds": rounds,
        "baseline_seeds": baseline_seeds,
        "baseline_rounds": baseline_rounds,
    }
    from selu.comparison import plan_comparison

    plan = plan_comparison(settings, names, **numbers)  # what cannot be is said before anything starts

    def start() -> Path:
        from selu.flows.comparison import comparison

        return comparison(settings, names, out=out, **numbers)

    if draw_only:
        from selu.rounds import Workspace
        from selu.tasks.comparison import draw_what_counts

        readme, _ = draw_what_counts(Workspace.of(settings), plan, out)
        if out is not None and readme.parent != out:
            raise typer.Exit(2)  # it has said why
    else:
        readme = _run_flow(settings, start, verbose=verbose)
    _out.print(f"Comparison: {readme}", soft_wrap=True)


@app.command()
@_says_errors
def label(
    folder: Annotated[Path, typer.Argument(help="A folder with one folder for each recorded episode.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Copy the two dataset versions there.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Judge and relabel [b]recorded trajectories[/b] of your own and make datasets of them. No world is needed.

    Each episode's folder holds episode.json with its instruction and actions, and one picture more than actions, in the
    order of their names.

    [dim]selu label recordings --out datasets
    selu label recordings critic.path=/models/my-vlm critic.adapter=/adapters/critic[/dim]
    """
    settings = _settings(config, overrides)
    from selu.recorded import count_unreadable, list_recorded

    # What cannot be, and what will teach little, is said before anything starts.
    unreadable, actions = count_unreadable(list_recorded(folder), settings.world.skill_set)
    if unreadable:
        _err.print(
            f"{unreadable} of {actions} actions are none of world.skill_set={settings.world.skill_set}, so that they are no "
            "evidence and teach nobody; write them as that grammar does (selu/worlds/README.md) or name a grammar of your own.",
            style="yellow",
        )

    if settings.critic.as_it_comes:
        _err.print(
            "The embedded model is the critic, and knows the embedded rooms alone: of other pictures expect no labels of worth, "
            "or bring a larger one (critic.path=FOLDER_OR_ID).",
            style="yellow",
        )

    def start() -> Any:
        from selu.flows.labelling import labelling
        from selu.flows.ledger import on_chosen_runner

        return on_chosen_runner(labelling, settings.orchestration)(settings, folder.absolute())

    made = _run_flow(settings, start, verbose=verbose, needs=["critic"])
    import pyarrow.parquet as pq

    from selu.recorded import labels_of
    from selu.rounds import Workspace

    store = Workspace.of(settings).store()
    table = Table("episode", "instruction", "verdict", "accepted", "relabeled as", box=None, header_style="bold")
    for row in labels_of(store, made.episodes, made.judgements, made.relabels):
        table.add_row(*(escape(str(cell)) for cell in row))
    _out.print(table)
    for who, ref in (("critic", made.critic_dataset), ("actor", made.actor_dataset)):
        if ref is None:
            continue
        where = store.path(ref)
        if out is not None:
            where = Path(shutil.copytree(where, out / who, dirs_exist_ok=True))
        sources = pq.read_table(where / "data" / f"{who}-train.parquet", columns=["source"])["source"].to_pylist()
        rehearsed = f", {sources.count('rehearsal')} of them rehearsal (none with dataset.replay=0)"
        _out.print(
            f"Dataset version of the {who}, {len(sources)} rows{rehearsed if 'rehearsal' in sources else ''}: {where}",
            soft_wrap=True,
        )


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


@app.command()
@_says_errors
def plan(config: ConfigOption = None, overrides: Overrides = None) -> None:
    """Say beforehand which stages [b]will run[/b], which are found, and why; with an estimate of time and memory.

    Settings are compared with those of finished rounds. Parts that an unfinished run left are found as well, when it runs.

    [dim]selu plan rounds=3
    selu plan critic_finetuning.epochs=8[/dim]
    """
    from selu.tasks.checks import check_settings
    from selu.tasks.planning import memory_of
    from selu.tasks.planning import plan as plan_rounds

    settings = _settings(config, overrides)
    table = Table("round", "stage", "", "about s", "why", box=None, header_style="bold")
    words = {"found": "[green]found[/green]", "made": "[yellow]made[/yellow]", "perhaps": "[dim]made if[/dim]"}
    check_settings(settings)
    stages = plan_rounds(settings)
    for item in stages:
        seconds = "" if item.seconds is None or item.state == "found" else f"{item.seconds:.0f}"
        table.add_row(str(item.round), item.name.replace("_", " "), words[item.state], seconds, escape(item.why))
    times = [item.seconds for item in stages if item.state != "found"]
    known = [seconds for seconds in times if seconds is not None]
    if known or not times:
        _out.print(table)
    if not times:
        about = "Nothing is to be made"
    elif not known:
        about = f"All {len(stages)} stages are to be made, and no round was ever finished here that would tell how long it takes"
    else:
        unknown = "" if len(known) == len(times) else f", and {len(times) - len(known)} stages that have no time yet"
        about = f"About {sum(known) / 60:.1f} minutes, by what these stages took before{unknown}"
    megabytes = memory_of(settings)
    memory = "an unknown amount" if megabytes is None else f"about {megabytes / 1000:.1f} GB"
    _out.print(f"{about}; {memory} of memory.")


@app.command()
@_says_errors
def rerun(
    run: Annotated[str | None, typer.Argument(help="A run by name; else the one that finished last.")] = None,
    config: ConfigOption = None,
    stage: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="The first stage to make again; all after it follow.")
    ] = "rollout",
    number: Annotated[int | None, typer.Option("--round", help="A round of the run; else its last one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the run is kept, if not where the settings say.")] = None,
    verbose: Verbose = False,
) -> None:
    """Make a finished round's stage [b]and all after it[/b] again, whatever the store has of them.

    What failed needs no force: run again, and just that and what hangs on it is made. The old results are kept in the
    store's quarantine. Equal settings give equal bytes, so this is for doubt, or for a changed machine.

    [dim]selu rerun --from critic_finetuning
    selu rerun "selu thor seed 7" --from evaluation --round 2[/dim]
    """
    from selu.errors import ConfigError
    from selu.rounds import ROUND_STAGES, Workspace, latest_round, rounds_of_run

    if stage not in ROUND_STAGES:
        raise ConfigError(f"--from {stage}: no such stage; expected one of {', '.join(ROUND_STAGES)}")
    if run is not None and "=" in run:
        raise ConfigError(
            f"{run}: a round is made again with the settings it had; name its data folder with --data-dir"
        )
    settings = _settings(config, [] if data_dir is None else [f"data_dir={data_dir}"])
    workspace = Workspace.of(settings)
    store = workspace.store()
    chain = rounds_of_run(store, latest_round(store, run))
    wanted = next((item for item in reversed(chain) if number in (None, item.round)), None)
    if wanted is None:
        raise ConfigError(f"the run {chain[-1].run!r} has no round {number}; it has {len(chain)}")
    from selu.housekeeping import forget_from

    forgotten = forget_from(store, wanted, stage)
    _err.print(f"{forgotten} artifacts of {wanted.run}, round {wanted.round}, from {stage} on are made again.")
    again = wanted.settings.model_copy(update={"rounds": chain[-1].round, "data_dir": settings.data_dir})
    _learn(again, verbose)


# Looking -------------------------------------------------------------------------------------------------------------


@app.command()
@_says_errors
def report(
    config: ConfigOption = None,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the round's figures as JSON and nothing else.")
    ] = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open the HTML report in the browser.")] = False,
    run: Annotated[str | None, typer.Option("--run", help="A run by name; else the one that finished last.")] = None,
) -> None:
    """Show the [b]latest round[/b]: figures here, film strips and curves in the HTML report.

    [dim]selu report
    selu report --open
    selu report --json | jq .actor.after[/dim]
    """
    settings = _settings(config, overrides)
    from selu.rounds import Workspace, latest_round, round_line, run_summary

    store = Workspace.of(settings).store()
    finished = latest_round(store, run)
    figures = run_summary(store, finished)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        for item in figures["rounds"] if len(figures["rounds"]) > 1 else ():
            _out.print(escape(round_line(item)), soft_wrap=True)
        _print_summary(figures)
        _print_gain_from_base(figures)
    if open_it or not as_json:
        path = _report_path(settings, finished)
        if not as_json:
            _out.print(f"Report: {path}", soft_wrap=True)
        if open_it:
            webbrowser.open(path.absolute().as_uri())


def _report_path(settings: Settings, finished: Round) -> Path:
    from selu.reporting import report_path, write_report
    from selu.rounds import Workspace

    workspace = Workspace.of(settings)
    written = report_path(finished, workspace.reports)
    return written if written.is_file() else write_report(workspace.store(), finished, workspace.reports)


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["rate"] is None:
        return "-"
    low, high = figure["ci95"]
    interval = "" if low is None or high is None else f" [dim]{100 * low:.1f}..{100 * high:.1f}[/dim]"
    return f"{100 * figure['rate']:.1f}{interval}"


def _print_gain_from_base(figures: dict[str, Any]) -> None:
    gains = figures["gain_from_base"]
    if len(figures["rounds"]) > 1 and gains is not None:
        named = (("critic A", "critic"), ("B", "critic_probe_b"), ("actor A", "actor"), ("B", "actor_probe_b"))
        told = ", ".join(f"{words} {_cell(gains[key])}" for words, key in named)
        _out.print(f"Gain from the base over {len(figures['rounds'])} rounds: {told}", soft_wrap=True)
    if figures["stopped"]:
        _out.print(escape(figures["stopped"]), soft_wrap=True)


def _print_summary(figures: dict[str, Any]) -> None:
    _out.print(f"[bold]{figures['run']}, round {figures['round']}[/bold]")
    table = Table("percent, 95 % interval", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("before", "after", "gain", "n"):
        table.add_column(heading, no_wrap=True)
    for name, part in (
        ("critic, verdict, A", figures["critic"]),
        ("critic, verdict, B", figures["critic"]["probe_b"]),
        ("critic, asking, A", figures["critic"]["self_asking"]),
        ("critic, asking, B", figures["critic"]["self_asking"]["probe_b"]),
        ("actor, A", figures["actor"]),
        ("actor, B", figures["actor"]["probe_b"]),
        ("actor, three steps", figures["actor"]["three_steps"]),
        ("critic, general", figures["general"]["critic"]),
        ("actor, general", figures["general"]["actor"]),
    ):
        if part["before"] is not None:
            cells = [_cell(part[phase]) for phase in ("before", "after", "gain")]
            table.add_row(name, *cells, str(part["before"]["n"]))
    _out.print(table)
    labels = figures["labels"]
    if labels["coverage"] is not None:
        false = "unknown" if labels["false_rate"] is None else f"{100 * labels['false_rate']:.1f} %"
        _out.print(
            f"Labels that say done: {labels['n']}, on {100 * labels['coverage']:.1f} % of"
            f" {labels['episodes']} episodes; false: {false}."
        )
        _out.print(f"Episodes with any accepted label: {100 * labels['labelled']:.1f} %.")
    if labels["before"]["critic_labels"] is not None and figures["digests"]["critic_dataset"] is not None:
        false = _cell(labels["before"]["critic_labels"])
        _out.print(f"False among the critic's labels on played episodes, contrasts included: {false} %.")
    for item in figures["guards"]:
        judged = {None: "", True: "; the truth does not contradict", False: "; the truth [red]contradicts[/red]"}[
            item["right"]
        ]
        _out.print(f"Guard: {escape(item['reason'])[:-1]}{judged}.", soft_wrap=True)
    made = sum(figures["made_in_seconds"].values())
    _out.print(
        f"Seconds: {sum(figures['seconds'].values()):.1f} ({made:.1f} to make all of it); "
        f"reused: {', '.join(figures['cached']) or 'nothing'}"
    )


@app.command()
@_says_errors
def sql(
    query: Annotated[str, typer.Argument(help="One query; the tables are listed by: SHOW TABLES")],
    config: ConfigOption = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Ask [b]SQL[/b] (DuckDB, read-only) about episodes, questions, verdicts, relabels, training rows and figures.

    [dim]selu sql "SHOW TABLES"
    selu sql "SELECT reason, count(*) FROM relabels GROUP BY ALL ORDER BY 2 DESC"
    selu sql "SELECT stage, sum(seconds) FROM artifacts GROUP BY stage" data_dir=/big/disk[/dim]
    """
    from selu.catalog import Catalog
    from selu.rounds import Workspace

    settings = _settings(config, overrides)
    with Catalog(Workspace.of(settings).store_root) as catalog:
        columns, rows = catalog.query(query)
    if as_json:
        for row in rows:
            print(json.dumps(_without_nan(dict(zip(columns, row, strict=True))), default=str))
        return
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*("" if value is None else escape(str(value)) for value in row))
    _out.print(table)
    _err.print(f"[dim]{len(rows)} rows[/dim]")


# Checking and trying -------------------------------------------------------------------------------------------------


@app.command()
@_says_errors
def doctor(
    config: ConfigOption = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="FOLDER_OR_ID", help="Try this model as actor and critic.")
    ] = None,
    world: Annotated[str | None, typer.Option("--world", metavar="NAME", help="Try this world.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON and nothing else.")] = False,
) -> None:
    """Check that this machine can run a round: packages, memory, GPU, disk, Prefect, display, world, models.

    The world is started and looked at, each model answers a question about what it shows. What is wrong is said with
    what to do about it; the exit status is 0 if nothing is, else 2.

    [dim]selu doctor
    selu doctor --model HuggingFaceTB/SmolVLM-256M-Instruct actor.device=cuda critic.device=cuda
    selu doctor --world thor world.local_executable_path="python my_player.py"[/dim]
    """
    from selu.cli.doctor import Finding, examine, grammar_of
    from selu.errors import ConfigError

    more = [] if model is None else [f"actor.path={model}", f"critic.path={model}"]
    more += [] if world is None else [f"world.name={world}"]
    try:
        grammar = None if world is None else grammar_of(world)
        # Before the user's own settings, so that a grammar among them counts.
        told = [] if grammar is None else [f"world.skill_set={grammar}"]
        if any(given.partition("=")[0].strip() == "world.server" for given in overrides or []):
            told.append("rollout.players=1")  # a round is refused without it, while here one is driven anyway
        settings = _settings(config, [*told, *(overrides or [])], *more)
    except ConfigError as error:
        if as_json:
            print(json.dumps([Finding("settings", "bad", str(error))._asdict()], indent=2))
            raise typer.Exit(2) from None
        raise
    findings = []
    marks = {"ok": "[green]ok[/green]  ", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red] "}
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            mend = f" -> {finding.mend}" if finding.mend else ""
            _out.print(f"{marks[finding.state]} {finding.what}: {escape(finding.text + mend)}", soft_wrap=True)
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(2)


@app.command()
@_says_errors
def play(
    config: ConfigOption = None,
    overrides: Overrides = None,
    policy: Annotated[str, typer.Option(help="Who acts: me, planner, random or actor.")] = "me",
    gif: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the episode as a GIF.")] = None,
) -> None:
    """Drive the actor's [b]world[/b] by hand in the terminal, or save an episode as a GIF.

    [dim]selu play tasks.kinds=open tasks.scenes=FloorPlan21
    selu play --policy planner --gif episode.gif seed=3[/dim]
    """
    from selu.cli.play import play_episode

    play_episode(_settings(config, overrides), policy, gif, _out)


artifacts = typer.Typer(
    no_args_is_help=True, help="What lies in the store: [b]list[/b] it, [b]verify[/b] it, [b]prune[/b] it."
)
app.add_typer(artifacts, name="artifacts")


@artifacts.command("list")
@_says_errors
def list_artifacts(config: ConfigOption = None, overrides: Overrides = None) -> None:
    """Artifacts by kind, with their sizes."""
    from selu.housekeeping import survey
    from selu.rounds import Workspace

    table = Table("kind", "artifacts", "MB", "newest (UTC)", box=None, header_style="bold")
    found = survey(Workspace.of(_settings(config, overrides)).store())
    for item in found:
        table.add_row(item.kind, str(item.count), f"{item.bytes / 1e6:.1f}", item.newest[:19].replace("T", " "))
    table.add_row("all", str(sum(item.count for item in found)), f"{sum(item.bytes for item in found) / 1e6:.1f}", "")
    _out.print(table)


@artifacts.command()
@_says_errors
def verify(config: ConfigOption = None, overrides: Overrides = None) -> None:
    """Hash every artifact again. Exit status 2 if one is not what was stored."""
    from rich.progress import track

    from selu.housekeeping import altered, survey
    from selu.rounds import Workspace

    store = Workspace.of(_settings(config, overrides)).store()
    whole = sum(item.count for item in survey(store))
    checked = list(track(altered(store), description="verifying", total=whole, console=_err, transient=True))
    wrong = [said for _, said in checked if said]
    for said in wrong:
        _out.print(f"[red]{escape(said)}[/red]", soft_wrap=True)
    _out.print(f"{len(checked)} artifacts, {len(wrong)} of them altered.")
    if wrong:
        raise typer.Exit(2)


@artifacts.command()
@_says_errors
def prune(
    config: ConfigOption = None,
    overrides: Overrides = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Keep this many rounds, the newest, and those that led to them.")
    ] = None,
    hours: Annotated[
        float, typer.Option(min=0.0, help="Spare what was made or used later: a run at work has no record yet.")
    ] = 24.0,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it, only say what would go.")] = False,
) -> None:
    """Delete what [b]no kept round needs[/b]; without --yes only say what that would be.

    Every finished round is kept unless --keep says how many. A kept round keeps all that it was made of. What no round
    made (labels of recorded trajectories, runs that were given up) goes, so keep a copy of what you need. Whatever a run on this
    machine has used since it began is spared; of runs on other machines only what they used in the last --hours.

    [dim]selu artifacts prune
    selu artifacts prune --keep 14 --yes[/dim]
    """
    from selu.cli.profile import use_profile
    from selu.rounds import Workspace

    workspace = Workspace.of(_settings(config, overrides))
    workspace.store()  # a folder that cannot be used is said before anything starts
    use_profile(workspace.prefect_home)
    from selu.flows.operations import prune_unneeded

    pruned = prune_unneeded(workspace, keep, hours, delete=yes)
    for item in pruned.kinds:
        _out.print(f"{item.kind}: {item.count} artifacts, {item.bytes / 1e6:.1f} MB")
    _out.print(f"{pruned}.{'' if yes else ' --yes deletes them.'}")


@app.command()
@_says_errors
def ui(
    config: ConfigOption = None,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 4200,
) -> None:
    """Open [b]Prefect's UI[/b] on the runs of this data folder; runs that start while it is up appear as they go."""
    from selu.cli.serving import server

    with server(_settings(config, overrides), port) as running:
        _out.print(f"http://127.0.0.1:{port} (Ctrl-C ends it)")
        code = running.wait()
    raise typer.Exit(code)


@app.command()
@_says_errors
def serve(
    config: ConfigOption = None,
    overrides: Overrides = None,
    file: Annotated[
        Path, typer.Option("--file", metavar="FILE", help="Deployments, as Prefect's own file says them.")
    ] = Path("deployments/prefect.yaml"),
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the UI on this machine, unless one is up on the data folder.")
    ] = 4200,
    active: Annotated[bool, typer.Option("--active", help="Switch the schedules on that the file leaves off.")] = False,
) -> None:
    """Server, UI and [b]scheduled runs[/b] on one machine, without worker and containers, until Ctrl-C.

    Settings given here go into every deployment, below what the file says. Runs can be started in the UI, too.

    [dim]selu serve --active
    selu serve data_dir=/big/disk tasks.episodes=800[/dim]
    """
    from selu.cli.serving import serve_deployments

    settings = _settings(config, overrides)
    serve_deployments(settings, file, port, active=active, say=lambda text: _out.print(text, soft_wrap=True))


if __name__ == "__main__":
    app()
