"""Tokenizer, image processor and chat template of the embedded base model.

The result is a stock ``Idefics3Processor``: ``AutoProcessor.from_pretrained(folder)`` loads it with or without
torchvision. A conversation renders as ``<s>{images}{text}<|assistant|>{completion}</s>``, where every image is
``<fake_token_around_image><global-img>`` + ``<image>`` x n + ``<fake_token_around_image>``. Every token costs time on a
CPU, so nothing else is in the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import Idefics3Processor, PreTrainedTokenizerFast

# The class is used by file, not by the package's name: without torchvision that name is a stub that asks for torchvision.
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from selu.errors import ConfigError

__all__ = [
    "CHAT_TEMPLATE",
    "IMAGE_SIZE",
    "SPECIAL_TOKENS",
    "build_tokenizer",
    "image_token_count",
    "save_household_processor",
]

IMAGE_SIZE = 96
"""Side of the square image that the embedded base model sees, in pixels."""

PAD, BOS, EOS, IMAGE, FAKE_IMAGE, GLOBAL_IMAGE, END_OF_UTTERANCE, ASSISTANT = SPECIAL_TOKENS = (
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<|assistant|>",
)
"""Ids 0-7, in this order. ``<end_of_utterance>`` is never written; Idefics3's processor insists on it."""

# GPT-2's own pattern (openai/gpt-2, encoder.py).
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{{ '<s>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def image_token_count(image_size: int = IMAGE_SIZE, patch_size: int = 8, scale_factor: int = 2) -> int:
    """Number of ``<image>`` tokens an image takes: patches after the connector's pixel shuffle."""
    return (image_size // patch_size) ** 2 // scale_factor**2


def build_tokenizer(corpus_texts: Iterable[str], phrases: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which every word of the corpus and every phrase is one token.

    Text is cut as GPT-2 cuts it, except that each of `phrases` ("alarm clock", with or without one space before it)
    stays whole. A piece that the corpus holds is one token; any other piece is spelled in bytes, so that every text
    round-trips. There are no merges: pieces between a byte and a word would be embeddings that are never trained.
    Ids: `SPECIAL_TOKENS`, the 256 bytes, then the words in code point order, whatever the order of the corpus.

    Raises:
        ConfigError: a phrase is empty or starts or ends with white space.
    """
    for phrase in phrases:
        if not phrase or phrase != phrase.strip():
            raise ConfigError(f"A phrase of the tokenizer must be text without space around it, got {phrase!r}.")

    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_split_pattern(phrases)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces = {piece for text in corpus_texts for piece, _ in pre_tokenizer.pre_tokenize_str(text)}
    for phrase in phrases:
        pieces.update(piece for text in (phrase, " " + phrase) for piece, _ in pre_tokenizer.pre_tokenize_str(text))

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet, *sorted(pieces - set(alphabet))))
    }
    # ignore_merges: a piece found in the vocabulary is taken whole, without a merge path to it.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={
            "image_token": IMAGE,
            "fake_image_token": FAKE_IMAGE,
            "global_image_token": GLOBAL_IMAGE,
            "end_of_utterance_token": END_OF_UTTERANCE,
            "assistant_token": ASSISTANT,
        },
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _split_pattern(phrases: Sequence[str]) -> str:
    # Longest first: an alternation takes the first that fits ("dining table" before "dining").
    longest_first = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
    whole = [re.escape(phrase) + (r"(?![\p{L}\p{N}])" if phrase[-1].isalnum() else "") for phrase in longest_first]
    return (f" ?(?:{'|'.join(whole)})|" if whole else "") + _GPT2_PATTERN


def save_household_processor(
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    image_size: int = IMAGE_SIZE,
    patch_size: int = 8,
    scale_factor: int = 2,
) -> Idefics3Processor:
    """Write tokenizer, image processor and chat template into `folder`, and return the processor.

    Any image becomes one ``(3, image_size, image_size)`` float32 square in [-1, 1], its aspect ratio given up.
    """
    side = {"longest_edge": image_size}
    image_processor = Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"height": image_size, "width": image_size},
        max_image_size=side,
        # Torchvision's backend has no Lanczos for tensors; bilinear means the same in both.
        resample=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    processor = Idefics3Processor(
        image_processor,
        tokenizer,
        image_seq_len=image_token_count(image_size, patch_size, scale_factor),
        chat_template=CHAT_TEMPLATE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    return processor
