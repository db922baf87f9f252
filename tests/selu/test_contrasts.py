"""What is worth asking beside a round's own verdicts: claims of both kinds, about what is there to be judged."""

from __future__ import annotations

from selu.config import SelfAskingSettings
from selu.contrasts import contrast_claims
from selu.prompting import ask_prompt
from selu.questions import Claim
from selu.verdicts import ask
from tests.scripted_model import Script, ScriptedModel, make_episode

INSTRUCTION = "open the fridge"
EPISODE, _, FRAMES = make_episode("e", INSTRUCTION, ["Open(Fridge)", "Done"], [10, 20, 20])
SURE: Script = {
    (None, ask_prompt(INSTRUCTION)): "Is the fridge open? yes",
    (20, "Is the fridge open?"): "yes",
    (20, "Is the fridge closed?"): "no",
    (20, "What is open?"): "fridge, drawer",
}


def _glances(level: int, *, opened: str = "nothing", held: str = "nothing", seen: str = "nothing") -> Script:
    return {
        (level, "What is open?"): opened,
        (level, "What is switched on?"): "nothing",
        (level, "What are you holding?"): held,
        (level, "What is in view?"): seen,
    }


def test_contrast_claims_ask_for_what_seems_done_and_what_seems_not() -> None:
    script = {
        **_glances(30, opened="fridge", seen="fridge, mug"),
        **_glances(40, held="mug", seen="fridge"),
        **_glances(50, seen="sofa"),
    }
    one, _, frames = make_episode("f", "pick up the mug", ["PickUp(Mug)", "Done"], [30, 40, 40])
    two, _, more = make_episode("g", "slice the apple", ["MoveAhead"], [50, 50])
    episodes, shots = [one, two], [*frames, *more]
    instructions = ["pick up the mug", INSTRUCTION, "close the fridge", "slice the apple"]

    def claims(per_episode: int, order: int = 1) -> list[Claim]:
        model = ScriptedModel(script)
        return contrast_claims(
            episodes[::order], shots, [], [], model, instructions=instructions, per_episode=per_episode, seed=0
        )

    asked = {(claim.episode_id, claim.frame_index, claim.instruction) for claim in claims(64)}
    assert asked >= {("f", 0, INSTRUCTION), ("f", 1, "pick up the mug"), ("f", 1, "close the fridge")}, "seems done"
    assert asked >= {("f", 0, "pick up the mug"), ("f", 0, "close the fridge"), ("f", 1, INSTRUCTION)}, "seems not"
    foreign = {item for item in asked if item[0] == "g" and item[2] != "slice the apple"}
    assert not foreign, "where nothing of it can be seen, nothing is asked"
    few = claims(8)
    assert max(sum(claim.episode_id == name for claim in few) for name in "fg") <= 8
    assert few == claims(8, order=-1)


def test_contrast_claims_leave_out_what_is_judged() -> None:
    verdicts = ask([EPISODE], FRAMES, ScriptedModel(SURE), SelfAskingSettings())[2]
    script = {**_glances(10, seen="fridge"), **_glances(20, opened="fridge", seen="fridge")}
    claims = contrast_claims(
        [EPISODE], FRAMES, verdicts, [], ScriptedModel(script), instructions=[INSTRUCTION], per_episode=8, seed=0
    )
    assert Claim("e", 2, INSTRUCTION) not in claims
    assert Claim("e", 0, INSTRUCTION) in claims


def test_a_thing_out_of_view_is_no_sign_that_several_steps_were_not_done() -> None:
    text = "open the drawer and then pick up the mug"
    script = {**_glances(30, opened="fridge", held="mug", seen="sofa")}
    episode, _, frames = make_episode("f", "pick up the mug", ["MoveAhead"], [30, 30])
    claims = contrast_claims(
        [episode], frames, [], [], ScriptedModel(script), instructions=[text, "open the drawer"], per_episode=8, seed=0
    )
    asked = {claim.instruction for claim in claims}
    assert "open the drawer" in asked, "the like was done to the fridge"
    assert text not in asked


def _instructions_asked(instructions: list[str]) -> set[tuple[int, str]]:
    script = {
        **_glances(30, opened="fridge", held="mug", seen="fridge, mug, drawer"),
        **_glances(40, opened="drawer", seen="fridge, drawer"),
    }
    episode, _, frames = make_episode("f", "open the fridge", ["MoveAhead"], [30, 40])
    claims = contrast_claims(
        [episode], frames, [], [], ScriptedModel(script), instructions=instructions, per_episode=400, seed=0
    )
    return {(claim.frame_index, claim.instruction) for claim in claims}


def test_the_critic_imagines_instructions_about_what_it_sees() -> None:
    asked = _instructions_asked(["open the fridge"])
    assert asked >= {(0, "pick up the mug"), (1, "open the drawer"), (0, "open the drawer"), (1, "close the fridge")}
    assert not any(" and then " in text for _, text in asked), "no instruction of the round has several steps"


def test_instructions_of_two_steps_are_made_in_the_forms_that_a_round_has() -> None:
    asked = _instructions_asked(["open the fridge", "open the box and then pick up the cup"])
    joined = "open the fridge and then pick up the mug"
    assert (0, joined) in asked, "it seems done here"
    assert not any(text.startswith("pick up") and " and then " in text for _, text in asked), "not the other way round"
