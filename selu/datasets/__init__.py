"""Training rows out of judged episodes, and dataset versions on disk."""

from selu.datasets.for_actor import actor_rows
from selu.datasets.for_critic import critic_rows
from selu.datasets.rows import FEATURES, Lineage, lineage
from selu.datasets.versions import DatasetCard, save_dataset_version, validate_rows

__all__ = [
    "FEATURES",
    "DatasetCard",
    "Lineage",
    "actor_rows",
    "critic_rows",
    "lineage",
    "save_dataset_version",
    "validate_rows",
]
