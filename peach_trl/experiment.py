"""What the recipes share: the schema of their configuration, and environments, buffers and collectors built from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import MultiSyncCollector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, EnvBase, RewardSum, Transform, TransformedEnv
from torchrl.modules import get_primers_from_module

from peach_trl.agent import Agent, LatentConfig, LowerConfig, TopConfig
from peach_trl.collectors.lockstep import LockstepCollector
from peach_trl.config import ConfigError, option
from peach_trl.data.context_sampler import ContextConfig, ContextSampler
from peach_trl.data.task_replay import TaskReplayBuffer
from peach_trl.envs.families import FamilyConfig
from peach_trl.envs.point import PointConfig
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.hierarchy.structure import HierarchyConfig
from peach_trl.hierarchy.transitions import TransitionsConfig
from peach_trl.seeding import named_generator


@dataclass(frozen=True)
class ContextGroup(LatentConfig, ContextConfig):
    """The context variable z, its encoder, and what contexts are made of."""

    transitions: int | None = option(low=1, help="most transitions in a context, C; null for `episodes` whole episodes")

    def __post_init__(self) -> None:
        if self.transitions is not None:
            super().__post_init__()

    def sampler(self, decisions: int) -> ContextConfig:
        """What the sampler needs; an open C becomes ``episodes`` x ``decisions``, the decisions of an episode."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(ContextConfig)}
        if self.transitions is None:
            values["transitions"] = self.episodes * decisions
        return ContextConfig(**values)


@dataclass(frozen=True)
class ReplayConfig:
    """Sizes of the buffers, and which episodes the top level learns from; see ``configs/`` for values."""

    top_capacity: int = option(low=1, help="top-level transitions kept of each task")
    lower_capacity: int = option(low=1, help="transitions kept of each goal-reaching level")
    recent: int = option(low=1, help="episodes of each task that are remembered as such")
    best_fraction: float = option(low=0, high=1, help="share of the RL batch from good episodes")
    best_of: int = option(low=1, help="a good episode is the best by return of this many")


@dataclass(frozen=True)
class TrainConfig:
    """Length and batch sizes of meta-training; see ``configs/`` for values."""

    iterations: int = option(low=1, help="passes through the outer loop of Algorithm 1")
    warmup: int = option(low=0, help="iterations before those, in which only the goal-reaching levels learn")
    prefill: int = option(low=0, help="iterations after the warm-up in which the top level proposes at random")
    rows_per_task: int = option(low=1, help="environments that play each task side by side")
    trajectories: int = option(low=1, help="L, successive trajectories of each task per iteration")
    warmup_updates: int = option(low=0, help="gradient steps of each goal-reaching level a trajectory in the warm-up")
    lower_updates: int = option(low=0, help="gradient steps of each goal-reaching level after each trajectory")
    top_updates: int = option(low=0, help="gradient steps of encoder and top level per iteration")
    lower_batch: int = option(low=1, help="batch size of the goal-reaching levels")
    meta_batch: int = option(low=1, help="tasks in a gradient step of the top level, M")
    batch: int = option(low=1, help="transitions of each of these tasks, B")


@dataclass(frozen=True)
class CollectorConfig:
    """How experience is collected; see ``configs/`` for values."""

    workers: int = option(low=0, help="0 collects in this process, more in as many worker processes")


@dataclass(frozen=True)
class EvaluationConfig:
    """Meta-test during and after training; see ``configs/`` for values."""

    every: int = option(low=1, help="iterations between evaluations")
    split: str = option(choices=("train", "validation", "test"), help="tasks to evaluate on while training")
    rollouts: int = option(low=1, help="independent meta-tests of each task")
    trajectories: int = option(low=1, help="trajectories of a meta-test")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a recipe, one group for each component."""

    seed: int = option(low=0, help="the seed of the run")
    torch_threads: int = option(low=1, help="threads of torch; small networks want one")
    env: PointConfig | FamilyConfig
    hierarchy: HierarchyConfig
    transitions: TransitionsConfig
    context: ContextGroup
    top: TopConfig
    lower: LowerConfig
    replay: ReplayConfig
    train: TrainConfig
    collector: CollectorConfig
    evaluation: EvaluationConfig

    def check(self) -> None:
        """Checks what involves several groups, before anything runs."""
        if self.train.meta_batch > self.env.train_tasks:
            raise ConfigError(
                f"train.meta_batch = {self.train.meta_batch}: only env.train_tasks = {self.env.train_tasks} tasks can "
                "be drawn without replacement; lower train.meta_batch"
            )
        if self.collector.workers > self.env.train_tasks:
            raise ConfigError(
                f"collector.workers = {self.collector.workers}: each worker needs a task of its own; lower it to "
                f"env.train_tasks = {self.env.train_tasks} at most"
            )
        if self.top.follows == "goal" and self.top.goal == "hidden":
            raise ConfigError("top.follows = 'goal': the top level cannot reach for a hidden goal; set top.goal=known")
        if self.top.goal == "known" and self.context.latent_dim > 0:
            raise ConfigError(
                f"context.latent_dim = {self.context.latent_dim}: a known goal leaves nothing to infer; set "
                "context.latent_dim=0"
            )
        if self.context.recent > self.replay.recent:
            raise ConfigError(
                f"context.recent = {self.context.recent}: only replay.recent = {self.replay.recent} episodes are "
                "remembered; lower context.recent"
            )


def seed_everything(config: Config) -> None:
    """Seeds torch's global generator, which initialises networks and drives the losses; sets the threads."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.torch_threads)


