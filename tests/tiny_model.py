"""A tiny random vision-language model of the embedded model's architecture, saved as a hub model would be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Idefics3Config, Idefics3ForConditionalGeneration

from selu.base_model.processor import BOS, EOS, IMAGE, IMAGE_SIZE, PAD, build_tokenizer, save_household_processor
from selu.models import Prompt, TransformersModel

NAMES = ("mug", "fridge", "desk lamp", "alarm clock", "drawer", "apple")
CORPUS = (
    *(f"Is the {name} open? Is the {name} on? Is the {name} in view? Are you holding the {name}?" for name in NAMES),
    *(f"Instruction: pick up the {name} and then open the {name}\nAction?" for name in NAMES),
    *(f"{name}, {name}; nothing" for name in NAMES),
    "What are you holding? What is open? Was it done? Which questions tell whether it was done?",
    "yes no nothing left centre right; not in view",
    "PickUp(Mug) Open(Fridge) Close(Drawer) ToggleOn(DeskLamp) Approach(AlarmClock) MoveAhead Done Put(Apple)",
    "MoveAhead",
    "Done",
    "no",
)


def make_tiny_model(folder: Path, *, seed: int = 0, hidden_size: int = 32, layers: int = 1) -> Path:
    """Write a random Idefics3 (96 px, patch 8, 36 image tokens) with tokenizer, processor and chat template."""
    tokenizer = build_tokenizer(CORPUS, [name for name in NAMES if " " in name])
    save_household_processor(tokenizer, folder)
    pad, bos, eos, image = tokenizer.convert_tokens_to_ids([PAD, BOS, EOS, IMAGE])
    heads = hidden_size // 16
    sizes = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "num_attention_heads": heads}
    config = Idefics3Config(
        vision_config={**sizes, "num_hidden_layers": layers, "image_size": IMAGE_SIZE, "patch_size": 8},
        text_config={
            **sizes,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_hidden_layers": layers,
            "num_key_value_heads": heads,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "pad_token_id": pad,
            "bos_token_id": bos,
            "eos_token_id": eos,
            # A random model of the usual 0.02 answers every prompt alike; tests need answers that differ.
            "initializer_range": 0.2,
        },
        image_token_id=image,
        scale_factor=2,
        pad_token_id=pad,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(pad_token_id=pad, bos_token_id=bos, eos_token_id=eos)
    model.save_pretrained(folder)
    return folder


def inputs_of(model: TransformersModel, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the engine gives the model itself, for tests that ask it without the engine."""
    return model._model_inputs(model._weights.reader.read(prompts))
