"""The default engine: any ``AutoModelForImageTextToText`` of transformers, with PEFT's LoRA adapters.

Loading goes: where the model is -> is it whole (configuration, processor, chat template, safetensors) -> weights. All
that can be refused is refused before the weights are read. Weights are held once a process; every
:class:`TransformersModel` over them is a light view with an adapter of its own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import hashlib
import inspect
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.logging import set_tqdm_hook

from selu.budget import count_tokens
from selu.errors import ConfigError, TransientError, first_line
from selu.models.base import Prompt, Reply
from selu.models.reading import Batch, Reader, conversation, image_features
from selu.prompting import PromptStyle

if TYPE_CHECKING:
    from selu.config import ModelSettings

__all__ = [
    "EMBEDDED_MODEL",
    "ModelSource",
    "TransformersModel",
    "check_adapter",
    "forget_models",
    "is_out_of_memory",
    "load_model",
    "load_processor",
    "load_weights",
    "loading_options",
    "locate_model",
    "model_revision",
]

# Fine-tuning, which is deterministic, asks for it; older torch remembers what there was when the GPU first multiplied.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "base_models" / "household"
"""Folder of the base model that ships with the project; ``path: embedded`` in the settings."""

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_MODEL = "base_model.json"
"""Beside an adapter that this project trained: name and revision of the base model it was trained on."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_HASHED_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")

# For processors that write the turn themselves and come without a template, such as PaliGemma's.
_BARE_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)

Result = TypeVar("Result")


# ---- where a model is, and whether it is whole


@dataclass(frozen=True)
class ModelSource:
    """A model found and checked, its weights not yet read."""

    name: str
    """Folder or hub id, as transformers' ``from_pretrained`` takes it."""
    commit: str | None
    """Commit of a hub model; None for a folder."""
    revision: str
    """32 hex digits: hash of a folder's weights, configuration and tokenizer, or of a hub commit and configuration."""
    label: str
    """How the model is called where no path of this machine may stand: ``embedded``, a folder's name or a hub id."""


def locate_model(settings: ModelSettings) -> ModelSource:
    """Find the model that `settings` name and check what can be checked without its weights.

    Raises:
        ConfigError: no such model, a folder that is not whole, or an architecture that does not read images.
    """
    if settings.path == "embedded":
        if not EMBEDDED_MODEL.is_dir():
            raise ConfigError(
                f"The embedded base model is missing from this installation ({EMBEDDED_MODEL} does not exist); "
                "reinstall the project, or name another model with actor.path and critic.path."
            )
        return _folder_source(EMBEDDED_MODEL, "embedded")
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        return _folder_source(folder, folder.resolve().name)
    if settings.path.count("/") != 1 or settings.path.startswith((".", "/", "~")):
        raise ConfigError(
            f"No model at {settings.path!r}: it must be 'embedded', an existing folder, or a hub id such as 'owner/name'."
        )
    return _hub_source(settings.path, settings.revision)


def _folder_source(folder: Path, label: str) -> ModelSource:
    problems = []
    if not (folder / "config.json").is_file():
        problems.append("config.json")
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        problems.append(f"a processor ({' or '.join(_PROCESSOR_FILES)})")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        problems.append("a tokenizer (tokenizer.json)")
    if not any(folder.glob("*.safetensors")):
        problems.append("weights in safetensors form (*.safetensors)")
    if problems:
        raise ConfigError(
            f"The model folder {folder} lacks {', '.join(problems)}; save both model and processor into it with "
            "save_pretrained(), or download the whole model again."
        )
    _check_architecture(str(folder), None)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _HASHED_SUFFIXES)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{_file_digest(path)}\n".encode())
    return ModelSource(str(folder), None, digest.hexdigest()[:32], label)


def _hub_source(name: str, revision: str | None) -> ModelSource:
    config = _check_architecture(name, revision)
    commit = config._commit_hash or revision
    described = json.dumps([name, commit, config.to_dict()], sort_keys=True, default=str)
    return ModelSource(name, commit, hashlib.sha256(described.encode()).hexdigest()[:32], name)


