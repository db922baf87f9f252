"""What it saves to prepare and read a picture once for all questions about it: a ratio measured in one run, on a CPU.

python benchmarks/shared_pictures.py [--pictures 40] [--questions 12] [--pairs 5]

Pictures are those of the embedded model's own frozen corpus; yes/no questions are scored as the critic's are. On the other side
each prompt is prepared and read by itself, but for the vision tower, which runs once a picture on both. Processor seconds
count, not those of the clock. It also prints by how much the scores differ.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from selu.base_model.packaging import load_replay
from selu.config import ModelSettings
from selu.models import Prompt, TransformersModel, load_model
from selu.models.reading import Batch, Reader
from selu.questions import CHOICES

THINGS = ("apple", "book", "bowl", "bread", "cabinet", "cup", "desk lamp", "drawer", "fridge", "laptop", "mug", "bed")
FORMS = ("Is the {} open?", "Is the {} in view?", "Are you holding the {}?", "Can you see the {}?", "Is the {} on?")


def asked(pictures: int, questions: int) -> list[Prompt]:
    """So many questions about each of so many pictures."""
    images = [np.asarray(images[0].convert("RGB")) for images in load_replay()["images"][: 4 * pictures]]
    distinct = list({image.tobytes(): image for image in images}.values())[:pictures]
    texts = [form.format(thing) for form in FORMS for thing in THINGS][:questions]
    return [Prompt((image,), text) for image in distinct for text in texts]


def scored(model: TransformersModel, prompts: list[Prompt]) -> tuple[float, NDArray[np.float64]]:
    """Processor seconds, and the scores."""
    start = time.process_time()
    scores = model.score(prompts, CHOICES)
    return time.process_time() - start, scores


@contextlib.contextmanager
def each_by_itself() -> Iterator[None]:
    """Every prompt goes through the processor and the whole language model."""
    read = Reader.read

    def prepared_too(self: Reader, prompts: Sequence[Prompt]) -> Batch:
        self._processed(prompts)
        return read(self, prompts)

    with (
        mock.patch.object(Reader, "read", prepared_too),
        mock.patch.object(TransformersModel, "_after_shared_beginning", return_value=None),
    ):
        yield


def main() -> None:
    """Time both in turn and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--questions", type=int, default=12, help=f"about each, at most {len(FORMS) * len(THINGS)}")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    model, prompts = load_model(ModelSettings(threads=1)), asked(arguments.pictures, arguments.questions)
    scored(model, prompts)
    shared, separate, apart = [], [], 0.0
    for _ in range(arguments.pairs):
        seconds, scores = scored(model, prompts)
        shared.append(seconds)
        with each_by_itself():
            seconds, others = scored(model, prompts)
        separate.append(seconds)
        apart = max(apart, float(np.abs(scores - others).max()))
    ratios = [one / other for one, other in zip(shared, separate, strict=True)]
    print(f"{len(prompts)} questions about {arguments.pictures} pictures, in batches of {ModelSettings().batch_size}")
    print(f"a picture once: median {statistics.median(shared):.2f} s of processor time")
    print(f"each prompt by itself: median {statistics.median(separate):.2f} s")
    print(f"ratio: median {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")
    print(f"log-probabilities differ by {apart:.0e} at most")


if __name__ == "__main__":
    main()
