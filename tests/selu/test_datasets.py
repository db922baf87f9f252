"""Training rows: what may enter, what must not, and that the instruction alone does not give the label away."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from selu.config import DatasetSettings, HindsightSettings, SelfAskingSettings
from selu.datasets import (
    FEATURES,
    DatasetCard,
    actor_rows,
    critic_rows,
    lineage,
    save_dataset_version,
    validate_rows,
)
from selu.datasets.for_actor import _compositions, _Trajectory
from selu.errors import ArtifactError
from selu.frames import encode_picture
from selu.hindsight import relabel
from selu.memory import NO_MEMORY, Memory
from selu.prompting import act_prompt, ask_prompt, question_prompt, verdict_prompt
from selu.questions import Claim
from selu.records import Answer, Episode, Frame, Question, Relabel, Step, Verdict
from selu.verdicts import ask
from tests.scripted_model import Script, ScriptedModel, make_episode, picture

NO_REPLAY = DatasetSettings(questions_per_verdict=1.0, replay=0.0)
Rows = tuple[list[Episode], list[Step], list[Frame], list[Question], list[Answer], list[Verdict], list[Relabel]]


def _turns(dataset: datasets.Dataset) -> list[tuple[str, str]]:
    return [
        (prompt[0]["content"], completion[0]["content"])
        for prompt, completion in zip(dataset["prompt"], dataset["completion"], strict=True)
    ]


def _judged(
    cases: list[tuple[Episode, list[Step], list[Frame]]], script: Script, claims: list[Claim] | None = None
) -> Rows:
    """Everything that self-asking and hindsight make of `cases`."""
    episodes = [episode for episode, _, _ in cases]
    steps = [step for _, some, _ in cases for step in some]
    frames = [frame for _, _, some in cases for frame in some]
    model = ScriptedModel(script)
    questions, answers, verdicts = ask(episodes, frames, model, SelfAskingSettings(), claims=claims)
    found = relabel(episodes, steps, frames, verdicts, model, HindsightSettings(), SelfAskingSettings())
    return episodes, steps, frames, questions + found[0], answers + found[1], verdicts, found[2]


def _fridge(level: int, state: str) -> dict[tuple[int | None, str], str | tuple[str, float]]:
    return {
        (level, "Is the fridge open?"): "yes" if state == "open" else "no",
        (level, "Is the fridge closed?"): "no" if state == "open" else "yes",
        (level, "What is open?"): "fridge" if state == "open" else "nothing",
    }


OPENED = make_episode("a", "open the fridge", ["MoveAhead", "Open(Fridge)", "Done"], [10, 11, 20, 20])
MISSED = make_episode("b", "open the fridge", ["MoveAhead", "RotateLeft"], [12, 13, 14], scene="FloorPlan22")
# Told to close the box (about which the critic cannot read its own questions), opened the fridge instead.
OTHER = make_episode("c", "close the box", ["Open(Fridge)", "MoveAhead"], [15, 21, 22])
SCRIPT: Script = {
    (None, ask_prompt("open the fridge")): "Is the fridge open? yes",
    (None, ask_prompt("close the box")): "garbled",
    **{key: value for level in (10, 11, 12, 13, 14, 15) for key, value in _fridge(level, "closed").items()},
    **{key: value for level in (20, 21, 22) for key, value in _fridge(level, "open").items()},
}


def _critic(rows: Rows, settings: DatasetSettings = NO_REPLAY, **more: Any) -> datasets.Dataset:
    episodes, _, frames, questions, answers, verdicts, relabels = rows
    return critic_rows(episodes, frames, questions, answers, verdicts, relabels, settings, seed=0, **more)


def _actor(
    rows: Rows, settings: DatasetSettings = NO_REPLAY, memory: Memory = NO_MEMORY, **more: Any
) -> datasets.Dataset:
    episodes, steps, frames, _, _, verdicts, relabels = rows
    return actor_rows(episodes, steps, frames, verdicts, relabels, settings, seed=0, memory=memory, **more)


def test_critic_learns_from_verdicts_relabels_and_the_frame_before() -> None:
    dataset = _critic(_judged([OPENED, MISSED, OTHER], SCRIPT))
    rows = {(row.source, row.episode_id, row.frame_indices, row.completion) for row in lineage(dataset)}
    assert {("verdict", "a", (3,), "yes"), ("relabel", "c", (1,), "yes")} <= rows
    assert {("verdict", "b", (2,), "no"), ("before_relabel", "c", (0,), "no")} <= rows
    # Nothing about an instruction whose verdict was not accepted.
    assert not any("box" in row.prompt for row in lineage(dataset))


def test_right_before_its_own_deed_nothing_was_done_yet() -> None:
    episode, steps, frames = OPENED
    questions, answers, verdicts = ask([episode], frames, ScriptedModel(SCRIPT), SelfAskingSettings(), steps=steps)
    rows = lineage(critic_rows([episode], frames, questions, answers, verdicts, [], NO_REPLAY, seed=0))
    told = {(row.source, row.frame_indices, row.completion) for row in rows}
    assert {("verdict", (3,), "yes"), ("before_deed", (1,), "no")} <= told


def test_the_critic_rehearses_the_questions_that_it_wrote_itself() -> None:
    every = NO_REPLAY.model_copy(update={"questions_per_verdict": 10.0})
    rows = lineage(_critic(_judged([OPENED, MISSED, OTHER], SCRIPT), every))
    asking = [(row.prompt, row.completion) for row in rows if row.source == "asking"]
    assert asking == [(ask_prompt("open the fridge"), "Is the fridge open? yes")]


def test_rows_have_the_prompts_that_the_models_are_run_with() -> None:
    rows = _judged([OPENED, MISSED, OTHER], SCRIPT)
    every = NO_REPLAY.model_copy(update={"questions_per_verdict": 10.0})
    shown = {row.prompt for row in lineage(_critic(rows, every, style="full"))}
    assert verdict_prompt("open the fridge", "full") in shown
    assert question_prompt("Is the fridge open?", "full") in shown
    assert not shown & {row.prompt for row in lineage(_critic(rows))}
    acted = {
        row.prompt for row in lineage(_actor(rows, style="full", skill_set="primitives", memory=Memory(history=1)))
    }
    assert act_prompt("open the fridge", ["MoveAhead"], "full", "primitives") in acted


def test_each_instruction_has_as_many_yes_as_no_rows() -> None:
    cases = [OPENED, OTHER] + [
        make_episode(f"m{number:02}", "open the fridge", ["MoveAhead"], [12, 100 + number]) for number in range(30)
    ]
    never = [make_episode(f"n{number}", "open the drawer", ["MoveAhead"], [12, 200 + number]) for number in range(5)]
    script: Script = {
        **SCRIPT,
        **{key: value for level in range(100, 130) for key, value in _fridge(level, "closed").items()},
        (None, ask_prompt("open the drawer")): "Is the drawer open? yes",
        **{
            (level, text): answer
            for level in range(200, 205)
            for text, answer in (
                ("Is the drawer open?", "no"),
                ("Is the drawer closed?", "yes"),
                ("What is open?", "nothing"),
            )
        },
    }
    rows = _judged([*cases, *never], script)
    thrice = NO_REPLAY.model_copy(update={"repeats": 3})
    counts = Counter(turn for turn in _turns(_critic(rows, thrice)) if turn[0].endswith("Was it done?"))
    fridge = verdict_prompt("open the fridge")
    assert counts == {(fridge, "yes"): 6, (fridge, "no"): 6}, "two successes, three times each"
    told = [row for row in lineage(_critic(rows, thrice)) if row.prompt == fridge and row.completion == "no"]
    assert len({(row.episode_id, row.frame_indices) for row in told}) == 6, "each time with another failure"
    once = NO_REPLAY.model_copy(update={"repeats": 1})
    assert (
        Counter(_turns(_critic(rows, once)))[fridge, "yes"] == Counter(_turns(_critic(rows, once)))[fridge, "no"] == 2
    )
    # Hard negatives are the ones that are kept.
    assert any(row.source == "before_relabel" for row in lineage(_critic(rows, once)))
    doubled = _critic(rows, once.model_copy(update={"negatives_per_positive": 2.0}))
    assert Counter(_turns(doubled))[fridge, "no"] == 4
    alone = _critic(rows, DatasetSettings(questions_per_verdict=1.0, replay=0.0, negatives_per_positive=0.0))
    assert Counter(_turns(alone))[fridge, "no"] == 0
    # The critic's own yes/no questions, too, must not be answered by their text.
    for text in ("Is the fridge open?", "Is the fridge closed?"):
        assert Counter(_turns(_critic(rows)))[text, "yes"] == Counter(_turns(_critic(rows)))[text, "no"]


def test_another_episodes_instruction_that_was_contradicted_is_a_no() -> None:
    claims = [Claim("a", 3, "open the fridge"), Claim("c", 0, "open the fridge")]
    dataset = _critic(_judged([OPENED, OTHER], SCRIPT, claims))
    assert (verdict_prompt("open the fridge"), "no") in _turns(dataset)


def test_one_sight_with_two_labels_is_left_out() -> None:
    rows = _judged([OPENED, MISSED], SCRIPT)
    verdicts = rows[5]
    contrary = verdicts[0].model_copy(update={"verdict": "no", "verdict_id": "other"})
    dataset = _critic((*rows[:5], [*verdicts, contrary], rows[6]))
    assert len(dataset) == 0


def test_rows_do_not_depend_on_the_order_of_shards_but_on_the_seed() -> None:
    forward = _judged([OPENED, MISSED, OTHER], SCRIPT)
    backward = _judged([OTHER, MISSED, OPENED], SCRIPT)
    assert lineage(_critic(forward)) == lineage(_critic(backward))
    assert lineage(_actor(forward)) == lineage(_actor(backward))
    episodes, _, frames, questions, answers, verdicts, relabels = forward
    other = critic_rows(episodes, frames, questions, answers, verdicts, relabels, NO_REPLAY, seed=1)
    assert lineage(other) != lineage(_critic(forward))


def _rehearsal(count: int) -> datasets.Dataset:
    image = {"bytes": encode_picture(picture(250)), "path": None}
    columns = {
        "prompt": [[{"role": "user", "content": f"What is open? {number}"}] for number in range(count)],
        "completion": [[{"role": "assistant", "content": "nothing"}]] * count,
        "images": [[image]] * count,
    }
    features = datasets.Features({name: FEATURES[name] for name in columns})
    return datasets.Dataset.from_dict(columns, features=features)


def test_rehearsal_is_the_asked_share_and_never_carried_over() -> None:
    rows = _judged([OPENED, MISSED, OTHER], SCRIPT)
    own = len(_critic(rows))
    mixed = _critic(rows, DatasetSettings(questions_per_verdict=1.0, replay=0.5), replay=_rehearsal(100))
    assert Counter(mixed["source"])["rehearsal"] == own == len(mixed) - own
    assert len(set(_turns(mixed))) >= own  # drawn without repetition
    only = _critic(rows, DatasetSettings(questions_per_verdict=1.0, replay=1.0, max_rows=7), replay=_rehearsal(100))
    assert set(only["source"]) == {"rehearsal"}
    assert len(only) == 7
    later = _critic(_judged([OTHER], SCRIPT), DatasetSettings(questions_per_verdict=1.0, replay=0.0), previous=mixed)
    assert "rehearsal" not in later["source"]
    assert {"a", "b", "c"} <= set(later["episode_id"])
    fresh = _critic(
        _judged([OTHER], SCRIPT),
        DatasetSettings(questions_per_verdict=1.0, replay=0.0, reuse_previous_rounds=False),
        previous=mixed,
    )
    assert set(fresh["episode_id"]) == {"c"}


def test_max_rows_is_kept_with_rehearsal_and_without_splitting_pairs() -> None:
    rows = _judged([OPENED, MISSED, OTHER], SCRIPT)
    dataset = _critic(rows, DatasetSettings(questions_per_verdict=1.0, replay=0.5, max_rows=9), replay=_rehearsal(100))
    assert len(dataset) <= 9
    counts = Counter(turn[1] for turn in _turns(dataset) if turn[0].endswith("Was it done?"))
    assert counts["yes"] == counts["no"] == 1


def test_actor_learns_whole_successes_and_cut_relabels_ending_in_done() -> None:
    dataset = _actor(_judged([OPENED, MISSED, OTHER], SCRIPT))
    prompt = act_prompt("open the fridge")
    rows = sorted((row.episode_id, row.frame_indices[0], row.prompt, row.completion) for row in lineage(dataset))
    assert rows == [
        ("a", 0, prompt, "MoveAhead"),
        ("a", 1, prompt, "Open(Fridge)"),
        ("a", 2, prompt, "Done"),
        ("c", 0, prompt, "Open(Fridge)"),
        ("c", 1, prompt, "Done"),
    ]
    assert {row.relabel_id != "" for row in lineage(dataset) if row.episode_id == "c"} == {True}


def test_actor_gets_no_malformed_action_and_no_step_that_changed_nothing() -> None:
    case = make_episode(
        "a",
        "open the fridge",
        ["MoveAhead", "open it", "Open(Microwave)", "Open(Fridge)"],
        [10, 11, 11, 11, 20],
        malformed=[1],
    )
    dataset = _actor(_judged([case], SCRIPT))
    rows = sorted((row.frame_indices[0], row.completion) for row in lineage(dataset))
    # It ran into the step limit with the goal reached: it is taught to stop there.
    assert rows == [(0, "MoveAhead"), (3, "Open(Fridge)"), (4, "Done")]


def test_actor_is_not_taught_what_came_after_its_own_deed() -> None:
    episode, steps, frames = make_episode(
        "a", "open the fridge", ["MoveAhead", "Open(Fridge)", "RotateLeft", "Done"], [10, 11, 20, 21, 21]
    )
    *_, verdicts = ask([episode], frames, ScriptedModel(SCRIPT), SelfAskingSettings(), steps=steps)
    rows = lineage(actor_rows([episode], steps, frames, verdicts, [], NO_REPLAY, seed=0, memory=NO_MEMORY))
    told = sorted((row.frame_indices[0], row.completion) for row in rows)
    assert told == [(0, "MoveAhead"), (1, "Open(Fridge)"), (2, "Done")]


TOASTER: Script = {
    (None, ask_prompt("turn on the toaster")): "Is the toaster on? yes",
    **{
        (level, text): answer
        for level in (30, 31, 40)
        for text, answer in (
            ("Is the toaster on?", "yes" if level == 40 else "no"),
            ("Is the toaster off?", "no" if level == 40 else "yes"),
            ("What is switched on?", "toaster" if level == 40 else "nothing"),
        )
    },
}
TOASTED = make_episode("t", "turn on the toaster", ["RotateLeft", "ToggleOn(Toaster)"], [30, 31, 40])
BOTH = "open the fridge and then turn on the toaster"
PRACTISED = make_episode("u", "open the drawer and then turn on the lamp", ["MoveAhead"], [50, 51])[0]


def test_two_trajectories_of_a_scene_make_an_instruction_of_two_steps() -> None:
    episodes, *rest = rows = _judged([OPENED, TOASTED], {**SCRIPT, **TOASTER})
    composed = [
        row
        for row in lineage(_actor(([*episodes, PRACTISED], *rest), memory=Memory(history=4)))
        if row.instruction == BOTH
    ]
    told = sorted((row.episode_id, row.frame_indices[0], row.prompt, row.completion) for row in composed)
    opened = ["MoveAhead", "Open(Fridge)"]
    assert told == [
        ("a", 0, act_prompt(BOTH), "MoveAhead"),
        ("a", 1, act_prompt(BOTH, ["MoveAhead"]), "Open(Fridge)"),
        # Where the first half ends, the second half begins, as it looks around.
        ("a", 3, act_prompt(BOTH, opened), "RotateLeft"),
        ("t", 0, act_prompt(BOTH, opened), "RotateLeft"),
        ("t", 1, act_prompt(BOTH, [*opened, "RotateLeft"]), "ToggleOn(Toaster)"),
        ("t", 2, act_prompt(BOTH, [*opened, "RotateLeft", "ToggleOn(Toaster)"]), "Done"),
    ]
    assert {row.source for row in composed} == {"composed", "done"}
    # No row names the judgement of another episode than its own.
    own = {verdict.verdict_id: verdict.episode_id for verdict in rows[5]}
    assert all(own[row.verdict_id] == row.episode_id for row in composed)


def test_in_a_composition_the_first_deed_outlasts_turns() -> None:
    turns = ["RotateLeft", "RotateLeft", "RotateLeft", "MoveAhead"]
    toasted = make_episode("t", "turn on the toaster", [*turns, "ToggleOn(Toaster)"], [30, 32, 34, 35, 31, 40])
    episodes, *rest = _judged([OPENED, toasted], {**SCRIPT, **TOASTER})
    memory = Memory(history=4, remember="interactions")
    rows = lineage(_actor(([*episodes, PRACTISED], *rest), memory=memory))
    (deed,) = [row for row in rows if row.instruction == BOTH and row.completion == "ToggleOn(Toaster)"]
    assert deed.prompt == act_prompt(BOTH, ["Open(Fridge)", *turns[1:]])


@pytest.mark.parametrize(
    ("begins", "at_the_seam"),
    [("RotateLeft", True), ("Approach(Toaster)", True), ("MoveAhead", False), ("Drop", False), ("Open(Drawer)", False)],
)
def test_a_turn_or_a_walk_follows_at_the_seam(begins: str, at_the_seam: bool) -> None:
    toasted = make_episode("t", "turn on the toaster", [begins, "ToggleOn(Toaster)"], [30, 31, 40])
    episodes, *rest = _judged([OPENED, toasted], {**SCRIPT, **TOASTER})
    rows = lineage(_actor(([*episodes, PRACTISED], *rest), memory=Memory(history=4)))
    seam = [row for row in rows if row.instruction == BOTH and (row.episode_id, row.frame_indices) == ("a", (3,))]
    assert [row.completion for row in seam] == ([begins] if at_the_seam else [])


@pytest.mark.parametrize(
    "why",
    [
        "switched off",
        "verbs never paired in practice",
        "another scene",
        "no scene",
        "no memory",
        "the second undoes the first",
    ],
)
def test_no_instruction_is_composed(why: str) -> None:
    toasted = TOASTED if why != "another scene" else (TOASTED[0].model_copy(update={"scene": "Other"}), *TOASTED[1:])
    opened = OPENED
    if why == "the second undoes the first":
        actions = ["RotateLeft", "Close(Fridge)", "ToggleOn(Toaster)"]
        toasted = make_episode("t", "turn on the toaster", actions, [30, 31, 33, 40])
    if why == "no scene":
        opened, toasted = ((case[0].model_copy(update={"scene": ""}), *case[1:]) for case in (OPENED, TOASTED))
    episodes, *rest = _judged([opened, toasted], {**SCRIPT, **TOASTER})
    practised = [] if "verbs" in why else [PRACTISED]
    settings = NO_REPLAY.model_copy(update={"compositions": 0 if why == "switched off" else 2})
    history = 0 if why == "no memory" else 4
    rows = lineage(_actor(([*episodes, *practised], *rest), settings, memory=Memory(history=history)))
    assert {row.instruction for row in rows} == {
        "open the fridge",
        "turn on the toaster",
    }


def test_halves_of_one_episode_are_not_composed() -> None:
    episode = OPENED[0]
    both = [
        _Trajectory(episode, text, end, True, {}) for text, end in (("open the fridge", 2), ("turn on the toaster", 3))
    ]
    assert _compositions(dict.fromkeys(both, ()), [PRACTISED], 2, seed=0) == []
    other = replace(both[1], episode=TOASTED[0])
    assert len(_compositions({both[0]: (), other: ()}, [PRACTISED], 2, seed=0)) == 1


def test_a_turn_before_a_walk_also_teaches_what_to_do_when_that_was_tried_too_early() -> None:
    actions = ["MoveAhead", "RotateLeft", "Approach(Fridge)", "Open(Fridge)"]
    case = make_episode("a", "open the fridge", actions, [10, 11, 12, 13, 20])
    rows = lineage(_actor(_judged([case], SCRIPT), memory=Memory(history=4)))
    (recovery,) = [row for row in rows if row.source == "recovery"]
    assert (recovery.frame_indices, recovery.completion) == ((1,), "RotateLeft")
    assert recovery.prompt == act_prompt("open the fridge", ["MoveAhead", "Approach(Fridge)"])
    usual = {(row.prompt, row.completion) for row in rows if row.source == "step"}
    assert (act_prompt("open the fridge", ["MoveAhead"]), "RotateLeft") in usual
    for settings, history in ((NO_REPLAY.model_copy(update={"recoveries": False}), 4), (NO_REPLAY, 0)):
        rows = lineage(_actor(_judged([case], SCRIPT), settings, memory=Memory(history=history)))
        assert "recovery" not in {row.source for row in rows}


def test_steps_that_led_back_to_the_same_picture_teach_nothing() -> None:
    actions = ["RotateLeft", "MoveAhead", "RotateRight", "RotateLeft", "MoveBack", "Open(Fridge)"]
    case = make_episode("a", "open the fridge", actions, [10, 11, 12, 13, 12, 11, 20])
    rows = lineage(_actor(_judged([case], SCRIPT)))
    # From 11 it went to 12 and 13 and back to 11.
    assert [(row.frame_indices[0], row.completion) for row in sorted(rows, key=lambda row: row.frame_indices)] == [
        (0, "RotateLeft"),
        (5, "Open(Fridge)"),
        (6, "Done"),
    ]


def test_the_deed_is_taught_though_the_picture_is_then_what_it_was() -> None:
    case = make_episode("a", "close the fridge", ["Open(Fridge)", "Close(Fridge)"], [10, 20, 10])
    script = {
        (None, ask_prompt("close the fridge")): "Is the fridge closed? yes",
        **{
            (level, text): answer
            for level in (10, 20)
            for text, answer in (
                ("Is the fridge open?", "yes" if level == 20 else "no"),
                ("Is the fridge closed?", "no" if level == 20 else "yes"),
                ("What is open?", "fridge" if level == 20 else "nothing"),
            )
        },
    }
    rows = lineage(_actor(_judged([case], script)))
    assert {(row.frame_indices[0], row.completion) for row in rows} == {
        (0, "Open(Fridge)"),
        (1, "Close(Fridge)"),
        (2, "Done"),
    }


def test_a_turn_that_turned_nothing_is_none() -> None:
    case = make_episode("a", "open the fridge", ["LookUp", "LookDown", "Open(Fridge)"], [10, 10, 11, 20])
    rows = lineage(_actor(_judged([case], SCRIPT)))
    assert (1, "LookDown") in {(row.frame_indices[0], row.completion) for row in rows}


def test_a_turn_back_on_the_last_turn_teaches_nothing() -> None:
    actions = ["RotateLeft", "RotateRight", "RotateRight", "MoveAhead", "RotateLeft", "Open(Fridge)"]
    # The second picture of the same view differs, as it may where something moves.
    case = make_episode("a", "open the fridge", actions, [10, 11, 12, 13, 14, 15, 20])
    rows = lineage(_actor(_judged([case], SCRIPT)))
    assert sorted((row.frame_indices[0], row.completion) for row in rows) == [
        (0, "RotateLeft"),
        (2, "RotateRight"),
        (3, "MoveAhead"),
        (4, "RotateLeft"),
        (5, "Open(Fridge)"),
        (6, "Done"),
    ]


def test_actor_history_is_what_it_had_done_before() -> None:
    prompts = {
        row.frame_indices[0]: row.prompt for row in lineage(_actor(_judged([OPENED], SCRIPT), memory=Memory(history=1)))
    }
    assert prompts[0] == act_prompt("open the fridge")
    assert prompts[2] == act_prompt("open the fridge", ["Open(Fridge)"])


def test_a_verdict_about_another_instruction_teaches_the_actor_nothing() -> None:
    rows = _judged([OTHER], SCRIPT, [Claim("c", 2, "open the fridge")])
    accepted = [verdict for verdict in rows[5] if verdict.accepted]
    assert [verdict.verdict for verdict in accepted] == ["yes"]
    assert len(_actor((*rows[:6], []))) == 0


CARD = DatasetCard(
    name="selu/thor/round1",
    pretty_name="SELU round 1",
    description="Made by the critic.",
    round=1,
    parents={"episodes": "abc"},
    recipe={"dataset": {"replay": 0.5}},
    revisions={"critic": "scripted"},
)


def test_a_saved_version_loads_as_a_hub_dataset_and_repeats_byte_by_byte(tmp_path: Path) -> None:
    for name in ("first", "second"):
        rows = _judged([OPENED, MISSED, OTHER], SCRIPT)
        critic = _critic(rows, DatasetSettings(questions_per_verdict=1.0, replay=0.5), replay=_rehearsal(100))
        save_dataset_version(tmp_path / name, {"critic": critic, "actor": _actor(rows)}, CARD)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert [str(path) for path in files] == [
        "README.md",
        "data/actor-train.parquet",
        "data/critic-train.parquet",
        "lineage.json",
    ]
    for path in files:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()

    loaded = datasets.load_dataset(str(tmp_path / "first"), "critic", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features == FEATURES
    assert loaded[0]["images"][0].size == (8, 8)
    assert _turns(loaded) == _turns(critic)
    card = (tmp_path / "first" / "README.md").read_text()
    for part in ("machine-generated", "config_name: critic", "`abc`", "| verdict | yes |", '"replay": 0.5'):
        assert part in card
    assert json.loads((tmp_path / "first" / "lineage.json").read_text())["rows"] == {
        "critic": len(critic),
        "actor": 5,
    }


def test_rows_that_would_train_blind_are_refused(tmp_path: Path) -> None:
    good = _rehearsal(1)[:]
    columns = {name: [good[name][0]] * 4 for name in ("prompt", "completion")}
    columns["images"] = [
        [{"bytes": b"no png", "path": None}],
        [],
        [{"bytes": None, "path": "a.png"}],
        good["images"][0],
    ]
    columns["prompt"] = [*columns["prompt"][:3], [{"role": "user", "content": "<image> What is open?"}]]
    features = datasets.Features({name: FEATURES[name] for name in columns})
    broken = datasets.Dataset.from_dict(columns, features=features)
    with pytest.raises(ArtifactError, match="4 faults in 4 rows") as caught:
        validate_rows(broken, "critic")
    for part in ("row 0: a frame", "row 1: must embed", "row 2: must embed", "row 3: prompt holds a literal <image>"):
        assert part in str(caught.value)
    with pytest.raises(ArtifactError):
        save_dataset_version(tmp_path / "version", {"critic": broken}, CARD)
    assert not (tmp_path / "version").exists()
