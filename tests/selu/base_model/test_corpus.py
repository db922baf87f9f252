"""The pretraining corpus asks about what can be seen, answers it truly, and never asks for a verdict."""

from __future__ import annotations

import re

import numpy as np
import pytest

from selu.base_model.corpus import (
    INDEX,
    SEEN,
    TYPES,
    FrameSet,
    corpus_texts,
    instructions,
    language_turns,
    question_turns,
    render_frames,
)
from selu.base_model.training import Pretrainer, Recipe, build_model, household_tokenizer
from selu.config import scenes_of_split
from selu.evaluation import goal_of_instruction
from selu.prompting import verdict_prompt
from selu.worlds.vocabulary import NAMES


@pytest.fixture(scope="module")
def frames() -> FrameSet:
    return render_frames(scenes_of_split("base"), 60, seed=4)


def ask(frames: FrameSet, seed: int = 0) -> list[tuple[int, str, str, str]]:
    rng, absent = np.random.default_rng(seed), np.full(len(TYPES) + 1, 0.1)
    return [(i, *turn) for i in range(len(frames)) for turn in question_turns(frames, i, rng, absent, 16)]


def test_the_same_seed_draws_the_same_frames(frames: FrameSet) -> None:
    again = render_frames(scenes_of_split("base"), 60, seed=4)
    assert np.array_equal(frames.rgb, again.rgb)
    assert np.array_equal(frames.pixels, again.pixels)


def test_only_base_scenes_are_drawn(frames: FrameSet) -> None:
    assert {f"FloorPlan{n}" for n in frames.scene.tolist()} <= set(scenes_of_split("base"))


VIEW = re.compile(r"(?:Is the (.+) in view\?|Can you see the (.+)\?|Statement: the (.+) is in view\. Is it true\?)")
OPEN = re.compile(r"(?:Is the (.+) (open|closed)\?|Statement: the (.+) is (open|closed)\. Is it true\?)")


def test_answers_are_true(frames: FrameSet) -> None:
    by_name = {name: INDEX[t] for t, name in NAMES.items()}
    seen: dict[str, set[str]] = {"view": set(), "open": set(), "held": set()}
    stated = 0
    for i, kind, question, answer in ask(frames):
        stated += question.startswith("Statement")
        if kind == "view":
            (name,) = filter(None, VIEW.fullmatch(question).groups())
            pixels = frames.pixels[i, by_name[name]]
            assert pixels >= SEEN if answer == "yes" else pixels == 0
        elif kind == "open":
            name, state = filter(None, OPEN.fullmatch(question).groups())
            is_open = frames.state_pixels[i, 0, by_name[name]] > 0
            assert (answer == "yes") == (is_open if state == "open" else not is_open)
        elif kind == "held":
            held = frames.held[i]
            assert answer == (NAMES[TYPES[held - 1]] if held else "nothing")
        else:
            continue
        seen[kind].add(answer)
    assert all(len(answers) >= 2 for answers in seen.values())
    assert stated > 20


def test_no_turn_asks_whether_an_instruction_was_done(frames: FrameSet) -> None:
    ending = verdict_prompt("X").split("X")[1].strip()
    asked = [question for _, _, question, _ in ask(frames)]
    asked += [turn.question for turn in language_turns(np.random.default_rng(0), 300)]
    assert ending
    assert not [question for question in asked if ending in question]


def test_the_questions_of_every_instruction_tell_its_goal() -> None:
    for text, questions in instructions():
        goal = goal_of_instruction(text)
        assert goal is not None, text
        assert all(NAMES[c.object_type] in questions for c in goal)
        assert all(part.rsplit(" ", 1)[1] in ("yes", "no") for part in questions.split("; "))


def test_every_word_of_the_corpus_is_one_token(frames: FrameSet) -> None:
    tokenizer = household_tokenizer()
    texts = [text for _, _, question, answer in ask(frames) for text in (question, answer)]
    for text in (*corpus_texts(), *texts, "PickUp(DeskLamp)", "Approach(Mug)"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        # Anything spelled out in bytes would show as single letters.
        letters = {t for t in tokenizer.convert_ids_to_tokens(ids) if t.isalpha() and t.isascii() and len(t) == 1}
        assert letters <= {"I"}, text


def test_a_packed_turn_is_answered_as_if_it_were_alone(frames: FrameSet) -> None:
    recipe = Recipe(width=32, vision_layers=1, text_layers=2)
    tokenizer = household_tokenizer()
    trainer = Pretrainer(recipe, tokenizer, build_model(recipe, tokenizer).eval())
    rng, absent = np.random.default_rng(0), np.full(len(TYPES) + 1, 0.1)
    turns = question_turns(frames, 0, rng, absent, 5)

    def hidden(asked: list) -> np.ndarray:
        batch = trainer.batch(frames.rgb[:1], [asked])
        states = trainer.speak(batch, trainer.see(batch.pixels)[1])
        _, at, answer = batch.answers[0][-1]
        return states[0, at - 1 : at + len(answer) - 1].detach().numpy()

    assert np.allclose(hidden(turns), hidden(turns[-1:]), atol=1e-4)
