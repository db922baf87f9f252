"""Two methods, paired item by item over the seeds that both ran, from the records of their runs.

    python benchmarks/method_difference.py results/corpus_pictures:selu results/corpus_pictures:with_corpus_pictures
    python benchmarks/method_difference.py results/fourth_recipe:selu results/comparison:selu --round 2

How much more the second earns than the first after a round, and how much more the direct verdict of either than the questions
that its base model asks itself before any learning. In points, with 95 % intervals from a bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path

from selu.comparison.runs import ItemKey, RunRecord, read_records
from selu.evaluation import ItemOutcome
from selu.statistics import cluster_bootstrap_difference, without_empty_interval
from selu.worlds.tasks import THREE_STEPS

_SAMPLES = 4_000

Outcomes = Mapping[ItemKey, ItemOutcome]
Place = tuple[str, str, str]
"""subject, probe, method: an item's key without the item"""
Pair = tuple[float, float, str]


def runs_of(method: str, records: Mapping[str, RunRecord], number: int) -> dict[int, RunRecord]:
    """A method's records by seed, of runs that come as far as a round; their folders are named by method, world and seed."""
    pattern = re.compile(rf"(?:.+-)?{re.escape(method.lower().replace('_', '-'))}-[a-z0-9-]+-seed-(\d+)-[0-9a-f]{{8}}")
    found: dict[int, RunRecord] = {}
    for key, record in records.items():
        if (named := pattern.fullmatch(key)) and record.reaches(number):
            if (seed := int(named[1])) in found:
                raise SystemExit(
                    f"two runs of {method} have seed {seed}: {found[seed].key} and {key}; leave one in runs/"
                )
            found[seed] = record
    return found


def paired(one: Outcomes, other: Outcomes, mine: Place, theirs: Place, kind: str) -> list[Pair]:
    """What each item came to under `theirs` in `other` and under `mine` in `one`, and its scene; nothing if either has none.

    `kind` leaves only tasks of that kind.
    """
    found, beside = (
        {key[3]: item for key, item in where.items() if key[:3] == place and kind in ("", item.kind)}
        for where, place in ((one, mine), (other, theirs))
    )
    if not found or not beside:
        return []
    if found.keys() != beside.keys():
        raise SystemExit(f"{mine} and {theirs} are not about the same items; both must be evaluated at the same size")
    return [(beside[name].value, item.value, item.scene) for name, item in found.items()]


def told(name: str, pairs: list[Pair]) -> None:
    """Print how much more the second of each pair is; without an interval where no pair differs."""
    if not pairs:
        return
    before, after, scenes = (list(column) for column in zip(*pairs, strict=True))
    rate = without_empty_interval(cluster_bootstrap_difference(before, after, scenes, 0, _SAMPLES))
    interval = "" if math.isnan(rate.low) else f" ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
    print(f"  {name:30} {100 * rate.rate:+6.1f}{interval}, n {len(pairs)}, {len(set(scenes))} scenes")


def side(text: str) -> tuple[Path, str]:
    """A folder and a method, as the command line names them."""
    folder, colon, method = text.rpartition(":")
    if not colon or not (Path(folder) / "runs").is_dir():
        raise argparse.ArgumentTypeError(f"must be FOLDER:METHOD, and the folder have runs/, got {text!r}")
    return Path(folder), method


def main() -> None:
    """Print the differences on both probe sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=side, help="FOLDER:METHOD; the folder has the records in runs/")
    parser.add_argument("other", type=side, help="of which it is said how much more it earns")
    parser.add_argument("--round", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.round < 1:
        parser.error(f"--round must be at least 1, got {arguments.round}")
    runs = [
        runs_of(method, read_records(folder / "runs"), arguments.round)
        for folder, method in (arguments.one, arguments.other)
    ]
    seeds = sorted(runs[0].keys() & runs[1].keys())
    if not seeds:
        parser.error(f"no seed of both has a record of round {arguments.round}")
    one, other = ([of[seed].after(arguments.round) for seed in seeds] for of in runs)

    def pooled(mine: list[Outcomes], theirs: list[Outcomes], places: tuple[Place, Place], kind: str = "") -> list[Pair]:
        """Of all seeds: what items came to in `theirs` and in `mine`, each under its place."""
        return [pair for of, beside in zip(mine, theirs, strict=True) for pair in paired(of, beside, *places, kind)]

    print(
        f"round {arguments.round}, seeds {seeds}: {' '.join(map(str, arguments.other))} over {' '.join(map(str, arguments.one))}"
    )
    for name, subject, way, kind in (
        ("critic, direct verdict", "critic", "direct", ""),
        ("critic, its own questions", "critic", "self_asking", ""),
        ("actor", "actor", "selu", ""),  # as evaluation calls it under any method
        ("actor, two steps", "actor", "selu", "two_step"),
        ("actor, three steps", "actor", THREE_STEPS, ""),
        ("general, critic", "general", "critic", ""),
        ("general, actor", "general", "actor", ""),
    ):
        for probe in ("A+B",) if subject == "general" else "AB":
            place = subject, probe, way
            told(f"{name}, {probe}", pooled(other, one, (place, place), kind))
    for (folder, method), of, after in zip((arguments.one, arguments.other), runs, (one, other), strict=True):
        print(f"the direct verdict of {folder} {method} over untrained questions")
        base = [of[seed].base() for seed in seeds]
        for probe in "AB":
            told(probe, pooled(after, base, (("critic", probe, "direct"), ("critic", probe, "self_asking"))))


if __name__ == "__main__":
    main()
