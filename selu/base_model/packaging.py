"""Writes the embedded base model as a folder that ``transformers`` loads like one from the hub.

Beside the weights lie the model card, the training curves, the recipe with its hash, and ``replay.parquet``: a frozen
sample of the pretraining corpus that fine-tuning rehearses from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from selu.base_model.corpus import Demonstrations, FrameSet, language_turns, question_turns
from selu.base_model.processor import save_household_processor
from selu.errors import ConfigError, first_line
from selu.frames import encode_picture

__all__ = ["REPLAY_FILE", "load_replay", "package", "replay_table", "split_replay"]

REPLAY_FILE = Path(__file__).resolve().parent.parent / "base_models" / "household" / "replay.parquet"
_KEPT_BACK = 10
"""One row in ten is never trained on."""
_TURN = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_SCHEMA = pa.schema(
    [
        ("prompt", _TURN),
        ("completion", _TURN),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("kind", pa.string()),
        ("scene", pa.string()),
    ]
)


def replay_table(frames: FrameSet, demonstrations: Demonstrations, questions: int, steps: int, seed: int) -> pa.Table:
    """``questions`` rows of questions (and of what to ask) and ``steps`` rows of demonstrations, drawn by the seed."""
    rng = np.random.default_rng(seed)
    absent = (frames.pixels >= 32).mean(0) + 0.002
    rows: list[dict[str, Any]] = []
    for i in rng.choice(len(frames), questions, replace=False):
        # One in four rehearses which questions to ask.
        turns = language_turns(rng, 1) if rng.random() < 0.25 else question_turns(frames, int(i), rng, absent, 8)
        turn = turns[int(rng.integers(len(turns)))]
        rows.append(_row(turn.question, turn.answer, frames.rgb[i], turn.kind, f"FloorPlan{int(frames.scene[i])}"))
    rows += [
        _row(str(demonstrations.prompts[i]), str(demonstrations.actions[i]), demonstrations.rgb[i], "act", "")
        for i in rng.choice(len(demonstrations), steps, replace=False)
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _row(prompt: str, completion: str, picture: Any, kind: str, scene: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
        "images": [{"bytes": encode_picture(picture), "path": None}],
        "kind": kind,
        "scene": scene,
    }


def load_replay(path: Path = REPLAY_FILE) -> datasets.Dataset:
    """The frozen rehearsal rows: columns prompt, completion, images, kind (`act` are demonstrations) and scene.

    Raises:
        ConfigError: the file cannot be read, lacks a column (`kind` and `scene` may be missing, and are empty then), or has
            a row without text or without an embedded picture.
    """
    turn = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    wanted: dict[str, Any] = {"prompt": turn, "completion": turn, "images": datasets.List(datasets.Image())}
    try:
        table = pq.read_table(path)
        for name in ("kind", "scene"):
            if name not in table.column_names:
                table = table.append_column(name, pa.array([""] * len(table), pa.string()))
            wanted[name] = datasets.Value("string")
        table = table.select(list(wanted))
        features = datasets.Features(wanted)
        table = table.cast(features.arrow_schema)
        for number, row in enumerate(table.select(["prompt", "completion", "images"]).to_pylist()):
            told = row["prompt"] and row["completion"] and row["images"]
            if not told or any(image["bytes"] is None for image in row["images"]):
                raise ValueError(f"row {number} has no text or no embedded picture")
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ConfigError(
            f"the corpus to rehearse from, {path}, must be a Parquet file with the columns prompt, completion and images, as "
            "TRL reads them, pictures embedded; mend it, or set dataset.corpus to another, or dataset.replay=0 and "
            f"dataset.corpus_pictures=0 to train without it: {first_line(error)}"
        ) from error
    return datasets.Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features))


def split_replay(replay: datasets.Dataset) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rows that dataset versions may rehearse, and those (about a tenth) that are kept back from all of them.

    The hash of a row's own content decides, so that neither a seed nor a setting moves a row from one side to the other.
    What is kept back tells a guard whether a model forgets, as its own training data could not.
    """
    undecoded = replay.cast_column("images", datasets.List(datasets.Image(decode=False)))
    sides: tuple[list[int], list[int]] = ([], [])
    for index, row in enumerate(undecoded):
        given: Any = row
        texts = json.dumps([given["prompt"][0]["content"], given["completion"][0]["content"]])
        digest = hashlib.sha256(texts.encode() + b"".join(image["bytes"] for image in given["images"])).digest()
        sides[int.from_bytes(digest[:8], "big") % _KEPT_BACK == 0].append(index)
    return replay.select(sides[0]), replay.select(sides[1])


def package(
    folder: Path,
    model: Idefics3ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    replay: pa.Table,
    recipe: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    measurements: Mapping[str, Any],
) -> None:
    """Write the model folder. ``measurements`` are accuracies on unseen scenes, with and without the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    save_household_processor(tokenizer, folder)
    pq.write_table(replay, folder / "replay.parquet", compression="zstd")
    weights = (folder / "model.safetensors").read_bytes()
    facts = {
        "recipe": dict(recipe),
        "measurements": dict(measurements),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    (folder / "base_model.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curves), encoding="utf-8")
    (folder / "README.md").write_text(_card(facts), encoding="utf-8")


_ASKED = {
    "held": "what am I holding",
    "view": "is X in view",
    "where": "where is X (left, centre, right, not in view)",
    "open": "is X open / closed",
    "on": "is X on / off",
    "holding": "am I holding X",
    "broken": "is X broken",
    "sliced": "is X sliced",
    "inside": "is X in or on Y",
    "support": "what is X in or on",
    "what_open": "what is open (exact list)",
    "what_on": "what is switched on (exact list)",
    "what_broken": "what is broken (exact list)",
    "distance": "how far is X",
}


def _card(facts: Mapping[str, Any]) -> str:
    measured = facts["measurements"]
    seen, blind = measured["unseen_scenes"], measured["unseen_scenes_blank_picture"]
    rows = "\n".join(
        f"| {text} | {seen[kind]:.3f} | {blind[kind]:.3f} |" for kind, text in _ASKED.items() if kind in seen
    )
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
tags: [idefics3, embodied, selu]
---

# The embedded household model

A stock Idefics3 of {facts["parameters"] / 1e6:.2f} M parameters that stands for a pretrained multimodal model: it has
learned to see and speak in the *base* scenes (1-16 of each room type) of the embedded household (iTHOR layouts with
proxy geometry). It has seen no other scene. It was taught captions, questions about frames, which questions tell whether
an instruction was done, and to follow instructions from weak demonstrations (a planner with
{facts["recipe"].get("noise", 0):.0%} random actions). It was never asked whether an instruction *was done*: verdicts are what the
critic teaches itself.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
```

Accuracy on {measured["frames"]} frames of scenes that it has not seen (21-30 of each room type), one training seed;
yes/no and left/centre/right questions are balanced over their answers. "Blind" is the same model with a grey picture.

| question | accuracy | blind |
| --- | --- | --- |
{rows}

`base_model.json` has the whole recipe, `curves.jsonl` the training curves, `replay.parquet` the frozen sample of this
corpus that fine-tuning may rehearse. Weights: sha256 `{facts["weights_sha256"]}`.
"""
