"""Labels by the truth: right, and out of reach for whoever did not ask for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from selu.config import HindsightSettings, SelfAskingSettings
from selu.errors import TerminalError
from selu.frames import FrameTable
from selu.questions import Claim
from selu.rounds import Workspace
from selu.store import ArtifactRef, OracleRef
from selu.tasks.oracle_labels import contrast_by_truth, label_by_truth, true_contrasts, true_relabels, true_verdicts
from selu.tasks.stages import Shard
from tests.scripted_model import make_episode

EPISODE, STEPS, FRAMES = make_episode(
    "e", "pick up the mug", ["Open(Fridge)", "PickUp(Apple)", "Open(Drawer)", "Done"], [10, 20, 30, 30, 30]
)


def _facts(*, opened: list[str], held: list[str], in_view: Sequence[str] | None = ("Apple", "Fridge", "Mug")) -> str:
    nothing = ("closed", "on", "off", "broken", "sliced", "dirty", "clean", "filled", "empty", "inside")
    seen = {} if in_view is None else {"in_view": list(in_view)}
    return json.dumps({**{name: [] for name in nothing}, "open": opened, "held": held, **seen})


# The drawer would not open.
FACTS = {
    ("e", 0): _facts(opened=[], held=[]),
    ("e", 1): _facts(opened=["Fridge"], held=[]),
    **{("e", index): _facts(opened=["Fridge"], held=["Apple"]) for index in (2, 3, 4)},
}


def test_verdicts_are_the_truth_and_say_so() -> None:
    claims = [
        Claim("e", 4, "pick up the mug"),
        Claim("e", 4, "pick up the apple"),
        Claim("e", 0, "open the fridge"),
        Claim("e", 0, "make dinner"),
    ]
    verdicts = true_verdicts(claims, [EPISODE], {"e": False}, FACTS)
    assert [(row.instruction, row.verdict) for row in verdicts] == [
        ("pick up the mug", "no"),
        ("pick up the apple", "yes"),
        ("open the fridge", "no"),
    ]
    assert all(row.accepted and json.loads(row.evidence)["by"] == "oracle" for row in verdicts)
    # The user's own instruction, whose goal nobody knows.
    assert true_verdicts(claims[:1], [EPISODE], {"e": None}, FACTS) == []


@pytest.mark.parametrize("two_step", [True, False])
def test_relabels_are_what_the_actor_did_achieve(two_step: bool) -> None:
    questions, answers, relabels = true_relabels(
        [EPISODE], STEPS, FrameTable(FRAMES), {"e": False}, FACTS, two_step=two_step, partial=False
    )
    single = [("open the fridge", 1), ("pick up the apple", 2)]
    double = [("open the fridge and then pick up the apple", 2)] if two_step else []
    assert [(row.instruction, row.frame_index) for row in relabels] == single + double
    # The frame before is the critic's hardest "no".
    entries = [json.loads(row.evidence)["questions"][0] for row in relabels]
    assert [entry["frame_index"] for entry in entries[:2]] == [0, 1]
    assert {question.expected for question in questions} == {"no"}
    assert {answer.question_id for answer in answers} == {entry["question_id"] for entry in entries}
    assert (
        true_relabels([EPISODE], STEPS, FrameTable(FRAMES), {"e": True}, FACTS, two_step=two_step, partial=True)[2]
        == []
    )


def test_a_good_beginning_is_the_part_done_and_the_walk_to_the_next() -> None:
    told = "open the fridge and then pick up the mug"
    episode, steps, frames = make_episode("e", told, ["Open(Fridge)", "Approach(Mug)", "Done"], [10, 20, 30, 30])

    def beginning(in_view: list[str], opened: list[str]) -> list[tuple[str, int]]:
        later = json.loads(_facts(opened=opened, held=[])) | {"in_view": in_view}
        facts = {("e", 0): FACTS["e", 0], **{("e", index): json.dumps(later) for index in (1, 2, 3)}}
        _, _, rows = true_relabels(
            [episode], steps, FrameTable(frames), {"e": False}, facts, two_step=True, partial=True
        )
        assert all(row.instruction == told for row in rows if row.partial)
        return [(row.instruction, row.frame_index) for row in rows if row.partial]

    assert beginning(["Mug"], ["Fridge"]) == [(told, 2)]
    assert beginning([], ["Fridge"]) == [(told, 1)]
    assert beginning(["Mug"], []) == []


def test_contrasts_are_of_both_kinds_and_nothing_twice() -> None:
    texts = ["open the fridge", "pick up the apple", "pick up the mug"]
    told = {Claim("e", 4, "pick up the mug")}
    claims = true_contrasts([EPISODE], FrameTable(FRAMES), told, FACTS, instructions=texts, per_episode=6, seed=0)
    assert not told & set(claims)
    verdicts = true_verdicts(claims, [EPISODE], {"e": False}, FACTS)
    assert sorted(row.verdict for row in verdicts) == ["no"] * 3 + ["yes"] * 3


def test_contrasts_are_about_what_a_picture_shows() -> None:
    facts = {key: _facts(opened=["Fridge"], held=["Apple"], in_view=["Fridge"]) for key in FACTS}
    texts = ["open the fridge", "pick up the apple", "pick up the mug", "put the apple in the sink"]
    claims = true_contrasts([EPISODE], FrameTable(FRAMES), set(), facts, instructions=texts, per_episode=40, seed=0)
    # The mug is nowhere in view, and neither is the sink; what is in the hand need not be.
    assert {claim.instruction for claim in claims} == {"open the fridge", "pick up the apple"}
    # Of a world that does not tell what is in view, everything may be asked.
    untold = {key: _facts(opened=["Fridge"], held=["Apple"], in_view=None) for key in FACTS}
    everything = true_contrasts(
        [EPISODE], FrameTable(FRAMES), set(), untold, instructions=texts, per_episode=40, seed=0
    )
    assert {claim.instruction for claim in everything} == set(texts)


def test_nobody_gets_them_without_asking_for_them_by_name(tmp_path: Path) -> None:
    workspace, shard = Workspace(data_dir=tmp_path), Shard(stage="labels")
    ref, truth = ArtifactRef(kind="episodes", key="0a", digest=""), OracleRef(kind="oracle", key="0a", digest="")
    for by in ("self_asking", "direct", "voting", "refinement"):
        settings = SelfAskingSettings.model_validate({"by": by})
        with pytest.raises(TerminalError, match="upper bound"):
            label_by_truth.fn(workspace, shard, ref, ref, truth, settings, HindsightSettings())
        with pytest.raises(TerminalError, match="upper bound"):
            contrast_by_truth.fn(workspace, shard, ref, ref, truth, ref, [ref], settings, 0)
