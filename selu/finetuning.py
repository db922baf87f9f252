"""LoRA fine-tuning: a dataset version and a base model in, an adapter and its training curve out.

The trainer is TRL's ``SFTTrainer`` over PEFT, with the loss on completions only and no truncation (which could cut image
tokens). Equal inputs give equal bytes on one class of machine: seeds and the number of threads are pinned, torch runs
its deterministic algorithms, and what is written holds neither a time nor a path.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from pydantic import Field
from safetensors.torch import save_file
from torch.utils import deterministic
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from selu.budget import count_tokens
from selu.errors import ConfigError, TerminalError
from selu.examples import Examples
from selu.models.transformers_engine import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_MODEL,
    ModelSource,
    check_adapter,
    check_adapter_fits,
    linear_layers,
    load_processor,
    load_weights,
    locate_model,
    resolve_device,
)
from selu.records import Record
from selu.store import write_table

if TYPE_CHECKING:
    from selu.config import FinetuningSettings, ModelSettings

__all__ = ["CurvePoint", "finetune"]

Progress = Callable[[int, int, float], None]
"""Called after each optimiser step with (step, number of steps, loss)."""

# Its attributes are properties that type checkers do not see.
_DETERMINISTIC: Any = deterministic

_COLUMNS = ("prompt", "completion", "images")


class CurvePoint(Record):
    """One optimiser step of a fine-tuning."""

    step: int = Field(description="1, 2, ...")
    epoch: float
    loss: float = Field(
        description="mean negative log-likelihood of a completion's token, in nats, weighed as the settings say"
    )
    learning_rate: float
    grad_norm: float = Field(description="before clipping at 1")


def finetune(
    base: ModelSettings,
    rows: Dataset,
    settings: FinetuningSettings,
    *,
    seed: int,
    out: Path,
    log_dir: Path | None = None,
    report_to: Sequence[str] = (),
    adapter: Path | None = None,
    progress: Progress | None = None,
) -> list[CurvePoint]:
    """Train a LoRA adapter on `rows` and write it to the folder `out`, with ``curves.parquet``.

    `rows` are TRL's: ``prompt`` and ``completion``, each a list of messages, and ``images``; other columns are ignored.
    `adapter` is one to go on from; it must have the rank, alpha and layers that `settings` ask for.
    TensorBoard writes to `log_dir` if `report_to` names it; other names go to transformers as they are.

    Raises:
        ConfigError: there are no rows, a column is missing, or `adapter` does not fit.
        TerminalError: the loss is no longer a number.
    """
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if missing:
        raise ConfigError(f"Training rows need the columns {', '.join(_COLUMNS)}; {', '.join(missing)} is missing.")
    if len(rows) == 0:
        raise ConfigError(
            "There are no rows to train on; collect more episodes or accept labels at a lower confidence."
        )

    source = locate_model(base)
    device = resolve_device(base.device)
    processor = load_processor(source)
    with (
        _reproducible(seed, settings.threads),
        tempfile.TemporaryDirectory() as scratch,
        warnings.catch_warnings(),
    ):
        # TRL and transformers warn each other about names that change in the next major version.
        warnings.simplefilter("ignore", FutureWarning)
        model = _with_lora(load_weights(source, base.dtype, device), settings, source, adapter)
        curve = _Curve(progress)
        callbacks: list[TrainerCallback] = [curve]
        if "tensorboard" in report_to and log_dir is not None:
            callbacks.append(_tensorboard(log_dir))
        trainer = _Trainer(
            model=model,
            args=_trainer_settings(
                settings, len(rows), seed, scratch, device, [name for name in report_to if name != "tensorboard"]
            ),
            train_dataset=rows.select_columns(list(_COLUMNS)),
            processing_class=processor,
            callbacks=callbacks,
        )
        trainer.weigh = settings.weigh
        _collate_once(trainer, settings.target)
        # It prints every log line; progress is told through `progress`.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        count_tokens(trained=trainer.tokens)
        _save(trainer.model, out, label=source.label, revision=source.revision)
    write_table(out / "curves.parquet", curve.points, CurvePoint)
    return curve.points


class _Trainer(SFTTrainer):
    """A trainer whose loss may count each row the same, however long its completion.

    By tokens, as is usual, a list of questions to rehearse weighs as much as twenty verdicts of one word.
    """

    loss_is_scaled_for_ga = False  # type: ignore[assignment]
    weigh: Literal["rows", "tokens"] = "tokens"
    tokens = 0
    """Of all rows that were trained on so far, padding left out."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        self.tokens += int(inputs["attention_mask"].sum())
        if self.weigh == "tokens":
            return -outputs.log_probs.sum() / outputs.label_mask.sum().clamp(min=1)
        return (-outputs.log_probs.sum(dim=1) / outputs.label_mask.sum(dim=1).clamp(min=1)).mean()


