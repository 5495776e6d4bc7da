"""Around a run: its folder and logs, its plots, and the command line of the recipes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peach_trl.utils.checkpoints import load_checkpoint
    from peach_trl.utils.cli import load_config, recipe
    from peach_trl.utils.plots import plot_curves, plot_posterior, plot_trajectories
    from peach_trl.utils.run import Run, progress

_MODULES = {
    "Run": "run",
    "load_checkpoint": "checkpoints",
    "load_config": "cli",
    "plot_curves": "plots",
    "plot_posterior": "plots",
    "plot_trajectories": "plots",
    "progress": "run",
    "recipe": "cli",
}

__all__ = [
    "Run",
    "load_checkpoint",
    "load_config",
    "plot_curves",
    "plot_posterior",
    "plot_trajectories",
    "progress",
    "recipe",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and nothing else: the command line does without torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
