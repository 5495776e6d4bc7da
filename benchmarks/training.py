"""Where the time of a training iteration goes: milliseconds of each part, the median of several repeats.

    python benchmarks/training.py                        # configs/peach.yaml
    python benchmarks/training.py hierarchy.depth=3 context.latent_dim=2

Takes the overrides of recipes/peach.py. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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


def timed(name: str, part: Callable[[], Any], repeats: int, unit: int | None = None) -> Any:
    """Runs ``part`` once unmeasured, then ``repeats`` times; prints its median, also per one of ``unit`` things."""
    result, seconds = part(), []
    for _ in range(repeats):
        start = time.perf_counter()
        result = part()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    rate = "" if unit is None else f"  {1e6 * median / unit:8.2f} us each of {unit}"
    print(f"{name:34s} {1e3 * median:9.2f} ms{rate}")
    return result


def main() -> None:
    """Times each part of recipes/peach.py."""
    config = load_config(PeachConfig, "peach", Path(__file__).parents[1] / "configs", sys.argv[1:])
    seed_everything(config)
    library = make_library(config)
    tasks = library.split("train")
    agent = make_agent(config, library)
    policy = agent.make_policy(config.train.trajectories)
    task_buffer = make_task_buffer(config, library)
    level_buffers = [make_level_buffer(config, level) for level in range(len(agent.levels))]
    sampler = make_sequence_sampler(config, task_buffer)
    convert = LevelTransitions(agent.hierarchy, config.transitions, config.seed)
    collector = make_collector(config, library, policy)
    batches = iter(collector)
    print(f"{torch.get_num_threads()} torch thread(s), {len(tasks) * config.train.envs_per_task} environments")

    batch = timed("collect a trajectory of each row", lambda: next(batches), 3)
    print(f"{'':34s} {batch.numel()} environment steps")
    rows = timed("convert it", lambda: convert(batch), 5, sum(len(r) for r in convert(batch)))
    timed("extend the task buffer", lambda: task_buffer.extend(rows[-1]), 5, len(rows[-1]))
    for level, buffer in enumerate(level_buffers):
        timed(f"extend the buffer of level {level}", lambda b=buffer, r=rows[level]: b.extend(r), 5, len(rows[level]))
        timed(f"update level {level}", lambda i=level, b=buffer: agent.levels[i].update(b.sample()), 50)
    b = timed("draw sequences b^i", lambda: sampler(task_buffer.draw_tasks(tasks, config.train.meta_batch)), 50)
    timed("update encoder and top level", lambda: agent.top.update(b), 50)
    collector.shutdown()


if __name__ == "__main__":
    main()
