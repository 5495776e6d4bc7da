"""The shipped values of a component's configuration, for pipelines that have no configuration files."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from peach_trl.config import build

Schema = TypeVar("Schema")


def default(schema: type[Schema], **changes: Any) -> Schema:
    """The values that ship for one component (``configs/common.yaml``, ``configs/peach.yaml``), with changes.

    Values that follow from a task by rule (``hierarchy.decision_steps``, ``transitions.reward_scale``, ``top.gamma``,
    ``top.test_penalty``, ``context.reward_factor``; see :mod:`peach_trl.rules`) are those of the default task: episodes
    of 200 steps, rewards from 0 to 1 a step. Give your own where yours is another.

    Args:
        schema: the class of a part of :class:`~peach_trl.experiment.PeachConfig`, such as ``HierarchyConfig``;
            of ``env`` it is ``PointConfig``, the default task.
        changes: values by their names.

    Raises:
        TypeError: for a class that is no such part.
        ConfigError: for an unknown name or a value that cannot be used.

    Examples:
        >>> from peach_trl.hierarchy import HierarchyConfig
        >>> default(HierarchyConfig, depth=3).decision_steps
        20
    """
    from peach_trl.experiment import PeachConfig
    from peach_trl.utils.cli import load_config

    parts: list[Any] = [part for part in vars(load_config(PeachConfig, "peach")).values() if type(part) is schema]
    if not parts:
        raise TypeError(f"{schema.__name__} is no part of PeachConfig: give its values yourself")
    return build(schema, {**dataclasses.asdict(parts[0]), **changes})
