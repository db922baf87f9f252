"""Self-asking: the critic turns an instruction into questions about a frame, answers them itself and so judges it.

Phases, each one batched call over all claims of a shard: (1) the critic writes its questions, each with the answer that
speaks for "done"; (2) every question is also asked in other words; (3) yes/no questions are scored, open ones are
generated; (4) answers become votes, votes become a verdict. A verdict is accepted only when all ways of asking agree
with enough confidence; whatever is not accepted stays as a row with its reason. SELU (arXiv 2410.03303), section on
self-asking; agreement between ways of asking is ours.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from selu.config import SelfAskingSettings
from selu.deeds import could_have_done, deeds_of
from selu.errors import TerminalError
from selu.frames import FrameTable
from selu.judging import CHOICES, Said, direct_verdicts, majority_verdicts, refined_verdict
from selu.models.base import Prompt, VisionLanguageModel
from selu.prompting import (
    PromptStyle,
    ask_prompt,
    is_yes_no,
    paraphrases,
    question_prompt,
    verdict_prompt,
    without_full_stop,
)
from selu.records import Answer, Episode, Frame, Judgement, Question, Relabel, Step, Verdict
from selu.worlds.vocabulary import NAMES

__all__ = [
    "Claim",
    "answer_questions",
    "ask",
    "contrast_claims",
    "is_yes_no",
    "judge_claims",
    "make_question",
    "meets",
    "mentioned_objects",
    "parse_questions",
    "spoken_for",
]

# "fridge, drawer, coffee machine": open answers name a few objects.
_ANSWER_TOKENS = 24
# Prompts between two signs of progress: more than any device reads at a time, so that batches stay full.
_PROMPTS_PER_CALL = 256
# Frames of an episode that are looked at for claims worth judging, from the last one back.
_GLANCES = 4

_ANYTHING_BUT = "anything but "
_AND_THEN = " and then "


T = TypeVar("T")
Progress = Callable[[float], None]
"""Called with the share of the work that is done, 0..1."""


def _unwatched(share: float) -> None:
    pass


def part_of(progress: Progress, start: float, stop: float) -> Progress:
    """Progress of a part of the work, which lies between two shares of the whole."""
    return lambda share: progress(start + (stop - start) * share)


def in_units(progress: Callable[[int, int], None] | None, whole: int) -> Progress:
    """Shares told as (done, whole) units."""
    return _unwatched if progress is None else lambda share: progress(int(share * whole), whole)


@dataclass(frozen=True, order=True)
class Claim:
    """That `instruction` is fulfilled in frame `frame_index` of an episode: what a verdict is about."""

    episode_id: str
    frame_index: int
    instruction: str


def digest(*parts: object) -> str:
    """A row's id: 24 hexadecimal digits of the sha256 of the JSON of `parts`."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:24]


