"""LoRA fine-tuning: a dataset version and a base model in, an adapter and its training curve out.

The trainer is TRL's ``SFTTrainer`` over PEFT, with the loss on completions only and no truncation (which could cut image
tokens). Rows are not packed into longer ones: TRL refuses that for rows with pictures, whose features would no longer
belong to the sequence that holds their tokens. Equal inputs give equal bytes on one class of machine: seeds and the
number of threads are pinned, torch runs its deterministic algorithms, and what is written holds neither a time nor a path.

A training that is killed goes on from its last checkpoint as if nothing had happened: weights, optimiser, learning rate,
random numbers, order of the rows and curve are those of an undisturbed one. A checkpoint is a shortcut and no more:
training goes on without one that cannot be written, and begins again without one that is not, to the last bit, what was
written. Of its files the weights are safetensors; the optimiser, the schedule and the random numbers are torch's, which
the trainer reads with ``weights_only=True``: tensors, numbers and names alone, and no code that a pickle could carry.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils import deterministic
from torch.utils.data import Subset
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from trl.data_utils import apply_chat_template, prepare_multimodal_messages
from trl.trainer import utils as trl_utils
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
    forget_models,
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
from selu.seen_rows import SeenRow, decode_row, write_seen_row
from selu.store import write_table

if TYPE_CHECKING:
    from selu.config import FinetuningSettings, ModelSettings

__all__ = ["CurvePoint", "finetune"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called after each optimiser step with (step, number of steps, loss)."""

# Its attributes are properties that type checkers do not see.
_DETERMINISTIC: Any = deterministic

_COLUMNS = ("prompt", "completion", "images")
_EPISODE = "episode_id"
_VALIDATION_LOSS = "eval_loss"  # the trainer's name


