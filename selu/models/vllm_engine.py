"""Models run by vLLM in this process: offline batches on a GPU, adapters as LoRA requests, shared prompts read once.

Fine-tuning a model of this engine goes through transformers, on the same weights. vLLM keeps its share of the GPU's memory
for as long as the process lives, so leave room with ``gpu_memory`` where the same process trains.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from selu.budget import count_tokens
from selu.config import VLLM_HIGHEST_RANK
from selu.errors import ConfigError
from selu.models.base import Prompt, Reply
from selu.models.first_token import ALTERNATIVES, first_token_scores
from selu.models.transformers_engine import (
    ADAPTER_CONFIG,
    ModelSource,
    check_adapter,
    check_adapter_base,
    locate_model,
    resolve_device,
)
from selu.prompting import PromptStyle

if TYPE_CHECKING:
    from selu.config import ModelSettings

__all__ = ["VllmModel", "load_model", "model_revision"]


def load_model(settings: ModelSettings, adapter: Path | None = None) -> VllmModel:
    """Load the model that `settings` name, under `adapter` (or the settings' own).

    A model that this process holds already is used again.

    Raises:
        ConfigError: vLLM or a GPU is missing, or the model or adapter is missing, incomplete, or of the wrong kind.
    """
    check(settings)
    source = locate_model(settings)
    path = adapter or settings.adapter
    if path is not None:
        _check_adapter(path, source)
    with _LOADING:
        weights = _load(
            source, settings.dtype, settings.quantization, settings.device_map is not None, settings.gpu_memory
        )
    return VllmModel(weights, prompt_style=settings.prompt_style).with_adapter(path)


def model_revision(settings: ModelSettings, adapter: Path | None = None) -> str:
    """Return what ``load_model(settings, adapter).revision`` would be, without loading anything."""
    check(settings)
    source, path = locate_model(settings), adapter or settings.adapter
    return _revision(source, settings.quantization, None if path is None else _check_adapter(path, source))


def check(settings: ModelSettings) -> None:
    """Refuse settings that vLLM cannot run here.

    Raises:
        ConfigError: vLLM is not installed, there is no CUDA GPU, or a setting is another engine's.
    """
    if find_spec("vllm") is None:
        raise ConfigError('engine=vllm needs vLLM, which is not installed: pip install "selu[vllm]".')
    if settings.device not in {"auto", "cuda"} or resolve_device(settings.device).type != "cuda":
        raise ConfigError(
            f"engine=vllm needs a CUDA GPU and device=cuda, got device={settings.device}; use engine=transformers elsewhere."
        )
    if settings.attention != "auto":
        raise ConfigError(f"engine=vllm has attention of its own; leave attention={settings.attention} out.")
    if isinstance(settings.device_map, dict):
        raise ConfigError("engine=vllm spreads a model over GPUs by itself; set device_map=auto in place of a map.")


def _check_adapter(path: Path, source: ModelSource) -> str:
    name = check_adapter(path)
    check_adapter_base(path, source)
    rank = json.loads((path / ADAPTER_CONFIG).read_text())["r"]
    if rank > VLLM_HIGHEST_RANK:
        raise ConfigError(f"The adapter in {path} has rank {rank}; engine=vllm takes at most {VLLM_HIGHEST_RANK}.")
    return name


def _revision(source: ModelSource, quantization: str, adapter: str | None) -> str:
    way = "" if quantization == "none" else f"-{quantization}"
    return f"{source.revision}-vllm{way}" + ("" if adapter is None else f"+{adapter}")


class _Weights:
    """A model in vLLM, and the numbers by which it knows its adapters. Use it under `lock`."""

    def __init__(self, source: ModelSource, quantization: str, llm: Any) -> None:
        self.source, self.quantization, self.llm = source, quantization, llm
        self.lock = threading.RLock()
        self.adapters: dict[str, Any] = {}

    def request(self, name: str, path: Path) -> Any:
        """The LoRA request of the adapter `name`, the same one whenever it is asked for."""
        requests: Any = import_module("vllm.lora.request")
        with self.lock:
            # vLLM numbers adapters from 1.
            return self.adapters.setdefault(name, requests.LoRARequest(name, len(self.adapters) + 1, str(path)))


_LOADING = threading.Lock()


@functools.lru_cache(maxsize=2)
def _load(source: ModelSource, dtype: str, quantization: str, spread: bool, gpu_memory: float) -> _Weights:
    vllm: Any = import_module("vllm")
    try:
        llm = vllm.LLM(
            model=source.name,
            revision=source.commit,
            dtype=dtype,
            seed=0,
            enable_lora=True,
            max_lora_rank=VLLM_HIGHEST_RANK,
            # The actor's and the critic's.
            max_loras=2,
            enable_prefix_caching=True,
            gpu_memory_utilization=gpu_memory,
            tensor_parallel_size=torch.cuda.device_count() if spread else 1,
            quantization="bitsandbytes" if quantization == "4bit" else None,
            # Log-probabilities as they are at temperature 1, whatever is sampled at.
            logprobs_mode="raw_logprobs",
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"vLLM could not load the model {source.label!r}: {reason}") from error
    return _Weights(source, quantization, llm)


class VllmModel:
    """A :class:`~selu.models.base.VisionLanguageModel` run by vLLM. Thread-safe."""

    def __init__(
        self,
        weights: _Weights,
        adapter: str | None = None,
        request: Any = None,
        *,
        prompt_style: PromptStyle = "full",
    ) -> None:
        self.prompt_style = prompt_style
        self._weights, self._adapter, self._request = weights, adapter, request

    def __repr__(self) -> str:
        return f"VllmModel({self._weights.source.label!r}, revision={self.revision!r})"

    @property
    def revision(self) -> str:
        """Content hash of the base weights, ``-vllm``, and after ``+`` the adapter's hash if there is one."""
        return _revision(self._weights.source, self._weights.quantization, self._adapter)

    def with_adapter(self, path: Path | None) -> VllmModel:
        """Return the same base weights under another adapter (None: under none).

        Raises:
            ConfigError: the adapter is missing, was trained on another model, or has too high a rank.
        """
        if path is None:
            return VllmModel(self._weights, prompt_style=self.prompt_style)
        name = _check_adapter(path, self._weights.source)
        return VllmModel(self._weights, name, self._weights.request(name, path), prompt_style=self.prompt_style)

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
        wanted: list[dict[str, Any]] = [
            {"max_tokens": max_new_tokens, "temperature": temperature, "logprobs": 0} for _ in prompts
        ]
        if seeds is not None and temperature > 0:
            wanted = [{**row, "seed": int(seed) % 2**63} for row, seed in zip(wanted, seeds, strict=True)]
        replies = []
        for output in self._answer(prompts, wanted):
            written = zip(output.token_ids, output.logprobs, strict=True)
            total = sum(likely[token].logprob for token, likely in written)
            replies.append(Reply(output.text.strip(), round(total, 4)))
        return replies

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        """Score each choice as a reply by its first token; see :meth:`~selu.models.base.VisionLanguageModel.score`.

        It is :func:`~selu.models.first_token.first_token_scores` of the 20 likeliest: to have vLLM score a whole choice
        would make it read every prompt anew.

        Raises:
            ValueError: there is no choice, or two are the same.
            ConfigError: a first token begins two of the choices, so that it does not tell them apart.
        """
        if not choices or len(set(choices)) != len(choices):
            raise ValueError(f"Choices must be distinct and at least one, got {list(choices)!r}.")
        wanted = {"max_tokens": 1, "temperature": 0.0, "logprobs": ALTERNATIVES}
        table = np.empty((len(prompts), len(choices)))
        for row, output in enumerate(self._answer(prompts, [wanted] * len(prompts))):
            likely = [(entry.decoded_token or "", entry.logprob) for entry in output.logprobs[0].values()]
            table[row] = first_token_scores(likely, choices)
        return table - np.logaddexp.reduce(table, axis=1, keepdims=True)

    def _answer(self, prompts: Sequence[Prompt], wanted: Sequence[dict[str, Any]]) -> list[Any]:
        if not prompts:
            return []
        vllm: Any = import_module("vllm")
        turns = [
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image_pil", "image_pil": Image.fromarray(image)} for image in prompt.images),
                        {"type": "text", "text": prompt.text},
                    ],
                }
            ]
            for prompt in prompts
        ]
        with self._weights.lock:
            outputs = self._weights.llm.chat(
                turns, [vllm.SamplingParams(**row) for row in wanted], lora_request=self._request, use_tqdm=False
            )
        answers = [output.outputs[0] for output in outputs]
        count_tokens(
            read=sum(len(output.prompt_token_ids) for output in outputs),
            written=sum(len(answer.token_ids) for answer in answers),
        )
        return answers
