"""Guards: whether what fine-tuning made is taken into use, decided without any ground truth.

A loop that learns from its own labels can go wrong on its own: a critic that says yes to everything accepts everything,
an actor that repeats one action is never corrected. So a new adapter is a candidate until a guard has looked at signals
that the loop can see by itself:

- *Canaries*, whose answers are known by construction. In a blank picture nothing is held, in view, open or done; and of
  the base model's own frozen corpus a tenth is kept out of training to be asked about.
- *Agreement* of the critic's direct verdict with its self-asking, which is the harder way to be wrong in.
- *What the actor does* on a few practice tasks, in the promoted critic's eyes and in its own words.

A candidate that fails any signal is refused, and the round goes on with the adapter from before. Nothing here takes or
reads ground truth; whether a guard was right is for evaluation to say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from selu.config import GuardSettings
from selu.frames import Picture
from selu.judging import CHOICES, Item
from selu.models.base import Prompt, VisionLanguageModel
from selu.prompting import PromptStyle, achievements, question_prompt, verdict_prompt
from selu.records import Episode, Judgement, Record, Step, Verdict
from selu.worlds.actions import parse_action
from selu.worlds.tasks import OPENABLE, PICKUPABLE, TOGGLEABLE
from selu.worlds.vocabulary import NAMES, spoken_name

__all__ = [
    "ActorSigns",
    "CriticSigns",
    "GuardReport",
    "GuardSignal",
    "Rehearsed",
    "actor_signs",
    "blank_canaries",
    "critic_signs",
    "guard_actor",
    "guard_critic",
]

_GREYS = (96, 160)
_SCORED_AT_A_TIME = 256
_ANSWER_TOKENS = 48
"""The longest list of names in the corpus has fewer."""


class GuardSignal(Record):
    """One signal of a guard: what it was, what it is, and what it must be."""

    name: str
    meaning: str = Field(description="what is measured, in words")
    before: float | None = Field(description="of the adapter from before; null where it cannot be told")
    after: float | None = Field(
        description="of the candidate; null where it cannot be told, and then it counts as passed"
    )
    n: int = Field(description="observations behind `after`")
    rule: Literal["at least", "at most"]
    limit: float | None = Field(description="what the candidate must keep to; null where it cannot be told")
    passed: bool


class GuardReport(Record):
    """A guard's decision on one candidate."""

    who: Literal["actor", "critic"]
    before: str = Field(description="revision of the model from before")
    candidate: str = Field(description="revision of the model with the new adapter")
    passed: bool = Field(description="the candidate was promoted")
    reason: str = Field(description="one sentence")
    signals: tuple[GuardSignal, ...]


# Canaries ------------------------------------------------------------------------------------------------------------


def blank_canaries(height: int, width: int, style: PromptStyle) -> list[Prompt]:
    """Questions and direct verdicts about blank grey pictures; "no" is the right answer to each.

    Only what a picture must show to be true is asked about: that something is held, in view, open or on. What is closed
    or off might be so unseen.
    """
    texts = [question_prompt(f"Is the {name} in view?", style) for name in NAMES.values()]
    for verb, types in (("PickUp", PICKUPABLE), ("Open", OPENABLE), ("ToggleOn", TOGGLEABLE)):
        for name in map(spoken_name, types):
            texts.append(question_prompt(achievements()[verb].verification.format(a=name), style))
            texts.append(verdict_prompt(achievements()[verb].instruction.format(a=name), style))
    blanks: list[Picture] = [np.full((height, width, 3), grey, dtype=np.uint8) for grey in _GREYS]
    return [Prompt((blank,), text) for text in texts for blank in blanks]


@dataclass(frozen=True)
class Rehearsed:
    """A question of the base model's own corpus and its answer."""

    picture: Picture
    """(H, W, 3) uint8."""
    prompt: str
    answer: str


def _scores(prompts: Sequence[Prompt], critic: VisionLanguageModel) -> list[float]:
    """Probability of "yes", when only yes and no may be said."""
    found: list[float] = []
    for start in range(0, len(prompts), _SCORED_AT_A_TIME):
        found += np.exp(critic.score(prompts[start : start + _SCORED_AT_A_TIME], CHOICES)[:, 0]).tolist()
    return found


