"""What an environment step costs, in CPU seconds: the physics alone, our collectors, and other ways, in one run.

    OMP_NUM_THREADS=1 python benchmarks/collect.py              # HalfCheetah, 8, 32 and 128 rows, then the point
    OMP_NUM_THREADS=1 python benchmarks/collect.py rows=128     # one number of rows
    python benchmarks/collect.py hierarchy.clock=own_goal       # with overrides of recipes/peach.py

For each number of rows, first under uniform actions: the batched physics alone (``mujoco.batch``), EnvPool (skipped
where it is not installed), gymnasium's SyncVectorEnv, and a loop over one gymnasium environment. Then under a policy,
flat (depth 1) and hierarchies of depth 2 and 3 (configs/peach.yaml): LockstepCollector, TorchRL's Collector, the
environment's ``advance`` and the physics alone, all of them with the same actions from the same states. Shares are of
the physics' speed. CPU seconds are those of the whole process, all its threads; a rate of worker processes is in
seconds of the clock, and says so.
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
from gymnasium.vector import SyncVectorEnv
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.envs import GymEnv, ParallelEnv

from peach_trl.collectors import LockstepCollector
from peach_trl.envs.renderers import batched
from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library, seed_everything
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.utils import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
STEPS, REPEATS = 200, 5  # an episode of HalfCheetahVel is a batch: no row is reset within one
NAME = "HalfCheetah-v5"


def seconds(run: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """Duration of a call, in CPU seconds."""
    start = clock()
    run()
    return clock() - start


def median_seconds(run: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """Median duration of several calls after one that is not measured."""
    run()
    return statistics.median(seconds(run, clock) for _ in range(REPEATS))


def show(what: str, rows: int, duration: float, physics: float | None = None) -> None:
    """Prints what STEPS steps of ``rows`` rows took."""
    share = "" if physics is None else f"   {physics / duration:4.0%} of the physics"
    rate = rows * STEPS / duration
    print(
        f"N = {rows:3d}  {what:32s}{1e6 * duration / STEPS:7.0f} us a batched step {rate:8.0f} steps/s{share}",
        flush=True,
    )


def parts(task: str, depth: int, rows: int, overrides: list[str]) -> tuple[PeachConfig, Any, Any, Any]:
    """Configuration, library, policy, and a factory of an environment with ``rows`` rows for that policy."""
    settings = [f"env={task}", f"hierarchy.depth={depth}", "env.threads=1", *overrides]
    config = load_config(PeachConfig, "peach", CONFIGS, settings)
    seed_everything(config)
    library = make_library(config)
    policy = make_agent(config, library).make_policy()
    tasks = library.split("train").repeat(-(-rows // config.env.train_tasks))[:rows]
    return config, library, policy, lambda chosen=tasks: partial(make_env, config, library, chosen, policy)


def collector_of(cls: type, make: Any, policy: Any, frames: int) -> Any:
    """A collector of batches of so many frames."""
    return cls(make(), policy, frames_per_batch=frames, total_frames=-1, auto_register_policy_transforms=False)


def physics(env: Any, actions: np.ndarray) -> None:
    """The simulation alone, under actions [T, N, A]."""
    batch = env._batch
    for action in actions:
        env._ctrl[:] = action
        batch.step(nstep=env._substeps)


def under_a_policy(rows: int, depth: int, overrides: list[str]) -> None:
    """Prints a collector's batches, and what the same actions cost without the policy, and in the physics alone."""
    _, _, policy, make = parts("HalfCheetahVel", depth, rows, overrides)
    collector = collector_of(LockstepCollector, make, policy, rows * STEPS)
    batches, found = iter(collector), []
    env: Any = batched(collector.env)
    next(batches)
    state, steps = env._batch.state, env._steps
    for _ in range(REPEATS):
        before, batch = state.copy(), []
        whole = seconds(lambda: batch.append(next(batches)))  # noqa: B023
        after = state.copy(), steps.copy()
        actions = np.ascontiguousarray(batch[0]["action"].numpy().swapaxes(0, 1))
        state[:] = before
        alone = seconds(lambda: physics(env, actions))  # noqa: B023
        state[:] = before
        advance = seconds(lambda: [env.advance(action) for action in actions])  # noqa: B023
        state[:], steps[:] = after
        found.append((whole, advance, alone))
    collector.shutdown()
    whole, advance, alone = (statistics.median(column) for column in zip(*found, strict=True))
    show(f"depth {depth}: physics alone", rows, alone)
    show(f"depth {depth}: our advance", rows, advance, alone)
    show(f"depth {depth}: LockstepCollector", rows, whole, alone)
    collector = collector_of(Collector, make, policy, rows * STEPS)
    batches = iter(collector)
    show(f"depth {depth}: TorchRL's Collector", rows, median_seconds(lambda: next(batches)), alone)
    collector.shutdown()


