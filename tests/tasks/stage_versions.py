"""Records the version of every stage beside a digest of the code behind it: ``python -m tests.tasks.stage_versions``.

The digest is over the syntax trees of the stage's modules without their docstrings, so that a comment, a docstring or
the layout of a line is no change.
"""

from __future__ import annotations

import ast
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

from selu.tasks.planning import all_stages
from selu.tasks.stages import Stage

RECORDED = Path(__file__).with_suffix(".json")


def code_digest(stage: Stage) -> str:
    """Digest of the code of a stage's modules."""
    digest = hashlib.sha256()
    for name in stage.modules:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"the stage {stage.name} names a module that does not exist: {name}")
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                # Docstrings and the texts below constants.
                node.body = [  # type: ignore[attr-defined]
                    part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
                ]
        digest.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def main() -> None:
    """Write what stands now."""
    stages = {stage.name: {"version": stage.version, "code": code_digest(stage)} for stage in all_stages()}
    RECORDED.write_text(json.dumps(stages, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
