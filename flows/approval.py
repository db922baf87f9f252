"""A person's word on what would be promoted: a run waits in Prefect's UI until somebody has looked.

What a person sees here is what a guard sees, never ground truth: their word decides what the models learn from next. It is
kept as an artifact, so that a run that goes on, or is run again, does not ask twice.
"""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from pydantic import Field

from selu.errors import ConfigError
from selu.flows.ledger import Account
from selu.rounds import Workspace
from selu.tasks.guards import Candidacy, Guarded, approval_of, record_approval
from selu.tasks.progress import say
from selu.tasks.reporting import as_text
from selu.tasks.stages import Shard

__all__ = ["Approval", "approved", "check_somebody_can_approve"]

_PATIENCE = 30 * 24 * 3600
"""Seconds until a run that nobody looked at fails. Run again, it asks again."""


class Approval(RunInput):
    """The form that is filled in to resume a run."""

    promote: bool = Field(description="Take the new adapter into use; otherwise the one from before stays.")
    reason: str = Field(default="", max_length=1000, description="Why; it is kept with the decision and in the report.")


def check_somebody_can_approve() -> None:
    """Refuse to wait where nobody could answer.

    Raises:
        ConfigError: there is no server of Prefect but the run's own.
    """
    if PREFECT_API_URL.value() is None:
        raise ConfigError(
            "guard.approval=true waits for somebody in Prefect's UI, and there is no server: start one with `selu ui`, or "
            "name one in PREFECT_API_URL."
        )


def approved(account: Account, workspace: Workspace, candidacy: Candidacy) -> Guarded:
    """Wait until a person has said whether a candidate is to be taken into use.

    Their word is among what `account`'s stage made, so that a stage that is made again asks again.
    """
    who = candidacy.who
    shard = Shard(stage=f"approval of the {who}")
    known = approval_of(workspace, shard, candidacy)
    if known is not None:
        account.made.append(known)
        return known
    seen = _what_is_seen(candidacy)
    create_markdown_artifact(seen, key=f"approval-{who}", description=f"What is to be said of the {who}'s new adapter")
    page = flow_run.ui_url or "in Prefect's UI"
    say(f"Waiting for somebody to approve of the {who}'s new adapter, by Resume: {page}")
    # Its type hangs on the class of the form.
    form: Any = Approval.with_initial_data(description=seen)
    with account.waiting():
        answer: Approval = pause_flow_run(
            wait_for_input=form, timeout=_PATIENCE, poll_interval=5, key=f"{who}-promotion"
        )
    made = account.one(record_approval.submit(workspace, shard, candidacy, answer.promote, answer.reason))
    say(f"The {who}'s new adapter: {made.report.reason}.")
    return made


def _what_is_seen(candidacy: Candidacy) -> str:
    lines = [f"Is the {candidacy.who}'s new adapter to be taken into use?", ""]
    report = candidacy.guarded.report if candidacy.guarded else None
    if report is None:
        return "\n".join([*lines, "No guard looked at it (guard.enabled=false)."])
    lines += [
        f"The guard passed it: {as_text(report.reason)}",
        "",
        "| signal | before | after | must be |",
        "| --- | --- | --- | --- |",
    ]
    for signal in report.signals:
        before, after, limit = (
            "-" if value is None else f"{value:.3f}" for value in (signal.before, signal.after, signal.limit)
        )
        lines.append(f"| {as_text(signal.meaning)} | {before} | {after} (n {signal.n}) | {signal.rule} {limit} |")
    return "\n".join(lines)
