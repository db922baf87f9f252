"""LoRA fine-tuning of a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, List
from numpy.typing import NDArray
from PIL import Image as Pillow
from safetensors.torch import load_file

from selu.config import FinetuningSettings, ModelSettings
from selu.errors import ConfigError, TerminalError
from selu.finetuning import CurvePoint, finetune
from selu.models import Prompt, load_model
from selu.store import read_table
from tests.tiny_model import make_tiny_model

ANSWERS = {"Is the mug open?": "no", "What are you holding?": "mug, fridge", "Is the fridge on?": "yes"}
SETTINGS = FinetuningSettings(rank=8, alpha=32, epochs=25, batch_size=6, learning_rate=0.01, threads=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    return ModelSettings(path=str(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", hidden_size=64, layers=2)))


def frame(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def rows(n: int = 18) -> Dataset:
    """Every picture comes with every question, so that an answer cannot be learned by heart from the picture."""
    questions = [list(ANSWERS)[i % len(ANSWERS)] for i in range(n)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": question}] for question in questions],
            "completion": [[{"role": "assistant", "content": ANSWERS[question]}] for question in questions],
            "images": [[Pillow.fromarray(frame(i // len(ANSWERS)))] for i in range(n)],
            "episode_id": [str(i) for i in range(n)],
        }
    ).cast_column("images", List(Image()))


def test_training_teaches_what_the_rows_say(base: ModelSettings, tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []
    curve = finetune(base, rows(), SETTINGS, seed=1, out=tmp_path, progress=lambda *step: told.append(step))
    assert curve[-1].loss < 0.1 * curve[0].loss
    model = load_model(base)
    asked = [Prompt((frame(0),), question) for question in ANSWERS]
    before = [reply.text for reply in model.generate(asked, max_new_tokens=6)]
    after = [reply.text for reply in model.with_adapter(tmp_path).generate(asked, max_new_tokens=6)]
    assert after == list(ANSWERS.values()) != before, "the end of the turn is learned too"
    assert read_table(tmp_path / "curves.parquet", CurvePoint) == curve
    assert told == [(point.step, len(curve), point.loss) for point in curve]


@pytest.mark.parametrize(("epochs", "most", "steps"), [(2.0, -1, 6), (2.0, 100, 6), (2.0, 4, 4)])
def test_no_more_steps_than_allowed(base: ModelSettings, tmp_path: Path, epochs: float, most: int, steps: int) -> None:
    settings = SETTINGS.model_copy(update={"epochs": epochs, "max_steps": most})
    curve = finetune(base, rows(), settings, seed=1, out=tmp_path)
    assert [point.step for point in curve] == list(range(1, steps + 1))
    assert curve[-1].learning_rate < 0.5 * SETTINGS.learning_rate, "the rate falls to the end of these steps"


def test_rows_collated_once_teach_the_same(
    base: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 2.0})
    once = finetune(base, rows(), settings, seed=1, out=tmp_path / "once")
    monkeypatch.setattr("selu.finetuning.Examples.of", lambda *_: None)
    each_time = finetune(base, rows(), settings, seed=1, out=tmp_path / "each")
    assert [point.loss for point in once] == pytest.approx([point.loss for point in each_time], rel=1e-4)


def test_same_inputs_same_bytes(base: ModelSettings, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_steps": 3, "dropout": 0.1})
    threads = torch.get_num_threads()
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        finetune(base, rows(), settings, seed=seed, out=tmp_path / name)
    files = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "other")
    }
    assert files["one"] == files["two"]
    assert files["one"]["adapter_model.safetensors"] != files["other"]["adapter_model.safetensors"]
    assert set(files["one"]) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base_model.json",
        "curves.parquet",
    }
    assert not any(str(tmp_path.parent).encode() in content for content in files["one"].values())
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_loss_is_on_completions_only(base: ModelSettings, tmp_path: Path) -> None:
    """The first loss is the mean negative log-likelihood of the completion and its end, under the base model."""
    one = rows(1)
    curve = finetune(base, one, SETTINGS.model_copy(update={"max_steps": 1}), seed=1, out=tmp_path)
    model = load_model(base)
    processor, network = model._weights.processor, model._weights.model
    question, answer = next(iter(ANSWERS.items()))
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True) + answer + "</s>"
    inputs = processor(text=[text], images=[[frame(0)]], return_tensors="pt")
    with model._weights.lock, torch.inference_mode():
        model._weights.activate(None)
        logits = network(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    expected = -np.mean([float(logits[place - 1, ids[place]]) for place in (-2, -1)])
    assert curve[0].loss == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("language", {"text_model"}),
        ("language+connector", {"text_model", "connector"}),
        ("all", {"text_model", "connector", "vision_model"}),
    ],
)
def test_the_target_names_the_adapted_layers(base: ModelSettings, tmp_path: Path, target: str, parts: set[str]) -> None:
    settings = SETTINGS.model_copy(update={"target": target, "max_steps": 1})
    finetune(base, rows(2), settings, seed=1, out=tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert {part for part in ("text_model", "connector", "vision_model") if any(part in key for key in keys)} == parts
    assert not any("lm_head" in key for key in keys)


def test_training_goes_on_from_an_adapter(base: ModelSettings, tmp_path: Path) -> None:
    first = finetune(base, rows(), SETTINGS, seed=1, out=tmp_path / "first")
    second = finetune(base, rows(), SETTINGS, seed=2, out=tmp_path / "second", adapter=tmp_path / "first")
    assert second[0].loss < 0.5 * first[0].loss
    other = SETTINGS.model_copy(update={"rank": 4})
    with pytest.raises(ConfigError, match="its r is 8, the settings ask for 4"):
        finetune(base, rows(), other, seed=2, out=tmp_path / "third", adapter=tmp_path / "first")


def test_tensorboard_gets_the_curve(base: ModelSettings, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_steps": 2})
    logs = tmp_path / "logs"
    finetune(base, rows(2), settings, seed=1, out=tmp_path / "out", log_dir=logs, report_to=("tensorboard",))
    assert list(logs.glob("events.out.tfevents.*"))


def test_a_loss_that_is_no_number_ends_training(base: ModelSettings, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(TerminalError, match="lower the learning rate"):
        finetune(base, rows(), settings, seed=1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists(), "no adapter is left behind"


def test_rows_are_checked_before_the_model_is_loaded(tmp_path: Path) -> None:
    nowhere = ModelSettings(path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no rows to train on"):
        finetune(nowhere, rows(3).select([]), SETTINGS, seed=1, out=tmp_path)
    with pytest.raises(ConfigError, match="images is missing"):
        finetune(nowhere, rows(3).remove_columns("images"), SETTINGS, seed=1, out=tmp_path)


def test_the_adapter_names_its_base_by_content(base: ModelSettings, tmp_path: Path) -> None:
    finetune(base, rows(2), SETTINGS.model_copy(update={"max_steps": 1}), seed=1, out=tmp_path)
    assert json.loads((tmp_path / "base_model.json").read_text()) == {
        "model": "tiny",
        "revision": load_model(base).revision,
    }