def make_env(
    config: Config, library: TaskLibrary, tasks: Tensor, policy: TensorDictModuleBase | None = None
) -> EnvBase:
    """A batched environment with one row for each of ``tasks`` [N], and with the primers that ``policy`` needs."""
    env = config.env.make_env(library, tasks, known_goal=config.top.goal == "known", seed=config.seed)
    if policy is None:
        return env
    primers = cast(Transform, get_primers_from_module(policy))
    return TransformedEnv(env, Compose([RewardSum(), primers]))


def make_library(config: Config) -> TaskLibrary:
    """The tasks, split for training, validation and test."""
    return config.env.make_library()


def make_agent(config: Config, library: TaskLibrary) -> Agent:
    """The learner for the environment that ``config`` names."""
    env = make_env(config, library, library.split("train")[:1])
    agent = Agent(env, config.hierarchy, config.transitions, config.context, config.top, config.lower)
    env.close()
    return agent


def make_collector(
    config: Config, library: TaskLibrary, policy: TensorDictModuleBase
) -> LockstepCollector | MultiSyncCollector:
    """Collects a trajectory of each row a batch, [tasks * rows_per_task, horizon], in this or in worker processes."""
    tasks = library.split("train").repeat_interleave(config.train.rows_per_task)
    workers = config.collector.workers
    frames = len(tasks) * config.env.horizon
    if workers == 0:
        factory = partial(make_env, config, library, tasks, policy)
        collector = LockstepCollector(factory, policy, frames_per_batch=frames, total_frames=-1)
    else:
        shards = [shard for shard in tasks.tensor_split(workers)]
        collector = MultiSyncCollector(
            [partial(make_env, config, library, shard, policy) for shard in shards],
            policy,
            frames_per_batch=[len(shard) * config.env.horizon for shard in shards],
            total_frames=-1,
            collector_class=LockstepCollector,
            use_buffers=True,
            cat_results=0,
            auto_register_policy_transforms=False,
            update_at_each_batch=True,
        )
    collector.set_seed(config.seed)
    return collector


@contextmanager
def collecting(config: Config, library: TaskLibrary, policy: TensorDictModuleBase) -> Iterator[Iterator[TensorDictBase]]:
    """The trajectories of :func:`make_collector` one after the other; its workers end on every way out.

    TorchRL's worker processes are no daemons: without a shutdown, an error in this process would wait for them for ever.
    """
    collector = make_collector(config, library, policy)
    try:
        yield iter(collector)
    finally:
        collector.shutdown()


def make_level_buffer(config: Config, level: int) -> TensorDictReplayBuffer:
    """Replay of one goal-reaching level, shared by all tasks; draws uniformly."""
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(config.replay.lower_capacity), batch_size=config.train.lower_batch
    )
    buffer.set_rng(named_generator(f"level {level} replay", config.seed))
    return buffer


def make_task_buffer(config: Config, library: TaskLibrary) -> TaskReplayBuffer:
    """The top level's replay, one partition B^i a task."""
    return TaskReplayBuffer(
        library.num_tasks, config.replay.top_capacity, episodes=config.replay.recent, seed=config.seed
    )


def sample_batch(config: Config, buffer: TaskReplayBuffer, tasks: Tensor) -> TensorDictBase:
    """b^i ~ B^i for tasks [M], transitions [M, B], a share of them from good episodes."""
    replay = config.replay
    return buffer.sample_tasks(
        tasks, config.train.batch, best_fraction=replay.best_fraction, best_of=replay.best_of, recent=replay.recent
    )


def make_context_sampler(config: Config, buffer: TaskReplayBuffer) -> ContextSampler:
    """S_c of Algorithm 1."""
    steps = config.hierarchy.k ** (config.hierarchy.depth - 1)
    decisions = -(-config.env.horizon // steps)
    return ContextSampler(buffer, config.context.sampler(decisions), named_generator("context", config.seed))
