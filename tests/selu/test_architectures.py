"""Whatever transformers loads as an image-text-to-text model acts, judges and learns here, proven by tiny random checkpoints.

Some processors want torchvision for the videos that nobody shows them. Where it is missing, it is put into the test cache
and used by a process of its own, so that all other tests still run without it.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, List
from numpy.typing import NDArray
from PIL import Image as Pillow
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from selu.config import FinetuningSettings, ModelSettings
from selu.finetuning import finetune
from selu.models import Prompt, TransformersModel, load_model
from selu.models import transformers_engine as engine
from selu.models.reading import Batch
from tests.tiny_model import inputs_of
from tests.tiny_models import ARCHITECTURES, NEEDS_TORCHVISION, make_checkpoint

_OPERATORS = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.library.torchvision = library  # it takes its operators with it when it goes
"""
"""A torchvision built for another machine than this torch cannot register its own operators, which no picture needs."""

ROWS = {
    "critic": [("Is the mug open?", "no"), ("Was it done? Is the fridge on?", "yes"), ("What is open?", "mug, fridge")],
    "actor": [
        ("Instruction: pick up the mug\nAction?", "PickUp(Mug)"),
        ("Instruction: open the fridge\nAction?", "Done"),
    ],
}


SINGLE = ("no", "Done")
"""Choices that are one token in every vocabulary here."""

READ_ANOTHER_WAY = {"qwen2-vl", "qwen2.5-vl", "qwen3-vl", "paligemma"}
"""They count positions in two dimensions, or read a prompt from both ends: prompts share no beginning there."""


def frame(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def training_rows(who: str) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": question}] for question, _ in ROWS[who]],
            "completion": [[{"role": "assistant", "content": answer}] for _, answer in ROWS[who]],
            "images": [[Pillow.fromarray(frame(0))] for _ in ROWS[who]],
        }
    ).cast_column("images", List(Image()))


