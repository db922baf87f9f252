"""Verdicts on trajectories: who judges, and what evidence a verdict needs to be accepted.

SELU's critic asks itself (:mod:`selu.self_asking`); baselines and ablations judge otherwise (`self_asking.by`; how each
was carried over is said in its file in ``selu/methods``). Beside the critic's answers, two things may be asked of a label:
that the direct verdict says the same, and that the actor did something that could have done it (:mod:`selu.deeds`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from selu.config import SelfAskingSettings
from selu.deeds import Deed, could_have_done, deed_that_did, deeds_of
from selu.errors import TerminalError
from selu.frames import FrameTable, steps_by_episode
from selu.judging import Said, direct_verdicts, majority_verdicts, refined_verdict
from selu.models.base import VisionLanguageModel
from selu.prompting import verdict_prompt
from selu.questions import Claim, Progress, digest, entry_of, in_units, make_question, unwatched, verdict_row
from selu.records import Answer, Episode, Frame, Judgement, Question, Step, Verdict
from selu.self_asking import judge_by_asking

__all__ = ["ask", "judge_claims"]


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
    by_episode = steps_by_episode(steps or ())
    if settings.by == "deeds":
        judged = [_judge_by_deeds(claim, by_episode.get(claim.episode_id, []), table, critic) for claim in claims]
        return [], [], sorted(judged, key=lambda row: (row.episode_id, row.frame_index, row.instruction))
    questions, answers, verdicts = judge_claims(
        claims, table, critic, settings, agree_with_direct=agree_with_direct, progress=shares
    )
    if steps is not None and settings.deeds:
        verdicts = [_weigh_deeds(verdict, by_episode.get(verdict.episode_id, []), table) for verdict in verdicts]
    return questions, answers, verdicts


def _shown(deeds: Sequence[Deed]) -> list[dict[str, object]]:
    return [{"step": deed.step, "action": deed.action} for deed in deeds if deed.seen]


def _judge_by_deeds(claim: Claim, steps: Sequence[Step], frames: FrameTable, critic: VisionLanguageModel) -> Verdict:
    """What the actor did, taken for what was done; the critic is not asked (an ablation)."""
    deeds = deeds_of((step for step in steps if step.step < claim.frame_index), frames)
    able = could_have_done(claim.instruction, deeds)
    side: Judgement = "unsure" if able is None else "yes" if able else "no"
    evidence = {"by": "deeds", "questions": [], "deeds": _shown(deeds)} | _doing(claim.instruction, deeds)
    reason = "what the actor did, and nothing else"
    return verdict_row(claim, side, 1.0, evidence, reason, critic.revision, accepted=able is not None)


def _doing(instruction: str, deeds: Sequence[Deed]) -> dict[str, int]:
    """Evidence: the step that did it, if one did."""
    deed = deed_that_did(instruction, deeds)
    return {} if deed is None else {"done_by_step": deed.step}


def _weigh_deeds(verdict: Verdict, steps: Sequence[Step], frames: FrameTable) -> Verdict:
    """The verdict with what the actor did as one more piece of evidence.

    Without a deed that could have done it, no "yes" is accepted. With one, a single way of asking that says "yes", or
    that is unsure, is enough; only where every way says "no" is there a contradiction, which is left to nobody to learn.
    What the critic's answers alone say stays in the evidence (`answers_say`).
    """
    deeds = deeds_of((step for step in steps if step.step < verdict.frame_index), frames)
    able = could_have_done(verdict.instruction, deeds)
    if able is None:
        return verdict
    evidence = json.loads(verdict.evidence)
    evidence |= {"deeds": _shown(deeds), "answers_say": verdict.verdict} | _doing(verdict.instruction, deeds)
    direct = {entry["answer"]: entry["confidence"] for entry in evidence["questions"] if entry["group"] == -1}
    side, accepted, reason, confidence = verdict.verdict, verdict.accepted, verdict.reason, verdict.confidence
    if not able:
        if side == "yes":
            accepted, reason = False, f"nothing that the actor did and that could be seen would have done it; {reason}"
    elif side == "no" and "yes" not in direct:
        accepted, reason = False, f"the actor did what could have done it, but {reason}"
    elif side != "yes" or not accepted:
        side, accepted, reason = "yes", True, f"the actor did what could have done it, although {reason}"
        confidence = direct.get("yes", confidence)
    return verdict_row(
        Claim(verdict.episode_id, verdict.frame_index, verdict.instruction),
        side,
        confidence,
        {key: value for key, value in evidence.items() if key != "critic"},
        reason,
        evidence["critic"],
        accepted,
    )


def judge_claims(
    claims: Sequence[Claim],
    frames: FrameTable,
    critic: VisionLanguageModel,
    settings: SelfAskingSettings,
    *,
    agree_with_direct: bool = False,
    progress: Progress = unwatched,
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
    questions, answers, verdicts = judge_by_asking(claims, frames, critic, settings, progress)
    if agree_with_direct:
        more_questions, more_answers, verdicts = _confirm_directly(claims, verdicts, frames, critic)
        questions, answers = questions + more_questions, answers + more_answers
    return questions, answers, verdicts


def _direct_question(claim: Claim, said: Said, critic: VisionLanguageModel) -> tuple[Question, Answer]:
    """The direct verdict as a question and its answer."""
    side, confidence = said
    question = make_question(claim, "direct", verdict_prompt(claim.instruction, critic.prompt_style), "yes")
    return question, Answer(question_id=question.question_id, text=side, confidence=confidence, critic=critic.revision)


def _confirm_directly(
    claims: Sequence[Claim], verdicts: Sequence[Verdict], frames: FrameTable, critic: VisionLanguageModel
) -> tuple[list[Question], list[Answer], list[Verdict]]:
    """Takes acceptance away from verdicts that the direct verdict contradicts; adds it to the evidence of all."""
    judged = direct_verdicts(
        [((frames.picture(claim.episode_id, claim.frame_index),), claim.instruction) for claim in claims], critic
    )
    questions, answers, confirmed = [], [], []
    for claim, verdict, (side, confidence) in zip(claims, verdicts, judged, strict=True):
        question, answer = _direct_question(claim, (side, confidence), critic)
        evidence = json.loads(verdict.evidence)
        evidence["questions"].append(entry_of(question, answer, -1, side))
        contradicted = verdict.accepted and side != verdict.verdict
        confirmed.append(
            verdict_row(
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
        question, answer = _direct_question(claim, (side, confidence), critic)
        sure = confidence >= settings.confidence
        verdicts.append(
            verdict_row(
                claim,
                side if sure else "unsure",
                confidence,
                {"by": settings.by, "questions": [entry_of(question, answer, 0, side if sure else "unsure")]},
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
    questions, answers, feedback = judge_by_asking(claims, frames, critic, once, progress)
    verdicts = []
    for claim, first, told in zip(claims, judged, feedback, strict=True):
        question, answer = _direct_question(claim, first, critic)
        evidence = json.loads(told.evidence)
        evidence |= {
            "by": "refinement",
            "questions": [*evidence["questions"], entry_of(question, answer, -1, first[0])],
        }
        side, confidence = refined_verdict(first, told.verdict, told.confidence)
        sure = confidence >= settings.confidence
        change = f"kept at '{side}'" if side == first[0] else f"revised from '{first[0]}' to '{side}'"
        verdicts.append(
            verdict_row(
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
