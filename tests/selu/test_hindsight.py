"""A relabel needs to be seen: no before, yes after, said openly, judged again. The rest stays with its reason."""

from __future__ import annotations

import json

import pytest

from selu.config import HindsightSettings, SelfAskingSettings
from selu.hindsight import relabel
from selu.prompting import ask_prompt
from selu.records import Episode, Frame, Relabel, Step, Verdict
from tests.scripted_model import Script, ScriptedModel, make_episode

Case = tuple[Episode, list[Step], list[Frame]]

# Told to pick up the mug; opened the drawer, closed nothing, walked, and stopped.
DRAWER = make_episode("e", "pick up the mug", ["Open(Drawer)", "MoveAhead", "Done"], [10, 20, 30, 30])
DRAWER_SCRIPT: Script = {
    (10, "Is the drawer open?"): "no",
    (20, "Is the drawer open?"): "yes",
    (20, "Is the drawer closed?"): "no",
    (20, "What is open?"): "drawer",
    (None, ask_prompt("open the drawer")): "Is the drawer open? yes",
}


def _relabel(
    script: Script, *, case: Case = DRAWER, verdicts: tuple[Verdict, ...] = (), deeds: bool = True, **settings: object
) -> list[Relabel]:
    episode, steps, frames = case
    model = ScriptedModel(script)
    hindsight = HindsightSettings.model_validate(settings)
    questions, answers, relabels = relabel(
        [episode], steps, frames, verdicts, model, hindsight, SelfAskingSettings(deeds=deeds)
    )
    assert [question.question_id for question in questions] == [answer.question_id for answer in answers]
    known = {question.question_id for question in questions}
    for row in relabels:
        assert {entry["question_id"] for entry in json.loads(row.evidence)["questions"]} <= known
    return relabels


def test_a_seen_change_becomes_the_instruction_it_achieved() -> None:
    (row,) = _relabel(DRAWER_SCRIPT)
    assert (row.instruction, row.frame_index, row.accepted) == ("open the drawer", 1, True)
    assert row.original_instruction == "pick up the mug"
    evidence = json.loads(row.evidence)
    assert [entry["frame_index"] for entry in evidence["questions"]] == [0, 1, 1]
    assert evidence["judged_again"]["verdict"] == "yes"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({(10, "Is the drawer open?"): "yes"}, "must be a sure 'no' before the action, was 'yes'"),
        ({(10, "Is the drawer open?"): ("no", 0.6)}, "must be a sure 'no' before the action, was 'no' (0.60)"),
        ({(20, "Is the drawer open?"): "no"}, "must be a sure 'yes' after the action"),
        ({(20, "What is open?"): "fridge"}, "'What is open?' was answered 'fridge'"),
        ({(20, "Is the drawer closed?"): "yes"}, "judged again"),
        ({(None, ask_prompt("open the drawer")): "garbled"}, "judged again"),
    ],
)
def test_each_missing_piece_of_evidence_rejects_and_says_which(change: Script, reason: str) -> None:
    (row,) = _relabel({**DRAWER_SCRIPT, **change}, deeds=False)
    assert not row.accepted
    assert reason in row.reason


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({(10, "Is the drawer open?"): ("no", 0.6)}, True),
        ({(20, "Is the drawer open?"): ("yes", 0.6)}, True),
        ({(10, "Is the drawer open?"): ("no", 0.6), (20, "Is the drawer open?"): ("yes", 0.6)}, False),
        ({(20, "Is the drawer open?"): "no"}, False),
        ({(20, "What is open?"): "fridge"}, False),
        ({(None, ask_prompt("open the drawer")): "garbled"}, True),
        ({(None, ask_prompt("open the drawer")): "Is the drawer closed? yes"}, False),
    ],
)
def test_upon_a_deed_answers_may_be_unsure_but_not_contrary(change: Script, accepted: bool) -> None:
    (row,) = _relabel({**DRAWER_SCRIPT, **change})
    assert row.accepted is accepted, row.reason


def test_nothing_is_asked_about_an_action_that_changed_no_pixel() -> None:
    (row,) = _relabel({}, case=make_episode("e", "pick up the mug", ["Open(Drawer)"], [10, 10]))
    assert (row.accepted, row.reason) == (False, "the picture did not change")


def test_an_episode_that_did_what_it_was_told_is_left_alone() -> None:
    verdict = Verdict(
        verdict_id="v",
        episode_id="e",
        frame_index=3,
        instruction="pick up the mug",
        verdict="yes",
        confidence=0.9,
        evidence="{}",
        accepted=True,
        reason="",
    )
    assert _relabel({}, verdicts=(verdict,)) == []
    assert len(_relabel(DRAWER_SCRIPT, verdicts=(verdict.model_copy(update={"accepted": False}),))) == 1


def test_off_means_no_questions_at_all() -> None:
    assert _relabel({}, enabled=False) == []


PUT = make_episode("p", "open the fridge", ["PickUp(Mug)", "Put(Fridge)"], [10, 20, 30])
PUT_SCRIPT: Script = {
    (10, "Are you holding the mug?"): "no",
    (20, "Are you holding the mug?"): "yes",
    (20, "Is the mug in your hand?"): "yes",
    (20, "What are you holding?"): "mug",
    (None, ask_prompt("pick up the mug")): "Are you holding the mug? yes",
    (20, "Is the mug in or on the fridge?"): "no",
    (30, "Is the mug in or on the fridge?"): "yes",
    (30, "What is the mug in or on?"): "fridge",
    (30, "Are you holding the mug?"): "no",
    (None, ask_prompt("put the mug in the fridge")): "Is the mug in or on the fridge? yes",
}


