"""Typed and range-checked configuration: schemas stand beside the classes that they configure.

A schema is a frozen dataclass whose fields are declared with :func:`option`; no field has a default, since values
live only in the commented YAML files under ``configs/``. :func:`build` turns what Hydra composed into that dataclass,
or raises a :class:`ConfigError` that names the key, its value and the remedy. A condition that joins several fields
goes to a method ``check(self)`` of the schema.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import operator
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Schema = TypeVar("Schema")
Result = TypeVar("Result")
AUTO = "auto"  # in place of a value that follows from others
MANY = 10**9  # of nothing that is counted does a sensible run have more; memory ends most counts before that


class ConfigError(ValueError):
    """A configuration value that cannot be used; the message names the key, the value and the remedy."""


_BOUNDS = {
    "low": (">=", operator.ge),
    "high": ("<=", operator.le),
    "above": (">", operator.gt),
    "below": ("<", operator.lt),
}


def option(
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
    auto: bool = False,
    help: str = "",
) -> Any:
    """Declares a required, range-checked field of a schema.

    Args:
        low: smallest allowed value, inclusive.
        high: largest allowed value, inclusive.
        above: exclusive lower bound.
        below: exclusive upper bound.
        choices: the allowed values, for names.
        auto: whether ``"auto"`` may stand for a value; the schema's ``resolved`` must then put one in its place.
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
    limits = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    return dataclasses.field(metadata={**limits, "auto": auto, "help": help})


def build(schema: type[Schema], values: Mapping[str, Any], path: str = "", check: bool = True) -> Schema:
    """Builds ``schema`` from a nested mapping, checking every key, type and range.

    Whole floats such as 1e6 are taken for integers, integers for floats, lists become tuples. A schema may define
    ``resolved(self)``, which returns it with values in place of ``"auto"``, and ``check(self)``, called once its fields
    are known to be good, for what joins several of them. They raise a :class:`ConfigError` whose message begins with
    one of its own keys; ``path`` is put before it.

    Args:
        schema: a dataclass whose fields were declared with :func:`option`, or are schemas themselves.
        values: a nested mapping, such as an OmegaConf ``DictConfig`` turned into a ``dict``.
        path: the key under which ``values`` stands, for messages.
        check: whether to call the outermost ``check``; not for what is of another machine.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, a value out of range, or a failed ``check``.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class SpanConfig:
        ...     first: float = option(help="in metres")
        ...     last: float = option(help="in metres")
        ...
        ...     def check(self):
        ...         if self.last < self.first:
        ...             raise ConfigError(f"last = {self.last}: must be >= first = {self.first}; raise last")
        >>> build(SpanConfig, {"first": 1, "last": 2})
        SpanConfig(first=1.0, last=2.0)
        >>> build(SpanConfig, {"first": 1, "last": 0}, path="span")
        Traceback (most recent call last):
        ...
        peach_trl.config.ConfigError: span.last = 0.0: must be >= first = 1.0; raise last
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} = {values!r}: must be a group of keys ({', '.join(_hints(schema))})")
    hints = _hints(schema)
    for key in values:
        if key not in hints:
            raise unknown_key(_join(path, key), values[key], [_join(path, name) for name in hints])
    built = {}
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        key = _join(path, field.name)
        if field.name not in values:
            raise ConfigError(f"{key}: missing; set {key} ({field.metadata.get('help') or 'a group of keys'})")
        built[field.name] = _checked(key, values[field.name], hints[field.name], field.metadata)
    try:
        result = schema(**built)
        if callable(resolved := getattr(result, "resolved", None)):
            result = typing.cast(Schema, resolved())
        if check and callable(checks := getattr(result, "check", None)):
            checks()
    except ConfigError as error:
        raise ConfigError(_join(path, error)) from None
    return result


def attempt(what: str, function: Callable[[], Result]) -> Result:
    """What somebody else's function returns; ``what`` says whose it is.

    Raises:
        ConfigError: for any error in it, with the line where it arose; the error itself is its cause.

    Examples:
        >>> attempt("env.make = own:make:", lambda: {}["goal"])
        Traceback (most recent call last):
        ...
        peach_trl.config.ConfigError: env.make = own:make: KeyError: 'goal' (..., line 1)
    """
    try:
        return function()
    except ConfigError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(f"{what} {type(error).__name__}: {error} ({where.filename}, line {where.lineno})") from error


def require_key(schema: type, key: str, value: Any) -> None:
    """Checks that a dotted key, as in a command-line override, stands in ``schema``.

    Args:
        schema: the schema of the whole configuration.
        key: a dotted key; it may name a group of keys.
        value: its value, for the message.

    Raises:
        ConfigError: if there is no such key; the remedy is the key that comes closest.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class ArmConfig:
        ...     joints: int = option(low=1, help="number of joints")
        >>> require_key(ArmConfig, "joints", 2)
        >>> require_key(ArmConfig, "joint", 2)
        Traceback (most recent call last):
        ...
        peach_trl.config.ConfigError: joint = 2: unknown key; did you mean joints?
    """
    kinds: list[Any] = [schema]
    for name in key.split("."):
        if any(kind is Any or (typing.get_origin(kind) or kind) in (dict, Mapping) for kind in kinds):
            return
        schemas = [kind for kind in kinds if dataclasses.is_dataclass(kind) and name in _hints(kind)]
        if not schemas:
            raise unknown_key(key, value, _dotted(schema))
        kinds = [choice for kind in schemas for choice in _options(_hints(kind)[name])]


def unknown_key(key: str, value: Any, known: Sequence[str]) -> ConfigError:
    """The error for a key that does not exist; the remedy is the closest known key, first of those with its last name.

    Args:
        key: a dotted key.
        value: its value, for the message.
        known: all dotted keys, in any order.

    Examples:
        >>> print(unknown_key("arm.joint", 2, ["arm.joints", "arm.length"]))
        arm.joint = 2: unknown key; did you mean arm.joints?
    """
    leaf = key.rsplit(".", 1)[-1]
    same = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    near = difflib.get_close_matches(key, same or known, n=1, cutoff=0.0 if same else 0.6)
    remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(set(known)))}"
    return ConfigError(f"{key} = {value!r}: unknown key; {remedy}")


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The remedy for a name that does not exist: the one that comes closest, else all that there are.

    Examples:
        >>> did_you_mean("wnd", ["Wind", "point"], "env=")
        'did you mean env=Wind?'
        >>> did_you_mean("xyz", ["Wind", "point"])
        'there are Wind, point'
    """
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f"did you mean {prefix}{by_lower[near[0]]}?" if near else f"there are {', '.join(by_lower.values())}"


