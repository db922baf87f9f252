"""The methods that are compared, one YAML file each: SELU, its baselines, its ablations, and an upper bound.

A method is a description, how it was carried over to this setting, and the settings in which it differs. Adding one is
adding a file; its name is the method's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selu.config import Settings, read_yaml, validate_settings
from selu.errors import ConfigError

__all__ = ["METHODS", "Method", "Role", "load_method", "load_methods", "method_settings"]

METHODS = Path(__file__).parent

Role = Literal["method", "baseline", "ablation", "upper bound"]
_ROLES: tuple[Role, ...] = get_args(Role)

_NOT_A_METHODS = ("name", "method", "seed", "rounds", "data_dir", "report_to", "evaluation")
"""What the comparison itself sets, or must be the same for all."""


class Method(BaseModel):
    """One method of a comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="of its file")
    role: Role
    description: str = Field(min_length=1)
    carried_over: str = Field(default="", description="how a method from elsewhere was carried over to this setting")
    settings: dict[str, Any] = Field(description="nested, as in a config file: what differs from everybody's settings")


def load_method(path: Path) -> Method:
    """The method in a file.

    Raises:
        ConfigError: the file cannot be read, has keys that no method has, or settings that do not exist or that a method
            may not change.
    """
    data = read_yaml(path)
    known = [name for name in Method.model_fields if name != "name"]
    unknown = [str(key) for key in data if key not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known keys are {', '.join(known)}"
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}{hint}")
    try:
        method = Method.model_validate({**data, "name": path.stem})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        ) from None
    for key in _NOT_A_METHODS:
        if key in method.settings:
            raise ConfigError(
                f"{path}: settings.{key} is not a method's to change, because the comparison gives all methods the same"
            )
    try:
        method_settings(Settings(), method)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return method


def load_methods(names: Sequence[str] = (), folder: Path = METHODS) -> list[Method]:
    """The methods with these names, or all of a folder: SELU, then baselines, ablations and upper bounds by name.

    Raises:
        ConfigError: there is no such method, or a file is not one.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    for name in names:
        if name not in files:
            near = difflib.get_close_matches(name, list(files), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"no such method: {name!r}{hint} (known: {', '.join(files)})")
    methods = [load_method(files[name]) for name in dict.fromkeys(names) or files]
    return sorted(methods, key=lambda method: (_ROLES.index(method.role), method.name))


def method_settings(settings: Settings, method: Method, **changes: Any) -> Settings:
    """Everybody's settings with what a method changes, and with top-level `changes` such as ``seed=3``.

    Raises:
        ConfigError: they do not exist or do not fit together.
    """
    data = settings.model_dump(mode="json")
    _merge(data, method.settings)
    return validate_settings({**data, **changes, "method": method.name})


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
