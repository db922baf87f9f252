"""LoRA fine-tuning of a tiny random model."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, List
from numpy.typing import NDArray
from PIL import Image as Pillow
from safetensors.torch import load_file
from trl.trainer import utils as _trl_utils

import selu.finetuning
from selu.config import FinetuningSettings, ModelSettings
from selu.errors import ConfigError, TerminalError
from selu.finetuning import (
    CurvePoint,
    _check_precision,
    _held_out,
    _reproducible,
    _sums,
    _Trainer,
    _trainer_settings,
    finetune,
)
from selu.models import Prompt, load_model
from selu.seen_rows import PICTURE, ROW, SeenRow, decode_row
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


def test_scoring_the_completions_alone_teaches_the_same(
    base: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 2})
    scored: list[int] = []
    score = _trl_utils._ChunkedLogProbFunction.apply

    def counting(hidden: torch.Tensor, *more: Any) -> Any:
        scored.append(len(hidden))
        return score(hidden, *more)

    monkeypatch.setattr(_trl_utils._ChunkedLogProbFunction, "apply", counting)
    alone = finetune(base, rows(), settings, seed=1, out=tmp_path / "alone")
    few = sum(scored)
    monkeypatch.setattr(selu.finetuning, "_scoring_completions_alone", contextlib.nullcontext)
    scored.clear()
    everything = finetune(base, rows(), settings, seed=1, out=tmp_path / "everything")
    assert [point.loss for point in alone] == pytest.approx([point.loss for point in everything], rel=1e-4)
    assert few < 0.5 * sum(scored)


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
        "seen_row.json",
        "seen_row.png",
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


# ---- checkpoints

STEADY = SETTINGS.model_copy(update={"epochs": 4.0, "dropout": 0.1, "checkpoint_steps": 2})
SHORT = STEADY.model_copy(update={"max_steps": 3, "checkpoint_steps": 50})
VALIDATED = STEADY.model_copy(update={"epochs": 6.0, "validation": 0.3, "validate_every": 3})


class Stopped(Exception):
    pass


def stop_at(step: int, how: Callable[[], Any]) -> Callable[[int, int, float], None]:
    return lambda now, steps, loss: how() if now == step else None


def give_up() -> None:
    raise Stopped


class Recorder:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, step: int, steps: int, loss: float) -> None:
        self.steps.append(step)


def train_until_killed(base: ModelSettings, settings: FinetuningSettings, folder: Path, step: int) -> None:
    kill = stop_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    finetune(base, rows(), settings, seed=5, out=folder / "out", checkpoints=folder / "checkpoints", progress=kill)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_training_goes_on_as_if_nothing_had_happened(base: ModelSettings, tmp_path: Path) -> None:
    """In mid-epoch, and with rows held out between two epochs; its dropout draws random numbers all along."""
    cases = {"mid_epoch": (STEADY, 5, 4), "validated": (VALIDATED, 7, 6)}
    spawn = multiprocessing.get_context("spawn")
    children = [
        spawn.Process(target=train_until_killed, args=(base, settings, tmp_path / name, killed))
        for name, (settings, killed, _) in cases.items()
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == -signal.SIGKILL
    for name, (settings, _, last) in cases.items():
        folder, told = tmp_path / name, Recorder()
        assert [path.name for path in (folder / "checkpoints" / "6-rows").iterdir()] == [f"step-{last}"]
        finetune(base, rows(), settings, seed=5, out=tmp_path / f"{name} undisturbed")
        finetune(
            base,
            rows(),
            settings,
            seed=5,
            out=folder / "out",
            checkpoints=folder / "checkpoints",
            progress=told,
        )
        assert told.steps == list(range(last + 1, 13)), "what was done is not done again"
        assert contents(folder / "out") == contents(tmp_path / f"{name} undisturbed")


def left_behind(base: ModelSettings, folder: Path) -> Path:
    """The checkpoint of a training that was stopped in its third step."""
    with pytest.raises(Stopped):
        finetune(
            base,
            rows(),
            SHORT.model_copy(update={"checkpoint_steps": 2}),
            seed=5,
            out=folder / "out",
            checkpoints=folder / "checkpoints",
            progress=stop_at(3, give_up),
        )
    return folder / "checkpoints" / "6-rows" / "step-2"


class Evil:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, owned: Path) -> None:
        self.owned = str(owned)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.owned,)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # a tensor's
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": lambda checkpoint: flip_a_bit(checkpoint / "adapter_model.safetensors"),
    "half a file": lambda checkpoint: os.truncate(
        checkpoint / "optimizer.pt", (checkpoint / "optimizer.pt").stat().st_size // 2
    ),
    "an empty file": lambda checkpoint: (checkpoint / "trainer_state.json").write_text(""),
    "zeros": lambda checkpoint: (checkpoint / "scheduler.pt").write_bytes(
        bytes((checkpoint / "scheduler.pt").stat().st_size)
    ),
    "a missing file": lambda checkpoint: (checkpoint / "rng_state.pth").unlink(),
    "no list": lambda checkpoint: (checkpoint / "SHA256SUMS").unlink(),
    "an empty list": lambda checkpoint: (checkpoint / "SHA256SUMS").write_text(""),
    "a folder for a file": lambda checkpoint: (checkpoint / "more").mkdir(),
    "a planted pickle": lambda checkpoint: torch.save(
        {"state": Evil(checkpoint.parent / "owned")}, checkpoint / "optimizer.pt"
    ),
}


def test_training_begins_again_where_a_checkpoint_is_damaged(
    base: ModelSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = left_behind(base, tmp_path / "stopped")
    finetune(base, rows(), SHORT, seed=5, out=tmp_path / "undisturbed")
    for name, damage in DAMAGE.items():
        folder, told = tmp_path / name, Recorder()
        checkpoint = folder / "checkpoints" / "6-rows" / "step-2"
        shutil.copytree(whole, checkpoint)
        damage(checkpoint)
        caplog.clear()
        finetune(base, rows(), SHORT, seed=5, out=folder / "out", checkpoints=folder / "checkpoints", progress=told)
        assert told.steps == [1, 2, 3], name
        assert contents(folder / "out") == contents(tmp_path / "undisturbed")
        assert caplog.text.count("step-2 is damaged") == 1
        assert not checkpoint.exists()
        assert not (checkpoint.parent / "owned").exists()


def test_training_goes_on_from_an_older_checkpoint_where_the_last_is_damaged(
    base: ModelSettings, tmp_path: Path
) -> None:
    """As when a process was killed before it deleted the older."""
    older, told = left_behind(base, tmp_path), Recorder()
    shutil.copytree(older, older.with_name("step-10"))
    flip_a_bit(older.with_name("step-10") / "optimizer.pt")
    finetune(base, rows(), SHORT, seed=5, out=tmp_path / "out", checkpoints=tmp_path / "checkpoints", progress=told)
    assert told.steps == [3]


def test_a_checkpoint_runs_no_code(base: ModelSettings, tmp_path: Path) -> None:
    """Not even one whose list was forged along with it."""
    checkpoint = left_behind(base, tmp_path)
    torch.save({"state": Evil(tmp_path / "owned")}, checkpoint / "optimizer.pt")
    (checkpoint / "SHA256SUMS").write_bytes(_sums(checkpoint))
    with pytest.raises(UnpicklingError):
        finetune(base, rows(), SHORT, seed=5, out=tmp_path / "out", checkpoints=tmp_path / "checkpoints")
    assert not (tmp_path / "owned").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file on a full disk")
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "SHA256SUMS"])
def test_training_goes_on_without_a_checkpoint_that_cannot_be_written(
    base: ModelSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    attempt, kept = tmp_path / "checkpoints" / "6-rows", list[list[str]]()

    def fill_the_disk(step: int, steps: int, loss: float) -> None:
        """For the checkpoint of the second step of four."""
        kept.append([path.name for path in attempt.iterdir()])
        if step == 2:
            file = attempt / "checkpoint-2" / name
            file.parent.mkdir()
            if file.suffix == ".safetensors":
                file.mkdir()  # a link would be replaced
            else:
                file.symlink_to("/dev/full")

    settings = SHORT.model_copy(update={"max_steps": 4, "checkpoint_steps": 1})
    finetune(
        base,
        rows(),
        settings,
        seed=5,
        out=tmp_path / "out",
        checkpoints=tmp_path / "checkpoints",
        progress=fill_the_disk,
    )
    assert kept == [[], ["step-1"], ["step-1"], ["step-3"]]
    assert [path.name for path in attempt.iterdir()] == ["step-3"], "none of the end, from which there is nowhere to go"
    assert caplog.text.count("could not be written") == 1
    finetune(base, rows(), settings, seed=5, out=tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_memory_may_run_out_in_writing_a_checkpoint(
    base: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then fewer rows at a time may leave enough for it."""
    write = _Trainer._save

    def in_little_memory(self: Any, *args: Any, **more: Any) -> None:
        if self.args.per_device_train_batch_size > 3:
            raise torch.OutOfMemoryError
        write(self, *args, **more)

    monkeypatch.setattr(_Trainer, "_save", in_little_memory)
    settings = SHORT.model_copy(update={"checkpoint_steps": 2})
    finetune(base, rows(), settings, seed=5, out=tmp_path / "out", checkpoints=tmp_path / "checkpoints")
    assert [path.parent.name for path in tmp_path.glob("checkpoints/*/step-2")] == ["3-rows"]


