"""What a run takes of this machine's memory, by estimates that are too low, so that nothing that fits is refused."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peach_trl.config import ConfigError
from peach_trl.context.sequences import SequenceConfig

if TYPE_CHECKING:
    from peach_trl.schemas import Config

ROW = 60  # bytes of a transition or a step, at least
TASK = 200  # bytes of a task in a library, its numbers in several lists
EPISODE = 32  # bytes of an episode in a replay's table
SPLITS = ("train", "validation", "test")


def check_memory(config: Config) -> None:
    """Refuses what this machine's memory cannot hold.

    Raises:
        ConfigError: that names the key with the largest part.
    """
    sizes = {**sizes_of_networks(config), **sizes_of_data(config)}
    total, most = config.seeds * sum(sizes.values()), max(sizes, key=lambda key: sizes[key])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else total
    if total > memory:
        group, name = most.split(".")
        raise ConfigError(
            f"{most} = {getattr(getattr(config, group), name)}: this run would take {total / 1e9:,.0f} GB of memory at "
            f"least, with seeds = {config.seeds} and env.train_tasks = {config.env.train_tasks}; this machine has "
            f"{memory / 1e9:,.0f} GB"
        )


def sizes_of_data(config: Config) -> dict[str, int]:
    """Bytes of what is collected, kept, drawn and tested, by the key that has most to do with it."""
    env, train, replay, tests = config.env, config.train, config.replay, config.evaluation
    tasks = {split: getattr(env, f"{split}_tasks", 1) for split in SPLITS}  # of one's own environment not all are known
    lower = config.hierarchy.depth - (config.top.objective == "reward")
    steps = env.train_tasks * train.envs_per_task * env.horizon
    split = max(tests.split, tests.final, key=lambda name: tasks[name])
    played = tests.rollouts * tasks[split] * tests.trajectories * env.horizon
    of_tasks = {f"env.{name}_tasks": TASK * count for name, count in tasks.items() if hasattr(env, f"{name}_tasks")}
    if tasks[split] > tests.rollouts and f"env.{split}_tasks" in of_tasks:
        of_tasks[f"env.{split}_tasks"] += ROW * played
        played = 0
    window = 2 * config.context.latent_dim * (config.context.decisions or 0)  # numbers that are kept of each step
    sizes = {
        "replay.lower_capacity": ROW * lower * replay.lower_capacity,
        "replay.top_capacity": ROW * env.train_tasks * replay.top_capacity,
        "replay.episodes": EPISODE * env.train_tasks * replay.episodes,
        "train.envs_per_task": 2 * ROW * steps,  # of each step, and where it led
        "train.lower_batch": ROW * lower * train.lower_batch,
        "evaluation.rollouts": ROW * played,
        "context.decisions": 4 * window * steps,
        **of_tasks,
    }
    sequences = getattr(config, "sequences", None)
    if isinstance(sequences, SequenceConfig):
        drawn = train.meta_batch * sequences.per_task * sequences.episodes
        sizes["sequences.per_task"] = ROW * drawn
        sizes["sequences.best_of"] = 8 * train.meta_batch * sequences.per_task * sequences.best_of
    return sizes


def sizes_of_networks(config: Config) -> dict[str, int]:
    """Bytes of the networks, likewise."""
    lower, context = config.hierarchy.depth - (config.top.objective == "reward"), config.context
    return {
        "top.actor_cells": _weights(config.top.actor_cells),
        "top.critic_cells": 2 * _weights(config.top.critic_cells),
        "lower.actor_cells": lower * _weights(config.lower.actor_cells),
        "lower.critic_cells": lower * 2 * _weights(config.lower.critic_cells),
        "context.cells": _weights(context.cells),
        "context.features": 0 if context.belief == "product" else _weights([context.features] * 3),
    }


def _weights(cells: Sequence[int]) -> int:
    """Bytes of a network's hidden layers, with their targets and the optimiser's two moments."""
    return 4 * 4 * sum(before * after for before, after in itertools.pairwise(cells))
