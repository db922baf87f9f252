"""Dataset versions on disk: folders that `datasets.load_dataset` reads, with embedded PNGs and a card with parents and recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCardData
from pydantic import Field

from selu.errors import ArtifactError
from selu.frames import decode_picture
from selu.records import Record

__all__ = ["DatasetCard", "save_dataset_version", "validate_rows"]

_ROWS_PER_GROUP = 500


class DatasetCard(Record):
    """What a dataset version says about itself. No time and no path of a machine: equal data, equal bytes."""

    name: str = Field(description="e.g. selu/thor/critic-round1")
    pretty_name: str
    description: str
    round: int | None = Field(description="None: made of recordings from elsewhere, in no round")
    parents: dict[str, str] = Field(default_factory=dict, description="what it was made from: name -> digest or key")
    recipe: dict[str, Any] = Field(default_factory=dict, description="settings, seeds and prompt digests")
    revisions: dict[str, str] = Field(default_factory=dict, description="model revisions: actor, critic, base")
    license: str | None = Field(default="apache-2.0", description="None: that of recordings is not ours to say")


def validate_rows(dataset: datasets.Dataset, name: str) -> None:
    """Refuses rows that a trainer would choke on or silently train without pictures.

    Raises ArtifactError that gathers all faults: a turn missing or empty, no picture, one that is not embedded or
    cannot be decoded (one in a hundred is tried), or a literal image token in a text, which trainers take for a
    placeholder.
    """
    faults = []
    undecoded = dataset.cast_column("images", datasets.List(datasets.Image(decode=False)))
    for number, given in enumerate(undecoded):
        row = cast(dict[str, Any], given)
        for column, role in (("prompt", "user"), ("completion", "assistant")):
            turns = row[column]
            if [turn["role"] for turn in turns] != [role] or not turns[0]["content"].strip():
                faults.append(f"row {number}: {column} must be one {role} turn with text")
            elif "<image>" in turns[0]["content"]:
                faults.append(f"row {number}: {column} holds a literal <image>")
        if not row["images"] or any(not image["bytes"] for image in row["images"]):
            faults.append(f"row {number}: must embed at least one picture")
        elif number % 100 == 0:
            try:
                decode_picture(row["images"][0]["bytes"])
            except ArtifactError as error:
                faults.append(f"row {number}: {error}")
    if faults:
        shown = "; ".join(faults[:5])
        raise ArtifactError(f"dataset {name} has {len(faults)} faults in {len(dataset)} rows: {shown}")


def _size_category(rows: int) -> str:
    for limit, category in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return category
    return "n>1M"


def _front_matter(configs: Mapping[str, datasets.Dataset], card: DatasetCard) -> str:
    data = DatasetCardData(
        license=card.license,
        pretty_name=card.pretty_name,
        language=["en"],
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        source_datasets=["original"],
        task_categories=["image-text-to-text", "visual-question-answering", "robotics"],
        size_categories=[_size_category(sum(len(dataset) for dataset in configs.values()))],
        tags=["selu", "embodied", "self-learning"],
    )
    infos = datasets.info.DatasetInfosDict()
    for config, dataset in configs.items():
        split = datasets.SplitInfo(name="train", num_examples=len(dataset))
        infos[config] = datasets.DatasetInfo(
            config_name=config, features=dataset.features, splits=datasets.SplitDict({"train": split})
        )
    infos.to_dataset_card_data(data)
    fields = cast(dict[str, Any], cast(Any, data).to_dict())
    fields["configs"] = [
        {"config_name": config, "data_files": [{"split": "train", "path": f"data/{config}-train.parquet"}]}
        for config in configs
    ]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _card_text(configs: Mapping[str, datasets.Dataset], card: DatasetCard) -> str:
    lines = [f"---\n{_front_matter(configs, card)}---\n", f"# {card.pretty_name}\n", f"{card.description}\n"]
    origin = "of recorded trajectories" if card.round is None else f"round {card.round}"
    lines.append(
        f"`{card.name}`, {origin}. Labels were made by the critic model itself; no ground truth of the world "
        "and no human annotation is in them.\n"
    )
    for config, dataset in configs.items():
        lines.append(f"## {config}: {len(dataset)} rows\n\n| source | completion | rows |\n|---|---|---|")
        counts: dict[tuple[str, str], int] = {}
        for source, completion in zip(dataset["source"], dataset["completion"], strict=True):
            text = completion[0]["content"]
            kind = text if text in ("yes", "no", "Done") else "other"
            counts[source, kind] = counts.get((source, kind), 0) + 1
        lines += [f"| {source} | {kind} | {count} |" for (source, kind), count in sorted(counts.items())]
        lines.append("")
    for title, fields in (("Parents", card.parents), ("Models", card.revisions)):
        if fields:
            lines.append(f"## {title}\n\n" + "\n".join(f"- {key}: `{fields[key]}`" for key in sorted(fields)) + "\n")
    recipe = json.dumps(card.recipe, sort_keys=True, indent=2, ensure_ascii=False)
    lines.append(f"## Recipe\n\n```json\n{recipe}\n```\n")
    lines.append("Every row names its episode, frames, question, verdict and relabel, and the models behind them.")
    return "\n".join(lines) + "\n"


def save_dataset_version(path: Path, configs: Mapping[str, datasets.Dataset], card: DatasetCard) -> None:
    """Writes a dataset version into the folder `path`: data/<config>-train.parquet, README.md and lineage.json.

    `configs` maps a config's name (`critic`, `actor`) to its rows. Equal rows and card give equal bytes. Raises
    ArtifactError if a row is unfit for training.
    """
    for config, dataset in configs.items():
        validate_rows(dataset, config)
    (path / "data").mkdir(parents=True, exist_ok=True)
    for config, dataset in configs.items():
        table = cast(pa.Table, dataset.with_format("arrow")[:]).combine_chunks()
        # Only the features: the library's own metadata carries a fingerprint that differs from run to run.
        features = {"info": {"features": cast(Any, dataset.features).to_dict()}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features, sort_keys=False)})
        pq.write_table(
            table, path / "data" / f"{config}-train.parquet", compression="zstd", row_group_size=_ROWS_PER_GROUP
        )
    facts = card.model_dump(mode="json") | {"rows": {config: len(dataset) for config, dataset in configs.items()}}
    (path / "lineage.json").write_text(json.dumps(facts, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    (path / "README.md").write_text(_card_text(configs, card), encoding="utf-8")
