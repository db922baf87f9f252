"""The default engine against a tiny random model."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from selu.budget import counted
from selu.config import ModelSettings
from selu.errors import ConfigError, TransientError
from selu.models import Prompt, TransformersModel, load_model, model_revision, reading
from selu.models import transformers_engine as engine
from selu.models.reading import Reader
from tests.tiny_model import NAMES, inputs_of, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformersModel:
    return load_model(settings(folder))


def settings(folder: Path, **changes: object) -> ModelSettings:
    return ModelSettings(path=str(folder), batch_size=5).model_copy(update=changes)


def prompts(n: int = 12, *, images: int = 1, seed: int = 0) -> list[Prompt]:
    """Prompts of several lengths; every third picture is that of the prompt before."""
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(n + images)]
    texts = [f"Is the {NAMES[i % len(NAMES)]} open?" + " Was it done?" * (i % 4) for i in range(n)]
    return [Prompt(tuple(frames[i - (i % 3 == 2) + k] for k in range(images)), texts[i]) for i in range(n)]


def make_adapter(folder: Path, out: Path, *, seed: int = 0) -> Path:
    network = AutoModelForImageTextToText.from_pretrained(folder)
    adapted = get_peft_model(network, LoraConfig(r=4, target_modules=r".*text_model.*\.(q_proj|down_proj)"))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(out)
    return out


def texts(model: TransformersModel, rows: list[Prompt]) -> list[str]:
    return [reply.text for reply in model.generate(rows, max_new_tokens=4)]


def test_loading_draws_no_bar_among_our_own_lines(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine.load_weights(engine.locate_model(settings(folder)), "float32", torch.device("cpu"))
    assert "Loading weights" not in capfd.readouterr().err


# ---- generating


def test_greedy_replies_are_those_of_one_prompt_at_a_time(model: TransformersModel) -> None:
    rows = prompts()
    together = model.generate(rows, max_new_tokens=4)
    alone = [model.generate([row], max_new_tokens=4)[0] for row in rows]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    np.testing.assert_allclose(
        [reply.log_probability for reply in together], [reply.log_probability for reply in alone], atol=1e-3
    )
    assert len({reply.text for reply in together}) > 3, "a model that answers everything alike proves nothing"


def asked_of_two_pictures() -> list[Prompt]:
    """Several questions, of several lengths, about each of two pictures, in turn."""
    frames = [row.images for row in prompts(2)]
    return [Prompt(frames[i % 2], f"Is the {name} open?" + " Was it done?" * (i % 3)) for i, name in enumerate(NAMES)]


def each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "read", Reader._each_by_itself)


def test_sharing_a_picture_changes_no_answer(model: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = asked_of_two_pictures()
    shared = model.generate(rows, max_new_tokens=4)
    scores = model.score(rows, ("yes", "no"))
    each_by_itself(monkeypatch)
    separate = model.generate(rows, max_new_tokens=4)
    assert [reply.text for reply in shared] == [reply.text for reply in separate]
    np.testing.assert_allclose(
        [reply.log_probability for reply in shared], [reply.log_probability for reply in separate], atol=1e-3
    )
    np.testing.assert_allclose(scores, model.score(rows, ("yes", "no")), atol=1e-4)


def test_a_picture_is_read_once_whatever_is_asked_about_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(settings(folder, batch_size=64))
    rows, network, read = asked_of_two_pictures(), model._weights.model, list[tuple[int, ...]]()
    prepared = list[int]()
    processed = Reader._processed
    monkeypatch.setattr(Reader, "_processed", lambda self, some: prepared.append(len(some)) or processed(self, some))
    handle = network.model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        model.score(rows, ("yes", "no"))
        first = len(prepared)
        model.score(rows, ("yes", "no"))
    finally:
        handle.remove()
    assert prepared[first:] == [2], "texts that were asked before are tokens already"
    alone = inputs_of(model, rows[:1])["input_ids"].shape[1]
    beginning, rest = read[:2]
    assert beginning[0] == 2
    assert rest[0] == len(rows)
    assert rest[1] < beginning[1] < alone, "a question is short, and a picture is read with what comes before it"


def test_choices_of_several_tokens_are_scored_as_of_each_prompt_by_itself(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, choices = asked_of_two_pictures(), ("mug, bowl", "PickUp(Mug)")
    shared = model.score(rows, choices)
    each_by_itself(monkeypatch)
    np.testing.assert_allclose(shared, model.score(rows, choices), atol=1e-4)


def test_pictures_of_several_sizes_and_forgotten_texts_change_no_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(settings(folder, batch_size=64))
    wide = np.random.default_rng(5).integers(0, 256, (96, 144, 3), dtype=np.uint8)
    rows = [row for asked in asked_of_two_pictures() for row in (asked, Prompt((wide,), asked.text))]
    monkeypatch.setattr(reading, "_KEPT_TEXTS", 1)
    shared = [model.score(some, ("yes", "no")) for some in (rows, rows[::-1], rows)]
    each_by_itself(monkeypatch)
    for scores, some in zip(shared, (rows, rows[::-1], rows), strict=True):
        np.testing.assert_allclose(scores, model.score(some, ("yes", "no")), atol=1e-4)


def test_what_a_processor_says_of_both_picture_and_text_is_not_shared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = load_model(settings(folder))._weights.reader
    again = Reader(reader.processor, reader.label, reader.device, reader.dtype)
    processed = Reader._processed

    def with_mask(self: Reader, some: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        made = processed(self, some)
        # As Mllama's: which tokens look at which picture.
        return {**made, "cross_attention_mask": made["attention_mask"][:, :, None, None]}

    rows = asked_of_two_pictures()
    assert again.read(rows).picture_of is not None
    monkeypatch.setattr(Reader, "_processed", with_mask)
    for _ in range(2):
        batch = again.read(rows)
        assert batch.picture_of is None
        assert len(batch.pictures["cross_attention_mask"]) == len(rows)


def test_tokens_count_once_where_memory_ran_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = load_model(settings(folder, batch_size=64)), asked_of_two_pictures()
    with counted() as usual:
        model.score(rows, ("yes", "no"))
    forward = type(model._weights.model).forward

    def small(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        if len(kwargs["input_ids"]) > 4:  # type: ignore[arg-type]
            raise torch.OutOfMemoryError
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model._weights.model), "forward", small)
    with counted() as halved:
        model.score(rows, ("yes", "no"))
    assert halved == usual


def test_the_picture_matters(model: TransformersModel) -> None:
    text = "What are you holding?"
    first, second = (Prompt(prompts(1, seed=seed)[0].images, text) for seed in (1, 2))
    assert model.generate([first], max_new_tokens=4)[0] != model.generate([second], max_new_tokens=4)[0]


def test_a_row_draws_the_same_whatever_its_batch(model: TransformersModel) -> None:
    rows, seeds = prompts(), list(range(100, 112))
    drawn = model.generate(rows, max_new_tokens=4, temperature=1.0, seeds=seeds)
    backwards = model.generate(rows[::-1], max_new_tokens=4, temperature=1.0, seeds=seeds[::-1])[::-1]
    alone = model.generate([rows[7]], max_new_tokens=4, temperature=1.0, seeds=[seeds[7]])[0]
    assert [reply.text for reply in drawn] == [reply.text for reply in backwards]
    assert drawn[7].text == alone.text
    other = model.generate(rows, max_new_tokens=4, temperature=1.0, seeds=[seed + 1000 for seed in seeds])
    assert [reply.text for reply in drawn] != [reply.text for reply in other]


def test_draws_follow_the_models_probabilities(model: TransformersModel) -> None:
    row, n = prompts(1)[0], 400
    drawn = [reply.text for reply in model.generate([row] * n, max_new_tokens=1, temperature=0.5, seeds=range(n))]
    with torch.inference_mode():
        probabilities = (model._weights.model(**inputs_of(model, [row])).logits[0, -1].double() / 0.5).softmax(-1)
    top = int(probabilities.argmax())
    expected = float(probabilities[top])
    share = drawn.count(model._weights.processor.tokenizer.decode([top]).strip()) / n
    assert 0.02 < expected < 0.98
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_sampling_without_seeds_is_refused(model: TransformersModel) -> None:
    with pytest.raises(ValueError, match="one seed a prompt, got 1 for 2"):
        model.generate(prompts(2), max_new_tokens=2, temperature=1.0, seeds=[1])


def test_log_probability_is_that_of_a_full_forward_pass(model: TransformersModel) -> None:
    row = prompts(1)[0]
    reply = model.generate([row], max_new_tokens=3)[0]
    inputs = inputs_of(model, [row])
    network = model._weights.model
    with torch.inference_mode():
        ids = network.generate(**inputs, max_new_tokens=3)
        extended = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = network(**extended).logits.double().log_softmax(-1)
    start = inputs["input_ids"].shape[1]
    expected = sum(float(logits[0, place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))
    assert reply.log_probability == pytest.approx(expected, abs=1e-4)
    assert reply.confidence == pytest.approx(np.exp(expected), abs=1e-4)


def test_prompts_with_several_and_no_pictures_mix(model: TransformersModel) -> None:
    rows = [*prompts(3, images=2), *prompts(2, images=0), *prompts(3)]
    alone = [texts(model, [row])[0] for row in rows]
    assert texts(model, rows) == alone
    assert model.generate([], max_new_tokens=2) == []


def test_a_control_token_in_a_text_is_one_clear_sentence(model: TransformersModel) -> None:
    with pytest.raises(ConfigError, match=r"'<image>', a control token"):
        model.generate([Prompt((), "look at <image>")], max_new_tokens=2)


@pytest.mark.parametrize(
    "shortage",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB, other allocations: 96.00 KB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
    ],
    ids=["CUDA", "cuBLAS", "MPS", "CPU"],
)
def test_out_of_memory_halves_the_batch(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch, shortage: RuntimeError
) -> None:
    rows, sizes = prompts(), []
    expected = texts(model, rows)
    original = TransformersModel._generate

    def greedy_machine(self: TransformersModel, batch: list[Prompt], *rest: object) -> object:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise shortage
        return original(self, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersModel, "_generate", greedy_machine)
    assert texts(model, rows) == expected
    assert sizes[:2] == [5, 2]
    monkeypatch.setattr(TransformersModel, "_generate", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(TransientError, match="single prompt"):
        texts(model, rows)


def test_a_model_that_does_not_fit_the_memory_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    source = engine.locate_model(settings(folder))
    with pytest.raises(ConfigError, match="does not fit the memory of cpu as float32; choose dtype=bfloat16"):
        engine.load_weights(source, "float32", torch.device("cpu"))


def test_forgotten_weights_leave_the_memory(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")  # of its own: others hold the shared one
    model = load_model(settings(folder), make_adapter(folder, tmp_path / "adapter"))
    before = texts(model, prompts())
    held = weakref.ref(model._weights.model)
    del model
    engine.forget_models()
    assert held() is None
    assert texts(load_model(settings(folder), tmp_path / "adapter"), prompts()) == before


# ---- scoring


@pytest.mark.parametrize(
    "choices",
    [
        ["yes", "no"],
        ["PickUp(Mug)", "Open(Fridge)", "MoveAhead"],
        ["mug", "mug, fridge", "nothing"],
        ["yes", "unheard-of word"],
    ],
)
def test_scores_agree_with_full_forward_passes(model: TransformersModel, choices: list[str]) -> None:
    rows = prompts(7)
    scores = model.score(rows, choices)
    processor, network = model._weights.processor, model._weights.model
    expected = np.empty((len(rows), len(choices)))
    with_end = choices[0] == "mug"
    for i, row in enumerate(rows):
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.text}]}]
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
        start = len(processor(text=[prompt], images=[list(row.images)])["input_ids"][0])
        for j, choice in enumerate(choices):
            text = prompt + choice + ("</s>" if with_end else "")
            inputs = processor(text=[text], images=[list(row.images)], return_tensors="pt")
            with torch.inference_mode():
                logits = network(**inputs).logits[0].double().log_softmax(-1)
            ids = inputs["input_ids"][0]
            expected[i, j] = sum(float(logits[place - 1, ids[place]]) for place in range(start, len(ids)))
    expected -= np.logaddexp.reduce(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0)


def test_choices_must_be_distinct(model: TransformersModel) -> None:
    for choices in ([], ["yes", "yes"]):
        with pytest.raises(ValueError, match="distinct"):
            model.score(prompts(1), choices)


# ---- adapters


def test_adapters_swap_over_the_same_weights_and_leave_no_trace(folder: Path, tmp_path: Path) -> None:
    model, rows = load_model(settings(folder)), prompts()
    before = model.generate(rows, max_new_tokens=4)
    one = model.with_adapter(make_adapter(folder, tmp_path / "one", seed=1))
    two = one.with_adapter(make_adapter(folder, tmp_path / "two", seed=2))
    first, second = one.generate(rows, max_new_tokens=4), two.generate(rows, max_new_tokens=4)
    assert len({str(before), str(first), str(second)}) == 3
    assert one.generate(rows, max_new_tokens=4) == first
    assert model.generate(rows, max_new_tokens=4) == before == two.with_adapter(None).generate(rows, max_new_tokens=4)
    assert two._weights is model._weights, "the weights were loaded twice"
    assert len({model.revision, one.revision, two.revision}) == 3
    assert one.revision == model_revision(settings(folder), tmp_path / "one")


def test_an_adapter_answers_as_in_peft(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = make_adapter(folder, tmp_path / "adapter", seed=3)
    model = load_model(settings(folder), adapter)
    row = prompts(1)[0]
    inputs = inputs_of(model, [row])
    reference = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder), adapter).eval()
    with torch.inference_mode():
        logits = reference(**inputs).logits[0, -1].log_softmax(-1)
    yes, no = (model._weights.processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    expected = float(logits[yes] - logits[no])
    scores = model.score([row], ["yes", "no"])[0]
    assert scores[0] - scores[1] == pytest.approx(expected, abs=1e-3)


def test_an_adapter_of_another_model_is_one_clear_sentence(folder: Path, tmp_path: Path) -> None:
    wide = make_tiny_model(tmp_path / "wide", hidden_size=48)
    adapter = make_adapter(wide, tmp_path / "adapter")
    model = load_model(settings(folder))
    with pytest.raises(ConfigError, match=r"for another model: its size at .* is 96, this model's is 64"):
        model.with_adapter(adapter)
    (adapter / "base_model.json").write_text(json.dumps({"model": "wide", "revision": "0123"}))
    with pytest.raises(ConfigError, match="trained on the model 'wide'"):
        model.with_adapter(adapter)
    with pytest.raises(ConfigError, match=r"lacks adapter_config\.json"):
        model.with_adapter(tmp_path)


# ---- loading


def test_a_saved_and_reloaded_model_answers_alike(folder: Path, model: TransformersModel, tmp_path: Path) -> None:
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again = load_model(settings(tmp_path / "again"))
    assert again._weights is not model._weights
    assert again.generate(prompts(), max_new_tokens=4) == model.generate(prompts(), max_new_tokens=4)


def test_the_revision_is_of_the_content_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert model_revision(settings(copy)) == model_revision(settings(folder))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_revision(settings(copy)) != model_revision(settings(folder))


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("processor_config.json", "lacks a processor"),
        ("config.json", "lacks config.json"),
        ("model.safetensors", "lacks weights in safetensors form"),
    ],
)
def test_an_incomplete_folder_is_one_clear_sentence(
    folder: Path, tmp_path: Path, file: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / file).unlink()
    monkeypatch.setattr(engine, "load_weights", lambda *_: pytest.fail("weights were read before the check"))
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_model(settings(copy))
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_torchvision_is_one_clear_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wants_torchvision(*_: object, **__: object) -> None:
        raise ImportError("SomeVideoProcessor requires the Torchvision library but it was not found\nmore lines")

    monkeypatch.setattr(engine.AutoProcessor, "from_pretrained", wants_torchvision)
    with pytest.raises(ConfigError, match=r"pip install \"selu\[video-processors\]\"") as caught:
        engine.load_processor(engine.locate_model(settings(folder)))
    assert "\n" not in str(caught.value)


def test_a_text_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ConfigError, match="'llama', which does not answer prompts with images"):
        load_model(settings(copy))


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/model", "nonsense"])
def test_a_model_that_does_not_exist_is_one_clear_sentence(path: str) -> None:
    with pytest.raises(ConfigError, match="No model at"):
        load_model(ModelSettings(path=path))


def test_weights_of_another_shape_are_one_clear_sentence(folder: Path, tmp_path: Path) -> None:
    wide = make_tiny_model(tmp_path / "wide", hidden_size=48)
    shutil.copy(folder / "model.safetensors", wide / "model.safetensors")
    with pytest.raises(ConfigError, match="could not be loaded") as caught:
        load_model(settings(wide))
    assert "\n" not in str(caught.value)