class CurvePoint(Record):
    """One optimiser step of a fine-tuning."""

    step: int = Field(description="1, 2, ...")
    epoch: float
    loss: float = Field(
        description="mean negative log-likelihood of a completion's token, in nats, weighed as the settings say"
    )
    learning_rate: float
    grad_norm: float = Field(description="before clipping at 1")
    validation_loss: float | None = Field(
        default=None,
        description="loss on the rows held out, weighed alike within a batch, after this step; None where it was not measured",
    )


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
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> list[CurvePoint]:
    """Train a LoRA adapter on `rows` and write it to the folder `out`, with ``curves.parquet`` and, where its tensors can be
    read back, a row as the model saw it.

    `rows` are TRL's: ``prompt`` and ``completion``, each a list of messages, and ``images``; rows are held out by their
    ``episode_id``, those without one (a rehearsed corpus) never; other columns are ignored.
    `adapter` is one to go on from; it must have the rank, alpha and layers that `settings` ask for.
    `checkpoints` is a folder of this training alone: one that left checkpoints there goes on from the last.
    TensorBoard writes to `log_dir` if `report_to` names it; other names go to transformers as they are.

    Raises:
        ConfigError: the engine cannot train, the device has no such precision, there are no rows (or none of an episode to
            hold out), a column is missing, or `adapter` does not fit.
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
    held_out = _held_out(rows, settings.validation, seed)
    trained = sorted(set(range(len(rows))).difference(held_out))

    device = resolve_device(base.device)
    _check_precision(settings, device)
    source, options = locate_model(base), loading_options(base)
    processor = load_processor(source)
    if device.type != "cpu":
        # A large model that answers and one that learns do not fit an accelerator side by side.
        forget_models()
    for rows_at_a_time in _halves(_begun(checkpoints) or settings.batch_size):
        with (
            _reproducible(seed, settings.threads, device),
            _scoring_completions_alone(),
            tempfile.TemporaryDirectory() as scratch,
            warnings.catch_warnings(),
        ):
            # TRL and transformers warn each other about names that change in the next major version.
            warnings.simplefilter("ignore", FutureWarning)
            model = _with_lora(load_weights(source, base.dtype, device, options), settings, source, adapter)
            attempt = None if checkpoints is None else checkpoints / f"{rows_at_a_time}-rows"
            validation = _Validation(settings.patience)
            callbacks: list[TrainerCallback] = [_Watch(progress), validation]
            if "tensorboard" in report_to and log_dir is not None:
                callbacks.append(_tensorboard(log_dir))
            trackers = [name for name in report_to if name != "tensorboard"]
            table = rows.select_columns(list(_COLUMNS))
            trainer = _Trainer(
                model=model,
                args=_trainer_settings(
                    settings,
                    len(trained),
                    rows_at_a_time,
                    seed,
                    scratch if attempt is None else str(attempt),
                    device,
                    trackers,
                    checkpoint=attempt is not None,
                ),
                train_dataset=table,
                eval_dataset=table if held_out else None,
                processing_class=processor,
                callbacks=callbacks,
            )
            trainer.weigh, trainer.validation = settings.weigh, validation
            # It prints every log line; progress is told through `progress`.
            trainer.remove_callback(PrinterCallback)
            # TRL turns the adapter of a quantised model to bfloat16, in which small updates are lost.
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            try:
                collate = _collate_once(trainer, settings.target)
                if held_out:
                    everything: Any = trainer.train_dataset
                    trainer.train_dataset, trainer.eval_dataset = (
                        Subset(everything, trained),
                        Subset(everything, held_out),
                    )
                seen = _seen_row(trainer, rows, trained, collate)
                trainer.train(resume_from_checkpoint=None if attempt is None else _resume_from(attempt, validation))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # What the attempt holds must go before the next.
                del model, trainer, validation, callbacks
                if attempt is not None:
                    shutil.rmtree(attempt, ignore_errors=True)
                continue
            count_tokens(trained=trainer.state.num_input_tokens_seen)
            curve = _curve(trainer.state.log_history)
            _save(trainer.model, validation.best, out, label=source.label, revision=source.revision)
            write_table(out / "curves.parquet", curve, CurvePoint)
            if seen is not None:
                write_seen_row(out, *seen)
            return curve
    raise TransientError(
        f"The model {source.label!r} ran out of memory in training on a single row; free memory, or choose "
        "gradient_checkpointing=true, quantization=4bit or dtype=bfloat16."
    )


def _held_out(rows: Dataset, share: float, seed: int) -> list[int]:
    """Places of the rows to validate on: whole episodes, drawn until they hold `share` of all rows that have an episode.

    Rows of one episode show the same rooms and things; on both sides they would tell how well it is known by heart.
    """
    if share == 0:
        return []
    by_episode: dict[str, list[int]] = {}
    for place, episode in enumerate(rows[_EPISODE] if _EPISODE in rows.column_names else ()):
        if episode:
            by_episode.setdefault(episode, []).append(place)
    if len(by_episode) < 2:
        raise ConfigError(
            f"validation={share:g} holds out whole episodes, and these rows come from {len(by_episode)}; collect more or "
            "set validation=0."
        )
    drawn = sorted(by_episode, key=lambda episode: hashlib.sha256(f"{seed}\0{episode}".encode()).digest())
    wanted, held = share * sum(map(len, by_episode.values())), list[int]()
    for episode in drawn[:-1]:
        if len(held) >= wanted:
            break
        held += by_episode[episode]
    return sorted(held)


def _check_precision(settings: FinetuningSettings, device: torch.device) -> None:
    if settings.mixed_precision is None or device.type == "cpu":
        return
    if device.type != "cuda" or not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"mixed_precision=bfloat16 is nothing that this device ({device}) computes in; leave mixed_precision out."
        )


def _seen_row(
    trainer: Any, rows: Dataset, trained: Sequence[int], collate: _Collator
) -> tuple[SeenRow, Image.Image] | None:
    """A row as the model gets it; None where it cannot be read back."""
    try:
        return decode_row(*_own_row(trainer, rows, trained, collate), trainer.processing_class)
    except Exception as error:
        # It is for the report alone, and how a picture becomes tensors is each architecture's own affair.
        logger.warning(
            "no training row can be shown as the model sees it (%s: %s); training goes on", type(error).__name__, error
        )
        return None


def _own_row(trainer: Any, rows: Dataset, trained: Sequence[int], collate: _Collator) -> tuple[int, dict[str, Any]]:
    """A row that is trained on, if possible of an episode and not rehearsed: its place, and the batch that it makes alone."""
    episodes = rows[_EPISODE] if _EPISODE in rows.column_names else [""] * len(rows)
    first = next((number for number, place in enumerate(trained) if episodes[place]), 0)
    batch = trainer.data_collator([trainer.train_dataset[first]])
    if "pixel_values" not in batch:
        # The model is given what it makes of them.
        batch = {**collate([rows[trained[first]]]), **batch}
    return trained[first], batch


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
    validation: _Validation

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        if self.weigh == "tokens":
            tokens = outputs.label_mask.sum().clamp(min=1)
            if self.args.gradient_accumulation_steps > 1 and num_items_in_batch is not None:
                # The mean over the step's parts, which the trainer takes, must be that over the step's tokens. Of models
                # that take no such number it is the mean over the parts' means.
                tokens = num_items_in_batch / self.current_gradient_accumulation_steps
            return -outputs.log_probs.sum() / tokens
        return (-outputs.log_probs.sum(dim=1) / outputs.label_mask.sum(dim=1).clamp(min=1)).mean()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.control.should_training_stop:
            # The trainer would go on for a step if it were resumed at its end.
            return
        written = Path(str(self.args.output_dir)) / f"{_UNFINISHED}{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]
            _publish(written, self.validation.best)
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            shutil.rmtree(written, ignore_errors=True)
            logger.warning("%s could not be written (%s); training goes on without it", written, error)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Of a checkpoint's model the adapter: no processor, no base, no settings as a pickle."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_adapter_weights(self.model), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a checkpoint is nobody's to read."""


