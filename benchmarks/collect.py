"""How fast experience is collected, against the physics alone and against other ways: environment steps a second.

    python benchmarks/collect.py                            # HalfCheetah, 8 to 256 rows, 1 and 2 threads
    python benchmarks/collect.py rows=128 threads=1         # one line of it
    python benchmarks/collect.py hierarchy.clock=official   # with overrides of recipes/peach.py

In one run: the batched physics alone (the same actions), a loop over gymnasium's environment, TorchRL's GymEnv and
ParallelEnv of it, and this package's environment under its flat policy (configs/pearl.yaml) and its hierarchies of
depth 2 and 3 (configs/peach.yaml), with LockstepCollector, with TorchRL's Collector and with worker processes. Then the
overhead of a rollout of the point, and what the conversion into transitions costs. Medians of several repeats; run it
on an otherwise idle machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.envs import GymEnv, ParallelEnv

from peach_trl.collectors import LockstepCollector
from peach_trl.envs.video import batched
from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library, seed_everything
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.utils import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
STEPS, REPEATS = 100, 5


def median_seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Median duration of several calls after one that is not measured."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = clock()
        run()
        seconds.append(clock() - start)
    return statistics.median(seconds)


def parts(task: str, depth: int, rows: int, threads: int, overrides: list[str]) -> tuple[PeachConfig, Any, Any, Any]:
    """Configuration, library, policy, and a factory of an environment with ``rows`` rows for that policy."""
    settings = [f"env={task}", f"hierarchy.depth={depth}", f"env.threads={threads}", *overrides]
    config = load_config(PeachConfig, "peach", CONFIGS, settings)
    seed_everything(config)
    library = make_library(config)
    policy = make_agent(config, library).make_policy()
    tasks = library.split("train").repeat(-(-rows // config.env.train_tasks))[:rows]
    return config, library, policy, lambda chosen=tasks: partial(make_env, config, library, chosen, policy)


def collected(cls: type, make: Any, policy: Any, rows: int) -> tuple[Callable[[], Any], Any]:
    """A function that collects STEPS of every row, and what to shut down."""
    collector = cls(
        make(), policy, frames_per_batch=rows * STEPS, total_frames=-1, auto_register_policy_transforms=False
    )
    batches = iter(collector)
    return lambda: next(batches), collector


def physics(env: Any, actions: np.ndarray) -> Callable[[], None]:
    """The simulation alone, under the same actions [N, T, A]."""
    batch = env._batch

    def run() -> None:
        for action in actions.swapaxes(0, 1):
            env._ctrl[:] = action
            batch.step(nstep=env._substeps)

    return run


def gymnasium_loop(steps: int = 2000) -> float:
    """Steps a second of gymnasium's own environment under random actions."""
    env = gymnasium.make("HalfCheetah-v5")
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 6))

    def run() -> None:
        for action in actions:
            if env.step(action)[3]:
                env.reset()

    return steps / median_seconds(run)


def torchrl_envs(workers: int) -> float:
    """Steps a second of TorchRL's GymEnv (``workers`` = 0) or a ParallelEnv of it, random actions, in a Collector."""
    make = partial(GymEnv, "HalfCheetah-v5")
    env = make() if workers == 0 else ParallelEnv(workers, make)
    frames = 400 * max(workers, 1)
    collector = Collector(env, None, frames_per_batch=frames, total_frames=-1)
    batches = iter(collector)
    rate = frames / median_seconds(lambda: next(batches))
    collector.shutdown()
    return rate


def ours(rows: int, threads: int, overrides: list[str]) -> None:
    """Prints a line for each depth, and the physics under the same actions."""
    for depth in (1, 2, 3):
        config, library, policy, make = parts("HalfCheetahVel", depth, rows, threads, overrides)
        rates = {}
        for cls in (LockstepCollector, Collector):
            run, collector = collected(cls, make, policy, rows)
            actions = run()["action"].numpy().copy()
            rates[cls.__name__] = rows * STEPS / median_seconds(run)
            if cls is LockstepCollector:
                raw = rows * STEPS / median_seconds(physics(batched(collector.env), actions))
            collector.shutdown()
        shares = "   ".join(f"{name} {rate:8.0f} ({rate / raw:4.0%})" for name, rate in rates.items())
        print(f"N = {rows:3d}, threads = {threads}, depth {depth}: physics {raw:8.0f}   {shares}", flush=True)


def in_workers(rows: int, depth: int, overrides: list[str], workers: int = 2) -> None:
    """Prints the rate of a MultiSyncCollector whose workers have a share of the rows each."""
    config, library, policy, make = parts("HalfCheetahVel", depth, rows, 1, overrides)
    tasks = library.split("train").repeat(-(-rows // config.env.train_tasks))[:rows]
    shards = list(tasks.tensor_split(workers))
    collector = MultiSyncCollector(
        [make(shard) for shard in shards],
        policy,
        frames_per_batch=[len(shard) * STEPS for shard in shards],
        total_frames=-1,
        collector_class=LockstepCollector,
        use_buffers=True,
        cat_results=0,
        auto_register_policy_transforms=False,
    )
    batches = iter(collector)
    rate = rows * STEPS / median_seconds(lambda: next(batches))
    collector.shutdown()
    print(f"N = {rows:3d}, {workers} workers of {rows // workers} rows, depth {depth}: {rate:8.0f}", flush=True)


def point(rows: int, depth: int, overrides: list[str]) -> None:
    """Prints what a rollout of the point costs besides its physics, in CPU time, and what its conversion costs."""
    config, _, policy, make = parts("point", depth, rows, 1, overrides)
    run, collector = collected(LockstepCollector, make, policy, rows)
    actions = run()["action"].numpy().copy()
    whole = median_seconds(run, time.process_time)
    alone = median_seconds(physics(batched(collector.env), actions), time.process_time)
    rate = rows * STEPS / (whole - alone)
    convert = LevelTransitions(policy.actor.hierarchy, config.transitions, config.seed)
    batch = next(iter(LockstepCollector(make(), policy, frames_per_batch=rows * config.env.horizon, total_frames=-1)))
    converted = sum(len(level) for level in convert(batch))
    cost = 1e6 * median_seconds(lambda: convert(batch), time.process_time) / converted
    print(
        f"point, N = {rows:3d}, depth {depth}: {1e6 * whole / STEPS:5.0f} us a step of all rows, physics"
        f" {1e6 * alone / STEPS:4.0f} us; without it {rate:8.0f} steps a CPU second; conversion {cost:.3f} us a"
        f" transition ({converted})",
        flush=True,
    )
    collector.shutdown()


def main() -> None:
    """Runs everything and prints it."""
    settings = {"rows": [8, 32, 128, 256], "threads": [1, 2]}
    overrides = []
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name in settings:
            settings[name] = [int(number) for number in value.split(",")]
        else:
            overrides.append(argument)
    print("HalfCheetah, environment steps a second; in brackets the share of the physics alone")
    print(f"gymnasium loop: {gymnasium_loop():8.0f}")
    print(f"GymEnv, random actions: {torchrl_envs(0):8.0f}", flush=True)
    for workers in (2, 4, 8):
        print(f"ParallelEnv of {workers} GymEnvs, random actions: {torchrl_envs(workers):8.0f}", flush=True)
    for rows in settings["rows"]:
        for threads in settings["threads"]:
            ours(rows, threads, overrides)
    for depth in (1, 3):
        in_workers(max(settings["rows"]), depth, overrides)
    for depth in (1, 2, 3):
        point(32, depth, overrides)
        point(256, depth, overrides)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
