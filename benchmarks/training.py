"""Where the time of a training iteration goes: CPU milliseconds of each part, the median of several repeats.

    python benchmarks/training.py                        # configs/peach.yaml
    python benchmarks/training.py hierarchy.depth=3 context.latent_dim=2

Takes the overrides of recipes/peach.py. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from peach_trl.collecting import make_collector
from peach_trl.experiment import (
    PeachConfig,
    make_agent,
    make_level_buffer,
    make_library,
    make_sequence_sampler,
    make_task_buffer,
    make_transitions,
    seed_everything,
)
from peach_trl.utils import load_config


class Job:
    """The parts of recipes/peach.py, with the first trajectories in the replays.

    Args:
        overrides: as on the recipe's command line.
    """

    def __init__(self, overrides: list[str]) -> None:
        self.config = load_config(PeachConfig, "peach", Path(__file__).parents[1] / "configs", overrides)
        seed_everything(self.config)
        library = make_library(self.config)
        self.tasks, self.agent = library.split("train"), make_agent(self.config, library)
        self.replay = make_task_buffer(self.config, library)
        levels = range(len(self.agent.levels))
        self.level_replays = [make_level_buffer(self.config, library, level) for level in levels]
        self.sampler = make_sequence_sampler(self.config, self.replay)
        self.convert = make_transitions(self.config, library, self.agent)
        policy = self.agent.make_policy(self.config.train.trajectories)
        self.collector = make_collector(self.config, library, policy)
        self.trajectories = iter(self.collector)
        for _ in range(self.config.train.trajectories):
            self.batch = next(self.trajectories)
            self.rows = self.convert(self.batch)
            for replay, rows in zip([*self.level_replays, self.replay], self.rows, strict=True):
                replay.extend(rows)

    def sequences(self, number: int) -> list[TensorDictBase]:
        """What so many gradient steps of the top level learn from."""
        return list(self.sampler.batches(self.tasks, self.config.train.meta_batch, number))

    def batches(self, level: int, number: int) -> list[TensorDictBase]:
        """What so many gradient steps of a goal-reaching level learn from."""
        return list(self.level_replays[level].batches(self.config.train.lower_batch, number))


def timed(name: str, part: Callable[[], Any], repeats: int, unit: int | None = None) -> None:
    """Prints the median of ``part``, also per one of ``unit`` things."""
    median = cpu(part, repeats)
    rate = "" if unit is None else f"  {1e6 * median / unit:8.2f} us each of {unit}"
    print(f"{name:34s} {1e3 * median:9.2f} ms{rate}", flush=True)


def cpu(part: Callable[[], Any], repeats: int, warm: int = 3) -> float:
    """Median of the CPU seconds that a part takes."""
    seconds = []
    for turn in range(warm + repeats):
        start = time.process_time()
        part()
        if turn >= warm:
            seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def main() -> None:
    """Times each part of recipes/peach.py."""
    job = Job(sys.argv[1:])
    rows, batch = job.rows, job.batch
    print(f"{torch.get_num_threads()} torch thread(s), {len(batch)} environments, {batch.numel()} steps a trajectory")
    timed("collect a trajectory of each row", lambda: next(job.trajectories), 3)
    timed("convert it", lambda: job.convert(batch), 5, sum(len(part) for part in rows))
    timed("extend the task buffer", lambda: job.replay.extend(rows[-1]), 5, len(rows[-1]))
    for level, replay in enumerate(job.level_replays):
        part, batches = rows[level], itertools.cycle(job.batches(level, 8))
        timed(f"extend the buffer of level {level}", lambda r=replay, p=part: r.extend(p), 5, len(part))
        timed(f"draw 64 batches of level {level}", lambda i=level: job.batches(i, 64), 10, 64)
        timed(f"update level {level}", lambda i=level, b=batches: job.agent.levels[i].update(next(b)), 50)
    timed("draw sequences of 25 updates", lambda: job.sequences(25), 10, 25)
    sequences = itertools.cycle(job.sequences(8))
    timed("update encoder and top level", lambda: job.agent.top.update(next(sequences)), 50)
    job.collector.shutdown()


if __name__ == "__main__":
    main()
