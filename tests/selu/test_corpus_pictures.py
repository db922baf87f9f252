"""Pictures of the corpus, judged like any others; what the corpus says of them teaches nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets

from selu.config import DatasetSettings, SelfAskingSettings
from selu.contrasts import contrast_claims
from selu.corpus_pictures import CORPUS, corpus_pictures
from selu.datasets import FEATURES, critic_rows
from selu.frames import decode_picture, encode_picture
from selu.prompting import verdict_prompt
from selu.questions import Claim
from selu.verdicts import ask
from tests.scripted_model import ScriptedModel, make_episode, picture

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


def corpus(levels: tuple[int, ...] = LEVELS, said: str = "fridge", scene: str = "FloorPlan1") -> datasets.Dataset:
    """A row of the corpus for each level of grey."""
    columns = {
        "prompt": [[{"role": "user", "content": "What is open?"}]] * len(levels),
        "completion": [[{"role": "assistant", "content": said}]] * len(levels),
        "images": [[{"bytes": encode_picture(picture(level)), "path": None}] for level in levels],
        "scene": [scene] * len(levels),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features({name: FEATURES[name] for name in columns}))


NOTHING = corpus(())


def test_pictures_are_different_and_drawn_in_seeded_order() -> None:
    episodes, frames = corpus_pictures(corpus((10, 10, 20, 30, 40)), NOTHING, 3, seed=1)
    assert len({frame.image for frame in frames}) == 3
    assert [frame.episode_id for frame in frames] == [episode.episode_id for episode in episodes]
    assert {episode.policy for episode in episodes} == {CORPUS}
    assert corpus_pictures(corpus((40, 30, 20, 10)), NOTHING, 3, seed=1) == (episodes, frames)
    # More of them begin with the same ones, and there are no more than there are.
    more, _ = corpus_pictures(corpus((10, 20, 30, 40)), NOTHING, 9, seed=1)
    assert more[:3] == episodes
    assert len(more) == 4
    orders = {
        tuple(row.episode_id for row in corpus_pictures(corpus((10, 20, 30, 40)), NOTHING, 4, seed)[0])
        for seed in range(5)
    }
    assert len(orders) > 1


def test_neither_the_answers_of_the_corpus_nor_what_is_kept_back_for_a_guard_is_seen() -> None:
    drawn = corpus_pictures(corpus(), NOTHING, 3, seed=1)
    assert corpus_pictures(corpus(said="nothing"), NOTHING, 3, seed=1) == drawn
    _, frames = corpus_pictures(corpus(), corpus((20,)), 3, seed=1)
    assert {int(decode_picture(frame.image)[0, 0, 0]) for frame in frames} == {10, 30}


def test_the_critic_learns_its_own_verdicts_on_them_beside_all_others() -> None:
    episodes, frames = corpus_pictures(corpus(), NOTHING, 3, seed=1)
    model = ScriptedModel(SCRIPT)
    claims = contrast_claims(episodes, frames, [], [], model, instructions=INSTRUCTIONS, per_episode=8, seed=1)
    assert "pick up the mug" in {claim.instruction for claim in claims}
    assert "" not in {claim.instruction for claim in claims}  # there is none of a picture's own
    _, _, verdicts = ask(episodes, frames, model, SelfAskingSettings(by="direct"), claims=claims)
    on_corpus = episodes, frames, verdicts
    played = make_episode("a", "open the fridge", ["Open(Fridge)"], [20, 10])
    judged = ask([played[0]], played[2], model, SelfAskingSettings(by="direct"))
    settings = DatasetSettings(replay=0.0, questions_per_verdict=0.0, negatives_per_positive=0.0, max_rows=1)

    def rows(**given: Any) -> list[tuple[str, str, str]]:
        made = critic_rows([played[0]], played[2], *judged, [], settings, seed=1, **given)
        return sorted(
            (source, prompt[0]["content"], completion[0]["content"])
            for source, prompt, completion in zip(made["source"], made["prompt"], made["completion"], strict=True)
        )

    alone = rows()
    assert alone == [("verdict", verdict_prompt("open the fridge"), "yes")]
    both = rows(on_corpus=on_corpus)
    # What was played has the room that it had, and is where it was.
    assert [row for row in both if row[0] == "verdict"] == alone
    assert ("corpus", verdict_prompt("pick up the mug"), "yes") in both
    # Each round is given them anew, so that none is taken from the round before as well.
    earlier = critic_rows([played[0]], played[2], *judged, [], settings, seed=1, on_corpus=on_corpus)
    wider = settings.model_copy(update={"max_rows": 50})
    later = critic_rows([played[0]], played[2], *judged, [], wider, seed=1, on_corpus=on_corpus, previous=earlier)
    assert Counter(later["source"])["corpus"] == len(both) - 1


def test_they_are_balanced_by_themselves() -> None:
    """A "yes" on a picture of the corpus never stands against a "no" on what was played: the room would tell which it is."""
    episodes, frames = corpus_pictures(corpus((10,)), NOTHING, 1, seed=1)
    model = ScriptedModel(SCRIPT)
    claims = [Claim(episodes[0].episode_id, 0, "open the fridge")]
    _, _, verdicts = ask(episodes, frames, model, SelfAskingSettings(by="direct"), claims=claims)
    played = make_episode("a", "open the fridge", ["Done"], [20, 20])
    judged = ask([played[0]], played[2], model, SelfAskingSettings(by="direct"))
    settings = DatasetSettings(replay=0.0, questions_per_verdict=0.0)
    made = critic_rows([played[0]], played[2], *judged, [], settings, seed=1, on_corpus=(episodes, frames, verdicts))
    assert len(made) == 0
