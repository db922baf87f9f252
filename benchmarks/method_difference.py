"""Two methods of a comparison, paired task by task: difference of the actor's success after a round, by seeds that both ran.

    python benchmarks/method_difference.py DATA_DIR selu without_hindsight --round 1

Intervals are 95 %, from a bootstrap over scenes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from selu.records import Episode, OracleEpisode
from selu.rounds import Round, finished_rounds
from selu.store import Store, read_table

_RESAMPLES = 4_000


def successes(store: Store, finished: Round, probe: str) -> dict[str, tuple[str, bool]]:
    """Scene and success by task, of what the actor did on a probe set after a round."""
    found = {}
    for ref in finished.stage("evaluation").artifacts:
        shard = str(store.manifest(ref).provenance["shard"]) if ref.kind == "episodes" else ""
        if not shard.startswith(f"evaluation: actor after, probe {probe}"):
            continue
        truth = store.find_oracle("oracle", ref.key)
        assert truth is not None, f"the truth about {ref.key} is gone"
        done = {
            row.episode_id: bool(row.success)
            for row in read_table(store.path(truth) / "oracle_episodes.parquet", OracleEpisode)
        }
        for episode in read_table(store.path(ref) / "episodes.parquet", Episode):
            found[episode.task_id] = episode.scene, done[episode.episode_id]
    return found


def main() -> None:
    """Print the difference on both probe sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("--round", type=int, default=1)
    told = parser.parse_args()
    store = Store(told.data_dir / "store")
    rounds = {
        (item.settings.method, item.settings.seed): item for item in finished_rounds(store) if item.round == told.round
    }
    seeds = sorted(seed for method, seed in rounds if method == told.one and (told.other, seed) in rounds)
    for probe in "AB":
        pairs = []
        for seed in seeds:
            one, other = (successes(store, rounds[method, seed], probe) for method in (told.one, told.other))
            pairs += [(scene, done - other[task][1]) for task, (scene, done) in one.items()]
        scenes = sorted({scene for scene, _ in pairs})
        by_scene = [np.array([value for place, value in pairs if place == scene]) for scene in scenes]
        generator = np.random.default_rng(0)
        means = [
            np.concatenate([by_scene[k] for k in generator.integers(len(scenes), size=len(scenes))]).mean()
            for _ in range(_RESAMPLES)
        ]
        low, high = np.percentile(means, [2.5, 97.5])
        mean = np.mean([value for _, value in pairs])
        print(
            f"probe {probe}, round {told.round}: {told.one} - {told.other} = {100 * mean:+.1f} points "
            f"({100 * low:.1f} to {100 * high:.1f}), n {len(pairs)}, seeds {seeds}, {len(scenes)} scenes"
        )


if __name__ == "__main__":
    main()