def _collate_once(trainer: Any, target: str) -> _Collator:
    """Let the trainer read rows that were collated, and whose pictures were looked at, once for all epochs.

    Returns what collated them. Where that cannot be (adapters that change what is seen, an architecture that takes no
    features), it goes on as it is.
    """
    collate = _Collator(trainer.data_collator, trainer.processing_class, trainer.model.generation_config.eos_token_id)
    if target == "language":
        padding = trainer.processing_class.tokenizer.pad_token_id
        examples = Examples.of(trainer.train_dataset, collate, trainer.model.get_base_model(), padding)
        if examples is not None:
            trainer.train_dataset, trainer.data_collator = examples, examples.collate
            return collate
    # Copied for aligned memory, as in `load_weights`: the processor's arrays are numpy's.
    trainer.data_collator = lambda rows: {key: value.clone() for key, value in collate(rows).items()}
    return collate


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
    folder: str,
    device: torch.device,
    report_to: list[str],
    *,
    checkpoint: bool,
) -> SFTConfig:
    steps = math.ceil(settings.epochs * math.ceil(rows / settings.batch_size))
    made = SFTConfig(
        output_dir=folder,
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
        bf16=settings.mixed_precision == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
        full_determinism=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_steps=1,
        # The trainer would replace a loss that is not a number by the last good one.
        logging_nan_inf_filter=False,
        save_strategy="steps" if checkpoint and settings.checkpoint_steps else "no",
        save_steps=max(settings.checkpoint_steps, 1),
        eval_strategy="steps" if settings.validation else "no",
        eval_steps=settings.validate_every,
        per_device_eval_batch_size=rows_at_a_time,
        # Kept in checkpoints.
        include_num_input_tokens_seen="non_padding",
        report_to=report_to or "none",
        disable_tqdm=True,
    )
    if device.type == "cuda":
        # Of itself it takes the first of all the GPUs that it sees, and then refuses more than one.
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_device(index)
        made._n_gpu = 1
        vars(made)["_setup_devices"] = torch.device("cuda", index)  # what the property has cached
    return made


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


def _adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    return {
        key: value.detach().cpu().contiguous()
        for key, value in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items())
    }


