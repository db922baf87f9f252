"""The episodes of a round as film strips, with what the critic made of them and the truth beside it.

Episodes are chosen by the order of their ids, which are hashes: nobody picked the pretty ones.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from selu.errors import ArtifactError, first_line
from selu.evaluation import MetricRow, truth_of_instruction
from selu.records import Episode, Frame, OracleEpisode, OracleStep, Question, Record, Relabel, Step, Verdict
from selu.reporting.views import (
    Asked,
    Confusion,
    DatasetView,
    Film,
    Group,
    Labels,
    Pair,
    Picture,
    RelabelView,
    VerdictView,
)
from selu.rounds import Round, find_metric
from selu.store import ArtifactRef, OracleRef, Store, read_table

__all__ = ["Practice", "kind_of_reason", "picture_uri", "read_columns"]

_R = TypeVar("_R", bound=Record)
_FILMS_OF_A_KIND = 3
_MOST_PICTURES = 14
# The embedded world's frames are 96 pixels wide and stay as they are; a real simulator's would make the file too heavy.
_WIDEST_PICTURE = 128


def read_all(store: Store, refs: Iterable[ArtifactRef], table: str, kind: type[_R]) -> list[_R]:
    return [row for ref in refs for row in read_table(store.path(ref) / f"{table}.parquet", kind)]


def read_columns(path: Path, columns: Sequence[str], *, filters: Any = None) -> list[dict[str, Any]]:
    """Some columns of a Parquet file.

    Raises:
        ArtifactError: it is missing or no readable Parquet.
    """
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, columns=list(columns), filters=filters).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} cannot be read: {first_line(error)}") from error
    return rows


class Practice:
    """The episodes of a round with everything that was said about them, and the truth."""

    def __init__(self, store: Store, finished: Round) -> None:
        self.store, self.finished = store, finished
        self.episodes: dict[str, Episode] = {}
        self._shard_of: dict[str, ArtifactRef] = {}
        for ref in finished.episodes:
            for episode in read_table(store.path(ref) / "episodes.parquet", Episode):
                self.episodes[episode.episode_id], self._shard_of[episode.episode_id] = episode, ref
        self.steps: dict[str, list[Step]] = {}
        for step in read_all(store, finished.episodes, "steps", Step):
            self.steps.setdefault(step.episode_id, []).append(step)
        self.looked_at = {
            (row["episode_id"], row["frame_index"])
            for ref in finished.frames
            for row in read_columns(store.path(ref) / "selected_frames.parquet", ["episode_id", "frame_index"])
        }
        first = (finished.judgements, finished.relabels)
        again = (finished.rejudgements, finished.rerelabels)
        self.before = _Judging(store, *first, self.episodes)
        self.after = _Judging(store, *again, self.episodes)
        self._read_truth(finished.oracle)

    def _read_truth(self, refs: Sequence[OracleRef]) -> None:
        self.oracle_steps: dict[tuple[str, int], OracleStep] = {}
        self.truth: dict[str, bool | None] = {}
        for ref in refs:
            folder = self.store.path(ref)
            for step in read_table(folder / "oracle_steps.parquet", OracleStep):
                self.oracle_steps[step.episode_id, step.frame_index] = step
            for row in read_table(folder / "oracle_episodes.parquet", OracleEpisode):
                self.truth[row.episode_id] = row.success

    def _truth_of(self, episode_id: str, frame_index: int, instruction: str) -> bool | None:
        step = self.oracle_steps.get((episode_id, frame_index))
        return None if step is None else truth_of_instruction(instruction, step.facts)

    def _relabel_truth(self, row: Relabel) -> bool | None:
        return self._truth_of(row.episode_id, row.frame_index, row.instruction)

    def facts(self, datasets: Sequence[DatasetView]) -> tuple[tuple[str, str], ...]:
        """Round figures of what was done."""
        asked = len(self.before.questions) + len(self.after.questions)
        scenes = len({row.scene for row in self.episodes.values()})
        return (
            ("episodes", f"{len(self.episodes):,}"),
            ("rooms", f"{scenes:,}"),
            ("actions", f"{sum(map(len, self.steps.values())):,}"),
            ("questions it asked itself", f"{asked:,}"),
            ("training rows", f"{sum(dataset.rows for dataset in datasets):,}"),
            ("human labels", "0"),
        )

    # Film strips

    def pairs(self) -> tuple[Pair, ...]:
        """Right and wrong labels of the critic that was taken into use beside each other."""
        shown: set[str] = set()
        relabels: dict[bool, dict[str, None]] = {True: {}, False: {}}
        for row in sorted(self.after.relabels, key=lambda row: (row.episode_id, row.frame_index, row.relabel_id)):
            if row.accepted and not row.partial and row.episode_id in self.episodes:
                relabels[self._relabel_truth(row) is True].setdefault(row.episode_id)
        verdicts: dict[tuple[str, bool | None], list[str]] = {}
        for episode_id in sorted(self.episodes):
            verdict = self.after.own.get(episode_id)
            said = verdict.verdict if verdict is not None and verdict.accepted else "unsure"
            verdicts.setdefault((said, self.truth.get(episode_id)), []).append(episode_id)

        # One that was relabeled did teach something.
        relabeled = {*relabels[True], *relabels[False]}
        aside = [
            item for done in (False, True, None) for item in verdicts.get(("unsure", done), []) if item not in relabeled
        ]

        def group(title: str, tone: Literal["right", "wrong", "unsure"], ids: Iterable[str]) -> Group:
            ids = list(ids)
            chosen = sorted(ids, key=lambda item: (item in shown, item))[:_FILMS_OF_A_KIND]
            shown.update(chosen)
            return Group(title, tone, len(ids), tuple(self._film(item) for item in chosen))

        def untold(said: str) -> tuple[Group, ...]:
            ids = verdicts.get((said, None), [])
            return (group("Nobody can tell: the goal of the instruction is unknown", "unsure", ids),) if ids else ()

        return (
            Pair(
                "“Done”",
                "The critic accepted the episode under its own instruction. The actor learns from all of these.",
                (
                    group("It was done", "right", verdicts.get(("yes", True), [])),
                    group("It was not", "wrong", verdicts.get(("yes", False), [])),
                    *untold("yes"),
                ),
            ),
            Pair(
                "Relabeled in hindsight",
                "The instruction was missed, but the critic found out what was achieved instead. The actor learns from "
                "these too, up to the picture in which it was achieved.",
                (
                    group("It did achieve that", "right", relabels[True]),
                    group("It did not", "wrong", relabels[False]),
                ),
            ),
            Pair(
                "“Not done”",
                "The critic rejected the episode under its own instruction.",
                (
                    group("It was not done", "right", verdicts.get(("no", False), [])),
                    group("It was, and the critic missed it", "wrong", verdicts.get(("no", True), [])),
                    *untold("no"),
                ),
            ),
            Pair(
                "No label",
                "Its ways of asking disagreed, or it was not sure enough: no verdict is learned. A good start still teaches its "
                "steps.",
                (group("Left aside", "unsure", aside),),
            ),
        )

    def _film(self, episode_id: str) -> Film:
        episode = self.episodes[episode_id]
        rows = sorted(
            (row for row in self.after.relabels if row.episode_id == episode_id),
            key=lambda row: (row.frame_index, row.instruction, row.relabel_id),
        )
        views = [(row.partial, self.after.relabel_view(row, self._relabel_truth(row))) for row in rows]
        steps = sorted(self.steps.get(episode_id, []), key=lambda step: step.step)
        refused = []
        for step in steps:
            result = self.oracle_steps.get((episode_id, step.step + 1))
            if result is not None and step.well_formed and not result.action_success:
                refused.append((step.step, step.action, result.error_message))
        achieved = {row.frame_index for row in rows if row.accepted}
        return Film(
            episode=episode,
            pictures=tuple(self._pictures(episode, steps, achieved)),
            verdict=self.after.verdict_view(episode_id),
            earlier=self.before.verdict_view(episode_id) if self.finished.critic_candidate is not None else None,
            relabels=tuple(view for partial, view in views if view.accepted and not partial),
            starts=tuple(view for partial, view in views if view.accepted and partial),
            rejected=tuple(view for _, view in views if not view.accepted),
            truth=self.truth.get(episode_id),
            refused=tuple(refused),
        )

    def _pictures(self, episode: Episode, steps: Sequence[Step], achieved: set[int]) -> list[Picture]:
        wanted = _most_telling(
            episode.length, {index for owner, index in self.looked_at if owner == episode.episode_id} | achieved
        )
        images = self._images(episode.episode_id)
        actions = {step.step: step for step in steps}
        found: list[Picture] = []
        last = -1
        for index in wanted:
            if index - last > 1:
                found.append(Picture(index, "", None, True, False, False, skipped=index - last - 1))
            step = actions.get(index)
            found.append(
                Picture(
                    index=index,
                    image=images.get(index, ""),
                    action=None if step is None else step.action,
                    well_formed=step is None or step.well_formed,
                    looked_at=(episode.episode_id, index) in self.looked_at,
                    achieved=index in achieved,
                )
            )
            last = index
        return found

    def _images(self, episode_id: str) -> dict[int, str]:
        path = self.store.path(self._shard_of[episode_id]) / "frames.parquet"
        rows = read_columns(path, list(Frame.model_fields), filters=[("episode_id", "==", episode_id)])
        return {row["frame_index"]: picture_uri(row["image"]) for row in rows}

    # Labels

    def labels(self, rows: Sequence[MetricRow]) -> tuple[Labels, ...]:
        """Quality of both judgings' labels."""
        return (
            self._labels(rows, "before", self.before, "The critic as it was", self._taught("critic")),
            self._labels(rows, "after", self.after, self._second_judge(), self._taught("actor")),
        )

    def _taught(self, who: Literal["actor", "critic"]) -> str:
        dataset = {"actor": self.finished.actor_dataset, "critic": self.finished.critic_dataset}[who]
        return "taught nobody" if dataset is None else f"taught the {who}"

    def _second_judge(self) -> str:
        adapter, candidate = self.finished.critic_adapter, self.finished.critic_candidate
        if candidate is None:
            return "The critic, which was not trained, once more"
        return "The improved critic" if adapter == candidate else "The critic from before, as the new one was refused"

    def _labels(self, rows: Sequence[MetricRow], phase: str, judging: _Judging, title: str, trains: str) -> Labels:
        counts: Counter[tuple[str, bool | None]] = Counter()
        for episode_id in self.episodes:
            verdict = judging.own.get(episode_id)
            said = verdict.verdict if verdict is not None and verdict.accepted else "none"
            counts[said, self.truth.get(episode_id)] += 1
        taken = [row for row in judging.relabels if row.accepted]
        accepted = Counter(self._relabel_truth(row) for row in taken if not row.partial)
        names = (
            ("coverage", "episodes that gave a “done” label"),
            ("false_rate", "“done” labels that are false"),
            ("false_rate_verdicts", "… under the own instruction"),
            ("false_rate_relabels", "… relabeled in hindsight"),
            ("false_rate_no", "“not done” labels that are false"),
            ("false_rate_critic_labels", "the critic’s labels on played episodes, contrasts included, that are false"),
        )
        figures = (
            (
                metric,
                words,
                find_metric(rows, subject="labels", phase=phase, probe="learning", method="selu", metric=metric),
            )
            for metric, words in names
        )
        return Labels(
            title=title,
            trains=trains,
            rates=tuple((metric, words, row) for metric, words, row in figures if row is not None),
            confusion=Confusion(
                yes_done=counts["yes", True],
                yes_not=counts["yes", False],
                no_done=counts["no", True],
                no_not=counts["no", False],
                none_done=counts["none", True],
                none_not=counts["none", False],
            ),
            relabels_right=accepted[True],
            relabels_wrong=accepted[False],
            relabels_unknown=accepted[None],
            starts=sum(row.partial for row in taken),
            relabels_rejected=sum(not row.accepted for row in judging.relabels),
            verdict_reasons=_reasons(row.reason for row in judging.own.values() if not row.accepted),
            relabel_reasons=_reasons(row.reason for row in judging.relabels if not row.accepted),
        )