# The critic ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CriticSigns:
    """What a guard sees of one critic. Shares are 0..1, None where there is nothing to tell them from."""

    blank: float
    """Share of "no" to questions about blank pictures."""
    blank_count: int
    rehearsal: float | None
    """Share of exactly right answers to rows of the base model's corpus that no dataset version draws from."""
    rehearsal_count: int
    agreement: float | None
    """Share of self-asking's verdicts that the direct verdict shares: the mean of that over its "yes" and its "no"."""
    excess: float | None
    """How far the shares of "yes" of direct verdict and self-asking lie apart, over what self-asking is sure about."""
    judged: int
    """Trajectories that self-asking is sure about."""
    entropy: float | None
    """Mean entropy of the direct verdict in bits: 0 is sure, 1 is a coin."""
    asked: int
    """Trajectories that the direct verdict was asked about."""


def critic_signs(
    critic: VisionLanguageModel,
    items: Sequence[Item],
    self_asked: Sequence[Judgement] | None,
    rehearsed: Sequence[Rehearsed] = (),
    *,
    height: int,
    width: int,
) -> CriticSigns:
    """Ask a critic its canaries, and for its direct verdict on trajectories.

    `items` are trajectories (frames and instruction), `self_asked` the critic's verdicts on them by self-asking in the
    same order; None where it has no other way than the direct one. `height` and `width` of blank pictures in pixels.
    """
    style = critic.prompt_style
    blank = [said < 0.5 for said in _scores(blank_canaries(height, width, style), critic)]
    prompts = [Prompt(pictures, verdict_prompt(instruction, style)) for pictures, instruction in items]
    direct = _scores(prompts, critic)
    told = [(said, judgement) for said, judgement in zip(direct, self_asked or (), strict=False)]
    return CriticSigns(
        blank=_mean(blank) or 0.0,
        blank_count=len(blank),
        rehearsal=_mean(_rehearsal(critic, rehearsed)),
        rehearsal_count=len(rehearsed),
        agreement=_agreement(told),
        excess=_excess(told),
        judged=sum(judgement != "unsure" for _, judgement in told),
        entropy=_mean([_entropy([said, 1 - said]) for said in direct]),
        asked=len(direct),
    )


