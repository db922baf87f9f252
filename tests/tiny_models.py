"""Tiny random checkpoints of other people's architectures, saved as a hub model would be.

Each has the parts of the real one: its model class, its processor, a tokenizer with its special tokens, and its chat
template cut down to turns of pictures and text. What stays out are the weights' size and what they learned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from tests.tiny_model import CORPUS

__all__ = ["ARCHITECTURES", "NEEDS_TORCHVISION", "make_checkpoint"]

HIDDEN = 32
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    # A random model of the usual 0.02 answers every prompt alike; tests need answers that differ.
    "initializer_range": 0.2,
}
VISION = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}

_CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
_QWEN = _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
_LLAVA = """{% for message in messages %}{{ message['role'].upper() + ': ' }}\
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}\
{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
_MISTRAL = """{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}\
{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{{ ' [/INST]' }}{% else %}{{ ' ' + message['content'][0]['text'] + '</s>' }}{% endif %}{% endfor %}"""
_IDEFICS = """<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}\
{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
_GEMMA = """{{ '<bos>' }}{% for message in messages %}{{ '<start_of_turn>' }}\
{{ 'model' if message['role'] == 'assistant' else 'user' }}{{ '\n' }}{% if message['content'] is string %}\
{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}\
{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""


def _tokenizer(special: list[str], *, eos: str, pad: str, bos: str | None, **named: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a token for each word of the corpus; `named` are the tokens a processor asks for."""
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = {piece for text in CORPUS for piece, _ in cut.pre_tokenize_str(text)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*special, *alphabet, *sorted(words - set(alphabet))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, bos_token=bos, extra_special_tokens=named
    )


def _class(name: str) -> Any:
    """A class by name; where torchvision is missing, transformers hides those of the other backend from its top level."""
    return getattr(transformers, name)


def _pil(module: str, name: str) -> Any:
    from importlib import import_module

    return getattr(import_module(f"transformers.models.{module}.image_processing_pil_{module}"), name)


Parts = tuple[Any, Any]
"""Configuration and processor."""


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    return _tokenizer([*special, "<|image_pad|>", "<|video_pad|>"], eos="<|im_end|>", pad="<|endoftext|>", bos=None)


def _qwen(generation: str, vision: dict[str, Any], patch: int) -> Parts:
    tokenizer = _qwen_tokenizer()
    ids = tokenizer.get_vocab()
    video = "Qwen3VLVideoProcessor" if generation == "Qwen3VL" else "Qwen2VLVideoProcessor"
    # As many pixels as two patches squared at least, and few at most.
    size = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2}
    frames = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = _class(f"{generation}Processor")(
        _pil("qwen2_vl", "Qwen2VLImageProcessorPil")(**frames),
        tokenizer,
        _class(video)(**frames),
        chat_template=_QWEN,
    )
    config = _class(f"{generation}Config")(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "head_dim": HIDDEN // 2,
            "rope_parameters": MROPE,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.2,
            **vision,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return config, processor


def _qwen2() -> Parts:
    return _qwen("Qwen2VL", {"embed_dim": HIDDEN, "hidden_size": HIDDEN, "mlp_ratio": 2}, 14)


def _qwen25() -> Parts:
    sizes = {"hidden_size": HIDDEN, "out_hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN}
    return _qwen("Qwen2_5_VL", {**sizes, "window_size": 56, "fullatt_block_indexes": [1]}, 14)


def _qwen3() -> Parts:
    sizes = {"hidden_size": HIDDEN, "out_hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN}
    return _qwen("Qwen3VL", {**sizes, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}, 16)


def _llama_tokenizer(**named: str) -> PreTrainedTokenizerFast:
    return _tokenizer(["<unk>", "<s>", "</s>", "<pad>", "<image>"], eos="</s>", pad="<pad>", bos="<s>", **named)


def _text_of(model_type: str, tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {
        **TEXT,
        "model_type": model_type,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **ids,
        **more,
    }


def _llava() -> Parts:
    tokenizer = _llama_tokenizer()
    side = {"height": 32, "width": 32}
    processor = _class("LlavaProcessor")(
        _pil("clip", "CLIPImageProcessorPil")(size={"shortest_edge": 32}, crop_size=side),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA,
    )
    config = _class("LlavaConfig")(
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": HIDDEN},
        text_config=_text_of("llama", tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return config, processor


def _llava_next() -> Parts:
    tokenizer = _llama_tokenizer()
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    processor = _class("LlavaNextProcessor")(
        _pil("llava_next", "LlavaNextImageProcessorPil")(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_MISTRAL,
    )
    config = _class("LlavaNextConfig")(
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": HIDDEN},
        text_config=_text_of("mistral", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    return config, processor


def _llava_onevision() -> Parts:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = _tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", bos=None)
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    processor = _class("LlavaOnevisionProcessor")(
        _pil("llava_onevision", "LlavaOnevisionImageProcessorPil")(
            size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
        ),
        tokenizer,
        _class("LlavaOnevisionVideoProcessor")(size={"height": 32, "width": 32}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_CHATML.replace("IMAGE", "<image>\n"),
    )
    config = _class("LlavaOnevisionConfig")(
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=_text_of("qwen2", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    return config, processor


_IDEFICS_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]


def _idefics(name: str) -> Parts:
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = _tokenizer(_IDEFICS_SPECIAL, eos="<end_of_utterance>", pad="<|endoftext|>", bos="<|im_start|>", **named)
    # Pictures are split into tiles, as the real ones are: 64 pixels at most, in tiles of 32.
    tiles = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": True}
    more = {}
    if name == "SmolVLM":
        video = {"fps": 1, "max_frames": 2, "video_size": {"longest_edge": 32}}
        more["video_processor"] = _class("SmolVLMVideoProcessor")(
            **{**tiles, "do_image_splitting": False}, video_sampling=video
        )
    module = name.lower()
    processor = _class(f"{name}Processor")(
        _pil(module, f"{name}ImageProcessorPil")(**tiles),
        tokenizer,
        image_seq_len=4,
        chat_template=_IDEFICS,
        **more,
    )
    config = _class(f"{name}Config")(
        vision_config={**VISION, "initializer_range": 0.2},
        text_config=_text_of("llama", tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return config, processor


def _internvl() -> Parts:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    tokenizer = _tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", bos=None, **named)
    side = {"height": 32, "width": 32}
    processor = _class("InternVLProcessor")(
        _pil("got_ocr2", "GotOcr2ImageProcessorPil")(size=side, crop_to_patches=True, max_patches=2),
        tokenizer,
        _class("InternVLVideoProcessor")(size=side),
        image_seq_length=4,
        chat_template=_CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    config = _class("InternVLConfig")(
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8], "initializer_range": 0.2},
        text_config=_text_of("qwen2", tokenizer, tie_word_embeddings=True),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return config, processor


def _gemma3() -> Parts:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *named.values()]
    tokenizer = _tokenizer(special, eos="<end_of_turn>", pad="<pad>", bos="<bos>", **named)
    processor = _class("Gemma3Processor")(
        _pil("gemma3", "Gemma3ImageProcessorPil")(size={"height": 32, "width": 32}, image_seq_length=4),
        tokenizer,
        image_seq_length=4,
        chat_template=_GEMMA,
    )
    boi, eoi, image = tokenizer.convert_tokens_to_ids(list(named.values()))
    config = _class("Gemma3Config")(
        text_config=_text_of("gemma3_text", tokenizer, head_dim=16, sliding_window=16, query_pre_attn_scalar=16),
        vision_config={**VISION, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=image,
        initializer_range=0.2,
    )
    return config, processor


def _paligemma() -> Parts:
    """The real ones come without a chat template: their processor writes the turn."""
    tokenizer = _tokenizer(["<pad>", "<eos>", "<bos>", "<unk>", "<image>"], eos="<eos>", pad="<pad>", bos="<bos>")
    image_processor = _pil("siglip", "SiglipImageProcessorPil")(size={"height": 32, "width": 32})
    image_processor.image_seq_length = 16
    processor = _class("PaliGemmaProcessor")(image_processor, tokenizer)
    config = _class("PaliGemmaConfig")(
        text_config=_text_of("gemma", tokenizer, head_dim=16, vocab_size=len(tokenizer)),
        vision_config={**VISION, "vision_use_head": False, "projection_dim": HIDDEN},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )
    return config, processor


ARCHITECTURES: dict[str, Callable[[], Parts]] = {
    "qwen2-vl": _qwen2,
    "qwen2.5-vl": _qwen25,
    "qwen3-vl": _qwen3,
    "llava-1.5": _llava,
    "llava-next": _llava_next,
    "llava-onevision": _llava_onevision,
    "idefics3": lambda: _idefics("Idefics3"),
    "smolvlm": lambda: _idefics("SmolVLM"),
    "internvl": _internvl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
}
NEEDS_TORCHVISION = frozenset({"qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava-onevision", "smolvlm", "internvl"})
"""Their processors have a part for videos, which transformers runs with torchvision (and num2words) alone."""


def make_checkpoint(architecture: str, folder: Path, *, seed: int = 0) -> Path:
    """Write model, processor and tokenizer of `architecture`, a key of :data:`ARCHITECTURES`, into `folder`."""
    config, processor = ARCHITECTURES[architecture]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2 and not parameter.any():
                # Gemma's connector starts at zero, so that an untrained one is blind.
                torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
