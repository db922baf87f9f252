"""Hindsight relabeling: what *was* done in an episode that did not do what it was told?

The actor's own words say where to look: after `Open(Drawer)` the drawer may be open. That is a guess, not truth; the
critic has to see it. Phases, each batched over all episodes of a shard:

1. candidates: every interaction that the actor wrote and that changed the picture (for `Put`, the critic is asked first
   what was held);
2. the verification question must turn from a sure "no" before the action to a sure "yes" after it;
3. the open question ("What is open?") must say the same;
4. the critic judges the new instruction by its own questions (:mod:`selu.self_asking`);
5. two achievements in order, the first still true at the second, make a two-step instruction, judged like the rest;
6. of what is still a failure, the beginning may be right: the parts of the instruction that were achieved, and the walk
   up to the thing that comes next, if it is then in view (else up to the last part that was achieved). Such a start is a
   *partial* relabel: it teaches the actor its steps, but neither the actor to say Done nor the critic to say yes.

Where deeds are evidence (:mod:`selu.deeds`), an action upon which the picture changed has spoken already: of 2 to 4 no
answer may then contradict it and one must be sure, but the others may be unsure. Whatever fails stays as a row with
`accepted=False` and its reason. SELU (arXiv 2410.03303); evidence before acceptance, the freedom to change the verb and
good starts are ours.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selu.config import HindsightSettings, SelfAskingSettings
from selu.deeds import WALKING, names_place
from selu.frames import FrameTable, is_interaction, steps_by_episode
from selu.models.base import VisionLanguageModel
from selu.prompting import Achievement, achievements
from selu.questions import (
    SEEN_QUESTION,
    Claim,
    Progress,
    answer_questions,
    canonical_json,
    digest,
    in_units,
    make_question,
    part_of,
    spoken_for,
)
from selu.records import Answer, Episode, Frame, Judgement, Question, Relabel, Step, Verdict
from selu.verdicts import judge_claims
from selu.worlds.actions import read_action
from selu.worlds.tasks import ENCLOSING, join_steps, steps_of
from selu.worlds.vocabulary import spoken_name

__all__ = ["relabel"]

_HELD_QUESTION = "What are you holding?"


@dataclass
class _Candidate:
    """A possible achievement, visible in frame `frame_index` and not yet in frame `before` (None: not looked at)."""

    episode: Episode
    before: int | None
    frame_index: int
    achievement: Achievement
    fields: dict[str, str]
    entries: list[dict[str, Any]] = field(default_factory=list)
    confidence: float = 1.0
    rejected: str = ""
    deed: bool = False
    """It was seen that the action changed something, and that counts: answers may be unsure."""
    sure: bool = False

    @property
    def instruction(self) -> str:
        return self.achievement.instruction.format(**self.fields)

    def claim(self) -> Claim:
        return Claim(self.episode.episode_id, self.frame_index, self.instruction)

    def denied_by(self, vote: Judgement) -> bool:
        """Whether an answer speaks against it, or not for it where that is needed."""
        return vote == "no" if self.deed else vote != "yes"

    def record(self, question: Question, answer: Answer, role: str) -> None:
        self.entries.append(
            {
                "question_id": question.question_id,
                "frame_index": question.frame_index,
                "spoke_for": role,
                "answer": answer.text,
                "confidence": round(answer.confidence, 6),
            }
        )
        self.confidence = min(self.confidence, answer.confidence)


class _Interrogation:
    """Asks in batches and keeps every question with its answer, each once."""

    def __init__(self, frames: FrameTable, critic: VisionLanguageModel) -> None:
        self.frames = frames
        self.critic = critic
        self.questions: dict[str, Question] = {}
        self.answers: dict[str, Answer] = {}

    def put(self, questions: Sequence[Question], progress: Progress) -> list[Answer]:
        answers = answer_questions(questions, self.frames, self.critic, progress)
        for question, answer in zip(questions, answers, strict=True):
            self.questions.setdefault(question.question_id, question)
            self.answers.setdefault(question.question_id, answer)
        return answers

    def judge(
        self, claims: Sequence[Claim], settings: SelfAskingSettings, direct: bool, progress: Progress
    ) -> dict[Claim, Verdict]:
        questions, answers, verdicts = judge_claims(
            claims, self.frames, self.critic, settings, agree_with_direct=direct, progress=progress
        )
        for question, answer in zip(questions, answers, strict=True):
            self.questions.setdefault(question.question_id, question)
            self.answers.setdefault(question.question_id, answer)
        return {Claim(verdict.episode_id, verdict.frame_index, verdict.instruction): verdict for verdict in verdicts}


def _relabel(
    episode: Episode, frame_index: int, instruction: str, confidence: float, evidence: dict[str, Any], reason: str, *,
    critic: str, accepted: bool, partial: bool = False,
) -> Relabel:  # fmt: skip
    text = canonical_json(evidence | {"critic": critic})
    return Relabel(
        relabel_id=digest(episode.episode_id, frame_index, instruction, partial, text),
        episode_id=episode.episode_id,
        frame_index=frame_index,
        original_instruction=episode.instruction,
        instruction=instruction,
        partial=partial,
        confidence=confidence,
        evidence=text,
        accepted=accepted,
        reason=reason,
    )


def _candidates(episodes: Sequence[Episode], steps: Mapping[str, list[Step]], frames: FrameTable) -> list[_Candidate]:
    """Every interaction that the actor wrote and whose pictures were extracted.

    Of an episode of which only the last frame was extracted (the paper's setting), each interaction is a candidate at
    that frame, without a look at what was before it.
    """
    found = []
    indices = frames.by_episode()
    for episode in episodes:
        only_last = indices.get(episode.episode_id) == [episode.length]
        seen: set[str] = set()
        for step in steps.get(episode.episode_id, ()):
            if not (step.well_formed and is_interaction(step.action)):
                continue
            action = read_action(step.action)
            if action is None or action.object_type is None or action.verb not in achievements():
                continue
            if only_last:
                before, after = None, episode.length
            else:
                before, after = step.step, step.step + 1
                if any((episode.episode_id, index) not in frames for index in (before, after)):
                    continue
            achievement = achievements()[action.verb]
            name = spoken_name(action.object_type)
            if names_place(achievement):
                fields = {"a": "object", "b": name, "preposition": "in" if action.object_type in ENCLOSING else "on"}
            else:
                fields = {"a": name}
            candidate = _Candidate(episode, before, after, achievement, fields)
            if before is None and candidate.instruction in seen:
                continue
            seen.add(candidate.instruction)
            if before is None and names_place(achievement):
                candidate.rejected = "what was held before cannot be seen in the last frame"
            elif before is not None and frames.same_picture(episode.episode_id, before, after):
                candidate.rejected = "the picture did not change"
            found.append(candidate)
    return found


def _name_held_objects(
    candidates: Sequence[_Candidate], ask: _Interrogation, confidence: float, progress: Progress
) -> None:
    """Fills `{a}` of candidates whose verb names only a place, by asking what was held before."""
    questions = [
        make_question(Claim(item.episode.episode_id, item.before or 0, ""), "open", _HELD_QUESTION, "")
        for item in candidates
    ]
    for item, question, answer in zip(candidates, questions, ask.put(questions, progress), strict=True):
        item.record(question, answer, "object")
        if answer.text == "nothing" or not answer.text:
            item.rejected = "nothing was held before"
        elif "," in answer.text:
            item.rejected = f"more than one thing was named as held before ('{answer.text}')"
        elif answer.confidence < confidence:
            item.rejected = f"what was held before is not sure enough ('{answer.text}', {answer.confidence:.2f})"
        else:
            item.fields["a"] = answer.text


def _verify(candidates: Sequence[_Candidate], ask: _Interrogation, confidence: float, progress: Progress) -> None:
    """Before the action a sure "no", after it a sure "yes"; upon a deed one sure answer is enough."""
    asked: list[tuple[_Candidate, Question]] = []
    for item in candidates:
        text = item.achievement.verification.format(**item.fields)
        for index, expected in ((item.before, "no"), (item.frame_index, "yes")):
            if index is not None:
                claim = Claim(item.episode.episode_id, index, item.instruction)
                asked.append((item, make_question(claim, "verification", text, expected)))
    answers = ask.put([question for _, question in asked], progress)
    for (item, question), answer in zip(asked, answers, strict=True):
        vote = spoken_for(question, answer, confidence)
        item.record(question, answer, vote)
        item.sure |= vote == "yes"
        if item.denied_by(vote) and not item.rejected:
            when = "before" if question.frame_index == item.before else "after"
            said = f"'{answer.text}' ({answer.confidence:.2f})"
            item.rejected = f"'{question.text}' must be a sure '{question.expected}' {when} the action, was {said}"
    for item, _ in asked:
        if not item.sure and not item.rejected:
            item.rejected = f"the critic is sure neither of before nor of after the action ({item.confidence:.2f})"


def _ask_openly(candidates: Sequence[_Candidate], ask: _Interrogation, confidence: float, progress: Progress) -> None:
    """The open question after the action must say what the verification says."""
    asked = [item for item in candidates if item.achievement.open]
    questions = [
        make_question(
            item.claim(),
            "open",
            item.achievement.open.format(**item.fields),
            item.achievement.expected.format(**item.fields),
        )
        for item in asked
    ]
    for item, question, answer in zip(asked, questions, ask.put(questions, progress), strict=True):
        vote = spoken_for(question, answer, confidence)
        item.record(question, answer, vote)
        if item.denied_by(vote):
            item.rejected = f"'{question.text}' was answered '{answer.text}' ({answer.confidence:.2f})"


def _vote(verdict: Verdict) -> Judgement:
    return verdict.verdict if verdict.accepted or verdict.verdict == "no" else "unsure"


def _evidence(item: _Candidate, verdict: Verdict | None) -> dict[str, Any]:
    evidence: dict[str, Any] = {"by": "hindsight", "questions": item.entries}
    if verdict is not None:
        evidence["judged_again"] = json.loads(verdict.evidence) | {"verdict": verdict.verdict, "reason": verdict.reason}
    return evidence


def relabel(
    episodes: Sequence[Episode],
    steps: Iterable[Step],
    frames: Iterable[Frame],
    verdicts: Iterable[Verdict],
    critic: VisionLanguageModel,
    settings: HindsightSettings,
    self_asking: SelfAskingSettings,
    *,
    agree_with_direct: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Question], list[Answer], list[Relabel]]:
    """Instructions that the episodes did achieve, accepted and rejected ones, ordered by episode and frame.

    Episodes whose original instruction was accepted as done are left alone. `self_asking` says how a new instruction is
    judged again (phase 4). `progress` is called with (done, all) episodes, estimated from the prompts that were read.
    """
    if not settings.enabled:
        return [], [], []
    table = FrameTable(frames)
    done = {
        (verdict.episode_id, verdict.instruction)
        for verdict in verdicts
        if verdict.accepted and verdict.verdict == "yes"
    }
    by_episode = steps_by_episode(steps)
    failed = sorted(
        (episode for episode in episodes if (episode.episode_id, episode.instruction) not in done),
        key=lambda episode: episode.episode_id,
    )

    ask, share = _Interrogation(table, critic), in_units(progress, len(episodes))
    candidates = _candidates(failed, by_episode, table)
    for item in candidates:
        item.deed = self_asking.deeds and item.before is not None
    places = [item for item in candidates if names_place(item.achievement) and not item.rejected]
    _name_held_objects(places, ask, settings.confidence, part_of(share, 0.0, 0.1))
    _verify([item for item in candidates if not item.rejected], ask, settings.confidence, part_of(share, 0.1, 0.4))
    _ask_openly([item for item in candidates if not item.rejected], ask, settings.confidence, part_of(share, 0.4, 0.5))
    judged: dict[Claim, Verdict] = {}
    if settings.verify:
        left = [item.claim() for item in candidates if not item.rejected]
        judged = ask.judge(left, self_asking, agree_with_direct, part_of(share, 0.5, 0.8))

    relabels = []
    achieved: dict[str, list[_Candidate]] = {}
    for item in candidates:
        verdict = None if item.rejected else judged.get(item.claim())
        if verdict is not None and item.denied_by(_vote(verdict)):
            item.rejected = f"judged again by the critic's own questions: {verdict.verdict}, {verdict.reason}"
        if verdict is not None:
            item.confidence = min(item.confidence, verdict.confidence)
        if not item.rejected:
            achieved.setdefault(item.episode.episode_id, []).append(item)
        relabels.append(
            _relabel(
                item.episode,
                item.frame_index,
                item.instruction,
                item.confidence if item.entries else 0.0,
                _evidence(item, verdict),
                item.rejected or "every question about it was answered as expected",
                critic=critic.revision,
                accepted=not item.rejected,
            )
        )
    if settings.two_step:
        relabels += _compose(achieved, ask, settings, self_asking, agree_with_direct, part_of(share, 0.8, 0.9))
    if settings.partial:
        relabels += _starts(failed, by_episode, achieved, ask, settings.confidence, part_of(share, 0.9, 1.0))
    relabels.sort(key=lambda row: (row.episode_id, row.frame_index, row.instruction, row.relabel_id))
    order = sorted(ask.questions)
    return [ask.questions[key] for key in order], [ask.answers[key] for key in order], relabels


def _compose(
    achieved: Mapping[str, list[_Candidate]],
    ask: _Interrogation,
    settings: HindsightSettings,
    self_asking: SelfAskingSettings,
    agree_with_direct: bool,
    progress: Progress,
) -> list[Relabel]:
    """Two-step instructions out of neighbouring achievements of an episode."""
    pairs = [
        (first, second)
        for items in achieved.values()
        for first, second in itertools.pairwise(items)
        # Of the last frame alone it cannot be told which came first.
        if first.instruction != second.instruction and first.before is not None
    ]
    claims = [
        Claim(second.episode.episode_id, second.frame_index, join_steps(first.instruction, second.instruction))
        for first, second in pairs
    ]
    questions = [
        make_question(claim, "verification", first.achievement.verification.format(**first.fields), "yes")
        for claim, (first, _) in zip(claims, pairs, strict=True)
    ]
    answers = ask.put(questions, part_of(progress, 0.0, 0.4))
    holds = [
        spoken_for(question, answer, settings.confidence) == "yes"
        for question, answer in zip(questions, answers, strict=True)
    ]
    judged: dict[Claim, Verdict] = {}
    if settings.verify:
        left = [claim for claim, still in zip(claims, holds, strict=True) if still]
        judged = ask.judge(left, self_asking, agree_with_direct, part_of(progress, 0.4, 1.0))
    relabels = []
    for claim, (first, second), question, answer, still in zip(claims, pairs, questions, answers, holds, strict=True):
        verdict = judged.get(claim)
        accepted = still and (verdict is None or not second.denied_by(_vote(verdict)))
        if not still:
            reason = f"the first step no longer holds: '{question.text}' was answered '{answer.text}'"
        elif verdict is None or accepted:
            reason = "both steps were achieved in order and the first still holds"
        else:
            reason = f"judged again by the critic's own questions: {verdict.verdict}, {verdict.reason}"
        both = _Candidate(second.episode, second.before, second.frame_index, second.achievement, second.fields)
        both.entries = [*first.entries, *second.entries]
        both.confidence = min(first.confidence, second.confidence)
        both.record(question, answer, "yes" if still else "no")
        relabels.append(
            _relabel(
                second.episode,
                second.frame_index,
                claim.instruction,
                min(both.confidence, verdict.confidence) if verdict else both.confidence,
                _evidence(both, verdict),
                reason,
                critic=ask.critic.revision,
                accepted=accepted,
            )
        )
    return relabels


def _starts(
    failed: Sequence[Episode],
    steps: Mapping[str, list[Step]],
    achieved: Mapping[str, list[_Candidate]],
    ask: _Interrogation,
    confidence: float,
    progress: Progress,
) -> list[Relabel]:
    """Failed episodes up to where they were last on the way: see phase 6 above."""
    starts: list[tuple[_Candidate, _Candidate | None, Question | None]] = []
    for episode in failed:
        done = achieved.get(episode.episode_id, [])
        if any(item.instruction == episode.instruction for item in done):
            continue
        since, before = 0, None
        parts = steps_of(episode.instruction)
        while len(parts) > 1:
            first = next((item for item in done if item.instruction == parts[0] and item.frame_index > since), None)
            if first is None:
                break
            since, before = first.frame_index, first
            parts = parts[1:]
        walked = _walk_up(episode, parts[0], steps.get(episode.episode_id, ()), since, ask.frames)
        if before is None and walked is None:
            continue
        entries = list(before.entries) if before is not None else []
        start = _Candidate(episode, None, since, _NO_ACHIEVEMENT, {}, entries, before.confidence if before else 1.0)
        question = None
        if walked is not None:
            start.frame_index, thing = walked
            claim = Claim(episode.episode_id, start.frame_index, episode.instruction)
            question = make_question(claim, "verification", SEEN_QUESTION.format(thing), "yes")
        starts.append((start, before, question))
    asked = [question for _, _, question in starts if question is not None]
    answers = {answer.question_id: answer for answer in ask.put(asked, progress)}
    relabels = []
    for start, before, question in starts:
        reason = "the first part was achieved"
        if question is not None:
            answer = answers[question.question_id]
            vote = spoken_for(question, answer, confidence)
            if vote != "yes" and before is not None:
                start.frame_index = before.frame_index
            else:
                start.record(question, answer, vote)
                reason = "the thing was walked up to"
                if vote != "yes":
                    start.rejected = f"'{question.text}' was answered '{answer.text}' ({answer.confidence:.2f})"
        relabels.append(
            _relabel(
                start.episode,
                start.frame_index,
                start.episode.instruction,
                start.confidence,
                _evidence(start, None),
                start.rejected or f"a good start: {reason}",
                critic=ask.critic.revision,
                accepted=not start.rejected,
                partial=True,
            )
        )
    return relabels


_NO_ACHIEVEMENT = Achievement("", "", "", "", "")


def _walk_up(
    episode: Episode, part: str, steps: Sequence[Step], since: int, frames: FrameTable
) -> tuple[int, str] | None:
    """First frame after `since` to which an `Approach` of what `part` is about led, and that thing's name.

    Of "put the mug in the sink" it is the sink, which is named last. An approach that failed leaves the picture as it was.
    """
    for step in steps:
        action = read_action(step.action) if step.step >= since and step.well_formed else None
        if action is None or action.verb not in WALKING or action.object_type is None:
            continue
        name = spoken_name(action.object_type)
        near = (episode.episode_id, step.step + 1)
        if not part.endswith(f"the {name}") or near not in frames or (episode.episode_id, step.step) not in frames:
            continue
        if not frames.same_picture(episode.episode_id, step.step, step.step + 1):
            return step.step + 1, name
    return None