def _rehearsal(critic: VisionLanguageModel, rehearsed: Sequence[Rehearsed]) -> list[bool]:
    if not rehearsed:
        return []
    replies = critic.generate([Prompt((row.picture,), row.prompt) for row in rehearsed], max_new_tokens=_ANSWER_TOKENS)
    return [reply.text.strip() == row.answer for reply, row in zip(replies, rehearsed, strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _entropy(shares: Sequence[float]) -> float:
    """In bits."""
    return -sum(share * math.log2(share) for share in shares if share > 0)


def _agreement(told: Sequence[tuple[float, Judgement]]) -> float | None:
    sides = [
        _mean([(said >= 0.5) == (side == "yes") for said, judgement in told if judgement == side])
        for side in ("yes", "no")
    ]
    # With one side alone, a critic that always says so would agree.
    return None if sides[0] is None or sides[1] is None else (sides[0] + sides[1]) / 2


def _excess(told: Sequence[tuple[float, Judgement]]) -> float | None:
    sure = [(said >= 0.5, judgement == "yes") for said, judgement in told if judgement != "unsure"]
    return abs(sum(direct - asked for direct, asked in sure)) / len(sure) if sure else None


def _signal(
    name: str,
    meaning: str,
    before: float | None,
    after: float | None,
    n: int,
    rule: Literal["at least", "at most"],
    limit: float | None,
) -> GuardSignal:
    # Rounded for a reader, and so that a limit computed from `before` is not missed by a hair.
    before, after, limit = (None if value is None else round(value, 6) for value in (before, after, limit))
    passed = after is None or limit is None or (after >= limit if rule == "at least" else after <= limit)
    return GuardSignal(
        name=name, meaning=meaning, before=before, after=after, n=n, rule=rule, limit=limit, passed=passed
    )


def _less(value: float | None, loss: float) -> float | None:
    return None if value is None else max(0.0, value - loss)


def _report(
    who: Literal["actor", "critic"], before: str, candidate: str, signals: Sequence[GuardSignal]
) -> GuardReport:
    failed = [signal for signal in signals if not signal.passed]
    if failed:
        told = "; ".join(f"{item.meaning} is {item.after:.3f}, must be {item.rule} {item.limit:.3f}" for item in failed)
        reason = f"The new {who} is refused: {told}."
    else:
        seen = sum(signal.after is not None for signal in signals)
        reason = f"The new {who} is promoted: all {seen} signals are within their limits."
    return GuardReport(
        who=who, before=before, candidate=candidate, passed=not failed, reason=reason, signals=tuple(signals)
    )


def guard_critic(
    before: CriticSigns, after: CriticSigns, settings: GuardSettings, *, revisions: tuple[str, str]
) -> GuardReport:
    """Decide on a new critic. `revisions` are those of the critic from before and of the candidate."""
    signals = [
        _signal(
            "blank",
            "share of right answers about blank pictures",
            before.blank,
            after.blank,
            after.blank_count,
            "at least",
            settings.blank,
        ),
        _signal(
            "rehearsal",
            "share of right answers to kept-back questions of the base model's corpus",
            before.rehearsal,
            after.rehearsal,
            after.rehearsal_count,
            "at least",
            _less(before.rehearsal, settings.forgetting),
        ),
        _signal(
            "agreement",
            "agreement of the direct verdict with self-asking",
            before.agreement,
            after.agreement,
            after.judged,
            "at least",
            settings.agreement,
        ),
        _signal(
            "yes_excess",
            "distance between the shares of yes of the direct verdict and of self-asking",
            before.excess,
            after.excess,
            after.judged,
            "at most",
            settings.yes_excess,
        ),
        _signal(
            "entropy",
            "mean entropy of the direct verdict in bits",
            before.entropy,
            after.entropy,
            after.asked,
            "at most",
            settings.entropy,
        ),
    ]
    return _report("critic", *revisions, signals)


# The actor -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActorSigns:
    """What a guard sees of one actor on its practice tasks. Shares are 0..1."""

    success: float
    """Share of episodes that the promoted critic accepts as done."""
    malformed: float
    """Share of actions that are none."""
    diversity: float
    """Entropy over the verbs of all actions, in bits; malformed ones are one verb."""
    repeated: float
    """Share of episodes that are one action over and over, or one alone."""
    done: float
    """Share of episodes that the actor itself ended."""
    episodes: int
    steps: int


def actor_signs(
    episodes: Sequence[Episode], steps: Sequence[Step], verdicts: Sequence[Verdict], skill_set: str = "household"
) -> ActorSigns:
    """Look at what an actor did, and at what the critic made of it under the episodes' own instructions.

    Raises ValueError without episodes.
    """
    if not episodes:
        raise ValueError("an actor is guarded by what it did: there must be at least one episode, got none")
    done: Mapping[tuple[str, str, int], bool] = {
        (row.episode_id, row.instruction, row.frame_index): row.accepted and row.verdict == "yes" for row in verdicts
    }
    written: dict[str, set[str]] = {episode.episode_id: set() for episode in episodes}
    verbs: Counter[str] = Counter()
    for step in steps:
        action = parse_action(step.action, skill_set)
        written[step.episode_id].add(step.action)
        verbs[action.verb if action else ""] += 1
    count = len(steps)
    return ActorSigns(
        success=_mean([done.get((row.episode_id, row.instruction, row.length), False) for row in episodes]) or 0.0,
        malformed=_mean([not step.well_formed for step in steps]) or 0.0,
        diversity=_entropy([number / count for number in verbs.values()]),
        repeated=_mean([len(actions) == 1 for actions in written.values()]) or 0.0,
        done=_mean([row.finish_reason == "done" for row in episodes]) or 0.0,
        episodes=len(episodes),
        steps=count,
    )


def guard_actor(
    before: ActorSigns, after: ActorSigns, settings: GuardSettings, *, revisions: tuple[str, str]
) -> GuardReport:
    """Decide on a new actor. `revisions` are those of the actor from before and of the candidate."""
    signals = [
        _signal(
            "success",
            "share of practice episodes that the critic accepts as done",
            before.success,
            after.success,
            after.episodes,
            "at least",
            _less(before.success, settings.success_loss),
        ),
        _signal(
            "malformed",
            "share of malformed actions",
            before.malformed,
            after.malformed,
            after.steps,
            "at most",
            before.malformed + settings.malformed,
        ),
        _signal(
            "diversity",
            "entropy over verbs in bits",
            before.diversity,
            after.diversity,
            after.steps,
            "at least",
            before.diversity * settings.diversity,
        ),
        _signal(
            "repeated",
            "share of episodes that are one action repeated",
            before.repeated,
            after.repeated,
            after.episodes,
            "at most",
            min(1.0, before.repeated + settings.repeated),
        ),
        _signal(
            "done",
            "share of episodes that the actor ended by itself",
            before.done,
            after.done,
            after.episodes,
            "at least",
            _less(before.done, settings.done_loss),
        ),
    ]
    return _report("actor", *revisions, signals)


# Over rounds ---------------------------------------------------------------------------------------------------------