def log_probabilities(model: TransformersModel, prompt: Prompt, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Of `tokens` after `prompt`, by one forward pass over everything, without a cache."""
    weights = model._weights
    with weights.lock, torch.inference_mode():
        weights.activate(model._adapter)
        inputs = inputs_of(model, [prompt])
        start = inputs["input_ids"].shape[1]
        more = torch.tensor([list(tokens)])
        # Beyond a prompt PaliGemma counts in ones, everybody else in zeros.
        kinds = torch.full_like(more, int(engine.takes_suffix(weights.processor)))
        for key, value in (
            ("input_ids", more),
            ("attention_mask", torch.ones_like(more)),
            ("token_type_ids", kinds),
            ("mm_token_type_ids", torch.zeros_like(more)),
        ):
            if key in inputs:
                inputs[key] = torch.cat([inputs[key], value], dim=1)
        logits = weights.model(**inputs).logits[0].double().log_softmax(-1)
    return np.array([float(logits[start + place - 1, token]) for place, token in enumerate(tokens)])


def completion_tokens(processor: Any, answer: str) -> list[int]:
    """What of a turn the model must write, its end included."""
    asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    turn = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    text = processor.apply_chat_template(turn).removeprefix(
        processor.apply_chat_template(asked, add_generation_prompt=True)
    )
    if processor.tokenizer.eos_token not in text:
        text = text.rstrip() + processor.tokenizer.eos_token
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def check(architecture: str, folder: Path) -> None:
    """Everything that the pipeline asks of a model."""
    base = ModelSettings(path=str(make_checkpoint(architecture, folder / "base")), batch_size=3, threads=1)
    model = load_model(base)
    prompts = [
        Prompt((frame(0),), "Is the mug open?"),
        Prompt((frame(1),), "Is the mug open?"),
        Prompt((frame(1),), "Is the fridge open? Was it done?"),
        Prompt((frame(2), frame(3)), "Was it done?"),
    ]

    replies = model.generate(prompts, max_new_tokens=4)
    alone = [model.generate([prompt], max_new_tokens=4)[0] for prompt in prompts]
    assert [reply.text for reply in replies] == [reply.text for reply in alone]
    confidences = [reply.log_probability for reply in replies]
    np.testing.assert_allclose(confidences, [reply.log_probability for reply in alone], atol=2e-3)
    assert abs(confidences[0] - confidences[1]) > 0.01, "the picture does not matter"

    choices = ["yes", "no", "PickUp(Mug)", "mug, fridge"]
    tokens = model._choice_tokens(choices)
    expected = np.array([[log_probabilities(model, prompt, choice).sum() for choice in tokens] for prompt in prompts])
    expected -= np.logaddexp.reduce(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.score(prompts, choices), expected, atol=2e-3)

    asked_of_two_pictures(
        load_model(base.model_copy(update={"batch_size": 8})), shares=architecture not in READ_ANOTHER_WAY
    )

    for who in ROWS:
        learn(who, model, base, folder / who)

    adapted = model.with_adapter(folder / "critic").generate(prompts, max_new_tokens=4)
    assert adapted != replies
    assert model.generate(prompts, max_new_tokens=4) == replies, "the base keeps traces of an adapter"
    AutoModelForImageTextToText.from_pretrained(base.path).save_pretrained(folder / "again")
    AutoProcessor.from_pretrained(base.path).save_pretrained(folder / "again")
    again = load_model(base.model_copy(update={"path": str(folder / "again")}))
    assert again._weights is not model._weights
    assert again.generate(prompts, max_new_tokens=4) == replies
    engine._load.cache_clear()
    assert load_model(base, folder / "critic").generate(prompts, max_new_tokens=4) == adapted


def asked_of_two_pictures(model: TransformersModel, shares: bool) -> None:
    """Choices of one token, for which a picture is read once: alike, whether prompts come together or each by itself."""
    prompts = [
        Prompt((frame(number % 2),), f"Is the {name} open?" + " Was it done?" * (number % 3))
        for number, name in enumerate(("mug", "fridge", "drawer", "mug", "apple", "fridge"))
    ]
    read = list[bool]()
    after = TransformersModel._after_shared_beginning

    def watched(self: TransformersModel, batch: Batch) -> torch.Tensor | None:
        logits = after(self, batch)
        read.append(logits is not None)
        return logits

    with mock.patch.object(TransformersModel, "_after_shared_beginning", watched):
        together = model.score(prompts, SINGLE)
    assert all(len(choice) == 1 for choice in model._choice_tokens(SINGLE))
    assert read == [shares]
    alone = np.concatenate([model.score([prompt], SINGLE) for prompt in prompts])
    np.testing.assert_allclose(together, alone, atol=2e-3)
    assert np.ptp(alone[:, 0]) > 0.01, "a model that answers everything alike proves nothing"


def learn(who: str, model: TransformersModel, base: ModelSettings, out: Path) -> None:
    """One optimiser step, whose loss is what the model thinks of the answers as it is asked elsewhere."""
    weigh: Literal["rows", "tokens"] = "rows" if who == "critic" else "tokens"
    settings = FinetuningSettings(
        rank=4,
        max_steps=1,
        batch_size=3,
        learning_rate=2e-3,
        warmup_ratio=0.0,
        weigh=weigh,
        # The connector's layers learn what is seen, so that rows go another way.
        target="language" if who == "critic" else "language+connector",
        threads=1,
    )
    curve = finetune(base, training_rows(who), settings, seed=0, out=out)
    processor = model._weights.processor
    answers = [
        log_probabilities(model, Prompt((frame(0),), question), completion_tokens(processor, answer))
        for question, answer in ROWS[who]
    ]
    by_row = np.mean([row.mean() for row in answers])
    assert curve[0].loss == pytest.approx(-(by_row if weigh == "rows" else np.concatenate(answers).mean()), abs=2e-3)
    with safe_open(out / "adapter_model.safetensors", framework="pt") as weights:
        layers = list(weights.keys())
    assert layers
    assert not any("vision" in layer or "visual" in layer for layer in layers)
    learned = log_probabilities(
        model.with_adapter(out), Prompt((frame(0),), ROWS[who][0][0]), completion_tokens(processor, ROWS[who][0][1])
    )
    assert learned.sum() > answers[0].sum(), "a step up the slope of its own row"


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - NEEDS_TORCHVISION))
def test_an_architecture_acts_judges_and_learns(architecture: str, tmp_path: Path) -> None:
    check(architecture, tmp_path)


@pytest.mark.parametrize("architecture", sorted(NEEDS_TORCHVISION))
def test_an_architecture_with_videos_acts_judges_and_learns(
    architecture: str, tmp_path: Path, with_torchvision: ProcessPoolExecutor
) -> None:
    with_torchvision.submit(check, architecture, tmp_path).result()


@pytest.fixture(scope="module")
def with_torchvision(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor]:
    """A process that has torchvision and num2words."""
    missing = [package for package in ("torchvision", "num2words") if find_spec(package) is None]
    folder = Path(request.config.cache.mkdir("selu-torchvision"))
    if missing and not (folder / "installed").is_file():
        # Releases of the two go together: torchvision 0.28 is for torch 2.13.
        release = f"torchvision==0.{int(torch.__version__.split('.')[1]) + 15}.*"
        wanted = [release if package == "torchvision" else package for package in missing]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *wanted]
        installed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if installed.returncode:
            pytest.skip(f"needs {' and '.join(missing)}, which could not be installed for the test")
        (folder / "installed").touch()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        # A new process starts with this one's path; transformers looks for torchvision as soon as it is imported, which
        # any function from here would do.
        sys.path.append(str(folder))
        try:
            pool.submit(exec, _OPERATORS, {}).result()
        finally:
            sys.path.remove(str(folder))
        yield pool
