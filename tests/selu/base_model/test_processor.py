"""The tokenizer and processor of the embedded base model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoProcessor

from selu.base_model.processor import SPECIAL_TOKENS, build_tokenizer, image_token_count, save_household_processor
from selu.errors import ConfigError

CORPUS = [
    "Is the alarm clock open?",
    "Instruction: pick up the desk lamp and then open the fridge\nAction?",
    "PickUp(AlarmClock)",
    "fridge, alarm clock; no",
    "alarm clocks on the desk",
]
PHRASES = ["desk", "alarm clock", "desk lamp"]


def pieces(text: str) -> list[str]:
    tokenizer = build_tokenizer(CORPUS, PHRASES)
    return [tokenizer.decode([index]) for index in tokenizer(text)["input_ids"]]


def test_words_and_phrases_are_single_tokens() -> None:
    assert pieces("Is the alarm clock open?") == ["Is", " the", " alarm clock", " open", "?"]
    assert pieces("alarm clock") == ["alarm clock"]
    assert pieces(" desk lamp") == [" desk lamp"]
    assert pieces("PickUp(AlarmClock)") == ["PickUp", "(", "AlarmClock", ")"]


def test_a_phrase_is_not_cut_out_of_a_longer_word() -> None:
    assert pieces(" clocks on") == [" clocks", " on"]
    assert pieces("alarm clocks") == ["alarm", " clocks"]


@pytest.mark.parametrize(
    "text", ["naïve 😀 日本語 unseen", "\n\n two  \t spaces ", "it's <b>7.5</b>", "  alarm clock ", "é́\u200d"]
)
def test_any_text_round_trips(text: str) -> None:
    tokenizer = build_tokenizer(CORPUS, PHRASES)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_same_vocabulary_whatever_the_order() -> None:
    assert build_tokenizer(CORPUS, PHRASES).get_vocab() == build_tokenizer(reversed(CORPUS), PHRASES[::-1]).get_vocab()


def test_special_tokens_come_first() -> None:
    tokenizer = build_tokenizer(CORPUS, PHRASES)
    assert tuple(tokenizer.convert_ids_to_tokens(range(8))) == SPECIAL_TOKENS
    assert tokenizer.unk_token is None


def test_a_phrase_with_space_around_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="' mug'"):
        build_tokenizer([], [" mug"])


def test_saved_processor_renders_and_sees_as_promised(tmp_path: Path) -> None:
    save_household_processor(build_tokenizer(CORPUS, PHRASES), tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    wide = np.zeros((48, 120, 3), dtype=np.uint8)
    user = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is the fridge open?"}]}]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": "no"}]}]
    assert processor.apply_chat_template(user + answer) == "<s><image>Is the fridge open?<|assistant|>no</s>"
    prompt = processor.apply_chat_template(user, add_generation_prompt=True)
    assert prompt == "<s><image>Is the fridge open?<|assistant|>"

    inputs = processor(text=[prompt] * 2, images=[[image], [wide]], return_tensors="pt", padding=True)
    assert (
        (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [image_token_count()] * 2 == [36, 36]
    )
    assert inputs["pixel_values"].shape == (2, 1, 3, 96, 96)
    np.testing.assert_allclose(inputs["pixel_values"][0, 0], image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert bool(inputs["pixel_attention_mask"].all()), "a wide picture fills the square"