def imported(key: str, path: str) -> Any:
    """What a configuration names by ``"module:name"``.

    Args:
        key: that names it, for messages.
        path: its value.

    Raises:
        ConfigError: if there is no such thing.

    Examples:
        >>> imported("encoder", "peach_trl.config:imported").__name__
        'imported'
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key} = {path!r}: {error}; write module:name, with the module on the PYTHONPATH") from None


def _checked(key: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    """The value of one field, converted to its type, or a ConfigError."""
    if (value is None and type(None) in typing.get_args(kind)) or (value == AUTO and limits.get("auto")):
        return value
    kind = _fitting(_options(kind), value)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, key)  # type: ignore[arg-type]
    origin, arguments, about = typing.get_origin(kind), typing.get_args(kind), limits.get("help", "")
    if origin in (tuple, list):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{key} = {value!r}: must be a list, such as {key}=[...] ({about})")
        if origin is tuple and arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ConfigError(f"{key} = {value!r}: must be a list of {len(arguments)} values ({about})")
        return tuple(_checked(f"{key}[{i}]", item, arguments[0], limits) for i, item in enumerate(value))
    kind = origin or kind
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is not Any and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        name = getattr(kind, "__name__", str(kind))
        raise ConfigError(f"{key} = {value!r}: must be of type {name} ({about}); set {key} to such a value")
    wanted = _broken_limit(value, limits)
    if wanted:
        raise ConfigError(f"{key} = {value!r}: must be {wanted} ({about}); set {key} to such a value")
    return value


def _broken_limit(value: Any, limits: Mapping[str, Any]) -> str | None:
    """What the value should have been, or None where it keeps within its limits."""
    if limits.get("choices") is not None and value not in limits["choices"]:
        return "one of " + ", ".join(map(str, limits["choices"]))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value):
        return "a finite number"
    for name, (sign, holds) in _BOUNDS.items():
        limit = limits.get(name)
        if limit is not None and not holds(value, limit):
            return f"{sign} {limit}"
    return None


def _dotted(schema: Any, path: str = "") -> list[str]:
    """All keys of a schema, also those of its groups."""
    keys = []
    for name, kind in _hints(schema).items():
        keys.append(_join(path, name))
        for schema_of_group in filter(dataclasses.is_dataclass, _options(kind)):
            keys += _dotted(schema_of_group, _join(path, name))
    return list(dict.fromkeys(keys))


def _hints(schema: Any) -> dict[str, Any]:
    """The types of a schema's fields by name."""
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def _options(kind: Any) -> list[Any]:
    """The types X, Y of X | Y | None, or the type itself."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [choice for choice in typing.get_args(kind) if choice is not type(None)]
    return [kind]


def _fitting(options: list[Any], value: Any) -> Any:
    """Of several schemas that a group of keys may have, the one with most of these keys."""
    if len(options) == 1 or not isinstance(value, Mapping):
        return options[0]
    return max(options, key=lambda schema: len(set(_hints(schema)) & set(value)))


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