def canonical_json(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def meets(expected: str, answer: str) -> bool:
    """Whether an answer says what was expected; lists of names are compared as sets.

    `expected` is `yes`, `no`, a name (or several) that must be among those said, `nothing`, or `anything but <name>`.
    """
    said = {name.strip() for name in answer.split(",")}
    if expected.startswith(_ANYTHING_BUT):
        return expected.removeprefix(_ANYTHING_BUT) not in said
    return {name.strip() for name in expected.split(",")} <= said


def parse_questions(text: str, limit: int, style: PromptStyle = "brief") -> list[tuple[str, str]]:
    """`Question? answer; Question? answer` -> pairs of question and the answer that speaks for "done".

    Raises ValueError, with a reason for a person, on anything else: a malformed item, a yes/no question that expects
    something else (or the reverse), two expectations for one question, none or more than `limit` questions.
    """
    pairs: dict[str, str] = {}
    for item in text.strip().split(";"):
        parts = re.fullmatch(r"([A-Z][^?]*\?) ([^?]*[^?\s])", item.strip())
        if parts is None:
            raise ValueError(f"not a question with its answer: {item.strip()!r}")
        question, expected = parts[1], without_full_stop(parts[2], style)
        if is_yes_no(question) != (expected in CHOICES):
            raise ValueError(f"{question!r} cannot be answered by {expected!r}")
        if pairs.setdefault(question, expected) != expected:
            raise ValueError(f"{question!r} expects both {pairs[question]!r} and {expected!r}")
    if len(pairs) > limit:
        raise ValueError(f"{len(pairs)} questions, at most {limit} are allowed")
    return list(pairs.items())


def mentioned_objects(text: str) -> set[str]:
    """Spoken names of the vocabulary in a text; of overlapping names only the longest counts."""
    pattern = "|".join(re.escape(name) for name in sorted(NAMES.values(), key=len, reverse=True))
    return set(re.findall(rf"\b(?:{pattern})\b", text.lower()))


def _in_other_words(question: str, expected: str) -> list[tuple[str, str]]:
    """The same question asked differently, each with what its answer must then be."""
    opposite = {"yes": "no", "no": "yes"}
    found = []
    for paraphrase in paraphrases():
        fields = paraphrase.match(question)
        if fields is None:
            continue
        other = paraphrase.other.format(**fields)
        if paraphrase.relation == "same":
            found.append((other, expected))
        elif paraphrase.relation == "opposite":
            found.append((other, opposite[expected]))
        else:
            name = paraphrase.relation.format(**fields)
            found.append((other, name if expected == "yes" else _ANYTHING_BUT + name))
    return found


def make_question(
    claim: Claim, kind: Literal["direct", "verification", "open", "paraphrase"], text: str, expected: str
) -> Question:
    """A question row about the claim's frame, with the id that its content gives it."""
    return Question(
        question_id=digest(claim.episode_id, claim.frame_index, claim.instruction, kind, text, expected),
        episode_id=claim.episode_id,
        frame_index=claim.frame_index,
        instruction=claim.instruction,
        kind=kind,
        text=text,
        expected=expected,
    )


def _calls(keys: Sequence[T]) -> Iterator[Sequence[T]]:
    return (keys[start : start + _PROMPTS_PER_CALL] for start in range(0, len(keys), _PROMPTS_PER_CALL))


def answer_questions(
    questions: Sequence[Question],
    frames: FrameTable,
    critic: VisionLanguageModel,
    progress: Progress = _unwatched,
) -> list[Answer]:
    """The critic's answers, in order. Equal questions about one frame are put once.

    Yes/no questions are scored over their two answers (confidence: the winner's probability); open ones are generated.
    """
    unique = list(dict.fromkeys((question.episode_id, question.frame_index, question.text) for question in questions))
    style = critic.prompt_style
    prompts = {key: Prompt((frames.picture(key[0], key[1]),), question_prompt(key[2], style)) for key in unique}
    closed = [key for key in unique if is_yes_no(key[2])]
    opened = [key for key in unique if not is_yes_no(key[2])]
    said: dict[tuple[str, int, str], tuple[str, float]] = {}
    for some in _calls(closed):
        scores = critic.score([prompts[key] for key in some], CHOICES)
        for key, row in zip(some, scores, strict=True):
            column = int(row.argmax())
            said[key] = CHOICES[column], float(np.exp(row[column]))
        progress(len(said) / len(unique))
    for some in _calls(opened):
        replies = critic.generate([prompts[key] for key in some], max_new_tokens=_ANSWER_TOKENS)
        said.update((key, (reply.text.strip(), reply.confidence)) for key, reply in zip(some, replies, strict=True))
        progress(len(said) / len(unique))
    answers = []
    for question in questions:
        text, confidence = said[question.episode_id, question.frame_index, question.text]
        answers.append(
            Answer(question_id=question.question_id, text=text, confidence=confidence, critic=critic.revision)
        )
    return answers


def spoken_for(question: Question, answer: Answer, confidence: float) -> Judgement:
    """What an answer speaks for: `yes`, `no`, or `unsure` below `confidence`.

    An answer that lists k names is held to the k-th root of its probability, so that a rich scene is no less sure.
    """
    names = answer.text.count(",") + 1
    if answer.confidence ** (1 / names) < confidence:
        return "unsure"
    return "yes" if meets(question.expected, answer.text) else "no"


def _entry(question: Question, answer: Answer, group: int, vote: Judgement) -> dict[str, Any]:
    return {
        "question_id": question.question_id,
        "frame_index": question.frame_index,
        "group": group,
        "spoke_for": vote,
        "answer": answer.text,
        "confidence": round(answer.confidence, 6),
    }


def _verdict(
    claim: Claim,
    verdict: Judgement,
    confidence: float,
    evidence: dict[str, Any],
    reason: str,
    critic: str,
    accepted: bool,
) -> Verdict:
    text = canonical_json(evidence | {"critic": critic})
    return Verdict(
        verdict_id=digest(claim.episode_id, claim.frame_index, claim.instruction, text),
        episode_id=claim.episode_id,
        frame_index=claim.frame_index,
        instruction=claim.instruction,
        verdict=verdict,
        confidence=confidence,
        evidence=text,
        accepted=accepted,
        reason=reason,
    )


def _judge(
    claim: Claim, groups: Sequence[Sequence[Question]], answers: dict[str, Answer], settings: SelfAskingSettings
) -> tuple[Judgement, float, list[dict[str, Any]], str]:
    """Votes -> verdict, its confidence, the evidence rows and the reason; a group is a question and its paraphrases."""
    entries: list[dict[str, Any]] = []
    judgements: list[tuple[Judgement, float]] = []
    for number, group in enumerate(groups):
        votes = [spoken_for(question, answers[question.question_id], settings.confidence) for question in group]
        sure = [answers[question.question_id].confidence for question in group]
        entries += [
            _entry(question, answers[question.question_id], number, vote)
            for question, vote in zip(group, votes, strict=True)
        ]
        together: Judgement = "unsure"
        for side in ("no", "yes"):
            if votes.count(side) >= settings.agreement * len(votes):
                together = "yes" if side == "yes" else "no"
                break
        voters = [value for value, vote in zip(sure, votes, strict=True) if vote == together] or sure
        judgements.append((together, float(np.mean(voters))))
    against = [(index, confidence) for index, (side, confidence) in enumerate(judgements) if side == "no"]
    if against:
        index, confidence = max(against, key=lambda pair: pair[1])
        first = groups[index][0]
        answer = answers[first.question_id].text
        return "no", confidence, entries, f"'{first.text}' was answered '{answer}', expected '{first.expected}'"
    doubtful = [index for index, (side, _) in enumerate(judgements) if side == "unsure"]
    lowest = min(confidence for _, confidence in judgements)
    if doubtful:
        text = groups[doubtful[0]][0].text
        sides = {entry["spoke_for"] for entry in entries if entry["group"] == doubtful[0]}
        why = "ways of asking disagree" if {"yes", "no"} <= sides else "answers are not confident enough"
        return "unsure", lowest, entries, f"{why} about '{text}'"
    return "yes", lowest, entries, f"all {len(groups)} questions were answered as expected"


def _judge_otherwise(
    claims: Sequence[Claim],
    frames: FrameTable,
    critic: VisionLanguageModel,
    settings: SelfAskingSettings,
    progress: Progress,
) -> tuple[list[Question], list[Answer], list[Verdict]]:
    """Verdicts of the judges of baselines and ablations: accepted from `settings.confidence` on, `unsure` below."""
    items = [((frames.picture(claim.episode_id, claim.frame_index),), claim.instruction) for claim in claims]
    if settings.by == "refinement":
        return _refine(claims, direct_verdicts(items, critic), frames, critic, settings, progress)
    if settings.by == "voting":
        seeds = [int(digest("votes", claim.episode_id, claim.frame_index, claim.instruction), 16) for claim in claims]
        judged, how = majority_verdicts(items, seeds, settings.votes, critic), f"the majority of {settings.votes} votes"
    else:
        judged, how = direct_verdicts(items, critic), "asked directly"
    questions, answers, verdicts = [], [], []
    for claim, (side, confidence) in zip(claims, judged, strict=True):
        question = make_question(claim, "direct", verdict_prompt(claim.instruction, critic.prompt_style), "yes")
        answer = Answer(question_id=question.question_id, text=side, confidence=confidence, critic=critic.revision)
        sure = confidence >= settings.confidence
        verdicts.append(
            _verdict(
                claim,
                side if sure else "unsure",
                confidence,
                {"by": settings.by, "questions": [_entry(question, answer, 0, side if sure else "unsure")]},
                f"{how}, answered '{side}' with confidence {confidence:.2f}",
                critic.revision,
                accepted=sure,
            )
        )
        questions.append(question)
        answers.append(answer)
    return questions, answers, verdicts


def _refine(
    claims: Sequence[Claim],
    judged: Sequence[Said],
    frames: FrameTable,
    critic: VisionLanguageModel,
    settings: SelfAskingSettings,
    progress: Progress,
) -> tuple[list[Question], list[Answer], list[Verdict]]:
    """Direct verdicts, each revised once by the critic's own questions, which are asked in one way and all believed."""
    once = settings.model_copy(update={"by": "self_asking", "paraphrases": False, "confidence": 0.0})
    questions, answers, feedback = judge_claims(claims, frames, critic, once, progress=progress)
    verdicts = []
    for claim, first, told in zip(claims, judged, feedback, strict=True):
        question = make_question(claim, "direct", verdict_prompt(claim.instruction, critic.prompt_style), "yes")
        answer = Answer(question_id=question.question_id, text=first[0], confidence=first[1], critic=critic.revision)
        evidence = json.loads(told.evidence)
        evidence |= {"by": "refinement", "questions": [*evidence["questions"], _entry(question, answer, -1, first[0])]}
        side, confidence = refined_verdict(first, told.verdict, told.confidence)
        sure = confidence >= settings.confidence
        change = f"kept at '{side}'" if side == first[0] else f"revised from '{first[0]}' to '{side}'"
        verdicts.append(
            _verdict(
                claim,
                side if sure else "unsure",
                confidence,
                evidence,
                f"{change} with confidence {confidence:.2f}; feedback: {told.verdict}, {told.reason}",
                critic.revision,
                accepted=sure,
            )
        )
        questions.append(question)
        answers.append(answer)
    return questions, answers, verdicts


def judge_claims(
    claims: Sequence[Claim],
    frames: FrameTable,
    critic: VisionLanguageModel,
    settings: SelfAskingSettings,
    *,
    agree_with_direct: bool = False,
    progress: Progress = _unwatched,
) -> tuple[list[Question], list[Answer], list[Verdict]]:
    """One verdict a claim, in order of the (distinct, sorted) claims, with all questions and answers behind them.

    With `agree_with_direct` the critic's direct verdict must be the same for a label to be accepted: worth asking of a
    critic that was fine-tuned on verdicts, never of one that was not. Only self-asking takes it; the judges of
    baselines and ablations (`settings.by`) give the direct verdict already, or an opinion about it.

    Raises:
        TerminalError: `settings.by` is `oracle`, and the truth is not a critic's to tell.
    """
    if settings.by == "oracle":
        raise TerminalError(
            "self_asking.by=oracle labels by the truth, which no critic knows; such labels are made by their own stage "
            "in a learning round, with method=oracle_labels"
        )
    claims = sorted(set(claims))
    if not claims:
        return [], [], []
    if settings.by != "self_asking":
        return _judge_otherwise(claims, frames, critic, settings, progress)

    # Questions depend on the instruction; one list for each episode keeps episodes independent of their shard.
    asked = list(dict.fromkeys((claim.episode_id, claim.instruction) for claim in claims))
    looked_at = {(claim.episode_id, claim.instruction): claim.frame_index for claim in claims}
    replies = critic.generate(
        [
            Prompt((frames.picture(episode, looked_at[episode, text]),), ask_prompt(text, critic.prompt_style))
            for episode, text in asked
        ],
        max_new_tokens=settings.max_new_tokens,
    )
    progress(0.3)
    lists = dict(zip(asked, replies, strict=True))

    shown = _last_shown(claims, frames, critic, settings.confidence)
    groups: dict[Claim, list[list[Question]]] = {}
    unreadable: dict[Claim, str] = {}
    for claim in claims:
        try:
            written = lists[claim.episode_id, claim.instruction].text
            pairs = parse_questions(written, settings.max_questions, critic.prompt_style)
        except ValueError as error:
            unreadable[claim] = f"the critic's own questions cannot be read: {error}"
            continue
        spoken = " ".join(f"{question} {expected}" for question, expected in pairs)
        missing = mentioned_objects(claim.instruction) - mentioned_objects(spoken)
        if missing:
            unreadable[claim] = f"the critic's own questions do not ask about: {', '.join(sorted(missing))}"
            continue
        groups[claim] = []
        for text, expected in pairs:
            things = mentioned_objects(text)
            at = shown.get((claim, next(iter(things))), claim) if len(things) == 1 else claim
            group = [make_question(at, "verification" if is_yes_no(text) else "open", text, expected)]
            if settings.paraphrases:
                group += [make_question(at, "paraphrase", *other) for other in _in_other_words(text, expected)]
            groups[claim].append(group)

    questions = list(
        {question.question_id: question for parts in groups.values() for group in parts for question in group}.values()
    )
    answers = answer_questions(questions, frames, critic, part_of(progress, 0.3, 0.9))
    by_id = {answer.question_id: answer for answer in answers}

    verdicts = []
    for claim in claims:
        reply = lists[claim.episode_id, claim.instruction]
        evidence: dict[str, Any] = {
            "by": "self-asking",
            "asked": {"text": reply.text, "confidence": round(reply.confidence, 6)},
        }
        if claim in unreadable:
            evidence["questions"] = []
            verdicts.append(
                _verdict(claim, "unsure", 0.0, evidence, unreadable[claim], critic.revision, accepted=False)
            )
            continue
        side, confidence, entries, reason = _judge(claim, groups[claim], by_id, settings)
        evidence["questions"] = entries
        verdicts.append(_verdict(claim, side, confidence, evidence, reason, critic.revision, accepted=side != "unsure"))
    if agree_with_direct:
        more_questions, more_answers, verdicts = _confirm_directly(claims, verdicts, frames, critic)
        questions, answers = questions + more_questions, answers + more_answers
    return questions, answers, verdicts


_SEEN_QUESTION = "Is the {} in view?"


def _last_shown(
    claims: Sequence[Claim], frames: FrameTable, critic: VisionLanguageModel, confidence: float
) -> dict[tuple[Claim, str], Claim]:
    """Of an instruction of several parts, where each of its things was in view last: the claim at that frame.

    Whoever does a second thing has often turned away from the first; nobody else changes it meanwhile. A thing that was
    in view in no extracted frame is left out.
    """
    indices = frames.by_episode()
    asked = [
        (
            claim,
            name,
            make_question(replace(claim, frame_index=index), "verification", _SEEN_QUESTION.format(name), "yes"),
        )
        for claim in claims
        if _AND_THEN in claim.instruction
        for name in sorted(mentioned_objects(claim.instruction))
        for index in indices[claim.episode_id]
        if index <= claim.frame_index
    ]
    if not asked:
        return {}
    shown: dict[tuple[Claim, str], Claim] = {}
    answers = answer_questions([question for _, _, question in asked], frames, critic)
    for (claim, name, question), answer in zip(asked, answers, strict=True):
        if spoken_for(question, answer, confidence) == "yes":
            shown[claim, name] = replace(claim, frame_index=question.frame_index)
    return shown


def _confirm_directly(
    claims: Sequence[Claim], verdicts: Sequence[Verdict], frames: FrameTable, critic: VisionLanguageModel
) -> tuple[list[Question], list[Answer], list[Verdict]]:
    """Takes acceptance away from verdicts that the direct verdict contradicts; adds it to the evidence of all."""
    judged = direct_verdicts(
        [((frames.picture(claim.episode_id, claim.frame_index),), claim.instruction) for claim in claims], critic
    )
    questions, answers, confirmed = [], [], []
    for claim, verdict, (side, confidence) in zip(claims, verdicts, judged, strict=True):
        question = make_question(claim, "direct", verdict_prompt(claim.instruction, critic.prompt_style), "yes")
        answer = Answer(question_id=question.question_id, text=side, confidence=confidence, critic=critic.revision)
        evidence = json.loads(verdict.evidence)
        evidence["questions"].append(_entry(question, answer, -1, side))
        contradicted = verdict.accepted and side != verdict.verdict
        confirmed.append(
            _verdict(
                claim,
                verdict.verdict,
                verdict.confidence,
                evidence,
                f"the direct verdict is '{side}' against: {verdict.reason}" if contradicted else verdict.reason,
                critic.revision,
                accepted=verdict.accepted and not contradicted,
            )
        )
        questions.append(question)
        answers.append(answer)
    return questions, answers, confirmed


@dataclass(frozen=True)
class _Glimpse:
    """What the critic says of a frame when asked openly."""

    open: frozenset[str]
    on: frozenset[str]
    held: frozenset[str]
    in_view: frozenset[str]

    def says(self, instruction: str) -> Judgement:
        """Whether an instruction seems to be fulfilled; `unsure` where its things are not all there to be judged."""
        parts = instruction.split(_AND_THEN)
        sides = {self._says(part, alone=len(parts) == 1) for part in parts}
        return "unsure" if "unsure" in sides else "no" if "no" in sides else "yes"

    def _says(self, part: str, *, alone: bool) -> Judgement:
        things, verb = mentioned_objects(part), part.split(" the ", maxsplit=1)[0]
        told = {"pick up": self.held, "open": self.open, "turn on": self.on}.get(verb)
        # What was done to another thing was not done to this one, be it in view or not. But of several things some are
        # out of view when all is done: that must not be learned as a sign of failure.
        there = things <= self.in_view | self.held | self.open | self.on
        if not things or not (there or (told and alone)):
            return "unsure"
        if told is not None:
            return "yes" if things <= told else "no"
        untold = {"close": self.open, "turn off": self.on, "put": self.held}.get(verb)
        if untold is not None:
            return "no" if things & untold else "yes"
        return "yes"


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
    progress: Progress = _unwatched,
) -> list[Claim]:
    """Further claims worth judging, so that each instruction gets labels of both kinds; at most `per_episode` each.

    A quarter of them put an episode's own instructions (told or achieved) to its other frames. For the rest the critic
    is asked openly what is open, on, held and in view in a frame, and of `instructions` (those of the round) it takes
    some that seem to be fulfilled in it, for each of these one of the same kind that seems not to be (so that the
    picture alone does not tell the label), and as many that seem not to be elsewhere. These are guesses at what is worth
    asking, no labels: each claim is judged like any other. Deterministic in the rows and `seed`.
    """
    judged = {Claim(verdict.episode_id, verdict.frame_index, verdict.instruction) for verdict in verdicts}
    own: dict[str, set[str]] = {episode.episode_id: {episode.instruction} for episode in episodes}
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
        chosen.update(sorted((claim for claim in near if claim not in judged), key=rank)[: per_episode // 4])
        distinct = [
            index
            for place, index in enumerate(indices[name])
            if place == 0 or not table.same_picture(name, indices[name][place - 1], index)
        ]
        looked_at += [(name, index) for index in distinct[-_GLANCES:]]
    texts = sorted(set(instructions))
    quarter = per_episode // 4
    fulfilled: dict[str, list[Claim]] = {}
    failed: dict[str, list[Claim]] = {}
    for (name, index), glimpse in zip(looked_at, _glance(looked_at, table, critic, progress), strict=True):
        for text in texts:
            claim, side = Claim(name, index, text), glimpse.says(text)
            if side != "unsure" and claim not in judged and claim not in chosen:
                (fulfilled if side == "yes" else failed).setdefault(name, []).append(claim)
    for name in indices:
        some = _of_many_kinds(fulfilled.get(name, []), rank)[:quarter]
        others = _of_many_kinds(failed.get(name, []), rank)
        chosen.update(some)
        for claim in some:
            beside = (
                other
                for other in others
                if (other.frame_index, _kind(other)) == (claim.frame_index, _kind(claim)) and other not in chosen
            )
            chosen.update(itertools.islice(beside, 1))
        chosen.update([claim for claim in others if claim not in chosen][:quarter])
    return sorted(chosen)


def _kind(claim: Claim) -> str:
    """The verbs of the claim's instruction."""
    return " ".join(part.split(" the ")[0] for part in claim.instruction.split(_AND_THEN))


def _of_many_kinds(claims: Sequence[Claim], rank: Callable[[Claim], str]) -> list[Claim]:
    """Claims in seeded order, one of each kind before a second of any."""
    seen: dict[str, int] = {}
    turns = []
    for claim in sorted(claims, key=rank):
        seen[_kind(claim)] = seen.get(_kind(claim), 0) + 1
        turns.append((seen[_kind(claim)], rank(claim), claim))
    return [claim for _, _, claim in sorted(turns, key=lambda turn: turn[:2])]


def ask(
    episodes: Sequence[Episode],
    frames: Iterable[Frame],
    critic: VisionLanguageModel,
    settings: SelfAskingSettings,
    *,
    steps: Iterable[Step] | None = None,
    claims: Sequence[Claim] | None = None,
    agree_with_direct: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Question], list[Answer], list[Verdict]]:
    """Judges each episode under its own instruction at its last frame, or the given `claims` instead.

    With `steps` (the actor's own words) and `settings.deeds`, what the actor did is evidence too (:mod:`selu.deeds`).
    `progress` is called with (done, all) episodes, estimated from the prompts that were read.

    Raises ArtifactError when a frame that a claim is about was not extracted.
    """
    if claims is None:
        claims = [Claim(episode.episode_id, episode.length, episode.instruction) for episode in episodes]
    table, shares = FrameTable(frames), in_units(progress, len(episodes))
    questions, answers, verdicts = judge_claims(
        claims, table, critic, settings, agree_with_direct=agree_with_direct, progress=shares
    )
    if steps is not None and settings.deeds:
        by_episode: dict[str, list[Step]] = {}
        for step in steps:
            by_episode.setdefault(step.episode_id, []).append(step)
        verdicts = [_weigh_deeds(verdict, by_episode.get(verdict.episode_id, []), table) for verdict in verdicts]
    return questions, answers, verdicts


def _weigh_deeds(verdict: Verdict, steps: Sequence[Step], frames: FrameTable) -> Verdict:
    """The verdict with what the actor did as one more piece of evidence.

    Without a deed that could have done it, no "yes" is accepted. With one, a single way of asking that says "yes", or
    that is unsure, is enough; only where every way says "no" is there a contradiction, which is left to nobody to learn.
    """
    deeds = deeds_of(steps, frames)
    able = None if deeds is None else could_have_done(verdict.instruction, deeds)
    if deeds is None or able is None:
        return verdict
    evidence = json.loads(verdict.evidence)
    evidence["deeds"] = [{"step": deed.step, "action": deed.action} for deed in deeds]
    direct = [entry["answer"] for entry in evidence["questions"] if entry["group"] == -1]
    side, accepted, reason = verdict.verdict, verdict.accepted, verdict.reason
    if not able:
        if side == "yes":
            accepted, reason = False, f"nothing that the actor did and that could be seen would have done it; {reason}"
    elif side == "no" and "yes" not in direct:
        accepted, reason = False, f"the actor did what could have done it, but {reason}"
    elif side != "yes" or not accepted:
        side, accepted, reason = "yes", True, f"the actor did what could have done it, although {reason}"
    return _verdict(
        Claim(verdict.episode_id, verdict.frame_index, verdict.instruction),
        side,
        verdict.confidence,
        {key: value for key, value in evidence.items() if key != "critic"},
        reason,
        evidence["critic"],
        accepted,
    )
