"""Questions about a frame and their answers: how they are put, what they speak for, and the rows that they make.

What all judges share (:mod:`selu.self_asking`, :mod:`selu.verdicts`, :mod:`selu.hindsight`, :mod:`selu.contrasts`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np

from selu.frames import FrameTable
from selu.judging import CHOICES
from selu.models.base import Prompt, VisionLanguageModel
from selu.prompting import PromptStyle, is_yes_no, paraphrases, question_prompt, without_full_stop
from selu.records import Answer, Judgement, Question, Verdict
from selu.worlds.vocabulary import NAMES

__all__ = [
    "SEEN_QUESTION",
    "Claim",
    "Progress",
    "answer_questions",
    "canonical_json",
    "digest",
    "entry_of",
    "in_other_words",
    "in_units",
    "make_question",
    "meets",
    "mentioned_objects",
    "parse_questions",
    "part_of",
    "spoken_for",
    "unwatched",
    "verdict_row",
]

SEEN_QUESTION = "Is the {} in view?"

# "fridge, drawer, coffee machine": open answers name a few objects.
_ANSWER_TOKENS = 24
# Prompts between two signs of progress: more than any device reads at a time, so that batches stay full.
_PROMPTS_PER_CALL = 256

_ANYTHING_BUT = "anything but "


T = TypeVar("T")
Progress = Callable[[float], None]
"""Called with the share of the work that is done, 0..1."""


def unwatched(share: float) -> None:
    """Nobody wants to know."""


def part_of(progress: Progress, start: float, stop: float) -> Progress:
    """Progress of a part of the work, which lies between two shares of the whole."""
    return lambda share: progress(start + (stop - start) * share)


def in_units(progress: Callable[[int, int], None] | None, whole: int) -> Progress:
    """Shares told as (done, whole) units."""
    return unwatched if progress is None else lambda share: progress(int(share * whole), whole)


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


_ANY_NAME = re.compile(
    r"\b(?:" + "|".join(re.escape(name) for name in sorted(NAMES.values(), key=len, reverse=True)) + r")\b"
)


# Contrasts ask for the same few hundred texts at every frame.
@lru_cache(maxsize=65_536)
def mentioned_objects(text: str) -> frozenset[str]:
    """Spoken names of the vocabulary in a text; of overlapping names only the longest counts."""
    return frozenset(_ANY_NAME.findall(text.lower()))


def in_other_words(question: str, expected: str) -> list[tuple[str, str]]:
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
    progress: Progress = unwatched,
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


def entry_of(question: Question, answer: Answer, group: int, vote: Judgement) -> dict[str, Any]:
    """A piece of evidence: a question, its answer and what that speaks for."""
    return {
        "question_id": question.question_id,
        "frame_index": question.frame_index,
        "group": group,
        "spoke_for": vote,
        "answer": answer.text,
        "confidence": round(answer.confidence, 6),
    }


def verdict_row(
    claim: Claim,
    verdict: Judgement,
    confidence: float,
    evidence: dict[str, Any],
    reason: str,
    critic: str,
    accepted: bool,
) -> Verdict:
    """A verdict with the id that its content gives it."""
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
