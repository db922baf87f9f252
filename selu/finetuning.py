"""LoRA fine-tuning: a dataset version and a base model in, an adapter and its training curve out.

The trainer is TRL's ``SFTTrainer`` over PEFT, with the loss on completions only and no truncation (which could cut image
tokens). Equal inputs give equal bytes on one class of machine: seeds and the number of threads are pinned, torch runs
its deterministic algorithms, and what is written holds neither a time nor a path.
"""

from __future__ import annotations

import contextlib
import gc
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
from trl.data_utils import apply_chat_template, prepare_multimodal_messages
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from selu.budget import count_tokens
from selu.errors import ConfigError, TerminalError, TransientError
from selu.examples import Examples
from selu.models.transformers_engine import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_MODEL,
    ModelSource,
    check_adapter,
    check_adapter_fits,
    is_out_of_memory,
    linear_layers,
    load_processor,
    load_weights,
    loading_options,
    locate_model,
    resolve_device,
    takes_suffix,
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
        ConfigError: the engine cannot train, there are no rows, a column is missing, or `adapter` does not fit.
        TerminalError: the loss is no longer a number.
        TransientError: memory does not suffice for a single row. Where it suffices for some rows of a step, training starts
            again with as many of them at a time.
    """
    if not base.trainable:
        raise ConfigError(
            f"engine={base.engine} cannot be fine-tuned, since its weights are not at hand; turn fine-tuning off for "
            "it (enabled=false), or give a folder or hub id with engine=transformers or vllm."
        )
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if missing:
        raise ConfigError(f"Training rows need the columns {', '.join(_COLUMNS)}; {', '.join(missing)} is missing.")
    if len(rows) == 0:
        raise ConfigError(
            "There are no rows to train on; collect more episodes or accept labels at a lower confidence."
        )

    source, options = locate_model(base), loading_options(base)
    processor = load_processor(source)
    for rows_at_a_time in _halves(settings.batch_size):
        with (
            _reproducible(seed, settings.threads),
            tempfile.TemporaryDirectory() as scratch,
            warnings.catch_warnings(),
        ):
            # TRL and transformers warn each other about names that change in the next major version.
            warnings.simplefilter("ignore", FutureWarning)
            device = resolve_device(base.device)
            model = _with_lora(load_weights(source, base.dtype, device, options), settings, source, adapter)
            curve = _Curve(progress)
            callbacks: list[TrainerCallback] = [curve]
            if "tensorboard" in report_to and log_dir is not None:
                callbacks.append(_tensorboard(log_dir))
            trackers = [name for name in report_to if name != "tensorboard"]
            trainer = _Trainer(
                model=model,
                args=_trainer_settings(settings, len(rows), rows_at_a_time, seed, scratch, device, trackers),
                train_dataset=rows.select_columns(list(_COLUMNS)),
                processing_class=processor,
                callbacks=callbacks,
            )
            trainer.weigh = settings.weigh
            # It prints every log line; progress is told through `progress`.
            trainer.remove_callback(PrinterCallback)
            try:
                _collate_once(trainer, settings.target)
                trainer.train()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # What the attempt holds must go before the next.
                del model, trainer
                continue
            count_tokens(trained=trainer.tokens)
            _save(trainer.model, out, label=source.label, revision=source.revision)
            write_table(out / "curves.parquet", curve.points, CurvePoint)
            return curve.points
    raise TransientError(
        f"The model {source.label!r} ran out of memory in training on a single row; free memory, or choose "
        "gradient_checkpointing=true, quantization=4bit or dtype=bfloat16."
    )


def _halves(rows: int) -> Iterator[int]:
    """How many of a step's rows to take at a time: all, and whenever memory runs out half or less, in equal parts."""
    while True:
        gc.collect()
        torch.cuda.empty_cache()
        yield rows
        if rows == 1:
            return
        rows = next(part for part in range(rows // 2, 0, -1) if rows % part == 0)


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
            tokens = outputs.label_mask.sum().clamp(min=1)
            if self.args.gradient_accumulation_steps > 1 and num_items_in_batch is not None:
                # The mean over the step's parts, which the trainer takes, must be that over the step's tokens. Of models
                # that take no such number it is the mean over the parts' means.
                tokens = num_items_in_batch / self.current_gradient_accumulation_steps
            return -outputs.log_probs.sum() / tokens
        return (-outputs.log_probs.sum(dim=1) / outputs.label_mask.sum(dim=1).clamp(min=1)).mean()


def _collate_once(trainer: Any, target: str) -> None:
    """Let the trainer read rows that were collated, and whose pictures were looked at, once for all epochs.

    Where that cannot be (adapters that change what is seen, an architecture that takes no features), it goes on as it is.
    """
    collate = _Collator(trainer.data_collator, trainer.processing_class, trainer.model.generation_config.eos_token_id)
    if target == "language":
        padding = trainer.processing_class.tokenizer.pad_token_id
        examples = Examples.of(trainer.train_dataset, collate, trainer.model.get_base_model(), padding)
        if examples is not None:
            trainer.train_dataset, trainer.data_collator = examples, examples.collate
            return
    # Copied for aligned memory, as in `load_weights`: the processor's arrays are numpy's.
    trainer.data_collator = lambda rows: {key: value.clone() for key, value in collate(rows).items()}


class _Collator:
    """The trainer's own collator, with the end of the turn in every completion.

    A completion must teach the model to stop, and some chat templates (LLaVA's) write no end. A processor that joins prompt
    and completion itself (PaliGemma's, which also tells the tokens of one from the other) is let do so.
    """

    def __init__(self, collate: Any, processor: Any, end: int | list[int] | None) -> None:
        self._collate, self._processor = collate, processor
        tokenizer = processor.tokenizer
        ends = [end] if isinstance(end, int) else end or [tokenizer.eos_token_id]
        self._ends = tokenizer.convert_ids_to_tokens(ends)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        turns = [
            apply_chat_template(
                {
                    "prompt": prepare_multimodal_messages(row["prompt"], images=row["images"]),
                    "completion": prepare_multimodal_messages(row["completion"]),
                },
                self._processor,
            )
            for row in rows
        ]
        if takes_suffix(self._processor):
            joined: dict[str, torch.Tensor] = self._processor(
                text=[turn["prompt"] for turn in turns],
                suffix=[turn["completion"] for turn in turns],
                images=[row["images"] for row in rows],
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
            return joined
        for turn in turns:
            if not any(end in turn["completion"] for end in self._ends):
                turn["completion"] = turn["completion"].rstrip() + self._ends[0]
        collated: dict[str, torch.Tensor] = self._collate(
            [{**turn, "images": row["images"]} for turn, row in zip(turns, rows, strict=True)]
        )
        return collated


def _trainer_settings(
    settings: FinetuningSettings,
    rows: int,
    rows_at_a_time: int,
    seed: int,
    scratch: str,
    device: torch.device,
    report_to: list[str],
) -> SFTConfig:
    steps = math.ceil(settings.epochs * math.ceil(rows / settings.batch_size))
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        # In transformers' words: instead of epochs.
        max_steps=settings.max_steps if 0 < settings.max_steps < steps else -1,
        per_device_train_batch_size=rows_at_a_time,
        gradient_accumulation_steps=settings.batch_size // rows_at_a_time,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        max_length=None,
        completion_only_loss=True,
        remove_unused_columns=False,
        # Recomputing activations pays only where memory is short.
        gradient_checkpointing=(
            device.type != "cpu" if settings.gradient_checkpointing is None else settings.gradient_checkpointing
        ),
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
