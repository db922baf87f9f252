"""The critic's training rows: verdicts, its own lists of questions, agreed answers.

A critic may answer from the instruction alone, if that says more about the label than the picture does: so rows are
balanced for each instruction, not only overall. And one that is trained on its own answers alone forgets: so a share of
rows rehearses the base model's frozen corpus.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from selu.config import DatasetSettings
from selu.corpus_pictures import CORPUS
from selu.datasets.rows import Row, assemble, own_room, rank, take
from selu.frames import FrameTable
from selu.prompting import PromptStyle, ask_prompt, is_yes_no, question_prompt, verdict_prompt
from selu.records import Answer, Episode, Frame, Question, Relabel, Verdict

__all__ = ["critic_rows"]

OnCorpus = tuple[Sequence[Episode], Sequence[Frame], Sequence[Verdict]]
"""Pictures of the corpus (:func:`selu.corpus_pictures.corpus_pictures`) and the critic's verdicts on them."""

_BEFORE = frozenset({"before_relabel", "before_deed"})


def critic_rows(
    episodes: Sequence[Episode],
    frames: Iterable[Frame],
    questions: Iterable[Question],
    answers: Iterable[Answer],
    verdicts: Sequence[Verdict],
    relabels: Sequence[Relabel],
    settings: DatasetSettings,
    *,
    seed: int,
    style: PromptStyle = "brief",
    replay: datasets.Dataset | None = None,
    previous: datasets.Dataset | None = None,
    on_corpus: OnCorpus = ((), (), ()),
) -> datasets.Dataset:
    """The critic's training rows, as :data:`FEATURES` says, in seeded order.

    Verdict rows (`yes` and `no`, balanced for each instruction), then as a share of as many the critic's own lists of
    questions (half of it at most) and agreed answers to them, then `previous` rows while there is room, then `replay`
    rows at the share `settings.replay`. Verdicts under any instruction count, not only an episode's own. `style` is that
    of the critic's prompts. `replay` and `previous` need the columns prompt, completion and images. Verdicts `on_corpus` are
    balanced for each instruction by themselves, so that whether a picture was played or not tells no label, and are rows beside
    all these.
    """
    known, table = {episode.episode_id: episode for episode in episodes}, FrameTable(frames)
    asked = {question.question_id: question for question in questions}
    answered = {answer.question_id: answer for answer in answers}
    room = own_room(settings)
    judged = _consistent(_verdict_rows(known, table, asked, verdicts, relabels, style))
    units = _balanced(judged, settings.negatives_per_positive, seed, repeats=settings.repeats)
    own = take(units, int(room / (1 + settings.questions_per_verdict)))

    agreed = _consistent(_question_rows(known, table, asked, answered, verdicts, relabels, style))
    closed = _balanced([row for row in agreed if is_yes_no(row.prompt)], 1.0, seed)
    opened = [[row] for row in agreed if not is_yes_no(row.prompt)]
    units = sorted(closed + opened, key=lambda unit: _row_rank(seed, unit[0]))
    share = min(room - len(own), int(settings.questions_per_verdict * len(own)))
    asking = sorted(_asking_rows(known, table, verdicts, style), key=lambda row: _row_rank(seed, row))
    own += take([[row] for row in asking], share // 2)
    own += take(units, share - min(len(asking), share // 2))
    return assemble(own, settings, seed, replay, previous, _corpus_rows(on_corpus, settings, seed, style))


def _corpus_rows(on_corpus: OnCorpus, settings: DatasetSettings, seed: int, style: PromptStyle) -> list[Row]:
    episodes, frames, verdicts = on_corpus
    known = {episode.episode_id: episode for episode in episodes}
    judged = _consistent(_verdict_rows(known, FrameTable(frames), {}, verdicts, (), style))
    units = _balanced(judged, settings.negatives_per_positive, seed)
    return [dataclasses.replace(row, source=CORPUS) for unit in units for row in unit]


def _row_rank(seed: int, row: Row) -> str:
    return rank(seed, row.episode.episode_id, row.frame_index, row.prompt, row.completion)


def _consistent(rows: Iterable[Row]) -> list[Row]:
    """One row a sight; sights that got more than one completion are left out altogether."""
    by_sight: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_sight.setdefault(row.sight, []).append(row)
    return [same[0] for same in by_sight.values() if len({row.completion for row in same}) == 1]


def _balanced(rows: Sequence[Row], negatives_per_positive: float, seed: int, *, repeats: int = 1) -> list[list[Row]]:
    """Units of one `yes` row and its share of `no` rows about the same prompt, in seeded order.

    What a prompt has too many of is left out, so that it gives its label away as little as the data allow; but a `yes`
    row may come up to `repeats` times, each with other `no` rows, of which there are many more: they show what "done"
    hangs on. Hard negatives come first: the frame right before the goal was reached, then in turn pictures in which the
    like was done to another thing (so that the picture does not give the label away either) and any others. A ratio of 0
    keeps all `yes` rows and no other.
    """
    by_prompt: dict[str, tuple[list[Row], list[Row]]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, ([], []))[row.completion == "no"].append(row)
    done_there = {(row.deed, row.image) for row in rows if row.completion == "yes"}
    units = []
    for positives, negatives in by_prompt.values():
        positives.sort(key=lambda row: _row_rank(seed, row))
        negatives = _in_turn(sorted(negatives, key=lambda row: _row_rank(seed, row)), done_there)
        count = len(positives)
        if negatives_per_positive > 0:
            negatives = negatives[: round(count * repeats * negatives_per_positive)]
            count = min(count * repeats, math.ceil(len(negatives) / negatives_per_positive))
        else:
            negatives = []
        units += [
            (place // len(positives), [positives[place % len(positives)], *negatives[place::count]])
            for place in range(count)
        ]
    # Nothing comes again before everything came once.
    return [unit for _, unit in sorted(units, key=lambda item: (item[0], _row_rank(seed, item[1][0])))]


def _in_turn(negatives: Sequence[Row], done_there: set[tuple[str, bytes]]) -> list[Row]:
    before = [row for row in negatives if row.source in _BEFORE]
    rest = [row for row in negatives if row.source not in _BEFORE]
    siblings = [row for row in rest if (row.deed, row.image) in done_there]
    others = [row for row in rest if (row.deed, row.image) not in done_there]
    turns = itertools.chain.from_iterable(itertools.zip_longest(siblings, others))
    return [*before, *(row for row in turns if row is not None)]


def _verdict_rows(
    episodes: Mapping[str, Episode],
    frames: FrameTable,
    questions: Mapping[str, Question],
    verdicts: Iterable[Verdict],
    relabels: Iterable[Relabel],
    style: PromptStyle,
) -> list[Row]:
    """Every accepted `yes` or `no` about an instruction and a frame, relabels first."""

    def row(episode_id: str, frame_index: int, instruction: str, label: str, source: str, **ids: str) -> Row:
        image = frames.image(episode_id, frame_index)
        episode = episodes[episode_id]
        prompt = verdict_prompt(instruction, style)
        return Row(prompt, label, image, source, episode, instruction, frame_index, **ids)

    rows = []
    for relabel in relabels:
        if not relabel.accepted or relabel.partial:
            continue
        evidence = json.loads(relabel.evidence)
        ids = {"relabel_id": relabel.relabel_id, "critic": evidence["critic"]}
        rows.append(row(relabel.episode_id, relabel.frame_index, relabel.instruction, "yes", "relabel", **ids))
        before = [
            entry["frame_index"]
            for entry in evidence["questions"]
            if entry["frame_index"] < relabel.frame_index
            and entry["spoke_for"] == "yes"
            and questions[entry["question_id"]].expected == "no"
        ]
        if before:
            rows.append(row(relabel.episode_id, max(before), relabel.instruction, "no", "before_relabel", **ids))
    for verdict in verdicts:
        if verdict.accepted and verdict.verdict != "unsure":
            evidence = json.loads(verdict.evidence)
            ids = {"verdict_id": verdict.verdict_id, "critic": evidence["critic"]}
            where = verdict.episode_id, verdict.frame_index
            rows.append(row(*where, verdict.instruction, verdict.verdict, "verdict", **ids))
            if verdict.verdict == "yes" and "done_by_step" in evidence:
                before = evidence["done_by_step"]
                rows.append(row(verdict.episode_id, before, verdict.instruction, "no", "before_deed", **ids))
    return rows


def _asking_rows(
    episodes: Mapping[str, Episode], frames: FrameTable, verdicts: Iterable[Verdict], style: PromptStyle
) -> list[Row]:
    """The critic's own lists of questions, one for each one-step instruction, that led to an accepted verdict.

    Without them it would forget how to ask while it learns to answer.
    """
    rows: dict[str, Row] = {}
    for verdict in verdicts:
        evidence = json.loads(verdict.evidence)
        for asked in evidence.get("asked", []) if verdict.accepted else []:
            if asked["instruction"] not in rows:
                rows[asked["instruction"]] = Row(
                    ask_prompt(asked["instruction"], style),
                    asked["text"],
                    frames.image(verdict.episode_id, verdict.frame_index),
                    "asking",
                    episodes[verdict.episode_id],
                    asked["instruction"],
                    verdict.frame_index,
                    evidence["critic"],
                    verdict_id=verdict.verdict_id,
                )
    return list(rows.values())


def _question_rows(
    episodes: Mapping[str, Episode],
    frames: FrameTable,
    questions: Mapping[str, Question],
    answers: Mapping[str, Answer],
    verdicts: Iterable[Verdict],
    relabels: Iterable[Relabel],
    style: PromptStyle,
) -> list[Row]:
    """Answers to the critic's own questions that several ways of asking agree on."""
    agreed: dict[str, tuple[str, str]] = {}
    for verdict in verdicts:
        if not verdict.accepted:
            continue
        groups: dict[int, list[dict[str, Any]]] = {}
        for entry in json.loads(verdict.evidence)["questions"]:
            groups.setdefault(entry["group"], []).append(entry)
        for entries in groups.values():
            sides = {entry["spoke_for"] for entry in entries}
            if len(entries) > 1 and len(sides) == 1 and "unsure" not in sides:
                agreed.update((entry["question_id"], (verdict.verdict_id, "")) for entry in entries)
    for relabel in relabels:
        if relabel.accepted and not relabel.partial:
            entries = json.loads(relabel.evidence)["questions"]
            agreed.update((entry["question_id"], ("", relabel.relabel_id)) for entry in entries)
    rows = []
    for question_id, (verdict_id, relabel_id) in sorted(agreed.items()):
        question, answer = questions[question_id], answers[question_id]
        if question.kind == "direct":
            continue
        rows.append(
            Row(
                question_prompt(question.text, style),
                answer.text,
                frames.image(question.episode_id, question.frame_index),
                "question",
                episodes[question.episode_id],
                question.instruction,
                question.frame_index,
                answer.critic,
                question_id=question_id,
                verdict_id=verdict_id,
                relabel_id=relabel_id,
            )
        )
    return rows
