"""Does training need the pictures? The critic, trained on the same rows with their pictures and with blank ones.

    python benchmarks/blank_images.py [--store DATA_DIR] [--seeds 3] [--steps 300] [--out results/blank_images]

Rows are yes/no questions: of the newest critic's dataset version below DATA_DIR, or else of the frozen rehearsal corpus
that ships with the project. Of each seed, a quarter of the episodes (or pictures) is held out; accuracy and mean
log-likelihood of the right answer are on those, pooled over seeds. Intervals are 95 %, from a bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from selu.base_model.packaging import load_replay
from selu.config import FinetuningSettings, ModelSettings
from selu.finetuning import finetune
from selu.frames import encode_picture
from selu.models import Prompt, load_model
from selu.models.base import VisionLanguageModel
from selu.statistics import Rate, bootstrap_mean, cluster_bootstrap_difference
from selu.store import Store
from selu.tasks.datasets import read_dataset

ANSWERS = ("yes", "no")
HELD_OUT = 0.25
RESAMPLES = 4_000
# The middle of the three greys that the guards show as blank pictures.
GREY = 128

Measured = dict[str, list[float]]
"""By figure, a value for each held-out row."""


def yes_no_rows(data_dir: Path | None) -> Dataset:
    """Rows that are answered by yes or no, with a column ``group`` of what must not be torn apart: episode or picture."""
    if data_dir is None:
        rows = load_replay()
    else:
        store = Store(data_dir / "store")
        newest = max(store.all("critic_dataset"), key=lambda ref: store.manifest(ref).created)
        rows = read_dataset(store, newest, "critic")
    chosen = [
        place
        for place, (answer, scene) in enumerate(zip(rows["completion"], rows["scene"], strict=True))
        if answer[0]["content"] in ANSWERS and scene
    ]
    rows = rows.select(chosen)
    if "episode_id" in rows.column_names:
        rows = rows.select([place for place, source in enumerate(rows["source"]) if source != "rehearsal"])
        groups = list(rows["episode_id"])
    else:
        groups = [hashlib.sha256(row["images"][0].tobytes()).hexdigest() for row in rows]
    return rows.add_column("group", groups)


def blank(rows: Dataset) -> Dataset:
    """The same rows before a grey picture each."""
    grey = [np.full((image.height, image.width, 3), GREY, dtype=np.uint8) for (image,) in rows["images"]]
    pictures = [[{"bytes": encode_picture(picture), "path": None}] for picture in grey]
    return rows.remove_columns("images").add_column("images", pictures, feature=rows.features["images"])


def measure(model: VisionLanguageModel, rows: Dataset) -> Measured:
    """Of each row, whether it was answered right, and the log-likelihood of the right answer among the two (nats)."""
    prompts = [Prompt((np.asarray(row["images"][0].convert("RGB")),), row["prompt"][0]["content"]) for row in rows]
    scores = model.score(prompts, ANSWERS)
    right = [ANSWERS.index(row["completion"][0]["content"]) for row in rows]
    return {
        "accuracy": [float(line.argmax() == answer) for line, answer in zip(scores, right, strict=True)],
        "log_likelihood": [float(line[answer]) for line, answer in zip(scores, right, strict=True)],
    }


def told(rate: Rate) -> dict[str, Any]:
    """A figure for the file."""
    return {"rate": round(rate.rate, 4), "ci95": [round(rate.low, 4), round(rate.high, 4)], "n": rate.n}


def figures(measured: dict[str, Measured], scenes: Sequence[str]) -> dict[str, Any]:
    """Means of each condition, and what training with blank pictures loses against training with the real ones."""
    found: dict[str, Any] = {}
    for name in ("accuracy", "log_likelihood"):
        found[name] = {
            condition: told(bootstrap_mean(values[name], scenes, 0, RESAMPLES))
            for condition, values in measured.items()
        }
        for condition in ("blank, asked about blank", "blank, asked about pictures"):
            found[name][f"{condition}, less pictures"] = told(
                cluster_bootstrap_difference(
                    measured["pictures"][name], measured[condition][name], scenes, 0, RESAMPLES
                )
            )
    return found


def main() -> None:
    """Train both ways for each seed, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, base = yes_no_rows(arguments.store), ModelSettings(threads=arguments.threads)
    settings = FinetuningSettings(max_steps=arguments.steps, epochs=1000, threads=arguments.threads)
    names = ("untrained", "pictures", "blank, asked about blank", "blank, asked about pictures")
    pooled: dict[str, Measured] = {name: {"accuracy": [], "log_likelihood": []} for name in names}
    scenes: list[str] = []
    groups = sorted(set(rows["group"]))
    for seed in range(arguments.seeds):
        held = set(np.random.default_rng(seed).permutation(groups)[: round(HELD_OUT * len(groups))].tolist())
        train = rows.select([place for place, group in enumerate(rows["group"]) if group not in held])
        test = rows.select([place for place, group in enumerate(rows["group"]) if group in held])
        model = load_model(base)
        with tempfile.TemporaryDirectory() as folder:
            seeing, blind = Path(folder) / "seeing", Path(folder) / "blind"
            finetune(base, train, settings, seed=seed, out=seeing)
            finetune(base, blank(train), settings, seed=seed, out=blind)
            of_seed = {
                "untrained": measure(model, test),
                "pictures": measure(model.with_adapter(seeing), test),
                "blank, asked about blank": measure(model.with_adapter(blind), blank(test)),
                "blank, asked about pictures": measure(model.with_adapter(blind), test),
            }
        for name, values in of_seed.items():
            for figure, numbers in values.items():
                pooled[name][figure] += numbers
        scenes += test["scene"]
        print(f"seed {seed}: {len(train)} rows to train on, {len(test)} held out", flush=True)
        for name, values in of_seed.items():
            print(f"  {name}: accuracy {np.mean(values['accuracy']):.3f}", flush=True)
    result = {
        "rows": "critic's dataset version" if arguments.store else "rehearsal corpus",
        "yes_no_rows": len(rows),
        "share_yes": round(float(np.mean([row[0]["content"] == "yes" for row in rows["completion"]])), 3),
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "held_out_rows": len(scenes),
        "scenes": len(set(scenes)),
        **figures(pooled, scenes),
    }
    print(json.dumps(result, indent=1))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = "own_labels.json" if arguments.store else "rehearsal.json"
        (arguments.out / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