def under_uniform_actions(rows: int, overrides: list[str]) -> None:
    """Prints the physics alone, EnvPool, and gymnasium's vector environment and loop."""
    make = parts("HalfCheetahVel", 1, rows, overrides)[-1]
    env: Any = batched(make()())
    env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, rows, 6))
    start = env._batch.state.copy()

    def alone() -> None:
        env._batch.state[:] = start
        physics(env, actions)

    base = median_seconds(alone)
    show("uniform actions: physics alone", rows, base)
    try:
        import envpool  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("EnvPool is not installed: pip install 'peach-trl[benchmarks]', or pip install envpool")
    else:
        pool = envpool.make("HalfCheetah-v4", env_type="gymnasium", num_envs=rows, num_threads=1)
        pool.reset()
        show("EnvPool", rows, median_seconds(lambda: [pool.step(action) for action in actions]), base)
        pool.close()
    vector = SyncVectorEnv([partial(gymnasium.make, NAME)] * rows)
    vector.reset(seed=0)
    show("SyncVectorEnv", rows, median_seconds(lambda: [vector.step(action) for action in actions]), base)
    vector.close()
    single = gymnasium.make(NAME)
    single.reset(seed=0)
    loop = median_seconds(lambda: [single.step(action) for action in actions[:, 0]])
    show("gymnasium, one after the other", rows, rows * loop, base)


def torchrl_envs(workers: int) -> None:
    """Prints the rate of TorchRL's GymEnv (``workers`` = 0) or a ParallelEnv of it, random actions, in a Collector."""
    make = partial(GymEnv, NAME)
    env = make() if workers == 0 else ParallelEnv(workers, make)
    frames = 400 * max(workers, 1)
    collector = Collector(env, None, frames_per_batch=frames, total_frames=-1)
    batches = iter(collector)
    rate = frames / median_seconds(lambda: next(batches), time.perf_counter)
    collector.shutdown()
    name = f"ParallelEnv of {workers} GymEnvs" if workers else "GymEnv"
    print(f"{name}, uniform actions: {rate:8.0f} steps a second of the clock", flush=True)


def in_workers(rows: int, depth: int, overrides: list[str], workers: int = 2) -> None:
    """Prints the rate of a MultiSyncCollector whose workers have a share of the rows each."""
    config, library, policy, make = parts("HalfCheetahVel", depth, rows, overrides)
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
    rate = rows * STEPS / median_seconds(lambda: next(batches), time.perf_counter)
    collector.shutdown()
    print(
        f"{workers} workers of {rows // workers} rows, depth {depth}: {rate:8.0f} steps a second of the clock",
        flush=True,
    )


def point(rows: int, depth: int, overrides: list[str]) -> None:
    """Prints what a rollout of the point costs besides its physics, and what its conversion costs."""
    config, _, policy, make = parts("point", depth, rows, overrides)
    collector = collector_of(LockstepCollector, make, policy, rows * STEPS)
    batches = iter(collector)
    whole = median_seconds(lambda: next(batches))
    actions = next(batches)["action"].numpy().swapaxes(0, 1).copy()
    alone = median_seconds(lambda: physics(batched(collector.env), actions))
    collector.shutdown()
    rate = rows * STEPS / (whole - alone)
    convert = LevelTransitions(policy.actor.hierarchy, config.transitions, config.seed)
    batch = next(iter(collector_of(LockstepCollector, make, policy, rows * config.env.horizon)))
    converted = sum(len(level) for level in convert(batch))
    cost = 1e6 * median_seconds(lambda: convert(batch)) / converted
    print(
        f"point, N = {rows:3d}, depth {depth}: {1e6 * whole / STEPS:5.0f} us a batched step, physics"
        f" {1e6 * alone / STEPS:4.0f} us; without it {rate:8.0f} steps a CPU second; conversion {cost:.3f} us a"
        f" transition ({converted})",
        flush=True,
    )


def main() -> None:
    """Runs everything and prints it."""
    every, overrides = [8, 32, 128], []
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name == "rows":
            every = [int(number) for number in value.split(",")]
        else:
            overrides.append(argument)
    for rows in every:
        under_uniform_actions(rows, overrides)
        for depth in (1, 2, 3):
            under_a_policy(rows, depth, overrides)
    for workers in (0, 2):
        torchrl_envs(workers)
    for depth in (1, 3):
        in_workers(max(every), depth, overrides)
    for depth in (1, 2, 3):
        point(32, depth, overrides)
        point(256, depth, overrides)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
