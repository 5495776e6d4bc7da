"""PEACH: meta-learning with multi-level hierarchies via context variables, as modular components on TorchRL.

What is used most can be imported from here; all else from its subpackage. Each name is loaded when it is asked for.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peach_trl.agent import Agent
    from peach_trl.collectors import Lockstep, LockstepCollector
    from peach_trl.defaults import default
    from peach_trl.envs import FAMILIES, GoalSpace, GymnasiumTasksEnv, PointEnv, TaskLibrary
    from peach_trl.evaluation import MetaTest, meta_test
    from peach_trl.experiment import (
        HacConfig,
        PeachConfig,
        SourceConfig,
        load_agent,
        load_levels,
        make_agent,
        make_env,
        make_library,
    )
    from peach_trl.utils import load_config

try:
    __version__ = version("peach-trl")
except PackageNotFoundError:  # the package's folder alone, not installed
    __version__ = "0+unknown"

_MODULES = {
    "agent": ("Agent",),
    "collectors": ("Lockstep", "LockstepCollector"),
    "defaults": ("default",),
    "envs": ("FAMILIES", "GoalSpace", "GymnasiumTasksEnv", "PointEnv", "TaskLibrary"),
    "evaluation": ("MetaTest", "meta_test"),
    "experiment": (
        *("HacConfig", "PeachConfig", "SourceConfig", "load_agent", "load_levels"),
        *("make_agent", "make_env", "make_library"),
    ),
    "utils": ("load_config",),
}

__all__ = [
    "FAMILIES",
    "Agent",
    "GoalSpace",
    "GymnasiumTasksEnv",
    "HacConfig",
    "Lockstep",
    "LockstepCollector",
    "MetaTest",
    "PeachConfig",
    "PointEnv",
    "SourceConfig",
    "TaskLibrary",
    "__version__",
    "default",
    "load_agent",
    "load_config",
    "load_levels",
    "make_agent",
    "make_env",
    "make_library",
    "meta_test",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and nothing else: the command line does without torch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What can be imported from here, besides the subpackages."""
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