def test_memory_that_ran_out_is_remembered_by_the_checkpoints(
    base: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six rows at a time are too many from the third step on: what six left is dropped, and three go on where three were."""
    compute, taken = _Trainer.compute_loss, list[int]()

    def in_little_memory(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        taken.append(len(inputs["input_ids"]))
        if taken[-1] > 3 and self.state.global_step >= 2:
            raise torch.OutOfMemoryError
        return compute(self, model, inputs, *args, **more)

    monkeypatch.setattr(_Trainer, "compute_loss", in_little_memory)
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(Stopped):
        finetune(
            base,
            rows(),
            STEADY.model_copy(update={"checkpoint_steps": 1}),
            seed=1,
            out=tmp_path / "out",
            checkpoints=checkpoints,
            progress=stop_at(5, give_up),
        )
    assert [path.name for path in checkpoints.glob("*/*")] == ["step-4"]
    assert set(taken) == {6, 3}
    taken.clear()
    curve = finetune(base, rows(), STEADY, seed=1, out=tmp_path / "out", checkpoints=checkpoints)
    assert set(taken) == {3}
    assert [point.step for point in curve] == list(range(1, 13))


# ---- validation


def test_the_adapter_that_does_best_on_held_out_episodes_is_kept(base: ModelSettings, tmp_path: Path) -> None:
    """Labels that are drawn by lot can be learned by heart only: held-out loss rises after a while."""
    lot = np.random.default_rng(3).permutation(["yes", "no"] * 12)
    asked = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "Is the mug open?"}]] * 24,
            "completion": [[{"role": "assistant", "content": str(answer)}] for answer in lot],
            "images": [[Pillow.fromarray(frame(i))] for i in range(24)],
            "episode_id": [str(i // 2) for i in range(24)],
        }
    ).cast_column("images", List(Image()))
    settings = SETTINGS.model_copy(update={"validation": 0.25, "validate_every": 3, "epochs": 20.0, "patience": 4})
    curve = finetune(base, asked, settings, seed=1, out=tmp_path / "best")
    measured = {point.step: point.validation_loss for point in curve if point.validation_loss is not None}
    best = min(measured, key=lambda step: measured[step] or 0.0)
    assert list(measured) == [step for step in range(3, 61, 3) if step <= best + 4 * 3]
    assert len(curve) == best + 4 * 3 < 60, "it stops four measurements after the best"
    assert read_table(tmp_path / "best" / "curves.parquet", CurvePoint) == curve

    with pytest.raises(Stopped):
        finetune(
            base,
            asked,
            settings.model_copy(update={"checkpoint_steps": 3}),
            seed=1,
            out=tmp_path / "stopped",
            checkpoints=tmp_path / "checkpoints",
            progress=stop_at(best + 1, give_up),
        )
    kept = (tmp_path / "best" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "checkpoints" / "6-rows" / f"step-{best}" / "adapter_model.safetensors").read_bytes() == kept

    held = _held_out(asked, 0.25, 1)
    assert len(held) == 6
    assert {place // 2 for place in held}.isdisjoint(place // 2 for place in range(24) if place not in held)


def test_rows_without_an_episode_are_never_held_out(base: ModelSettings, tmp_path: Path) -> None:
    some = rows().remove_columns("episode_id").add_column("episode_id", ["", "a", "b"] * 6)
    assert [place % 3 for place in _held_out(some, 0.5, 0)] in ([1] * 6, [2] * 6)
    with pytest.raises(ConfigError, match="come from 1; collect more"):
        finetune(base, some.select([0, 1, 3, 4]), VALIDATED, seed=1, out=tmp_path)


# ---- precision


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_precision_keeps_the_adapter_in_float32(base: ModelSettings, tmp_path: Path, dtype: str) -> None:
    """Steps far below bfloat16's three digits still move its weights."""
    settings = SETTINGS.model_copy(update={"max_steps": 4, "learning_rate": 1e-6, "mixed_precision": "bfloat16"})
    half = base.model_copy(update={"dtype": dtype})
    mixed = finetune(half, rows(), settings, seed=1, out=tmp_path / "mixed")
    plain = finetune(
        base, rows(), settings.model_copy(update={"mixed_precision": None}), seed=1, out=tmp_path / "plain"
    )
    assert mixed[0].loss == pytest.approx(plain[0].loss, rel=0.02)
    assert mixed[0].loss != plain[0].loss
    weights = load_file(tmp_path / "mixed" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    moved = [tensor.abs().max() for name, tensor in weights.items() if "lora_B" in name]
    assert 1e-7 < max(moved) < 1e-5


def test_a_device_without_bfloat16_is_refused(base: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS.model_copy(update={"mixed_precision": "bfloat16"})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    for device in ("mps", "cuda:0"):
        with pytest.raises(ConfigError, match=f"this device \\({device}\\) computes in"):
            _check_precision(settings, torch.device(device))


@pytest.mark.parametrize(("device", "taken"), [("cuda", 0), ("cuda:1", 1)])
def test_of_several_gpus_the_named_one_trains(
    device: str, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(getattr(device, "index", device)))
    made = _trainer_settings(SETTINGS, 18, 6, 1, str(tmp_path), torch.device(device), [], checkpoint=False)
    assert (made.device, made.n_gpu) == (torch.device("cuda", taken), 1)
    assert chosen[-1] == taken


def test_training_leaves_the_process_as_it_was(
    base: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    cudnn: Any = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", False)
    finetune(base, rows(2), SETTINGS.model_copy(update={"max_steps": 1}), seed=1, out=tmp_path)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ
    assert not cudnn.deterministic
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with _reproducible(1, 1, torch.device("cuda:1")):
        pass
    assert chosen == [0], "the GPU that was in use is so again"


# ---- what the model sees


def test_a_row_is_kept_as_the_model_saw_it(base: ModelSettings, tmp_path: Path) -> None:
    finetune(base, rows(2), SETTINGS.model_copy(update={"max_steps": 1}), seed=1, out=tmp_path)
    seen = SeenRow.model_validate_json((tmp_path / ROW).read_text())
    question, answer = next(iter(ANSWERS.items()))
    assert [(piece.text, piece.times) for piece in seen.pieces if piece.times > 1] == [("<image>", 36)]
    assert "".join(piece.text for piece in seen.pieces if piece.learned) == f"{answer}</s>"
    assert question in "".join(piece.text for piece in seen.pieces if not piece.learned)
    assert seen.learned == 2
    with Pillow.open(tmp_path / PICTURE) as picture:
        difference = np.asarray(picture).astype(int) - frame(0)
    assert np.abs(difference).max() <= 1


def test_a_row_that_cannot_be_read_back_stops_no_training(
    base: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of an architecture whose pictures are called otherwise."""

    def without_pictures(row: int, batch: dict[str, Any], processor: Any) -> Any:
        return decode_row(row, {key: value for key, value in batch.items() if key != "pixel_values"}, processor)

    monkeypatch.setattr("selu.finetuning.decode_row", without_pictures)
    assert len(finetune(base, rows(2), SETTINGS.model_copy(update={"max_steps": 1}), seed=1, out=tmp_path)) == 1
    assert caplog.text.count("no training row can be shown as the model sees it (KeyError: 'pixel_values')") == 1
    assert set(contents(tmp_path)) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base_model.json",
        "curves.parquet",
    }