def _collate_once(trainer: Any, target: str) -> None:
    """Let the trainer read rows that were collated, and whose pictures were looked at, once for all epochs.

    Where that cannot be (adapters that change what is seen, an architecture that takes no features), it goes on as it is.
    """
    collate = trainer.data_collator
    if target == "language":
        padding = trainer.processing_class.tokenizer.pad_token_id
        examples = Examples.of(trainer.train_dataset, collate, trainer.model.get_base_model(), padding)
        if examples is not None:
            trainer.train_dataset, trainer.data_collator = examples, examples.collate
            return
    # Copied for aligned memory, as in `load_weights`: the processor's arrays are numpy's.
    trainer.data_collator = lambda rows: {key: value.clone() for key, value in collate(rows).items()}


def _trainer_settings(
    settings: FinetuningSettings, rows: int, seed: int, scratch: str, device: torch.device, report_to: list[str]
) -> SFTConfig:
    steps = math.ceil(settings.epochs * math.ceil(rows / settings.batch_size))
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        # In transformers' words: instead of epochs.
        max_steps=settings.max_steps if 0 < settings.max_steps < steps else -1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        max_length=None,
        completion_only_loss=True,
        remove_unused_columns=False,
        # Recomputing activations pays only where memory is short.
        gradient_checkpointing=device.type != "cpu",
        bf16=False,
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
        full_determinism=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_steps=1,
        # The trainer would replace a loss that is not a number by the last good one.
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=report_to or "none",
        disable_tqdm=True,
    )


# ---- LoRA


def _with_lora(model: Any, settings: FinetuningSettings, source: ModelSource, adapter: Path | None) -> Any:
    target = _target_pattern(model, settings.target)
    if adapter is None:
        return get_peft_model(
            model,
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=target,
                task_type="CAUSAL_LM",
            ),
        )
    check_adapter(adapter)
    check_adapter_fits(adapter, linear_layers(model), source)
    written = json.loads((adapter / ADAPTER_CONFIG).read_text())
    wanted = {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": target}
    for name, value in wanted.items():
        if written.get(name) != value:
            raise ConfigError(
                f"The adapter in {adapter} cannot be trained on: its {name} is {written.get(name)!r}, the settings ask for "
                f"{value!r}."
            )
    return PeftModel.from_pretrained(model, adapter, is_trainable=True)


def _target_pattern(model: Any, target: str) -> str:
    """Return a regular expression over the names of linear layers.

    A pattern, not a list: PEFT keeps a list as a set, whose order on disk changes from process to process.
    """
    language = _name_of(model, model.get_decoder())
    vision = _name_of(model, model.get_encoder(modality="image"))
    head = _name_of(model, model.get_output_embeddings())
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != head]
    parts = {
        "language": [name for name in linear if name.startswith(language + ".")],
        "vision": [name for name in linear if name.startswith(vision + ".")],
    }
    parts["connector"] = [name for name in linear if not name.startswith((language + ".", vision + "."))]
    chosen = {"language": ["language"], "language+connector": ["language", "connector"], "all": list(parts)}[target]
    # Layers differ in their number alone, so a pattern a kind of layer says them all.
    kinds = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for part in chosen for name in parts[part]})
    if not kinds:
        raise ConfigError(f"The model {type(model).__name__} has no linear layers to adapt for target={target}.")
    return "|".join(kinds)


def _name_of(model: Any, module: Any) -> str:
    name: str = next(name for name, candidate in model.named_modules() if candidate is module)
    return name


def _save(model: Any, out: Path, *, label: str, revision: str) -> None:
    """Write the adapter as PEFT would, without its model card and without this machine's paths."""
    out.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.base_model_name_or_path = label
    config.revision = None
    config.inference_mode = True
    config.save_pretrained(out)
    weights = {
        key: value.detach().cpu().contiguous()
        for key, value in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items())
    }
    # One key only: safetensors writes several in an order that changes from process to process.
    save_file(weights, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (out / BASE_MODEL).write_text(json.dumps({"model": label, "revision": revision}, indent=2) + "\n")


# ---- reproducibility and reporting


@contextlib.contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[None]:
    """Pin seeds and threads and make torch deterministic; afterwards leave this process as it was."""
    threads_before, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = _DETERMINISTIC.fill_uninitialized_memory
    torch.set_num_threads(threads)
    # Deterministic mode fills every new buffer first. TRL's fused loss writes all of the large ones it asks for, and the
    # filling took nine tenths of a step of a small model on a CPU (250 of 280 ms for 32 rows).
    _DETERMINISTIC.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # LoRA's initial weights
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(algorithms)
        _DETERMINISTIC.fill_uninitialized_memory = fill


class _Curve(TrainerCallback):
    """Collects the training curve and stops at a loss that is not a number."""

    def __init__(self, progress: Progress | None) -> None:
        self.points: list[CurvePoint] = []
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TerminalError(
                f"The training loss is {loss} at step {state.global_step}; lower the learning rate (now {args.learning_rate:g}) "
                "or use dtype=float32."
            )
        self.points.append(
            CurvePoint(
                step=state.global_step,
                epoch=float(logs["epoch"]),
                loss=loss,
                learning_rate=float(logs["learning_rate"]),
                grad_norm=float(logs["grad_norm"]),
            )
        )
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, loss)


def _tensorboard(log_dir: Path) -> TrainerCallback:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "Training curves were to go to TensorBoard, which is missing: pip install tensorboard."
        ) from error
    return TensorBoardCallback(SummaryWriter(log_dir=str(log_dir)))  # type: ignore[no-untyped-call]