class _Judging:
    """One judging of the round's episodes."""

    def __init__(
        self,
        store: Store,
        judgements: Sequence[ArtifactRef],
        relabels: Sequence[ArtifactRef],
        episodes: Mapping[str, Episode],
    ) -> None:
        asked = read_all(store, [*judgements, *relabels], "questions", Question)
        self.questions = {row.question_id: row for row in asked}
        self.relabels = read_all(store, relabels, "relabels", Relabel)
        self.own = {
            row.episode_id: row
            for row in read_all(store, judgements, "verdicts", Verdict)
            if row.episode_id in episodes
            and row.instruction == episodes[row.episode_id].instruction
            and row.frame_index == episodes[row.episode_id].length
        }

    def _asked(self, entries: Iterable[Mapping[str, Any]]) -> tuple[Asked, ...]:
        found = []
        for entry in entries:
            question = self.questions.get(entry["question_id"])
            if question is not None:
                found.append(
                    Asked(
                        text=question.text,
                        expected=question.expected,
                        answer=entry["answer"],
                        confidence=entry["confidence"],
                        spoke_for=entry["spoke_for"],
                        frame_index=question.frame_index,
                        kind=question.kind,
                    )
                )
        return tuple(found)

    def verdict_view(self, episode_id: str) -> VerdictView | None:
        """The verdict under an episode's own instruction, with what was asked for it."""
        row = self.own.get(episode_id)
        if row is None:
            return None
        evidence = json.loads(row.evidence)
        return VerdictView(
            verdict=row.verdict,
            confidence=row.confidence,
            accepted=row.accepted,
            reason=row.reason,
            written="; ".join(asked["text"] for asked in evidence.get("asked", [])),
            asked=self._asked(evidence["questions"]),
        )

    def relabel_view(self, row: Relabel, truth: bool | None) -> RelabelView:
        """A relabel with what was asked for it."""
        evidence = json.loads(row.evidence)
        return RelabelView(
            instruction=row.instruction,
            frame_index=row.frame_index,
            confidence=row.confidence,
            accepted=row.accepted,
            reason=row.reason,
            asked=self._asked(evidence["questions"]),
            judged_again=self._asked(evidence.get("judged_again", {}).get("questions", [])),
            truth=truth,
        )


