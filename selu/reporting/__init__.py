"""The report of a finished round: one HTML file that a stranger can read, with everything in it.

:mod:`~selu.reporting.content` gathers what is to be shown, :mod:`~selu.reporting.drawing` draws it, and the templates
lay it out. What models wrote is data: the templates escape it, and the page runs no script and asks no server anything.
Ground truth is read here for the reader's eyes; nothing goes back from here to a stage that trains.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import jinja2

from selu.errors import TerminalError
from selu.reporting import drawing
from selu.reporting.content import gather
from selu.reporting.views import Report
from selu.rounds import Round, run_folder
from selu.store import Store

__all__ = ["render", "report_path", "write_report"]


def report_path(finished: Round, folder: Path) -> Path:
    """Where the report of a round is written: a folder of its own for each run, configuration and round."""
    return folder / f"{run_folder(finished.settings)}-round-{finished.round}" / "index.html"


def write_report(store: Store, finished: Round, folder: Path) -> Path:
    """Write the report of a round below `folder` and return the HTML file's path. One that is there is replaced.

    Raises:
        ArtifactError: something that the round made is no longer in the store.
        TerminalError: the file cannot be written.
    """
    path = report_path(finished, folder)
    text = render(gather(store, finished))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".report-", suffix=".html")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TerminalError(
            f"the report cannot be written to {path} ({error.strerror}); free the disk or make the folder writable, "
            "and run `selu report`: the round itself is finished and kept"
        ) from error
    return path


def render(report: Report) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selu.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=drawing.percent,
        points=drawing.points,
        seconds=drawing.seconds,
        call=drawing.breakable,
        bytes=drawing.file_size,
    )
    environment.globals.update(
        interval_plot=drawing.interval_plot,
        interval_axis=drawing.interval_axis,
        curve_plot=drawing.curve_plot,
        trend_plot=drawing.trend_plot,
    )
    return environment.get_template("report.html").render(report=report)
