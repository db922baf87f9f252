"""How a model is run: one base for two adapters, memory that does not suffice, and settings that cannot work."""

from __future__ import annotations

import inspect
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selu.config import FinetuningSettings, ModelSettings
from selu.errors import ConfigError, TransientError
from selu.finetuning import _Trainer, finetune
from selu.models import Prompt, load_model, model_revision
from selu.models import transformers_engine as engine
from selu.models import vllm_engine as vllm
from tests.selu.test_finetuning import frame, rows
from tests.tiny_model import NAMES, make_tiny_model

ONE_STEP = FinetuningSettings(rank=4, max_steps=1, batch_size=6, learning_rate=0.05, warmup_ratio=0.0, threads=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return ModelSettings(path=str(folder), batch_size=5, threads=1)


@pytest.fixture(scope="module")
def adapters(base: ModelSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The actor's and the critic's."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, who in enumerate(("actor", "critic")):
        finetune(base, rows(6), ONE_STEP, seed=seed, out=folder / who)
    return {who: folder / who for who in ("actor", "critic")}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read from disk, from nothing in memory."""
    engine._load.cache_clear()
    read: list[str] = []
    original = engine.load_weights

    def load(source: engine.ModelSource, *rest: Any) -> Any:
        read.append(source.name)
        return original(source, *rest)

    monkeypatch.setattr(engine, "load_weights", load)
    return read


def prompts(n: int = 7) -> list[Prompt]:
    return [Prompt((frame(i),), f"Is the {NAMES[i % len(NAMES)]} open?" + " Was it done?" * (i % 3)) for i in range(n)]


# ---- one base, two adapters


def test_actor_and_critic_share_one_base_and_swap_adapters(
    base: ModelSettings, adapters: dict[str, Path], loads: list[str]
) -> None:
    other = base.model_copy(update={"batch_size": 3, "max_new_tokens": 40, "adapter": adapters["critic"]})
    actor, critic = load_model(base, adapters["actor"]), load_model(other)
    alone = {}
    for who in ("actor", "critic"):
        engine._load.cache_clear()
        alone[who] = load_model(base, adapters[who]).generate(prompts(), max_new_tokens=4)
    assert alone["actor"] != alone["critic"]
    del loads[1:]
    for _ in range(2):
        assert actor.generate(prompts(), max_new_tokens=4) == alone["actor"]
        assert critic.generate(prompts(), max_new_tokens=4) == alone["critic"]
    again = critic.with_adapter(adapters["actor"])
    assert again.generate(prompts(), max_new_tokens=4) == alone["actor"]
    assert again.revision == actor.revision != critic.revision
    assert loads == [base.path], "the base was read more than once"


def test_threads_that_want_the_same_model_read_it_once(base: ModelSettings, loads: list[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: load_model(base), range(4)))
    assert loads == [base.path]


# ---- memory


def short_of_memory(network: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let `network` take at most so many rows; returns the sizes that it was given."""
    sizes: list[int] = []
    original = network.forward

    def forward(*args: Any, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("out of memory")
        return original(*args, **inputs)

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(network, "forward", forward)
    return sizes


def test_out_of_memory_halves_the_batch_and_goes_on(base: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(base)
    asked = prompts()
    replies, scores = model.generate(asked, max_new_tokens=4), model.score(asked, ["yes", "no"])
    sizes = short_of_memory(model._weights.model, 2, monkeypatch)
    answers = model.generate(asked, max_new_tokens=4)
    assert [reply.text for reply in answers] == [reply.text for reply in replies]
    assert sizes[:2] == [5, 2]
    np.testing.assert_allclose(model.score(asked, ["yes", "no"]), scores, atol=1e-3)
    short_of_memory(model._weights.model, 0, monkeypatch)
    with pytest.raises(TransientError, match="ran out of memory on a single prompt"):
        model.score(asked, ["yes", "no"])


@pytest.mark.parametrize("weigh", ["rows", "tokens"])
def test_out_of_memory_in_training_takes_fewer_rows_at_a_time(
    base: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weigh: str
) -> None:
    settings = ONE_STEP.model_copy(update={"max_steps": 2, "weigh": weigh, "learning_rate": 1e-3})
    whole = finetune(base, rows(12), settings, seed=1, out=tmp_path / "whole")
    sizes, most = [], 3
    original = _Trainer.compute_loss

    def loss(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, model, inputs, *rest, **more)

    monkeypatch.setattr(_Trainer, "compute_loss", loss)
    parts = finetune(base, rows(12), settings, seed=1, out=tmp_path / "parts")
    assert sizes == [6, 3, 3, 3, 3]
    assert [point.loss for point in parts] == pytest.approx([point.loss for point in whole], rel=1e-3)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=2e-3, rtol=0.05)
    most = 0
    with pytest.raises(TransientError, match="in training on a single row"):
        finetune(base, rows(6), settings, seed=1, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


# ---- settings


def test_attention_device_map_and_checkpointing_are_passed_on(base: ModelSettings, tmp_path: Path) -> None:
    asked = prompts()
    usual = load_model(base)
    for changes, suffix in (({"attention": "eager"}, "-eager"), ({"device_map": {"": "cpu"}}, "")):
        settings = base.model_copy(update=changes)
        model = load_model(settings)
        assert model._weights is not usual._weights
        assert [reply.text for reply in model.generate(asked, max_new_tokens=4)] == [
            reply.text for reply in usual.generate(asked, max_new_tokens=4)
        ]
        assert model.revision == model_revision(settings) == usual.revision + suffix
    assert (
        load_model(base.model_copy(update={"attention": "eager"}))._weights.model.config._attn_implementation == "eager"
    )
    curves = [
        finetune(
            base, rows(6), ONE_STEP.model_copy(update={"gradient_checkpointing": on}), seed=1, out=tmp_path / str(on)
        )
        for on in (False, True)
    ]
    assert curves[0][0].loss == pytest.approx(curves[1][0].loss, rel=1e-5)
    assert curves[0][0].grad_norm == pytest.approx(curves[1][0].grad_norm, rel=1e-3)


def test_bfloat16_answers_and_learns(base: ModelSettings, tmp_path: Path) -> None:
    half = base.model_copy(update={"dtype": "bfloat16"})
    finetune(half, rows(6), ONE_STEP, seed=1, out=tmp_path)
    model = load_model(half)
    assert model._weights.model.dtype == torch.bfloat16
    assert model.with_adapter(tmp_path).score(prompts(), ["yes", "no"]).shape == (7, 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quantization": "4bit"}, "quantization=4bit needs a CUDA GPU, and device=cpu is cpu"),
        ({"attention": "flash_attention_2", "dtype": "bfloat16"}, "attention=flash_attention_2 needs a CUDA GPU"),
        ({"device_map": "balanced"}, "device_map=balanced needs a CUDA GPU"),
        ({"device": "auto", "dtype": "float16"}, "float16 does not run on a CPU"),
        ({"engine": "vllm"}, r'pip install "selu\[vllm\]"'),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="says what a machine without a GPU refuses")
def test_what_cannot_work_is_one_clear_sentence(base: ModelSettings, changes: dict[str, Any], sentence: str) -> None:
    settings = base.model_copy(update=changes)
    for refused in (load_model, model_revision):
        with pytest.raises(ConfigError, match=sentence) as caught:
            refused(settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quantization": "4bit"}, r'needs the package bitsandbytes, .*: pip install "selu\[4bit\]"'),
        ({"attention": "flash_attention_2"}, "needs the package flash_attn, .*: pip install flash-attn"),
        ({"dtype": "bfloat16"}, "dtype=bfloat16 is nothing that this GPU"),
    ],
)
def test_what_a_gpu_alone_does_not_do(
    base: ModelSettings, changes: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(engine, "find_spec", lambda package: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(ConfigError, match=sentence):
        engine.loading_options(base.model_copy(update={"device": "cuda", **changes}))


def test_four_bits_are_asked_of_transformers_as_in_qlora(base: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "resolve_device", lambda name: torch.device("cuda:1"))
    monkeypatch.setattr(engine, "find_spec", lambda package: True)
    settings = base.model_copy(update={"device": "cuda:1", "quantization": "4bit", "dtype": "bfloat16"})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    options = engine.loading_options(settings)
    wanted = options["quantization_config"]
    assert (wanted.load_in_4bit, wanted.bnb_4bit_quant_type) == (True, "nf4")
    assert wanted.bnb_4bit_compute_dtype == torch.bfloat16
    assert options["device_map"] == {"": torch.device("cuda:1")}
    assert engine.loading_options(base) == {}


# ---- vLLM, whose place a stand-in takes that keeps what it was asked


class StandIn:
    """What the engine uses of ``vllm.LLM``: every reply is two tokens, " yes" and the end."""

    made: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[tuple[Any, Any, Any]]] = []

    def __init__(self, **options: Any) -> None:
        self.made.append(options)

    def chat(self, turns: Any, wanted: Any, *, lora_request: Any, use_tqdm: bool) -> Any:
        self.asked.append((turns, wanted, lora_request))
        likely = {
            4: types.SimpleNamespace(logprob=np.log(0.6), decoded_token=" yes"),
            5: types.SimpleNamespace(logprob=np.log(0.2), decoded_token=" no"),
            6: types.SimpleNamespace(logprob=np.log(0.1), decoded_token="No"),
        }
        end = {2: types.SimpleNamespace(logprob=np.log(0.5), decoded_token="")}
        reply = types.SimpleNamespace(text=" yes", token_ids=(4, 2), logprobs=[likely, end])
        return [types.SimpleNamespace(outputs=[reply], prompt_token_ids=[1] * 40) for _ in turns]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    package, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    package.LLM, package.SamplingParams = StandIn, lambda **wanted: wanted  # type: ignore[attr-defined]
    request.LoRARequest = lambda name, number, path: (name, number, path)  # type: ignore[attr-defined]
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(vllm, "find_spec", lambda package: True)
    monkeypatch.setattr(vllm, "resolve_device", lambda name: torch.device("cuda"))
    vllm._load.cache_clear()
    StandIn.made.clear()
    StandIn.asked.clear()
    return StandIn


def test_vllm_answers_in_batches_under_lora_requests(
    base: ModelSettings, adapters: dict[str, Path], stand_in: type[StandIn]
) -> None:
    settings = base.model_copy(update={"engine": "vllm", "device": "cuda", "gpu_memory": 0.5})
    actor, critic = (load_model(settings, adapters[who]) for who in ("actor", "critic"))
    (options,) = stand_in.made
    assert (options["model"], options["gpu_memory_utilization"]) == (base.path, 0.5)
    assert options["enable_lora"]
    assert options["enable_prefix_caching"]

    replies = actor.generate(prompts(3), max_new_tokens=4, temperature=0.7, seeds=[7, 8, 9])
    assert [(reply.text, round(reply.confidence, 3)) for reply in replies] == [("yes", 0.3)] * 3
    turns, wanted, request = stand_in.asked[-1]
    assert len(turns) == 3
    assert [part["type"] for part in turns[0][0]["content"]] == ["image_pil", "text"]
    assert [row["seed"] for row in wanted] == [7, 8, 9]
    assert request[1:] == (1, str(adapters["actor"]))

    np.testing.assert_allclose(np.exp(critic.score(prompts(2), ["yes", "no"])), [[2 / 3, 1 / 3]] * 2)
    assert stand_in.asked[-1][2][1] == 2
    critic.with_adapter(None).generate(prompts(1), max_new_tokens=4)
    assert stand_in.asked[-1][2] is None
    assert actor.with_adapter(adapters["critic"])._request == critic._request
    here = model_revision(base, adapters["actor"])
    assert actor.revision == model_revision(settings, adapters["actor"]) == here.replace("+", "-vllm+")
    assert len(stand_in.made) == 1
    assert critic.generate([], max_new_tokens=4) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "cpu"}, "needs a CUDA GPU and device=cuda, got device=cpu"),
        ({"attention": "sdpa"}, "attention of its own"),
        ({"device_map": {"": 0}}, "set device_map=auto"),
    ],
)
def test_what_vllm_does_not_take_is_refused(
    base: ModelSettings, stand_in: type[StandIn], changes: dict[str, Any], sentence: str
) -> None:
    settings = base.model_copy(update={"engine": "vllm", "device": "cuda", **changes})
    for refused in (load_model, model_revision):
        with pytest.raises(ConfigError, match=sentence):
            refused(settings)
    assert not stand_in.made
