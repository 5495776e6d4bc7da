"""Around a run: its folder and logs, its plots, and the command line of the recipes."""

from peach_trl.utils.cli import load_config, recipe
from peach_trl.utils.plots import plot_curves, plot_posterior, plot_trajectories
from peach_trl.utils.run import Run, load_checkpoint, progress

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