def _save(model: Any, best: dict[str, torch.Tensor] | None, out: Path, *, label: str, revision: str) -> None:
    """Write the adapter (its weights as they are, or `best`) as PEFT would, without its model card and this machine's paths."""
    out.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.base_model_name_or_path = label
    config.revision = None
    config.inference_mode = True
    config.save_pretrained(out)
    weights = _adapter_weights(model) if best is None else best
    # One key only: safetensors writes several in an order that changes from process to process.
    save_file(weights, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (out / BASE_MODEL).write_text(json.dumps({"model": label, "revision": revision}, indent=2) + "\n")


# ---- reproducibility and reporting


_OF_DETERMINISM = (
    "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC",
    "FLASH_ATTENTION_DETERMINISTIC",
)  # fmt: skip
"""What the trainer sets in the environment for ``full_determinism``."""


@contextlib.contextmanager
def _reproducible(seed: int, threads: int, device: torch.device) -> Iterator[None]:
    """Pin seeds and threads and make torch deterministic; afterwards leave this process as it was."""
    gpu = torch.cuda.current_device() if device.type == "cuda" else None
    environment = {name: os.environ.get(name) for name in _OF_DETERMINISM}
    threads_before, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cudnn: Any = torch.backends.cudnn
    deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
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
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if gpu is not None:
            torch.cuda.set_device(gpu)
        _DETERMINISTIC.fill_uninitialized_memory = fill


@contextlib.contextmanager
def _scoring_completions_alone() -> Iterator[None]:
    """Let TRL's fused loss score on a CPU, too, the tokens of completions alone.

    It does so where it has Triton; elsewhere it scores the tokens of prompts as well and throws that away, since numbers
    that change from step to step make some devices compile anew. A CPU compiles nothing, and a small model's step takes a
    tenth less for it (`benchmarks/completions_alone.py`).
    """
    has_triton: Callable[[torch.device], bool] | None = getattr(trl_utils, "_use_triton", None)
    if has_triton is None:
        yield  # slower, with the same loss
        return
    with mock.patch.object(trl_utils, "_use_triton", lambda device: device.type == "cpu" or has_triton(device)):
        yield


class _Watch(TrainerCallback):
    """Tells of each step and stops at a loss that is not a number."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end, or a validation
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TerminalError(
                f"The training loss is {loss} at step {state.global_step}; lower the learning rate (now {args.learning_rate:g}) "
                "or use dtype=float32."
            )
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, loss)


def _curve(log: Sequence[dict[str, Any]]) -> list[CurvePoint]:
    """The trainer's log, which a checkpoint carries on, as a curve."""
    validation = {entry["step"]: float(entry[_VALIDATION_LOSS]) for entry in log if _VALIDATION_LOSS in entry}
    return [
        CurvePoint(
            step=entry["step"],
            epoch=float(entry["epoch"]),
            loss=float(entry["loss"]),
            learning_rate=float(entry["learning_rate"]),
            grad_norm=float(entry["grad_norm"]),
            validation_loss=validation.get(entry["step"]),
        )
        for entry in log
        if "loss" in entry
    ]


class _Validation(TrainerCallback):
    """Keeps the adapter with the lowest loss on the rows held out, and stops when it does not fall any more."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: dict[str, torch.Tensor] | None = None
        """None if nothing is held out."""

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        measured = [entry[_VALIDATION_LOSS] for entry in state.log_history if _VALIDATION_LOSS in entry]
        losses = [loss if math.isfinite(loss) else math.inf for loss in measured]
        lowest = losses.index(min(losses))
        if lowest == len(losses) - 1:
            self.best = {key: value.clone() for key, value in _adapter_weights(model).items()}
        elif self.patience and len(losses) - 1 - lowest >= self.patience:
            control.should_training_stop = True


# ---- checkpoints

_BEST, _SUMS = "best.safetensors", "SHA256SUMS"
_UNFINISHED, _STEP = "checkpoint-", "step-"
"""Names of checkpoints: the trainer's, and one that only a whole one has."""


def _publish(written: Path, best: dict[str, torch.Tensor] | None) -> None:
    """Complete a checkpoint, let it take the place of those before it, and give it its name once it is on the disk."""
    if best is not None:
        save_file(best, written / _BEST, metadata={"format": "pt"})
    (written / _SUMS).write_bytes(_sums(written))
    for path in written.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    before = list(written.parent.glob(f"{_STEP}*"))
    written.rename(written.with_name(written.name.replace(_UNFINISHED, _STEP)))
    for folder in before:
        shutil.rmtree(folder, ignore_errors=True)


def _sums(checkpoint: Path) -> bytes:
    """The sha256 of each file but the list itself, as ``sha256sum`` writes them."""
    lines = []
    for path in sorted(checkpoint.iterdir()):
        if path.name != _SUMS:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines).encode()


def _is_whole(checkpoint: Path) -> bool:
    """Whether its files are those that were written."""
    try:
        return (checkpoint / _SUMS).read_bytes() == _sums(checkpoint)
    except OSError:
        return False


def _begun(checkpoints: Path | None) -> int | None:
    """How many rows at a time a training took that left checkpoints; None if none did."""
    if checkpoints is None:
        return None
    return min(
        (int(step.parent.name.removesuffix("-rows")) for step in checkpoints.glob(f"*-rows/{_STEP}*")), default=None
    )


def _resume_from(attempt: Path, validation: _Validation) -> str | None:
    """The last whole checkpoint; with None training begins at the beginning."""
    for half_written in attempt.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(half_written, ignore_errors=True)
    steps = sorted(attempt.glob(f"{_STEP}*"), key=lambda folder: int(folder.name.removeprefix(_STEP)))
    for last in reversed(steps):
        if _is_whole(last):
            logger.info("fine-tuning goes on from %s", last.name)
            if (last / _BEST).is_file():
                validation.best = load_file(last / _BEST)
            return str(last)
        logger.warning("%s is damaged; fine-tuning does not go on from it", last)
        shutil.rmtree(last, ignore_errors=True)
    return None


def _tensorboard(log_dir: Path) -> TrainerCallback:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "Training curves were to go to TensorBoard, which is missing: pip install tensorboard."
        ) from error
    return TensorBoardCallback(SummaryWriter(log_dir=str(log_dir)))  # type: ignore[no-untyped-call]
