"""Schemas: keys, types, ranges, and conditions that join several keys."""

import dataclasses
import typing

import pytest
import yaml

from peach_trl.config import ConfigError, build, option, require_key
from peach_trl.experiment import HacConfig, PeachConfig, SourceConfig


@dataclasses.dataclass(frozen=True)
class Level:
    depth: int = option(low=1, high=4, help="number of levels")
    gamma: float = option(above=0, below=1, help="discount")
    goal_rule: str = option(choices=("official", "own"), help="when an attempt ends")


@dataclasses.dataclass(frozen=True)
class Main:
    seed: int = option(low=0, help="seed of the run")
    sizes: tuple[int, ...] = option(low=1, help="hidden sizes")
    limits: tuple[float, float] = option(help="smallest and largest")
    device: str | None = option(help="name of the device")
    compiled: bool = option(help="whether to compile")
    extra: dict = option(help="anything")
    level: Level
    test: Level | None

    def check(self):
        if self.limits[1] < self.limits[0]:
            raise ConfigError(f"limits = {self.limits}: must be in order; exchange them")


@dataclasses.dataclass(frozen=True)
class Outer:
    main: Main


def values(**changes):
    level = {"depth": 2, "gamma": 0.9, "goal_rule": "own"}
    base = dict(seed=0, sizes=[64, 64], limits=[0, 1], device=None, compiled=False, extra={}, level=level, test=None)
    return {**base, **changes}


def level(**changes):
    return {**values()["level"], **changes}


def test_builds_with_conversions():
    built = build(Main, values(seed=1e3, test=level(gamma=0.5)))
    assert (built.seed, type(built.seed)) == (1000, int)
    assert (built.sizes, built.limits, built.device) == ((64, 64), (0.0, 1.0), None)
    assert type(built.limits[0]) is float
    assert built.test == Level(2, 0.5, "own")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"level": level(depth=0)}, ["level.depth = 0", ">= 1", "number of levels", "set level.depth"]),
        ({"level": level(depth=5)}, ["level.depth = 5", "<= 4"]),
        ({"level": level(gamma=1.5)}, ["level.gamma = 1.5", "< 1"]),
        ({"level": level(gamma=1)}, ["level.gamma = 1.0", "< 1"]),
        ({"level": level(gamma=0)}, ["level.gamma = 0.0", "> 0"]),
        ({"level": level(gamma=float("nan"))}, ["level.gamma = nan", "finite"]),
        ({"level": level(goal_rule="mine")}, ["level.goal_rule = 'mine'", "one of official, own"]),
        ({"level": 3}, ["level = 3", "group of keys", "depth"]),
        ({"test": level(depth=0)}, ["test.depth = 0"]),
        ({"level": {"depth": 2, "gamma": 0.9}}, ["level.goal_rule: missing", "set level.goal_rule"]),
        ({"level": level(dept=1)}, ["level.dept = 1", "unknown key", "did you mean level.depth?"]),
        ({"sizes": [64, -1]}, ["sizes[1] = -1", ">= 1"]),
        ({"sizes": 64}, ["sizes = 64", "list"]),
        ({"limits": [1, 2, 3]}, ["limits = [1, 2, 3]", "list of 2"]),
        ({"limits": [2, 1]}, ["limits = (2.0, 1.0)", "in order", "exchange"]),
        ({"seed": 0.5}, ["seed = 0.5", "type int"]),
        ({"seed": True}, ["seed = True", "type int"]),
        ({"seed": None}, ["seed = None", "type int"]),
        ({"compiled": 1}, ["compiled = 1", "type bool"]),
        ({"device": 1}, ["device = 1", "type str"]),
    ],
)
def test_errors_name_key_value_and_remedy(changes, parts):
    with pytest.raises(ConfigError) as error:
        build(Main, values(**changes))
    assert [part for part in parts if part not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_int_values_keep_fractional_bounds():
    @dataclasses.dataclass(frozen=True)
    class Fraction:
        size: int = option(low=0.5, below=2.5, help="a number")

    assert build(Fraction, {"size": 2}).size == 2
    with pytest.raises(ConfigError, match=r"size = 0: must be >= 0.5"):
        build(Fraction, {"size": 0})


def test_check_of_a_group_names_the_full_key():
    with pytest.raises(ConfigError, match=r"^main\.limits = "):
        build(Outer, {"main": values(limits=[2, 1])})


def test_yaml_text_of_a_float_is_refused_with_its_type():
    # YAML 1.1 reads 1e-3 as text; OmegaConf, which Hydra uses, reads a number (tests/test_run.py).
    assert yaml.safe_load("1e-3") == "1e-3"
    with pytest.raises(ConfigError, match="level.gamma = '1e-3': must be of type float"):
        build(Main, values(level=level(gamma="1e-3")))


@pytest.mark.parametrize("key", ["main", "main.seed", "main.level.depth", "main.test.gamma", "main.extra.any.thing"])
def test_known_keys_pass(key):
    require_key(Outer, key, 1)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("main.level.dept", "main.level.depth"),
        ("seed", "main.seed"),
        ("main.level.depth.more", "main.level.depth"),
        ("zzz", "known keys: main, main.compiled"),
    ],
)
def test_unknown_keys_get_the_closest_one(key, remedy):
    with pytest.raises(ConfigError) as error:
        require_key(Outer, key, 7)
    assert str(error.value).startswith(f"{key} = 7: unknown key")
    assert remedy in str(error.value)


def counts_without_an_end(schema, path=""):
    """The whole numbers of a schema, and of its groups, that may be as large as anyone likes."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kinds = {hints[field.name], *typing.get_args(hints[field.name])}
        for group in filter(dataclasses.is_dataclass, kinds):
            yield from counts_without_an_end(group, f"{path}{field.name}.")
        whole = int in kinds or any(int in typing.get_args(kind) for kind in kinds)
        if whole and field.metadata.get("high") is None and field.metadata.get("below") is None:
            yield f"{path}{field.name}"


@pytest.mark.parametrize("schema", [PeachConfig, HacConfig, SourceConfig])
def test_every_count_has_an_upper_bound(schema):
    """Else 1e30 of something hangs, or ends somewhere in the middle of a run."""
    assert list(counts_without_an_end(schema)) == []
    assert list(counts_without_an_end(Main)) == ["seed", "sizes"]
