"""What scoring the tokens of completions alone saves of a fine-tuning on a CPU: a ratio measured in one run.

python benchmarks/completions_alone.py [--steps 20] [--pairs 5]

Rows are those of the embedded model's own frozen corpus; processor seconds count, not those of the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

from datasets import Dataset

import selu.finetuning
from selu.base_model.packaging import load_replay
from selu.config import ActorFinetuningSettings, ModelSettings


def seconds(rows: Dataset, steps: int) -> float:
    """Processor seconds of so many optimiser steps."""
    settings = ActorFinetuningSettings(max_steps=steps, threads=1, checkpoint_steps=0)
    told: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        selu.finetuning.finetune(
            ModelSettings(),
            rows,
            settings,
            seed=0,
            out=Path(out),
            progress=lambda *_: told.append(time.process_time()),
        )
    # From the end of the first step, so that loading and collating do not count.
    return told[-1] - told[0]


def main() -> None:
    """Time both in turn and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    rows = load_replay().select(range(32 * 8))
    everything = mock.patch.object(selu.finetuning, "_scoring_completions_alone", contextlib.nullcontext)
    alone, all_tokens = [], []
    for _ in range(arguments.pairs):
        alone.append(seconds(rows, arguments.steps))
        with everything:
            all_tokens.append(seconds(rows, arguments.steps))
    ratios = [one / other for one, other in zip(alone, all_tokens, strict=True)]
    steps = arguments.steps - 1
    print(f"completions alone: median {1000 * statistics.median(alone) / steps:.0f} ms of processor time a step")
    print(f"all tokens: median {1000 * statistics.median(all_tokens) / steps:.0f} ms")
    print(f"ratio: median {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()
