"""A verdict needs agreement; whatever does not agree stays, unaccepted, with its reason."""

from __future__ import annotations

import json

import pytest

from selu.config import SelfAskingSettings
from selu.errors import ArtifactError, TerminalError
from selu.prompting import ask_prompt, question_prompt, verdict_prompt
from selu.questions import Claim, meets, parse_questions
from selu.records import Verdict
from selu.verdicts import ask
from tests.scripted_model import Script, ScriptedModel, make_episode

INSTRUCTION = "open the fridge"
EPISODE, STEPS, FRAMES = make_episode("e", INSTRUCTION, ["Open(Fridge)", "Done"], [10, 20, 20])
ASKED: Script = {(None, ask_prompt(INSTRUCTION)): "Is the fridge open? yes"}
OPEN: Script = {
    (20, "Is the fridge open?"): "yes",
    (20, "Is the fridge closed?"): "no",
    (20, "What is open?"): "fridge, drawer",
}


def _ask(script: Script, **settings: object) -> tuple[ScriptedModel, Verdict]:
    model = ScriptedModel(script)
    _, _, verdicts = ask([EPISODE], FRAMES, model, SelfAskingSettings.model_validate(settings))
    assert len(verdicts) == 1
    return model, verdicts[0]


def test_agreement_of_all_ways_of_asking_is_a_yes_with_its_evidence() -> None:
    model = ScriptedModel({**ASKED, **OPEN})
    questions, answers, (verdict,) = ask([EPISODE], FRAMES, model, SelfAskingSettings())
    assert (verdict.verdict, verdict.accepted, verdict.frame_index) == ("yes", True, 2)
    assert [question.kind for question in questions] == ["verification", "paraphrase", "paraphrase"]
    evidence = json.loads(verdict.evidence)
    assert {entry["question_id"] for entry in evidence["questions"]} == {row.question_id for row in questions}
    assert {entry["spoke_for"] for entry in evidence["questions"]} == {"yes"}
    assert {answer.critic for answer in answers} == {"scripted"}


def test_a_model_from_elsewhere_is_asked_in_full() -> None:
    script: Script = {
        (None, ask_prompt(INSTRUCTION, "full")): "Is the fridge open? yes.",
        **{(level, question_prompt(text, "full")): said for (level, text), said in OPEN.items()},
        (None, verdict_prompt(INSTRUCTION, "full")): "yes",
    }
    told: list[tuple[int, int]] = []
    _, _, (verdict,) = ask(
        [EPISODE],
        FRAMES,
        ScriptedModel(script, prompt_style="full"),
        SelfAskingSettings(),
        agree_with_direct=True,
        progress=lambda done, whole: told.append((done, whole)),
    )
    assert (verdict.verdict, verdict.accepted) == ("yes", True)
    assert told == sorted(told)
    assert {whole for _, whole in told} == {1}


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        ({(20, "Is the fridge closed?"): "yes"}, "unsure", "disagree"),
        ({(20, "What is open?"): "nothing"}, "unsure", "disagree"),
        ({(20, "Is the fridge open?"): ("yes", 0.55)}, "unsure", "not confident enough"),
        (
            {
                (20, "Is the fridge open?"): "no",
                (20, "Is the fridge closed?"): "yes",
                (20, "What is open?"): "drawer",
            },
            "no",
            "was answered 'no', expected 'yes'",
        ),
    ],
)
def test_disagreement_or_doubt_is_never_a_yes(change: Script, verdict: str, reason: str) -> None:
    _, judged = _ask({**ASKED, **OPEN, **change})
    assert judged.verdict == verdict
    assert judged.accepted == (verdict == "no")
    assert reason in judged.reason


def test_a_lower_agreement_lets_a_majority_decide() -> None:
    script = {**ASKED, **OPEN, (20, "What is open?"): ("fridge", 0.2)}
    assert _ask(script)[1].verdict == "unsure"
    assert _ask(script, agreement=0.6)[1].verdict == "yes"


def test_a_hallucinated_list_of_questions_is_unsure_and_not_asked_further() -> None:
    for text in ("the fridge", "Is the fridge open? maybe", "What is open? yes", "Is it? yes; Is it? no", ""):
        model, judged = _ask({(None, ask_prompt(INSTRUCTION)): text})
        assert (judged.verdict, judged.accepted) == ("unsure", False)
        assert "cannot be read" in judged.reason
        assert len(model.calls) == 1


def test_questions_about_something_else_do_not_count() -> None:
    _, judged = _ask({(None, ask_prompt(INSTRUCTION)): "Is the drawer open? yes"})
    assert (judged.verdict, judged.reason) == ("unsure", "the critic's own questions do not ask about: fridge")