def _check_architecture(name: str, revision: str | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"The configuration of the model {name!r} could not be read: {first_line(error)} "
            "Check the name and the connection, or give the folder of a downloaded model."
        ) from error
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(
            f"The model {name!r} has the architecture {config.model_type!r}, which does not answer prompts with images "
            "(AutoModelForImageTextToText does not know it); choose a vision-language model."
        )
    return config


def load_processor(source: ModelSource) -> Any:
    """Load the processor of a model: tokenizer, image processor, chat template.

    Raises:
        ConfigError: it cannot be loaded, wants a missing package, or has no chat template.
    """
    try:
        processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            source.name, revision=source.commit or "main"
        )
    except ImportError as error:
        package = next(
            (word for word in ("torchvision", "num2words", "sentencepiece") if word in str(error).lower()), None
        )
        # An extra fits the versions of torch and transformers that are there.
        extra = 'pip install "selu[video-processors]"' if package in ("torchvision", "num2words") else None
        way_out = extra or (f"pip install {package}" if package else "install the package it names")
        raise ConfigError(
            f"The processor of the model {source.label!r} needs {package or 'a missing package'}; {way_out}: "
            f"{first_line(error)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"The processor of the model {source.label!r} could not be loaded: {first_line(error)} "
            "It needs a processor, tokenizer and image processor saved with save_pretrained()."
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ConfigError(
            f"The model {source.label!r} has no image processor beside its tokenizer; save its processor into the folder "
            "with save_pretrained()."
        )
    if processor.chat_template is None and takes_suffix(processor):
        processor.chat_template = _BARE_TEMPLATE.replace("IMAGE", processor.image_token)
    if processor.chat_template is None:
        raise ConfigError(
            f"The processor of the model {source.label!r} has no chat template; choose an instruction-tuned model or add "
            "a chat_template.jinja."
        )
    return processor


def takes_suffix(processor: Any) -> bool:
    """Whether a processor joins prompt and completion itself, telling apart what each may see (a prefix language model)."""
    return "suffix" in inspect.signature(processor.__call__).parameters


def load_weights(
    source: ModelSource, dtype: str, device: torch.device, options: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Read the weights of a model, in evaluation mode. `options` are those of :func:`loading_options`.

    Raises:
        ConfigError: the weights do not fit the configuration, the options or the device's memory, or `dtype` is unknown.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"The data type of a model must be one of {', '.join(_DTYPES)}, got {dtype!r}.")
    try:
        return _load_weights(source, dtype, device, options)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"The model {source.label!r} does not fit the memory of {device} as {dtype}; choose dtype=bfloat16, "
            "quantization=4bit, device_map=auto over several GPUs, or a smaller model. Where vLLM answers on the same GPU, "
            "it keeps the share gpu_memory of it."
        ) from error


def _load_weights(source: ModelSource, dtype: str, device: torch.device, options: Mapping[str, Any]) -> Any:
    try:
        with _without_bar():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source.name,
                revision=source.commit or "main",
                dtype=_DTYPES[dtype],
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        model, report = loaded
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise ConfigError(
            f"The weights of the model {source.label!r} could not be loaded: {first_line(error)}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"The weights of the model {source.label!r} lack {len(missing)} tensors that its configuration asks for, "
            f"such as {missing[0]}; it is incomplete or of another architecture."
        )
    # torch.matmul takes another path, which rounds differently, where a weight wants a gradient; PEFT switches that off for
    # all weights as soon as an adapter is put in, so it is off from the start.
    model.requires_grad_(False)
    if "device_map" in options:
        # Accelerate has put every layer where it belongs.
        return model.eval()
    # Weights lie in the mapped file as they came. MKL promises equal results from run to run only for aligned memory,
    # which torch's own allocator gives.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model.to(device).eval()


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """Without the bar of reading weights, which would break into other lines of progress; those of downloads stay."""
    before = set_tqdm_hook(lambda bar, given, named: bar(*given, **{**named, "disable": True}))
    try:
        yield
    finally:
        set_tqdm_hook(before)


def loading_options(settings: ModelSettings) -> dict[str, Any]:
    """What `settings` add to ``from_pretrained``; nothing with the defaults.

    Raises:
        ConfigError: the device, or a package that is not installed, rules one of them out.
    """
    options: dict[str, Any] = {}
    if settings.dtype == "bfloat16" and settings.device.startswith(("cuda", "auto")):
        device = resolve_device(settings.device)
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ConfigError(
                f"dtype=bfloat16 is nothing that this GPU ({device}) computes in; use float16 or float32."
            )
    if settings.dtype == "float16" and resolve_device(settings.device).type == "cpu":
        raise ConfigError("dtype=float16 does not run on a CPU; use float32 or bfloat16.")
    if settings.attention != "auto":
        options["attn_implementation"] = settings.attention
    if settings.attention == "flash_attention_2":
        _want_cuda("attention=flash_attention_2", settings, "use sdpa")
        _want_package("flash_attn", "attention=flash_attention_2", "pip install flash-attn")
        if settings.dtype == "float32":
            raise ConfigError("attention=flash_attention_2 computes in half precision; set dtype=bfloat16 or use sdpa.")
    if settings.device_map is not None:
        if isinstance(settings.device_map, str):
            _want_cuda(
                f"device_map={settings.device_map}", settings, "leave it out, or give a map from module to device"
            )
        options["device_map"] = settings.device_map
    if settings.quantization == "4bit":
        _want_cuda("quantization=4bit", settings, "use none, with dtype=bfloat16 to save memory")
        _want_package("bitsandbytes", "quantization=4bit", 'pip install "selu[4bit]"')
        from transformers import BitsAndBytesConfig

        # As in QLoRA (arXiv 2305.14314): NF4, its constants quantised once more.
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_DTYPES[settings.dtype],
        )
        options.setdefault("device_map", {"": resolve_device(settings.device)})
    return options