def test_put_is_about_what_was_held_before() -> None:
    accepted = {row.instruction: row.frame_index for row in _relabel(PUT_SCRIPT, case=PUT) if row.accepted}
    assert accepted == {"pick up the mug": 1, "put the mug in the fridge": 2}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("nothing", "nothing was held before"),
        ("mug, bowl", "more than one thing was named as held before ('mug, bowl')"),
    ],
)
def test_put_without_one_thing_in_hand_is_rejected(said: str, reason: str) -> None:
    rows = _relabel({**PUT_SCRIPT, (20, "What are you holding?"): said}, case=PUT)
    assert [row.reason for row in rows if row.frame_index == 2] == [reason]


def test_two_steps_need_the_first_to_hold_still() -> None:
    # After Put the mug is in hand no more: no two-step instruction.
    broken = [row for row in _relabel(PUT_SCRIPT, case=PUT) if " and then " in row.instruction]
    assert [row.accepted for row in broken] == [False]
    assert "no longer holds" in broken[0].reason

    both = make_episode("b", "close the box", ["Open(Drawer)", "PickUp(Mug)"], [10, 20, 30])
    text = "open the drawer and then pick up the mug"
    script: Script = {
        **DRAWER_SCRIPT,
        (20, "Are you holding the mug?"): "no",
        (30, "Are you holding the mug?"): "yes",
        (30, "Is the mug in your hand?"): "yes",
        (30, "What are you holding?"): "mug",
        (30, "Is the drawer open?"): "yes",
        (30, "Is the drawer closed?"): "no",
        (30, "What is open?"): "drawer",
        (None, ask_prompt("pick up the mug")): "Are you holding the mug? yes",
        (None, "Is the drawer in view?"): "yes",
        (None, "Is the mug in view?"): "yes",
    }
    accepted = {row.instruction: row.frame_index for row in _relabel(script, case=both) if row.accepted}
    assert accepted == {"open the drawer": 1, "pick up the mug": 2, text: 2}
    single = _relabel(script, case=both, two_step=False)
    assert not any(" and then " in row.instruction for row in single)


def test_with_only_the_last_frame_what_is_seen_there_counts() -> None:
    episode, steps, frames = make_episode("e", "pick up the mug", ["Open(Drawer)", "MoveAhead"], [10, 15, 20])
    (row,) = _relabel(DRAWER_SCRIPT, case=(episode, steps, frames[-1:]))
    assert (row.instruction, row.frame_index, row.accepted) == ("open the drawer", 2, True)


WALK = make_episode("w", "open the fridge", ["RotateLeft", "Approach(Fridge)", "Close(Box)"], [10, 20, 30, 30])


def _starts(script: Script, case: Case) -> list[Relabel]:
    return [row for row in _relabel(script, case=case) if row.partial]


def test_a_failure_keeps_its_good_beginning() -> None:
    (start,) = _starts({(30, "Is the fridge in view?"): "yes"}, WALK)
    assert (start.instruction, start.frame_index, start.accepted) == ("open the fridge", 2, True)
    (doubted,) = _starts({(30, "Is the fridge in view?"): ("yes", 0.6)}, WALK)
    assert not doubted.accepted
    assert "Is the fridge in view?" in doubted.reason


@pytest.mark.parametrize(
    ("actions", "levels"),
    [
        (["Approach(Fridge)", "MoveAhead"], [10, 10, 30]),  # the approach changed no pixel
        (["Approach(Box)", "MoveAhead"], [10, 20, 30]),  # to something else
        (["MoveAhead", "Done"], [10, 20, 20]),  # to nothing
    ],
)
def test_what_led_nowhere_is_no_beginning(actions: list[str], levels: list[int]) -> None:
    assert _starts({}, make_episode("w", "open the fridge", actions, levels)) == []


def test_the_first_part_done_is_a_beginning_of_both() -> None:
    case = make_episode(
        "w", "open the drawer and then pick up the mug", ["Open(Drawer)", "MoveAhead", "Done"], [10, 20, 30, 30]
    )
    (start,) = _starts(DRAWER_SCRIPT, case)
    assert (start.frame_index, start.accepted) == (1, True)
    assert json.loads(start.evidence)["questions"], "what showed that the first part was done is its evidence"


def test_a_walk_that_is_doubted_does_not_cost_the_part_that_was_done() -> None:
    case = make_episode(
        "w", "open the drawer and then pick up the mug", ["Open(Drawer)", "Approach(Mug)", "Done"], [10, 20, 30, 30]
    )
    (walked,) = _starts({**DRAWER_SCRIPT, (30, "Is the mug in view?"): "yes"}, case)
    assert (walked.frame_index, walked.accepted) == (2, True)
    (doubted,) = _starts({**DRAWER_SCRIPT, (30, "Is the mug in view?"): ("yes", 0.6)}, case)
    assert (doubted.frame_index, doubted.accepted) == (1, True)
