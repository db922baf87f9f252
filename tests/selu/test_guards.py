"""Guards: a critic that says yes to everything, one that forgot and a collapsed actor are refused, healthy ones pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from numpy.typing import NDArray

from selu.base_model.packaging import load_replay, split_replay
from selu.config import GuardSettings, ModelSettings
from selu.guards import (
    CriticSigns,
    GuardReport,
    Rehearsed,
    actor_signs,
    blank_canaries,
    critic_signs,
    guard_actor,
    guard_critic,
)
from selu.judging import Item
from selu.models.base import Prompt, Reply
from selu.prompting import PromptStyle
from selu.records import Episode, Judgement, Step, Verdict
from tests.scripted_model import make_episode, picture

REVISIONS = ("before", "candidate")
LIMITS = GuardSettings()

# --- critics ---------------------------------------------------------------------------------------------------------

DONE, NOT_DONE, GREY = 255, 0, 128
ITEMS: list[Item] = [((picture(DONE if number % 4 == 0 else NOT_DONE),), "open the fridge") for number in range(40)]
ASKED: list[Judgement] = ["yes" if number % 4 == 0 else "no" for number in range(40)]
REHEARSED = [Rehearsed(picture(GREY), f"What is it, number {number}?", f"thing {number}") for number in range(20)]


class Critic:
    """Says yes as `says_yes` has it, and remembers the corpus or does not."""

    revision = "test"
    prompt_style: PromptStyle = "brief"

    def __init__(self, says_yes: Callable[[int], float], *, remembers: bool = True) -> None:
        self.says_yes, self.remembers = says_yes, remembers

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        assert list(choices) == ["yes", "no"]
        yes = np.array([self.says_yes(int(prompt.images[0][0, 0, 0])) for prompt in prompts])
        return np.log(np.stack([yes, 1 - yes], axis=1))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        known = {row.prompt: row.answer for row in REHEARSED}
        return [Reply(known[prompt.text] if self.remembers else "nothing", -0.1) for prompt in prompts]

    def with_adapter(self, path: Path | None) -> Critic:
        return self


def untaught(level: int) -> float:
    """The base model: it never heard of verdicts."""
    return 0.4


def healthy(level: int) -> float:
    return 0.95 if level == DONE else 0.1


def always_yes(level: int) -> float:
    return 0.97


def always_no(level: int) -> float:
    return 0.03


def a_coin(level: int) -> float:
    return 0.52 if level == DONE else 0.48


def only_on_blanks(level: int) -> float:
    """Right about trajectories, and sees things where there is nothing."""
    return 0.9 if level not in (DONE, NOT_DONE) else healthy(level)


def _signs(critic: Critic, asked: list[Judgement] | None = ASKED) -> CriticSigns:
    return critic_signs(critic, ITEMS, asked, REHEARSED, height=8, width=8)


def _on_critic(candidate: Critic, asked: list[Judgement] | None = ASKED) -> GuardReport:
    return guard_critic(_signs(Critic(untaught)), _signs(candidate, asked), LIMITS, revisions=REVISIONS)


def _failed(report: GuardReport) -> set[str]:
    return {signal.name for signal in report.signals if not signal.passed}


def test_a_healthy_critic_is_promoted() -> None:
    report = _on_critic(Critic(healthy))
    assert report.passed
    assert (report.who, report.before, report.candidate) == ("critic", *REVISIONS)
    assert "promoted" in report.reason
    after = {signal.name: signal.after for signal in report.signals}
    assert after == {
        "blank": 1.0,
        "rehearsal": 1.0,
        "agreement": 1.0,
        "yes_excess": 0.0,
        "entropy": pytest.approx(0.423, abs=0.001),
    }


@pytest.mark.parametrize(
    ("critic", "signals"),
    [
        (Critic(always_yes), {"blank", "agreement", "yes_excess"}),
        (Critic(always_no), {"agreement"}),
        (Critic(a_coin), {"entropy"}),
        (Critic(only_on_blanks), {"blank"}),
        (Critic(healthy, remembers=False), {"rehearsal"}),
    ],
)
def test_a_broken_critic_is_refused_for_what_is_broken(critic: Critic, signals: set[str]) -> None:
    report = _on_critic(critic)
    assert not report.passed
    assert _failed(report) == signals
    for signal in report.signals:
        assert (signal.meaning in report.reason) == (not signal.passed)


def test_a_critic_whose_judging_is_the_direct_verdict_is_not_held_against_itself() -> None:
    signs = _signs(Critic(healthy), None)
    assert (signs.agreement, signs.excess) == (None, None)
    assert _on_critic(Critic(healthy), None).passed
    assert _failed(_on_critic(Critic(always_yes), None)) == {"blank"}


def test_self_asking_that_knows_one_side_alone_is_no_measure_of_agreement() -> None:
    assert _signs(Critic(always_no), ["no"] * len(ITEMS)).agreement is None
    unsure = _signs(Critic(healthy), [*ASKED[:8], *["unsure"] * 32])
    assert (unsure.agreement, unsure.judged) == (1.0, 8)


def test_canaries_are_answered_no_by_construction() -> None:
    asked = {prompt.text for prompt in blank_canaries(6, 9, "brief")}
    assert {"Is the fridge open?", "Are you holding the mug?", "Is the sofa in view?"} <= asked
    assert "Instruction: open the fridge Was it done?" in asked
    # Unseen things may well be closed or off.
    assert not [text for text in asked if " closed" in text or " off" in text or "close " in text]
    for prompt in blank_canaries(6, 9, "brief"):
        assert prompt.images[0].shape == (6, 9, 3)
        assert len(np.unique(prompt.images[0])) == 1


# --- the base model's own corpus ---------------------------------------------------------------------------------------


def test_a_tenth_of_the_corpus_is_kept_back_by_its_content() -> None:
    replay = load_replay()
    trained, kept = split_replay(replay)
    assert len(trained) + len(kept) == len(replay)
    assert 0.07 < len(kept) / len(replay) < 0.13

    def texts(rows: datasets.Dataset) -> list[str]:
        undecoded = rows.cast_column("images", datasets.List(datasets.Image(decode=False)))
        return [
            hashlib.sha256(row["images"][0]["bytes"]).hexdigest()
            + row["prompt"][0]["content"]
            + row["completion"][0]["content"]
            for row in undecoded
        ]

    assert not set(texts(trained)) & set(texts(kept))
    # Another order, the same rows.
    again = split_replay(replay.select(range(len(replay) - 1, -1, -1)))[1]
    assert sorted(texts(again)) == sorted(texts(kept))


def test_a_random_adapter_on_the_embedded_model_is_refused(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from selu.models import load_model
    from selu.models.transformers_engine import load_weights, locate_model

    weights = load_weights(locate_model(ModelSettings()), "float32", torch.device("cpu"))
    adapted = get_peft_model(weights, LoraConfig(r=8, target_modules=r".*text_model.*(q|v)_proj"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path)
    kept = split_replay(load_replay())[1]
    asked = [
        Rehearsed(
            np.asarray(row["images"][0], dtype=np.uint8), row["prompt"][0]["content"], row["completion"][0]["content"]
        )
        for row in kept
        if row["kind"] in ("holding", "view", "held", "open")
    ][:40]
    base, random = (
        critic_signs(load_model(ModelSettings(threads=1), adapter), [], None, asked, height=96, width=96)
        for adapter in (None, tmp_path)
    )
    assert base.rehearsal is not None
    assert base.rehearsal > 0.85
    # Nobody taught it what a verdict is, and blank pictures show it.
    assert _failed(guard_critic(base, base, LIMITS, revisions=REVISIONS)) <= {"blank"}
    assert "rehearsal" in _failed(guard_critic(base, random, LIMITS, revisions=REVISIONS))


# --- actors ----------------------------------------------------------------------------------------------------------


def _played(
    *actions: Sequence[str], done: Sequence[bool] = (), malformed: Sequence[int] = ()
) -> tuple[list[Episode], list[Step], list[Verdict]]:
    """Twelve episodes that take turns among ways to act; which of them the critic accepts takes turns too."""
    episodes: list[Episode] = []
    steps: list[Step] = []
    verdicts: list[Verdict] = []
    for number in range(12):
        chosen = actions[number % len(actions)]
        episode, its_steps, _ = make_episode(
            f"e{number}", "open the fridge", chosen, [0] * (len(chosen) + 1), malformed=malformed
        )
        episodes.append(episode)
        steps += its_steps
        accepted = done[number % len(done)] if done else False
        verdicts.append(
            Verdict(
                verdict_id=f"v{number}",
                episode_id=episode.episode_id,
                frame_index=episode.length,
                instruction=episode.instruction,
                verdict="yes" if accepted else "no",
                confidence=0.9,
                evidence="{}",
                accepted=True,
                reason="",
            )
        )
    return episodes, steps, verdicts


USUAL = (
    ("Approach(Fridge)", "Open(Fridge)", "Done"),
    ("RotateLeft", "RotateLeft", "MoveAhead", "Approach(Mug)"),
    ("MoveAhead", "Approach(Mug)", "PickUp(Mug)", "Done"),
)


def _on_actor(candidate: tuple[list[Episode], list[Step], list[Verdict]]) -> GuardReport:
    before = actor_signs(*_played(*USUAL, done=(True, False, False)))
    return guard_actor(before, actor_signs(*candidate), LIMITS, revisions=REVISIONS)


def test_a_healthy_actor_is_promoted() -> None:
    report = _on_actor(_played(*USUAL, done=(True, False, True)))
    assert report.passed
    after = {signal.name: signal.after for signal in report.signals}
    assert after["success"] == pytest.approx(2 / 3)
    assert after["done"] == pytest.approx(2 / 3)
    assert after["diversity"] == pytest.approx(2.41, abs=0.2)


@pytest.mark.parametrize(
    ("candidate", "signals"),
    [
        # Collapsed: one action over and over, though the critic is taken in.
        (_played(["RotateLeft"] * 10, done=(True,)), {"diversity", "repeated", "done"}),
        (_played(["Done"], done=(True,)), {"diversity", "repeated"}),
        # As lively as before, but the critic sees less done.
        (_played(*USUAL, done=(False,)), {"success"}),
        (_played(*USUAL, done=(True, False, False), malformed=(0,)), {"malformed"}),
        # It never says that it is done.
        (_played(*(actions[:-1] for actions in USUAL), done=(True, False, False)), {"done"}),
    ],
)
def test_a_broken_actor_is_refused_for_what_is_broken(
    candidate: tuple[list[Episode], list[Step], list[Verdict]], signals: set[str]
) -> None:
    report = _on_actor(candidate)
    assert not report.passed
    assert _failed(report) == signals
    assert "refused" in report.reason


def test_a_done_that_the_critic_does_not_accept_is_no_success() -> None:
    episodes, steps, verdicts = _played(*USUAL, done=(True,))
    contradicted = [row.model_copy(update={"accepted": False}) for row in verdicts]
    elsewhere = [row.model_copy(update={"instruction": "close the fridge"}) for row in verdicts]
    assert actor_signs(episodes, steps, verdicts).success == 1.0
    assert actor_signs(episodes, steps, contradicted).success == 0.0
    assert actor_signs(episodes, steps, elsewhere).success == 0.0
