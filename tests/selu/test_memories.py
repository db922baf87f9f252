"""Memories: pictures of the corpus, judged like any others; what the corpus says of them teaches nothing."""

from __future__ import annotations

import datasets

from selu.config import DatasetSettings, SelfAskingSettings
from selu.contrasts import contrast_claims
from selu.datasets import FEATURES, critic_rows
from selu.frames import encode_picture
from selu.memories import MEMORY, memories
from selu.prompting import verdict_prompt
from selu.verdicts import ask
from tests.scripted_model import ScriptedModel, picture

INSTRUCTIONS = ["open the fridge", "open the cabinet", "pick up the mug"]
LEVELS = (10, 20, 30)
# The fridge is open in the first picture, nothing is in the second, the mug is held in the third.
SCRIPT: dict[tuple[int | None, str], str | tuple[str, float]] = {
    (None, "What is in view?"): "fridge, cabinet",
    (None, "What is switched on?"): "nothing",
    (10, "What is open?"): "fridge",
    (20, "What is open?"): "nothing",
    (30, "What is open?"): "nothing",
    (10, "What are you holding?"): "nothing",
    (20, "What are you holding?"): "nothing",
    (30, "What are you holding?"): "mug",
}
for level in LEVELS:
    for text in ("open the fridge", "close the fridge", "open the cabinet", "pick up the mug"):
        done = {"open the fridge": level == 10, "close the fridge": level != 10, "pick up the mug": level == 30}
        SCRIPT[level, verdict_prompt(text)] = "yes" if done.get(text) else "no"


def corpus(levels: tuple[int, ...] = LEVELS) -> datasets.Dataset:
    """A row of the corpus for each level of grey, all with an answer that is no word of the critic's."""
    columns = {
        "prompt": [[{"role": "user", "content": "What is open?"}]] * len(levels),
        "completion": [[{"role": "assistant", "content": "the truth"}]] * len(levels),
        "images": [[{"bytes": encode_picture(picture(level)), "path": None}] for level in levels],
        "scene": ["FloorPlan1"] * len(levels),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features({name: FEATURES[name] for name in columns}))


def test_pictures_are_different_and_drawn_in_seeded_order() -> None:
    episodes, frames = memories(corpus((10, 10, 20, 30, 40)), 3, seed=1)
    assert len({frame.image for frame in frames}) == 3
    assert [frame.episode_id for frame in frames] == [episode.episode_id for episode in episodes]
    assert {episode.policy for episode in episodes} == {MEMORY}
    assert memories(corpus((40, 30, 20, 10)), 3, seed=1) == (episodes, frames)
    assert memories(corpus((10, 20, 30, 40)), 9, seed=1)[0][:3] == episodes
    orders = {tuple(row.episode_id for row in memories(corpus((10, 20, 30, 40)), 4, seed)[0]) for seed in range(5)}
    assert len(orders) > 1


def test_the_critic_learns_its_own_verdicts_on_them_and_nothing_of_what_the_corpus_says() -> None:
    episodes, frames = memories(corpus(), 3, seed=1)
    model = ScriptedModel(SCRIPT)
    claims = contrast_claims(episodes, frames, [], [], model, instructions=INSTRUCTIONS, per_episode=8, seed=1)
    assert "pick up the mug" in {claim.instruction for claim in claims}
    assert "" not in {claim.instruction for claim in claims}  # there is none of a memory's own
    settings = SelfAskingSettings(by="direct")
    questions, answers, verdicts = ask(episodes, frames, model, settings, claims=claims)
    assert {verdict.verdict for verdict in verdicts if verdict.accepted} == {"yes", "no"}
    rows = critic_rows(
        episodes,
        frames,
        questions,
        answers,
        verdicts,
        [],
        DatasetSettings(replay=0.0, questions_per_verdict=1.0),
        seed=1,
    )
    assert set(rows["source"]) == {MEMORY}
    assert "the truth" not in [completion[0]["content"] for completion in rows["completion"]]
    # Each round is given them anew, so that a later one does not take them from its forerunner as well.
    again = critic_rows(
        episodes,
        frames,
        questions,
        answers,
        verdicts,
        [],
        DatasetSettings(replay=0.0, questions_per_verdict=1.0),
        seed=1,
        previous=rows,
    )
    assert len(again) == len(rows)