def test_one_contrary_answer_is_enough_for_no() -> None:
    script = {
        (None, ask_prompt(INSTRUCTION)): "Is the fridge open? yes; Are you holding the mug? no",
        **OPEN,
        (20, "Are you holding the mug?"): "yes",
    }
    assert _ask(script, paraphrases=False)[1].verdict == "no"


def test_without_self_asking_the_direct_verdict_stands() -> None:
    script: Script = {(20, verdict_prompt(INSTRUCTION)): ("yes", 0.9)}
    model, judged = _ask(script, by="direct")
    assert (judged.verdict, judged.accepted, round(judged.confidence, 6)) == ("yes", True, 0.9)
    assert model.calls == [[(20, verdict_prompt(INSTRUCTION))]]
    assert not _ask({(20, verdict_prompt(INSTRUCTION)): ("yes", 0.6)}, by="direct")[1].accepted


def test_votes_are_drawn_by_the_claim_and_a_bare_majority_may_be_too_little() -> None:
    script: Script = {(20, verdict_prompt(INSTRUCTION)): ("yes", 0.6)}
    verdicts = {_ask(script, by="voting", votes=99, confidence=0.5)[1] for _ in range(3)}
    assert len(verdicts) == 1
    (judged,) = verdicts
    assert (judged.verdict, judged.accepted) == ("yes", True)
    assert 0.5 < judged.confidence < 0.7
    evidence = json.loads(judged.evidence)
    assert evidence["by"] == "voting"
    assert [entry["spoke_for"] for entry in evidence["questions"]] == ["yes"]
    doubted = _ask(script, by="voting", votes=99, confidence=0.75)[1]
    assert (doubted.verdict, doubted.accepted) == ("unsure", False)


def test_refinement_believes_its_questions_where_they_are_surer() -> None:
    refuted: Script = {
        **ASKED,
        (20, verdict_prompt(INSTRUCTION)): ("yes", 0.6),
        (20, "Is the fridge open?"): ("no", 0.9),
    }
    model, judged = _ask(refuted, by="refinement", confidence=0.0)
    assert (judged.verdict, round(judged.confidence, 6), judged.accepted) == ("no", 0.9, True)
    assert "revised from 'yes' to 'no'" in judged.reason
    evidence = json.loads(judged.evidence)
    assert evidence["by"] == "refinement"
    assert [entry["spoke_for"] for entry in evidence["questions"]] == ["no", "yes"]
    # Asked once: no paraphrase.
    assert {text for call in model.calls for _, text in call} == {
        ask_prompt(INSTRUCTION),
        verdict_prompt(INSTRUCTION),
        "Is the fridge open?",
    }
    surer: Script = {**refuted, (20, verdict_prompt(INSTRUCTION)): ("yes", 0.95)}
    assert _ask(surer, by="refinement", confidence=0.0)[1].verdict == "yes"
    unreadable: Script = {**refuted, (None, ask_prompt(INSTRUCTION)): "the fridge"}
    assert _ask(unreadable, by="refinement", confidence=0.0)[1].verdict == "yes"
    assert not _ask(unreadable, by="refinement", confidence=0.7)[1].accepted


def test_no_critic_labels_by_the_truth() -> None:
    with pytest.raises(TerminalError, match="no critic knows"):
        _ask({}, by="oracle")


def test_a_contradicting_direct_verdict_takes_acceptance_away() -> None:
    model = ScriptedModel({**ASKED, **OPEN, (20, verdict_prompt(INSTRUCTION)): "no"})
    _, _, (verdict,) = ask([EPISODE], FRAMES, model, SelfAskingSettings(), agree_with_direct=True)
    assert (verdict.verdict, verdict.accepted) == ("yes", False)
    assert "direct verdict is 'no'" in verdict.reason


def test_a_shard_takes_three_calls_and_puts_equal_questions_once() -> None:
    episodes, frames = [], []
    for number in range(20):
        episode, _, shots = make_episode(f"e{number:02}", INSTRUCTION, ["Open(Fridge)"], [10, 20])
        episodes.append(episode)
        frames += shots
    model = ScriptedModel({**ASKED, **OPEN})
    claims = [Claim(episode.episode_id, 1, INSTRUCTION) for episode in episodes] * 2
    _, _, verdicts = ask(episodes, frames, model, SelfAskingSettings(), claims=claims)
    assert len(verdicts) == 20
    assert [len(call) for call in model.calls] == [20, 40, 20]


def test_a_verdict_does_not_depend_on_what_else_is_in_the_shard() -> None:
    other, _, frames = make_episode("a", INSTRUCTION, ["Open(Fridge)"], [20, 20])
    model = ScriptedModel({**ASKED, **OPEN})
    alone = ask([EPISODE], FRAMES, model, SelfAskingSettings())[2]
    together = ask([other, EPISODE], [*frames, *FRAMES], model, SelfAskingSettings())[2]
    assert alone[0] in together


