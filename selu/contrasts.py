"""Contrasts: further claims that are worth judging, so that the critic learns what "done" looks like and what does not.

The verdicts on a round's own trajectories are mostly "no", and what the picture shows gives most of them away. So the
critic glances at other frames, asks itself openly what is open, on, held and in view there, and puts to itself those of
the round's instructions that seem fulfilled, and their likes that seem not to be. These are guesses at what is worth
asking; each claim is then judged like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from selu.frames import FrameTable
from selu.models.base import VisionLanguageModel
from selu.prompting import achievements
from selu.questions import (
    Claim,
    Progress,
    answer_questions,
    digest,
    make_question,
    mentioned_objects,
    unwatched,
)
from selu.records import Episode, Frame, Judgement, Relabel, Verdict
from selu.worlds.tasks import join_steps, steps_of, verbs_of

__all__ = ["contrast_claims"]

# Frames of an episode that are looked at for claims worth judging, from the last one back.
_GLANCES = 4


@dataclass(frozen=True)
class _Glimpse:
    """What the critic says of a frame when asked openly."""

    open: frozenset[str]
    on: frozenset[str]
    held: frozenset[str]
    in_view: frozenset[str]

    def says(self, instruction: str) -> Judgement:
        """Whether an instruction seems to be fulfilled; `unsure` where its things are not all there to be judged."""
        parts = steps_of(instruction)
        sides = {self._says(part, alone=len(parts) == 1) for part in parts}
        return "unsure" if "unsure" in sides else "no" if "no" in sides else "yes"

    def _says(self, part: str, *, alone: bool) -> Judgement:
        things, verb = mentioned_objects(part), verbs_of(part)
        told = {
            "pick up": self.held,
            "grab": self.held,
            "open": self.open,
            "turn on": self.on,
            "switch on": self.on,
        }.get(verb)
        # What was done to another thing was not done to this one, be it in view or not. But of several things some are
        # out of view when all is done: that must not be learned as a sign of failure.
        there = things <= self.in_view | self.held | self.open | self.on
        if not things or not (there or (told and alone)):
            return "unsure"
        if told is not None:
            return "yes" if things <= told else "no"
        untold = {"close": self.open, "turn off": self.on, "switch off": self.on, "put": self.held}.get(verb)
        if untold is not None:
            return "no" if things & untold else "yes"
        return "unsure" if verb == "sit on" else "yes"


def _glance(
    shown: Sequence[tuple[str, int]], frames: FrameTable, critic: VisionLanguageModel, progress: Progress
) -> list[_Glimpse]:
    """Four open questions about each frame."""
    texts = ("What is open?", "What is switched on?", "What are you holding?", "What is in view?")
    questions = [make_question(Claim(*where, ""), "open", text, "") for where in shown for text in texts]
    said = [
        frozenset(name.strip() for name in answer.text.split(",")) - {"nothing"}
        for answer in answer_questions(questions, frames, critic, progress)
    ]
    return [_Glimpse(*said[start : start + 4]) for start in range(0, len(said), 4)]


def contrast_claims(
    episodes: Sequence[Episode],
    frames: Iterable[Frame],
    verdicts: Iterable[Verdict],
    relabels: Iterable[Relabel],
    critic: VisionLanguageModel,
    *,
    instructions: Sequence[str],
    per_episode: int,
    seed: int,
    progress: Progress = unwatched,
) -> list[Claim]:
    """Further claims worth judging, so that each instruction gets labels of both kinds; `per_episode` each at most, by fours.

    A quarter of them put an episode's own instructions (told or achieved) to its other frames. For the rest the critic
    is asked openly what is open, on, held and in view in a frame, and of `instructions` (those of the round) it takes
    some that seem to be fulfilled in it, for each of these one of the same kind that seems not to be (so that the
    picture alone does not tell the label), and as many that seem not to be elsewhere. These are guesses at what is worth
    asking, no labels: each claim is judged like any other. Deterministic in the rows and `seed`.
    """
    if per_episode == 0:
        return []
    quarter = max(1, per_episode // 4)
    judged = {Claim(verdict.episode_id, verdict.frame_index, verdict.instruction) for verdict in verdicts}
    # A picture of the corpus has no instruction of its own (:mod:`selu.corpus_pictures`).
    own: dict[str, set[str]] = {episode.episode_id: {episode.instruction} - {""} for episode in episodes}
    for row in relabels:
        judged.add(Claim(row.episode_id, row.frame_index, row.instruction))
        if row.accepted and row.episode_id in own:
            own[row.episode_id].add(row.instruction)
    table = FrameTable(frames)
    indices = table.by_episode()

    def rank(claim: Claim) -> str:
        return digest(seed, claim.episode_id, claim.frame_index, claim.instruction)

    looked_at: list[tuple[str, int]] = []
    chosen: set[Claim] = set()
    for episode in episodes:
        name = episode.episode_id
        near = [Claim(name, index, text) for index in indices[name] for text in sorted(own[name])]
        chosen.update(sorted((claim for claim in near if claim not in judged), key=rank)[:quarter])
        distinct = [
            index
            for place, index in enumerate(indices[name])
            if place == 0 or not table.same_picture(name, indices[name][place - 1], index)
        ]
        looked_at += [(name, index) for index in distinct[-_GLANCES:]]
    glimpses = list(zip(looked_at, _glance(looked_at, table, critic, progress), strict=True))
    known = {*instructions, *_imagined([glimpse for _, glimpse in glimpses])}
    texts = sorted({*known, *_composed(known, instructions, [glimpse for _, glimpse in glimpses], seed)})
    fulfilled: dict[str, list[Claim]] = {}
    failed: dict[str, list[Claim]] = {}
    for (name, index), glimpse in glimpses:
        for text in texts:
            claim, side = Claim(name, index, text), glimpse.says(text)
            if side != "unsure" and claim not in judged and claim not in chosen:
                (fulfilled if side == "yes" else failed).setdefault(name, []).append(claim)
    for name in indices:
        some = _of_many_kinds(fulfilled.get(name, []), rank)[:quarter]
        others = _of_many_kinds(failed.get(name, []), rank)
        chosen.update(some)
        for claim in some:
            where, verbs = claim.frame_index, verbs_of(claim.instruction)
            beside = (
                other
                for other in others
                if other.frame_index == where and verbs_of(other.instruction) == verbs and other not in chosen
            )
            chosen.update(itertools.islice(beside, 1))
        chosen.update([claim for claim in others if claim not in chosen][:quarter])
    return sorted(chosen)


def _imagined(glimpses: Sequence[_Glimpse]) -> set[str]:
    """Instructions of one step about all things that were said to be open, on or held anywhere.

    A round's own instructions name few things, each in few rooms; of such a critic learns the deed and not the thing.
    """
    told = {"What is open?": "open", "What is switched on?": "on", "What are you holding?": "held"}
    return {
        achievement.instruction.format(a=name)
        for achievement in achievements().values()
        if achievement.open in told
        for glimpse in glimpses
        for name in getattr(glimpse, told[achievement.open])
    }


def _composed(known: Iterable[str], instructions: Sequence[str], glimpses: Sequence[_Glimpse], seed: int) -> list[str]:
    """Instructions of two steps that seem fulfilled somewhere, made of known one-step ones; as many at most.

    Told to do two things, an actor that is still learning hardly ever does both, so that the round's own two-step
    instructions show what fails and not what is done. Only forms that the round has are made: "open, then pick up".
    """
    alone = sorted({text for text in known if len(steps_of(text)) == 1})
    forms = {tuple(map(verbs_of, steps_of(text))) for text in instructions if len(steps_of(text)) == 2}
    made = set()
    for glimpse in glimpses:
        done = [text for text in alone if glimpse.says(text) == "yes"]
        for first, second in itertools.permutations(done, 2):
            if (verbs_of(first), verbs_of(second)) in forms and not mentioned_objects(first) & mentioned_objects(
                second
            ):
                made.add(join_steps(first, second))
    return sorted(made, key=lambda text: digest(seed, text))[: len(alone)]


def _of_many_kinds(claims: Sequence[Claim], rank: Callable[[Claim], str]) -> list[Claim]:
    """Claims in seeded order, one of each kind before a second of any."""
    seen: dict[str, int] = {}
    turns = []
    for claim in sorted(claims, key=rank):
        seen[verbs_of(claim.instruction)] = seen.get(verbs_of(claim.instruction), 0) + 1
        turns.append((seen[verbs_of(claim.instruction)], rank(claim), claim))
    return [claim for _, _, claim in sorted(turns, key=lambda turn: turn[:2])]
