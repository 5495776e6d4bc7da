"""How the cost of the default job grows with tasks, depth, z and seeds: CPU time of each part, and memory, as a table.

    python benchmarks/growth.py                          # all of it, about 5 minutes
    python benchmarks/growth.py by=seeds                 # tasks | depth | z | seeds
    python benchmarks/growth.py by=depth env=HalfCheetahVel

Takes the overrides of recipes/peach.py. One thread, medians; run it on an otherwise idle machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peach_trl.data.task_replay import TaskReplayBuffer
from peach_trl.experiment import (
    PeachConfig,
    make_agent,
    make_collector,
    make_level_buffer,
    make_library,
    make_sequence_sampler,
    make_task_buffer,
    seed_everything,
)
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.utils import load_config

SETTINGS = {
    "tasks": [f"env.train_tasks={n} train.meta_batch={min(n, 16)}" for n in (10, 60, 100, 300, 1000)],
    "depth": [f"hierarchy.depth={n}" for n in (2, 3, 4)],
    "z": [f"context.latent_dim={n}" for n in (0, 2, 5, 16, 64)],
    "seeds": [f"seeds={n}" for n in (1, 2, 4, 8)],
}
COLUMNS = ("collect, us a step", "convert, us a step", "draw, ms", "top update, ms", "lower update, ms")
MEMORY = ("bytes a decision", "bytes a lower transition")


def cpu(part: Callable[[], Any], repeats: int, warm: int = 3) -> float:
    """Median of the CPU seconds that a part takes."""
    seconds = []
    for turn in range(warm + repeats):
        start = time.process_time()
        part()
        if turn >= warm:
            seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def bytes_a_row(buffer: TaskReplayBuffer) -> int:
    """Memory of one row of a replay."""
    rows = buffer.storage.read(buffer.writer.locate(buffer.writer.written.argmax(), buffer.writer.written.max() * 0))
    return sum(column.element_size() * column.numel() for column in rows.reshape(1)[0].values(True, True))


def costs(overrides: list[str]) -> list[float]:
    """What ``COLUMNS`` and ``MEMORY`` say, for one setting."""
    config = load_config(PeachConfig, "peach", Path(__file__).parents[1] / "configs", overrides)
    seed_everything(config)
    library = make_library(config)
    agent, tasks = make_agent(config, library), library.split("train")
    policy = agent.make_policy(config.train.trajectories)
    B, replay = make_task_buffer(config, library), make_level_buffer(config, library, 0)
    S_c, convert = make_sequence_sampler(config, B), LevelTransitions(agent.hierarchy, config.transitions, config.seed)
    collector = make_collector(config, library, policy)
    trajectories = iter(collector)
    for _ in range(config.train.trajectories):
        batch = next(trajectories)
        *lower, top = convert(batch)
        B.extend(top)
        replay.extend(lower[0])
    steps = batch.numel()
    found = [1e6 * cpu(lambda: next(trajectories), 3, 0) / steps, 1e6 * cpu(lambda: convert(batch), 3, 1) / steps]
    number, M = 25, config.train.meta_batch
    found.append(1e3 * cpu(lambda: list(S_c.batches(tasks, M, number)), 5) / number)
    sequences, rows = list(S_c.batches(tasks, M, 8)), list(replay.batches(config.train.lower_batch, 8))
    count = iter(range(10**9))
    found.append(1e3 * cpu(lambda: agent.top.update(sequences[next(count) % 8]), 30))
    found.append(1e3 * cpu(lambda: agent.levels[0].update(rows[next(count) % 8]), 50))
    collector.shutdown()
    return found + [float(bytes_a_row(B)), float(bytes_a_row(replay))]


def main() -> None:
    """Prints a table for each thing that grows."""
    wanted = [word.removeprefix("by=") for word in sys.argv[1:] if word.startswith("by=")] or list(SETTINGS)
    others = [word for word in sys.argv[1:] if not word.startswith("by=")]
    if unknown := set(wanted) - set(SETTINGS):
        raise SystemExit(f"by={unknown.pop()}: unknown; use one of {', '.join(SETTINGS)}")
    for name in wanted:
        print(f"| {name} | " + " | ".join((*COLUMNS, *MEMORY)) + " |")
        print("|---" * (1 + len(COLUMNS) + len(MEMORY)) + "|")
        for setting in SETTINGS[name]:
            values = costs([*others, *setting.split()])
            label = setting.split()[0].split("=")[1]
            cells = [f"{value:.2f}" for value in values[: len(COLUMNS)]] + [
                f"{value:.0f}" for value in values[len(COLUMNS) :]
            ]
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
        print()


if __name__ == "__main__":
    main()
