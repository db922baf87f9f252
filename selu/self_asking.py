"""Self-asking: the critic turns an instruction into questions about a frame, answers them itself and so judges it.

Phases, each one batched call over all claims of a shard: (1) the critic writes its questions about each step of the
instruction, each with the answer that speaks for "done"; (2) every question is also asked in other words; (3) yes/no
questions are scored, open ones are generated; (4) answers become votes, votes become a verdict. A verdict is accepted
only when all ways of asking agree with enough confidence; whatever is not accepted stays as a row with its reason. SELU
(arXiv 2410.03303), section on self-asking; agreement between ways of asking is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from selu.config import SelfAskingSettings
from selu.frames import FrameTable
from selu.models.base import Prompt, VisionLanguageModel
from selu.prompting import ask_prompt, is_yes_no
from selu.questions import (
    SEEN_QUESTION,
    Claim,
    Progress,
    answer_questions,
    entry_of,
    in_other_words,
    make_question,
    mentioned_objects,
    parse_questions,
    part_of,
    spoken_for,
    unwatched,
    verdict_row,
)
from selu.records import Answer, Judgement, Question, Verdict
from selu.worlds.tasks import steps_of

__all__ = ["judge_by_asking"]


def judge_by_asking(
    claims: Sequence[Claim],
    frames: FrameTable,
    critic: VisionLanguageModel,
    settings: SelfAskingSettings,
    progress: Progress = unwatched,
) -> tuple[list[Question], list[Answer], list[Verdict]]:
    """One verdict a claim, in the order of the claims, with all questions and answers behind them."""
    # Questions depend on the instruction; one list for each episode keeps episodes independent of their shard.
    asked = list(dict.fromkeys((claim.episode_id, part) for claim in claims for part in steps_of(claim.instruction)))
    looked_at = {
        (claim.episode_id, part): claim.frame_index for claim in claims for part in steps_of(claim.instruction)
    }
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
        pairs: list[tuple[str, str]] = []
        for part in steps_of(claim.instruction):
            try:
                written = parse_questions(
                    lists[claim.episode_id, part].text, settings.max_questions, critic.prompt_style
                )
            except ValueError as error:
                unreadable[claim] = f"the critic's own questions cannot be read: {error}"
                break
            spoken = " ".join(f"{question} {expected}" for question, expected in written)
            missing = mentioned_objects(part) - mentioned_objects(spoken)
            if missing:
                unreadable[claim] = f"the critic's own questions do not ask about: {', '.join(sorted(missing))}"
                break
            pairs += [pair for pair in written if pair not in pairs]
        if claim in unreadable:
            continue
        groups[claim] = []
        for text, expected in pairs:
            things = mentioned_objects(text)
            at = shown.get((claim, next(iter(things))), claim) if len(things) == 1 else claim
            group = [make_question(at, "verification" if is_yes_no(text) else "open", text, expected)]
            if settings.paraphrases:
                group += [make_question(at, "paraphrase", *other) for other in in_other_words(text, expected)]
            groups[claim].append(group)

    questions = list(
        {question.question_id: question for parts in groups.values() for group in parts for question in group}.values()
    )
    answers = answer_questions(questions, frames, critic, part_of(progress, 0.3, 0.9))
    by_id = {answer.question_id: answer for answer in answers}

    verdicts = []
    for claim in claims:
        evidence: dict[str, Any] = {
            "by": "self-asking",
            "asked": [
                {"instruction": part, "text": reply.text, "confidence": round(reply.confidence, 6)}
                for part in steps_of(claim.instruction)
                for reply in (lists[claim.episode_id, part],)
            ],
        }
        if claim in unreadable:
            evidence["questions"] = []
            verdicts.append(
                verdict_row(claim, "unsure", 0.0, evidence, unreadable[claim], critic.revision, accepted=False)
            )
            continue
        side, confidence, entries, reason = _judge(claim, groups[claim], by_id, settings)
        evidence["questions"] = entries
        verdicts.append(
            verdict_row(claim, side, confidence, evidence, reason, critic.revision, accepted=side != "unsure")
        )
    return questions, answers, verdicts


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
            entry_of(question, answers[question.question_id], number, vote)
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
            make_question(replace(claim, frame_index=index), "verification", SEEN_QUESTION.format(name), "yes"),
        )
        for claim in claims
        if len(steps_of(claim.instruction)) > 1
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