def test_a_missing_frame_is_said() -> None:
    with pytest.raises(ArtifactError, match="frame 2 of episode e was not extracted"):
        ask([EPISODE], FRAMES[:1], ScriptedModel(ASKED), SelfAskingSettings())


def test_parsing_is_strict() -> None:
    assert parse_questions("Is the mug in view? yes; What is open? fridge, drawer", 4) == [
        ("Is the mug in view?", "yes"),
        ("What is open?", "fridge, drawer"),
    ]
    with pytest.raises(ValueError, match="at most 1"):
        parse_questions("Is the mug in view? yes; What is open? fridge", 1)


def test_answers_meet_expectations_as_sets_of_names() -> None:
    assert meets("fridge", "drawer, fridge")
    assert not meets("lamp", "desk lamp")
    assert meets("anything but fridge", "drawer")
    assert not meets("anything but fridge", "fridge, drawer")
    assert meets("nothing", "nothing")
    assert not meets("nothing", "mug")


def test_the_first_of_two_things_is_judged_where_it_was_last_in_view() -> None:
    text = "open the fridge and then pick up the mug"
    episode, _, frames = make_episode("e", text, ["Open(Fridge)", "RotateLeft", "PickUp(Mug)"], [10, 20, 30, 40])
    script: Script = {
        (None, ask_prompt("open the fridge")): "Is the fridge open? yes",
        (None, ask_prompt("pick up the mug")): "Are you holding the mug? yes",
        (None, "Is the fridge in view?"): "no",
        (20, "Is the fridge in view?"): "yes",
        (None, "Is the mug in view?"): "no",
        **OPEN,
        (40, "Are you holding the mug?"): "yes",
        (40, "Is the mug in your hand?"): "yes",
        (40, "What are you holding?"): "mug",
    }
    _, _, (verdict,) = ask([episode], frames, ScriptedModel(script), SelfAskingSettings())
    assert (verdict.verdict, verdict.accepted) == ("yes", True)
    looked_at = {entry["frame_index"] for entry in json.loads(verdict.evidence)["questions"]}
    assert looked_at == {1, 3}


def _with_deeds(script: Script, *, actions: list[str], direct: bool = False) -> Verdict:
    episode, steps, frames = make_episode("e", INSTRUCTION, actions, [10, 20, 20])
    return ask([episode], frames, ScriptedModel(script), SelfAskingSettings(), steps=steps, agree_with_direct=direct)[
        2
    ][0]


UNSURE: Script = {**ASKED, **OPEN, (20, "Is the fridge closed?"): ("no", 0.6)}
DENIED: Script = {
    **ASKED,
    (20, "Is the fridge open?"): "no",
    (20, "Is the fridge closed?"): "yes",
    (20, "What is open?"): "nothing",
}


def test_no_done_label_without_a_deed() -> None:
    verdict = _with_deeds({**ASKED, **OPEN}, actions=["Approach(Fridge)", "Done"])
    assert (verdict.verdict, verdict.accepted) == ("yes", False)
    assert "nothing that the actor did" in verdict.reason
    other = _with_deeds({**ASKED, **OPEN}, actions=["Open(Drawer)", "Done"])
    assert not other.accepted
    unseen = make_episode("e", INSTRUCTION, ["Open(Fridge)", "Done"], [20, 20, 20])
    (verdict,) = ask([unseen[0]], unseen[2], ScriptedModel({**ASKED, **OPEN}), SelfAskingSettings(), steps=unseen[1])[2]
    assert not verdict.accepted, "an action upon which the picture stays the same did nothing"


def test_with_a_deed_unsure_answers_are_enough_and_contrary_ones_are_not() -> None:
    unsure = _with_deeds(UNSURE, actions=["Open(Fridge)", "Done"])
    assert (unsure.verdict, unsure.accepted) == ("yes", True)
    assert json.loads(unsure.evidence)["deeds"] == [{"step": 0, "action": "Open(Fridge)"}]
    denied = _with_deeds(DENIED, actions=["Open(Fridge)", "Done"])
    assert (denied.verdict, denied.accepted) == ("no", False)
    confirmed = _with_deeds(
        {**DENIED, (None, verdict_prompt(INSTRUCTION)): "yes"}, actions=["Open(Fridge)", "Done"], direct=True
    )
    assert (confirmed.verdict, confirmed.accepted) == ("yes", True)


@pytest.mark.parametrize(("actions", "side"), [(["Open(Fridge)", "Done"], "yes"), (["Open(Drawer)", "Done"], "no")])
def test_by_deeds_alone_nobody_is_asked(actions: list[str], side: str) -> None:
    episode, steps, frames = make_episode("e", INSTRUCTION, actions, [10, 20, 20])
    model = ScriptedModel({})
    questions, _, (verdict,) = ask([episode], frames, model, SelfAskingSettings(by="deeds"), steps=steps)
    assert (verdict.verdict, verdict.accepted, questions, model.calls) == (side, True, [], [])
