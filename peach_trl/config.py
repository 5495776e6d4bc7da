"""Typed and range-checked configuration: schemas stand beside the classes that they configure.

A schema is a frozen dataclass whose fields are declared with :func:`option`; no field has a default, since values
live only in the commented YAML files under ``configs/``. :func:`build` turns what Hydra composed into that dataclass,
or raises a :class:`ConfigError` that names the key, its value and the remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Schema = TypeVar("Schema")


class ConfigError(ValueError):
    """A configuration value that cannot be used; the message names the key, the value and the remedy."""


def option(
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
    help: str = "",
) -> Any:
    """Declares a required, range-checked field of a schema.

    Args:
        low: smallest allowed value, inclusive.
        high: largest allowed value, inclusive.
        above: exclusive lower bound.
        below: exclusive upper bound.
        choices: the allowed values, for names.
        help: one line on the meaning and the unit of the field, quoted in errors.

    Bounds apply to a number, or to each number of a list.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class ArmConfig:
        ...     joints: int = option(low=1, help="number of joints")
        >>> build(ArmConfig, {"joints": 3})
        ArmConfig(joints=3)
        >>> build(ArmConfig, {"joints": 0}, path="arm")
        Traceback (most recent call last):
        ...
        peach_trl.config.ConfigError: arm.joints = 0: must be >= 1 (number of joints); set arm.joints to such a value
    """
    return dataclasses.field(
        metadata={"low": low, "high": high, "above": above, "below": below, "choices": choices, "help": help}
    )


def build(schema: type[Schema], values: Mapping[str, Any], path: str = "") -> Schema:
    """Builds ``schema`` from a nested mapping, checking every key, type and range.

    Args:
        schema: a dataclass whose fields were declared with :func:`option`, or are schemas themselves.
        values: a nested mapping, such as an OmegaConf ``DictConfig`` turned into a ``dict``.
        path: the key under which ``values`` stands, for messages.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} = {values!r}: must be a group of keys ({', '.join(_names(schema))})")
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            remedy = f"did you mean {_join(path, near[0])}?" if near else f"known keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"{_join(path, key)} = {values[key]!r}: unknown key; {remedy}")
    built = {}
    for name, field in fields.items():
        key = _join(path, name)
        if name not in values:
            raise ConfigError(f"{key}: missing; set {key} ({field.metadata.get('help', 'a group of keys')})")
        if dataclasses.is_dataclass(hints[name]):
            built[name] = build(hints[name], values[name], key)  # type: ignore[arg-type]
        else:
            built[name] = _checked(key, values[name], hints[name], field.metadata)
    return schema(**built)


def _checked(key: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kind = next(a for a in arguments if a is not type(None))
        return _checked(key, value, kind, limits)
    if origin in (tuple, list):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{key} = {value!r}: must be a list, such as {key}=[...] ({limits.get('help', '')})")
        return tuple(_checked(f"{key}[{i}]", item, arguments[0], limits) for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is not Any and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        name = getattr(kind, "__name__", str(kind))
        raise ConfigError(
            f"{key} = {value!r}: must be of type {name} ({limits.get('help', '')}); set {key} to such a value"
        )
    wanted = _broken_limit(value, limits)
    if wanted:
        raise ConfigError(f"{key} = {value!r}: must be {wanted} ({limits['help']}); set {key} to such a value")
    return value


def _broken_limit(value: Any, limits: Mapping[str, Any]) -> str | None:
    if limits.get("choices") is not None and value not in limits["choices"]:
        return "one of " + ", ".join(map(str, limits["choices"]))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value):
        return "a finite number"
    checks = (("low", ">=", value.__ge__), ("high", "<=", value.__le__), ("above", ">", value.__gt__))
    for name, sign, holds in (*checks, ("below", "<", value.__lt__)):
        limit = limits.get(name)
        if limit is not None and not holds(type(value)(limit)):
            return f"{sign} {limit}"
    return None


def _names(schema: type) -> list[str]:
    return [f.name for f in dataclasses.fields(schema)]


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
