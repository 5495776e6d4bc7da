"""How the cost of the default job grows with tasks, depth, z and seeds: CPU time of each part, and memory, as a table.

    python benchmarks/growth.py                          # all of it, about 5 minutes
    python benchmarks/growth.py by=seeds                 # tasks | depth | z | seeds
    python benchmarks/growth.py by=depth env=HalfCheetahVel

Takes the overrides of recipes/peach.py. One thread, medians; run it on an otherwise idle machine.
"""

from __future__ import annotations

import itertools
import sys

import torch
from training import Job, cpu  # beside this file

from peach_trl.data.task_replay import TaskReplayBuffer

SETTINGS = {
    "tasks": [f"env.train_tasks={n}" for n in (10, 60, 100, 300, 1000)],
    "depth": [f"hierarchy.depth={n}" for n in (2, 3, 4)],
    "z": [f"context.latent_dim={n}" for n in (0, 2, 5, 16, 64)],
    "seeds": [f"seeds={n}" for n in (1, 2, 4, 8)],
}
COLUMNS = ("collect, us a step", "convert, us a step", "draw, ms", "top update, ms", "lower update, ms")
MEMORY = ("bytes a decision", "bytes a lower transition")


def bytes_a_row(buffer: TaskReplayBuffer) -> int:
    """Memory of one row of a replay."""
    row = buffer.storage.read(torch.zeros(1, dtype=torch.int64))
    return sum(column.element_size() * column.numel() for column in row.values(True, True))


def costs(overrides: list[str]) -> list[float]:
    """What ``COLUMNS`` and ``MEMORY`` say, for one setting."""
    job = Job(overrides)
    steps, number, agent = job.batch.numel(), 25, job.agent
    found = [1e6 * cpu(lambda: next(job.trajectories), 3, 0) / steps]
    found.append(1e6 * cpu(lambda: job.convert(job.batch), 3, 1) / steps)
    found.append(1e3 * cpu(lambda: job.sequences(number), 5) / number)
    sequences, batches = itertools.cycle(job.sequences(8)), itertools.cycle(job.batches(0, 8))
    found.append(1e3 * cpu(lambda: agent.top.update(next(sequences)), 30))
    found.append(1e3 * cpu(lambda: agent.levels[0].update(next(batches)), 50))
    job.collector.shutdown()
    return [*found, *(float(bytes_a_row(replay)) for replay in (job.replay, job.level_replays[0]))]


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