def _want_cuda(what: str, settings: ModelSettings, way_out: str) -> None:
    device = resolve_device(settings.device)
    if device.type != "cuda":
        raise ConfigError(f"{what} needs a CUDA GPU, and device={settings.device} is {device.type} here; {way_out}.")


def _want_package(package: str, what: str, way_out: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(f"{what} needs the package {package}, which is not installed: {way_out}.")


def resolve_device(name: str) -> torch.device:
    """Return the torch device of a setting; ``auto`` is the accelerator if there is one.

    Raises:
        ConfigError: torch does not know or does not have it.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"The device {name!r} cannot be used: {first_line(error)} Try device=cpu or auto.") from error
    return device


def check_adapter(path: Path) -> str:
    """Check that `path` holds a LoRA adapter in safetensors form and return its content hash, 32 hex digits.

    Raises:
        ConfigError: a file is missing or it is another kind of adapter.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (path / name).is_file():
            raise ConfigError(
                f"The adapter folder {path} lacks {name}; a PEFT LoRA adapter has both it and its weights."
            )
    try:
        kind = json.loads((path / ADAPTER_CONFIG).read_text())["peft_type"]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path / ADAPTER_CONFIG} is not the configuration of a PEFT adapter: {error!r}.") from error
    if kind != "LORA":
        raise ConfigError(f"The adapter in {path} must be of type LORA, got {kind!r}.")
    parts = "".join(_file_digest(path / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Return name -> (inputs, outputs) of the linear layers of a model that no adapter was put into yet."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def check_adapter_base(path: Path, source: ModelSource) -> None:
    """Compare the model that an adapter was trained on, if it tells, with `source`.

    Raises:
        ConfigError: it was another one.
    """
    if (path / BASE_MODEL).is_file():
        trained_on = json.loads((path / BASE_MODEL).read_text())
        if trained_on["revision"] != source.revision:
            raise ConfigError(
                f"The adapter in {path} was trained on the model {trained_on['model']!r} of revision {trained_on['revision']}, "
                f"not on {source.label!r} of revision {source.revision}; train it again or give that model."
            )


def check_adapter_fits(path: Path, layers: dict[str, tuple[int, int]], source: ModelSource) -> None:
    """Compare an adapter with the model `source` and its linear layers.

    Raises:
        ConfigError: it was trained on another model, or adapts a layer that this one does not have, or has in another size.
    """
    check_adapter_base(path, source)
    with safe_open(path / ADAPTER_WEIGHTS, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
            layer, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
            if layer not in layers:
                raise ConfigError(
                    f"The adapter in {path} is for another architecture: this model has no linear layer {layer}."
                )
            # A is (rank, inputs), B is (outputs, rank).
            inputs, outputs = layers[layer]
            got, want = (1, inputs) if kind.startswith("A.") else (0, outputs)
            got = tensors.get_slice(key).get_shape()[got]
            if got != want:
                raise ConfigError(
                    f"The adapter in {path} is for another model: its size at {layer} is {got}, this model's is {want}."
                )


def model_revision(settings: ModelSettings, adapter: Path | None = None) -> str:
    """Return what ``load_model(settings, adapter).revision`` would be, without reading weights into memory."""
    loading_options(settings)
    path = adapter or settings.adapter
    return _revision(locate_model(settings), _variant(settings), None if path is None else check_adapter(path))


def _revision(source: ModelSource, variant: str, adapter: str | None) -> str:
    return source.revision + variant + ("" if adapter is None else f"+{adapter}")


def _variant(settings: ModelSettings) -> str:
    """How the weights are run, where that changes answers by more than the kind of device does."""
    ways = (settings.quantization if settings.quantization != "none" else "", settings.attention)
    return "".join(f"-{way}" for way in ways if way not in {"", "auto"})


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of_unchanged_file(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest_of_unchanged_file(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- weights, held once a process


@dataclass
class _Weights:
    """A model in memory and the adapters that were put into it. Use it under `lock`."""

    source: ModelSource
    processor: Any
    model: Any
    variant: str = ""
    quantized: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    peft: PeftModel | None = None
    active: str | None = None
    pristine: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = linear_layers(self.model)
        self.reader = Reader(self.processor, self.source.label, self.model.device, self.model.dtype)

    def add_adapter(self, path: Path) -> str:
        """Read an adapter unless it is in memory already; return its name, which is its content hash."""
        name = check_adapter(path)
        with self.lock:
            if self.peft is not None and name in self.peft.peft_config:
                return name
            check_adapter_fits(path, self.layers, self.source)
            try:
                if self.peft is None:
                    self.peft = PeftModel.from_pretrained(self.model, path, adapter_name=name)
                else:
                    self.activate(None)
                    self.peft.load_adapter(path, adapter_name=name)
            except (RuntimeError, ValueError, KeyError) as error:
                raise ConfigError(
                    f"The adapter in {path} does not fit the model {self.source.label!r}: {first_line(error)}"
                ) from error
            self.model.eval()
            self.active = name
            self.activate(None)
            return name

    def activate(self, name: str | None) -> None:
        """Answer under this adapter from now on; None is the base model itself.

        In float32 the adapter is merged into the weights it adapts, which spares two small products a layer; going back
        restores a copy of them bit for bit. In half precision or 4 bits merging would round, so the adapter stays beside
        them.
        """
        if self.peft is None or name == self.active:
            return
        merge = self.model.dtype == torch.float32 and not self.quantized
        tuner: Any = self.peft.base_model
        if merge and self.pristine:
            tuner.unmerge_adapter()
            for key, tensor in self.pristine.items():
                self.model.get_parameter(key).data.copy_(tensor)
            self.pristine = {}
        if name is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self.peft.set_adapter(name, inference_mode=True)
            if merge:
                self.pristine = {
                    key: value.detach().clone() for key, value in self.model.named_parameters() if ".base_layer." in key
                }
                tuner.merge_adapter([name])
        self.active = name


@dataclass(frozen=True)
class _Options:
    """Options of loading, equal if their text is."""

    text: str
    values: dict[str, Any] = field(compare=False)


# One thread loads at a time: two that want the same model get the same.
_LOADING = threading.Lock()


# A round uses one base model; two leave room for an actor and a critic of different kinds.
@functools.lru_cache(maxsize=2)
def _load(source: ModelSource, dtype: str, device: torch.device, options: _Options, variant: str) -> _Weights:
    processor = load_processor(source)
    model = load_weights(source, dtype, device, options.values)
    config, tokenizer = model.generation_config, processor.tokenizer
    end = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # The folder's own generation settings (sampling, penalties) would change what `generate` promises.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id, bos_token_id=config.bos_token_id
    )
    return _Weights(source, processor, model, variant, quantized="quantization_config" in options.values)


def forget_models() -> None:
    """Let go of the weights that this engine holds, so that their memory is free; the next :func:`load_model` reads anew."""
    with _LOADING:
        _load.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()


def load_model(settings: ModelSettings, adapter: Path | None = None) -> TransformersModel:
    """Load the model that `settings` name, under `adapter` (or the settings' own).

    A model that this process holds already is used again.

    Raises:
        ConfigError: the model or adapter is missing, incomplete, or of the wrong kind.
    """
    options, source, device = loading_options(settings), locate_model(settings), resolve_device(settings.device)
    with _LOADING:
        weights = _load(source, settings.dtype, device, _Options(repr(options), options), _variant(settings))
    model = TransformersModel(
        weights, settings.batch_size, threads=settings.threads, prompt_style=settings.prompt_style
    )
    return model.with_adapter(adapter or settings.adapter)


# ---- the engine

# Layers of a cache of which rows can be taken.
_SELECTABLE = (DynamicLayer, DynamicSlidingWindowLayer)


class _GumbelNoise(LogitsProcessor):
    """Turns greedy search into sampling: argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T).

    Every row has its own generator, so that a row's draws do not depend on its neighbours.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        noise = np.stack([generator.gumbel(size=scores.shape[1]) for generator in self.generators])
        noisy: Any = scores.float() / self.temperature + torch.from_numpy(noise).to(scores.device, torch.float32)
        return noisy  # type: ignore[no-any-return]


class TransformersModel:
    """A :class:`~selu.models.base.VisionLanguageModel` run by transformers in this process. Thread-safe."""

    def __init__(
        self,
        weights: _Weights,
        batch_size: int,
        adapter: str | None = None,
        *,
        threads: int,
        prompt_style: PromptStyle = "brief",
    ) -> None:
        self._threads = threads
        self.prompt_style = prompt_style
        self._weights = weights
        self._batch_size = batch_size
        self._adapter = adapter

    def __repr__(self) -> str:
        return f"TransformersModel({self._weights.source.label!r}, revision={self.revision!r})"

    @property
    def revision(self) -> str:
        """Content hash of the base weights, followed by how they are run if that is special (``-4bit``), and by ``+`` and
        the adapter's hash if there is one."""
        return _revision(self._weights.source, self._weights.variant, self._adapter)

    def with_adapter(self, path: Path | None) -> TransformersModel:
        """Return the same base weights under another adapter (None: under none).

        Raises:
            ConfigError: the adapter is missing or does not fit.
        """
        name = None if path is None else self._weights.add_adapter(path)
        return TransformersModel(
            self._weights, self._batch_size, name, threads=self._threads, prompt_style=self.prompt_style
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Answer each prompt; see :meth:`~selu.models.base.VisionLanguageModel.generate`."""
        if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
            raise ValueError(
                f"Sampling needs one seed a prompt, got {0 if seeds is None else len(seeds)} for {len(prompts)} prompts."
            )

        def answer(rows: Sequence[int]) -> list[Reply]:
            noise = (
                [_GumbelNoise(temperature, [seeds[row] for row in rows])]
                if seeds is not None and temperature > 0
                else []
            )
            return self._generate([prompts[row] for row in rows], max_new_tokens, LogitsProcessorList(noise))

        return self._in_batches(prompts, answer)

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        """Score each choice as a reply; see :meth:`~selu.models.base.VisionLanguageModel.score`.

        A choice counts with the probability of its tokens. If one choice begins another ("mug", "mug, bowl"), the end
        of the turn counts too, for all of them.

        Raises:
            ValueError: there is no choice, or two are the same.
        """
        if not choices or len(set(choices)) != len(choices):
            raise ValueError(f"Choices must be distinct and at least one, got {list(choices)!r}.")
        tokens = self._choice_tokens(choices)
        rows = self._in_batches(prompts, lambda rows: list(self._score([prompts[row] for row in rows], tokens)))
        table = np.array(rows, dtype=np.float64).reshape(len(prompts), len(choices))
        return table - np.logaddexp.reduce(table, axis=1, keepdims=True)

    # -- one batch

    def _generate(self, prompts: Sequence[Prompt], max_new_tokens: int, noise: LogitsProcessorList) -> list[Reply]:
        batch = self._weights.reader.read(prompts)
        inputs = self._model_inputs(batch)
        model, tokenizer = self._weights.model, self._weights.processor.tokenizer
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            logits_processor=noise,
            output_logits=True,
            return_dict_in_generate=True,
        )
        written = output.sequences[:, inputs["input_ids"].shape[1] :]
        end = model.generation_config.eos_token_id
        ends = torch.isin(written, torch.tensor([end] if isinstance(end, int) else list(end), device=written.device))
        # Counts the first end token itself, and nothing after it.
        alive = (ends.cumsum(dim=1) - ends.long()) == 0
        total = torch.zeros(len(prompts), dtype=torch.float64, device=written.device)
        for step, logits in enumerate(output.logits):
            chosen = logits.double().log_softmax(dim=-1).gather(1, written[:, step : step + 1])[:, 0]
            total += torch.where(alive[:, step], chosen, 0.0)
        texts = tokenizer.batch_decode(
            [row[keep].tolist() for row, keep in zip(written, alive & ~ends, strict=True)], skip_special_tokens=True
        )
        count_tokens(read=int(batch.lengths.sum()), written=int(alive.sum()))
        # Four decimals: the rest is the rounding of floating point arithmetic, and no record should hold it.
        return [Reply(text.strip(), round(value, 4)) for text, value in zip(texts, total.tolist(), strict=True)]

    def _score(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Return (n, len(choices)) log-probabilities; the prompts are read once and their cache is shared."""
        batch = self._weights.reader.read(prompts)
        # A choice's first token is answered from the prompt alone; to score the rest it has to be read.
        beyond = sum(len(choice) - 1 for choice in choices)
        logits = None if beyond else self._after_shared_beginning(batch)
        if logits is not None:
            table = logits.double().log_softmax(dim=-1)[:, [choice[0] for choice in choices]].cpu().numpy()
        else:
            table = self._choices_after(self._model_inputs(batch), choices)
        count_tokens(read=int(batch.lengths.sum()) + beyond * len(prompts))
        return table

    def _choices_after(self, inputs: dict[str, Any], choices: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        several = any(len(choice) > 1 for choice in choices)
        output = self._weights.model(**inputs, use_cache=several, logits_to_keep=1)
        first = output.logits[:, -1].double().log_softmax(dim=-1)
        table = np.empty((len(first), len(choices)))
        for column, choice in enumerate(choices):
            total = first[:, choice[0]]
            if len(choice) > 1:
                rest = torch.tensor([choice] * len(first), device=first.device)
                mask = torch.cat([inputs["attention_mask"], torch.ones_like(rest[:, 1:])], dim=1)
                # A forward pass writes into the cache it is given.
                cache = copy.deepcopy(output.past_key_values)
                model, read = self._weights.model, rest[:, :-1]
                logits = model(
                    input_ids=read,
                    attention_mask=mask,
                    past_key_values=cache,
                    position_ids=_positions_after(model, read, mask, cache),
                ).logits
                total = total + logits.double().log_softmax(dim=-1).gather(2, rest[:, 1:, None])[:, :, 0].sum(dim=1)
            table[:, column] = total.cpu().numpy()
        return table

    def _model_inputs(self, batch: Batch) -> dict[str, Any]:
        """Everything for every prompt; where prompts share a picture, the vision tower runs once on it, if the model can be
        handed its features.

        The tower takes much of the time of a short answer on a CPU.
        """
        model, picture_of = self._weights.model, batch.picture_of
        if picture_of is None or "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            return batch.inputs()
        pooled = image_features(model, batch.pictures, int(picture_of.max()) + 1)
        if pooled is None:
            return batch.inputs()
        features: Any = pooled[picture_of] if isinstance(pooled, torch.Tensor) else [pooled[row] for row in picture_of]
        taken = inspect.signature(model.get_image_features).parameters
        return {
            **batch.tokens,
            **{key: value[picture_of] for key, value in batch.pictures.items() if key not in taken},
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)},
        }

    def _after_shared_beginning(self, batch: Batch) -> torch.Tensor | None:
        """Logits (n, vocabulary) of what follows each prompt; what prompts begin with alike, their picture above all, is read
        once for each picture. None where hardly any prompts share one, or the model does not read from left to right, counting
        positions one by one.

        A question is a few tokens behind a picture of dozens, or of thousands.
        """
        model = self._weights.model
        # Not every configuration says which token stands for a picture.
        image_token = getattr(model.config, "image_token_id", None)
        if (
            batch.picture_of is None
            or image_token is None
            or takes_suffix(self._weights.processor)
            or not _counts_in_ones(model)
        ):
            return None
        firsts, lengths = batch.first_of_each_picture(), batch.lengths
        cache = DynamicCache(config=model.config)
        if 2 * len(firsts) > len(batch) or any(type(layer) not in _SELECTABLE for layer in cache.layers):
            return None
        # Padding goes behind, where no token that counts looks at it.
        width = batch.tokens["input_ids"].shape[1]
        place = (torch.arange(width) + (width - lengths)[:, None]).clamp(max=width - 1)
        aligned = {key: value.gather(1, place.to(value.device)) for key, value in batch.tokens.items()}
        ids = aligned["input_ids"]
        alike = (ids == ids[0]).all(dim=0)[: int(lengths.min()) - 1]
        shared = int(alike.long().cumprod(dim=0).sum())
        pictured = ids == image_token
        if not pictured[:, :shared].any() or pictured[:, shared:].any():
            return None
        beginning = {key: value[firsts, :shared] for key, value in aligned.items()}
        model(**beginning, **batch.pictures, past_key_values=cache, use_cache=True, logits_to_keep=1)
        # Indices on the CPU go with layers on any device.
        cache.batch_select_indices(batch.picture_of)
        ends, end_of = torch.unique(lengths - shared - 1, return_inverse=True)
        logits: torch.Tensor = model(input_ids=ids[:, shared:], past_key_values=cache, logits_to_keep=ends).logits
        return logits[torch.arange(len(batch)), end_of]

    def _choice_tokens(self, choices: Sequence[str]) -> list[list[int]]:
        processor = self._weights.processor
        tokens = []
        for choice in choices:
            asked = conversation("?", 0)
            before = processor.apply_chat_template(asked, add_generation_prompt=True)
            whole = processor.apply_chat_template(
                [*asked, {"role": "assistant", "content": [{"type": "text", "text": choice}]}]
            )
            # Some templates put a space between "Assistant:" and the reply; it belongs to the reply's first token.
            reply = whole.removeprefix(before)
            reply = reply[: reply.index(choice) + len(choice)] if whole.startswith(before) else choice
            tokens.append(processor.tokenizer(reply, add_special_tokens=False)["input_ids"])
        begins_another = any(a is not b and b[: len(a)] == a for a in tokens for b in tokens)
        if begins_another:
            tokens = [[*choice, self._end_of_turn()] for choice in tokens]
        return tokens

    def _end_of_turn(self) -> int:
        """The token that the chat template puts after a reply; the first that ends a text where it puts none."""
        processor = self._weights.processor
        end = self._weights.model.generation_config.eos_token_id
        ends = [end] if isinstance(end, int) else list(end)
        turns = [*conversation("?", 0), {"role": "assistant", "content": [{"type": "text", "text": "?"}]}]
        after = processor.apply_chat_template(turns).rpartition("?")[2]
        written = processor.tokenizer(after, add_special_tokens=False)["input_ids"]
        return next((token for token in written if token in ends), ends[0])

    # -- batching

    def _in_batches(self, prompts: Sequence[Prompt], answer: Callable[[Sequence[int]], list[Result]]) -> list[Result]:
        """Answer rows of like number of images, same pictures and like length together; put the answers back in order."""
        self._refuse_control_tokens(prompts)
        order = _batching_order(prompts)
        results: dict[int, Result] = {}
        size = self._batch_size
        # Sums in another order give other bytes. Here and not at loading: the number holds for the thread that sets it.
        torch.set_num_threads(self._threads)
        with self._weights.lock, torch.inference_mode():
            self._weights.activate(self._adapter)
            start = 0
            while start < len(order):
                rows = order[start : start + size]
                rows = [row for row in rows if len(prompts[row].images) == len(prompts[rows[0]].images)]
                try:
                    results.update(zip(rows, answer(rows), strict=True))
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(rows) == 1:
                        raise TransientError(
                            f"The model {self._weights.source.label!r} ran out of memory on a single prompt; free memory, or "
                            "choose a smaller model or dtype=bfloat16."
                        ) from error
                    size = len(rows) // 2
                    torch.cuda.empty_cache()
                    continue
                start += len(rows)
        return [results[row] for row in range(len(prompts))]

    def _refuse_control_tokens(self, prompts: Sequence[Prompt]) -> None:
        control = self._weights.processor.tokenizer.all_special_tokens
        for text in {prompt.text for prompt in prompts}:
            found = [token for token in control if token in text]
            if found:
                raise ConfigError(f"The text {text!r} holds {found[0]!r}, a control token of the model; take it out.")


def _positions_after(model: Any, tokens: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor | None:
    """Positions of `tokens` that follow what is in `cache`; None where the model itself counts them right.

    A model that gives a picture's tokens positions in two dimensions (Qwen's) counts on only in `generate`.
    """
    if _counts_in_ones(model):
        return None
    count = type(model)._prepare_position_ids_for_generation
    positions: torch.Tensor = count(model, tokens, {"attention_mask": mask, "past_key_values": cache})
    return positions[..., -tokens.shape[1] :]


def _counts_in_ones(model: Any) -> bool:
    return type(model)._prepare_position_ids_for_generation is GenerationMixin._prepare_position_ids_for_generation


def _batching_order(prompts: Sequence[Prompt]) -> list[int]:
    """Rows ordered by number of images, then by group of the same pictures (groups by longest text), then by length."""
    keys = [prompt.picture_key for prompt in prompts]
    longest: dict[bytes, int] = {}
    for key, prompt in zip(keys, prompts, strict=True):
        longest[key] = max(longest.get(key, 0), len(prompt.text))

    def place(row: int) -> tuple[int, int, bytes, int, int]:
        prompt, key = prompts[row], keys[row]
        return len(prompt.images), longest[key], key, len(prompt.text), row

    return sorted(range(len(prompts)), key=place)


_OUT_OF_MEMORY = (
    "can't allocate memory",  # the CPU's allocator
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",  # libraries that take memory past torch's allocator
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What errors say that torch raises as a plain RuntimeError."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error is one of memory, which a smaller batch may cure."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
