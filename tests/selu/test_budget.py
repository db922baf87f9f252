"""Tokens are counted where they are spent, padding left out."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from selu.budget import Tokens, count_tokens, counted
from selu.config import FinetuningSettings, ModelSettings
from selu.finetuning import finetune
from selu.models import Prompt, load_model

PICTURE = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
PROMPTS = [Prompt((PICTURE,), text) for text in ("Is the mug open?", "What is open?", "Is the desk lamp on?")]
IMAGE_TOKENS = 36


def test_blocks_count_their_own_and_hand_on_to_the_outer_one() -> None:
    count_tokens(read=1)  # nobody listens
    with counted() as outer:
        count_tokens(read=2)
        with counted() as inner:
            count_tokens(read=3, written=4, trained=5)
        assert inner == Tokens(read=3, written=4, trained=5)
    assert outer == Tokens(read=5, written=4, trained=5)


def test_a_thread_does_not_count_for_another() -> None:
    with counted() as tokens:
        other = threading.Thread(target=lambda: count_tokens(read=7))
        other.start()
        other.join()
    assert tokens == Tokens()


def test_a_model_counts_what_it_reads_and_writes_whatever_the_batch(small_model: Path) -> None:
    spent = []
    for size in (1, 8):
        model = load_model(ModelSettings(path=str(small_model), prompts="brief", threads=1, batch_size=size))
        with counted() as tokens:
            model.generate(PROMPTS, max_new_tokens=5)
        spent.append(tokens)
    assert spent[0] == spent[1]
    assert spent[0].read > len(PROMPTS) * IMAGE_TOKENS
    assert len(PROMPTS) <= spent[0].written <= 5 * len(PROMPTS)
    with counted() as scored:
        model.score(PROMPTS, ("yes", "no"))
    assert (scored.read, scored.written) == (spent[0].read, 0)
    with counted() as without:
        model.score([Prompt((), prompt.text) for prompt in PROMPTS], ("yes", "no"))
    assert scored.read - without.read >= len(PROMPTS) * IMAGE_TOKENS


def test_fine_tuning_counts_a_row_each_time_that_it_is_trained_on(small_model: Path, tmp_path: Path) -> None:
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": text}] for text in ("Is the mug open?", "What is open?") * 2],
            "completion": [[{"role": "assistant", "content": text}] for text in ("no", "nothing") * 2],
            "images": [[Image.fromarray(PICTURE)]] * 4,
        }
    )
    spent = []
    for epochs in (1, 3):
        with counted() as tokens:
            finetune(
                ModelSettings(path=str(small_model), threads=1),
                rows,
                FinetuningSettings(epochs=epochs, batch_size=2, rank=2, alpha=4, threads=1),
                seed=0,
                out=tmp_path / str(epochs),
            )
        spent.append(tokens.trained)
    assert spent[1] == 3 * spent[0] > 3 * 4 * IMAGE_TOKENS