def _most_telling(length: int, telling: set[int]) -> list[int]:
    """Indices of the frames that a strip has room for: the start, the end, and those that the critic looked at."""
    everything = range(length + 1)
    if length < _MOST_PICTURES:
        return list(everything)
    ranked = sorted(everything, key=lambda index: (index not in {0, length}, index not in telling, -index))
    return sorted(ranked[:_MOST_PICTURES])


def _reasons(texts: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Reasons for rejection as kinds with counts, most frequent first."""
    return tuple(sorted(Counter(map(kind_of_reason, texts)).items(), key=lambda item: (-item[1], item[0])))


def kind_of_reason(reason: str) -> str:
    """A reason without what is special to its episode: quoted questions and answers, figures, what follows a colon."""
    text = re.sub(r"(?<!\w)'[^']*\?'(?!\w)", "a question", reason)
    text = re.sub(r"(?<!\w)'(?!yes'|no'|unsure')[^']*'(?!\w)", "…", text)
    text = re.sub(r"\s*\([^)]*\)", "", text)
    text = text.replace(" was answered …", " was not answered as expected")
    return re.split(r": |, was ", text, maxsplit=1)[0].strip()


def picture_uri(image: bytes) -> str:
    """A picture as a data URI: as it is if it is small, else scaled down.

    Raises:
        ArtifactError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            kind = opened.format
            if kind == "PNG" and opened.width <= _WIDEST_PICTURE:
                data, media = image, "image/png"
            else:
                small = opened.convert("RGB")
                small.thumbnail((_WIDEST_PICTURE * 2, _WIDEST_PICTURE * 2))
                buffer = io.BytesIO()
                small.save(buffer, format="WEBP", quality=80)
                data, media = buffer.getvalue(), "image/webp"
    except OSError as error:
        raise ArtifactError(f"a frame of {len(image)} bytes is not a picture: {error}") from error
    return f"data:{media};base64,{base64.b64encode(data).decode()}"
