"""What the recipes share: what is built from their configurations."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase, Transform, TransformedEnv
from torchrl.modules import get_primers_from_module

from peach_trl.agent import Agent
from peach_trl.collectors.lockstep import LockstepCollector
from peach_trl.collectors.workers import worker_collector
from peach_trl.config import ConfigError
from peach_trl.context.belief import Belief
from peach_trl.context.contexts import ContextSampler
from peach_trl.context.sequences import SequenceSampler
from peach_trl.data.task_replay import TaskReplayBuffer
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.hierarchy.exploration import Exploration
from peach_trl.hierarchy.policy import HierarchyPolicy
from peach_trl.hierarchy.structure import Hierarchy
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.levels.goal_level import GoalLevel
from peach_trl.levels.novelty import Novelty
from peach_trl.modules.execution import set_execution
from peach_trl.objectives.context import ContextSACLoss
from peach_trl.rules import PERFECT
from peach_trl.schemas import Config, common_config
from peach_trl.schemas import HacConfig as HacConfig
from peach_trl.schemas import PeachConfig as PeachConfig
from peach_trl.schemas import SourceConfig as SourceConfig
from peach_trl.seeding import named_generator
from peach_trl.utils.run import load_checkpoint


@dataclass(frozen=True)
class Phase:
    """One pass through the outer loop of Algorithm 1.

    Attributes:
        number: from 0.
        warmup: whether only goal-reaching levels learn, which explore so much only then.
        at_random: whether the top level proposes at random, and does not learn yet.
        forgets: whether what the top level met before is dropped, as nothing below it worked.
        progress: through the passes in which the top level learns, 0 to 1.
        lower_updates: gradient steps of each goal-reaching level after each trajectory.
        top_updates: gradient steps of the top level.
    """

    number: int
    warmup: bool
    at_random: bool
    forgets: bool
    progress: float
    lower_updates: int
    top_updates: int

    @property
    def by_chance(self) -> bool:
        """Whether what is met says what chance meets: proposals are uniform, and the levels below work."""
        return self.at_random and not self.warmup


def passes(config: Config, agent: Agent) -> int:
    """How many :func:`phases` there are."""
    return (config.train.warmup if len(agent.levels) else 0) + config.train.prefill + config.train.iterations


def phases(config: Config, agent: Agent, exploration: Exploration | None = None) -> Iterator[Phase]:
    """Warm-up of the lower levels (if there are any), prefill of the top level's replay, and training.

    Args:
        config: says how many of each.
        agent: whose levels they are.
        exploration: knows how often rewards were met by chance. Where they are rare, the prefill goes on, and there are
            as many passes of training less.
    """
    train, total = config.train, passes(config, agent)
    warmup = total - train.prefill - train.iterations
    start = warmup + train.prefill
    latest = min(max(start, warmup + int(train.prefill_most * total)), total - 1)
    frozen = total if config.lower.freeze_after is None else warmup + config.lower.freeze_after
    for number in range(total):
        if number == start < latest and exploration is not None and agent.top is not None:
            start += exploration.met < train.prefill_met  # one pass of prefill more
        updates = train.warmup_updates if number < warmup else train.lower_updates
        yield Phase(
            number=number,
            warmup=number < warmup or agent.top is None,
            at_random=number < start,
            forgets=number == warmup,
            progress=max(0, number - start) / max(1, total - start),
            lower_updates=0 if number >= frozen else -(-updates // train.trajectories),
            top_updates=0 if number < start else train.top_updates,
        )


def seed_everything(config: Config) -> None:
    """Seeds torch's global generator, which initialises networks and drives the losses; sets the threads."""
    torch.manual_seed(config.seed)
    threads = config.torch_threads
    set_execution(*((threads, 1) if config.seeds == 1 else (1, threads)), trace=config.compile == "trace")


def make_env(
    config: Config, library: TaskLibrary, tasks: Tensor, policy: TensorDictModuleBase | None = None
) -> EnvBase:
    """A batched environment with one row for each of ``tasks`` [N], and with the primers that ``policy`` needs."""
    env = config.env.make_env(library, tasks, observe_goal=config.top.observe_goal, seed=config.seed)
    if policy is None:
        return env
    return TransformedEnv(env, cast(Transform, get_primers_from_module(policy)))


def make_library(config: Config) -> TaskLibrary:
    """The tasks, split for training, validation and test; with several seeds, for each of them."""
    library = config.env.make_library()
    return library if config.seeds == 1 else library.repeat(config.seeds)


def make_agent(
    config: Config,
    library: TaskLibrary,
    encoder: nn.Module | None = None,
    belief: Belief | None = None,
    loss: type[ContextSACLoss] = ContextSACLoss,
) -> Agent:
    """The learner for the environment that ``config`` names, with an encoder, belief or top loss of one's own."""
    if config.seeds > 1:
        return _stacked(config, library, encoder, belief, loss).to(config.device)
    env = make_env(config, library, library.split("train")[:1])
    scale = config.transitions.reward_scale
    levels = config.hierarchy, config.context, config.top, config.lower
    agent = Agent(env, *levels, scale, encoder, belief, loss=loss, views=config.views)
    env.close()
    if config.lower.checkpoint is not None:
        path = config.lower.checkpoint.replace("{seed}", str(config.seed))
        agent.load_levels(_read_checkpoint(path, "lower.checkpoint")["agent"])
    return agent.to(config.device)


def _stacked(
    config: Config,
    library: TaskLibrary,
    encoder: nn.Module | None,
    belief: Belief | None,
    loss: type[ContextSACLoss],
) -> Agent:
    """Agents of several seeds, each with the weights that it starts with alone."""
    states = []
    for one in of_seeds(config):
        torch.manual_seed(one.seed)
        states.append(make_agent(one, library.single, *copy.deepcopy((encoder, belief)), loss).state_dict())
    torch.manual_seed(config.seed)
    env = make_env(config, library, library.split("train")[:1])
    parts = (config.hierarchy, config.context, config.top, config.lower, config.transitions.reward_scale)
    agent = Agent(env, *parts, encoder, belief, loss=loss, views=config.views, seeds=config.seeds)
    env.close()
    agent.load_seeds(states)
    return agent


def of_seeds(config: Config) -> list[Config]:
    """The configuration of each seed's run, as if it were alone."""
    return [dataclasses.replace(config, seed=config.seed + number, seeds=1) for number in range(config.seeds)]


FORMAT = 1  # of the checkpoints of agents


def checkpoint_of(config: Config, library: TaskLibrary, agent: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint of an agent holds, by its ``state_dict()``; :func:`load_agent` reads it."""
    tasks = {"list": library.name, "fingerprint": library.fingerprint()}
    return {"format": FORMAT, "config": dataclasses.asdict(config), "tasks": tasks, "agent": dict(agent)}


def _read_checkpoint(path: str, key: str = "checkpoint") -> dict[str, Any]:
    """A checkpoint's content; a ConfigError that names the key where it cannot be read."""
    try:
        state = load_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{key} = {path}: {error}") from None
    if not isinstance(state, Mapping) or not {"config", "agent"} <= state.keys():
        raise ConfigError(f"{key} = {path}: no agent is in it; give final.pt or levels.pt of a run")
    if (found := state.get("format", FORMAT)) != FORMAT:
        raise ConfigError(
            f"{key} = {path}: its format is {found}, this version reads {FORMAT}; use the version of peach_trl that is "
            "named in the run's manifest.json"
        )
    broken = [name for name, value in state["agent"].items() if value.is_floating_point() and value.isnan().any()]
    if broken:
        raise ConfigError(f"{key} = {path}: {broken[0]} holds NaN, and so do {len(broken) - 1} more; use another one")
    return state


def load_agent(
    checkpoint: str, encoder: nn.Module | None = None, belief: Belief | None = None
) -> tuple[Config, TaskLibrary, Agent]:
    """An agent as it was trained, with the common part of its configuration and its tasks.

    Args:
        checkpoint: a run's ``checkpoints/final.pt``.
        encoder: one of the same class as it was trained with, where it was handed over as an object.
        belief: likewise.

    Raises:
        ConfigError: if the file is missing or damaged, of a version with other keys, or of other networks.
    """
    state = _read_checkpoint(checkpoint)
    config = common_config(state["config"])
    config = dataclasses.replace(config, lower=dataclasses.replace(config.lower, checkpoint=None))  # it has them itself
    seed_everything(config)
    library = make_library(config)
    if (tasks := state.get("tasks")) is not None and tasks["fingerprint"] != library.fingerprint():
        raise ConfigError(
            f"checkpoint = {checkpoint}: it was trained on other tasks, {tasks['list']}, fingerprint "
            f"{tasks['fingerprint']}; those of this version are {library.name}, {library.fingerprint()}"
        )
    agent = make_agent(config, library, encoder, belief)
    parts = state["agent"], agent.state_dict()
    found, wanted = ({name: (value.shape, value.dtype) for name, value in part.items()} for part in parts)
    if found != wanted:
        name = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise ConfigError(
            f"checkpoint = {checkpoint}: {name} is {_said(found.get(name))} there and {_said(wanted.get(name))} in an "
            "agent of its configuration; hand over the encoder or belief that it was trained with"
        )
    agent.load_state_dict(state["agent"])
    return config, library, agent


def _said(kind: tuple[torch.Size, torch.dtype] | None) -> str:
    return "missing" if kind is None else f"{list(kind[0])} {str(kind[1]).removeprefix('torch.')}"


def load_levels(checkpoint: str) -> tuple[Hierarchy, Sequence[GoalLevel]]:
    """Goal-reaching levels as they were trained, alone, as skills for other pipelines.

    Args:
        checkpoint: a run's ``checkpoints/levels.pt`` or ``final.pt``.

    Returns:
        The hierarchy that they are of, and one :class:`~peach_trl.levels.GoalLevel` for each, from the bottom. Its
        ``actor`` reads ``observation`` and ``goal``, both as the environment has them, and writes ``action`` within
        [-1, 1]; ``update`` goes on training it.

    Raises:
        ConfigError: as :func:`load_agent`.

    Examples:
        >>> hierarchy, (walk,) = load_levels("runs/.../checkpoints/levels.pt")  # doctest: +SKIP
        >>> walk.actor(TensorDict({"observation": s, "goal": place}, [8]))["action"]  # doctest: +SKIP
    """
    config = common_config(_read_checkpoint(checkpoint)["config"])
    config = dataclasses.replace(config, lower=dataclasses.replace(config.lower, checkpoint=checkpoint))
    agent = make_agent(config, make_library(config))
    return agent.hierarchy, agent.levels


def make_collector(config: Config, library: TaskLibrary, policy: TensorDictModuleBase) -> BaseCollector:
    """Collects a trajectory of each row a batch, [tasks * envs_per_task, horizon], in this or in worker processes."""
    tasks = library.split("train").repeat_interleave(config.train.envs_per_task)
    workers = config.collector.workers
    frames = len(tasks) * config.env.horizon
    if workers == 0:
        factory = partial(make_env, config, library, tasks, policy)
        collector = LockstepCollector(factory, policy, frames_per_batch=frames, total_frames=-1)
    else:
        shards = tasks.tensor_split(workers)
        factories = [partial(make_env, config, library, shard, policy) for shard in shards]
        steps = [len(shard) * config.env.horizon for shard in shards]
        collector = worker_collector(config.collector.engine, factories, policy, steps)
    collector.set_seed(config.seed)
    return collector


@contextmanager
def collecting(
    config: Config, library: TaskLibrary, policy: TensorDictModuleBase
) -> Iterator[Iterator[TensorDictBase]]:
    """The trajectories of :func:`make_collector` one after the other; its workers end on every way out.

    TorchRL's worker processes are no daemons: without a shutdown, an error here would wait for them for ever.
    """
    if isinstance(policy, HierarchyPolicy):
        nothing = torch.zeros(library.num_tasks)
        # So that copies and workers have as many.
        policy.explore(tasks=nothing, since=nothing.long(), elsewhere=nothing)
    plays = policy if config.device == "cpu" else copy.deepcopy(policy).to("cpu")
    collector = make_collector(config, library, plays)

    def batches() -> Iterator[TensorDictBase]:
        """The networks on the CPU play with the weights that those on the device have at the moment."""
        trajectories = iter(collector)
        while True:
            if plays is not policy:
                plays.load_state_dict(policy.state_dict())
            yield next(trajectories)

    try:
        yield batches()
    finally:
        collector.shutdown()


def make_level_buffer(config: Config, library: TaskLibrary, level: int) -> TaskReplayBuffer:
    """Replay of one goal-reaching level, shared by all tasks; one partition a seed."""
    single = library.single.num_tasks
    return TaskReplayBuffer(
        config.seeds,
        config.replay.lower_capacity,
        generator=named_generator(f"level {level} replay", config.seed),
        partitions=torch.arange(library.num_tasks) // single,
        seeds=config.seeds,
    )


def make_transitions(config: Config, library: TaskLibrary, agent: Agent) -> LevelTransitions:
    """What makes transitions of recorded steps, with the reward that ``transitions.reward`` names."""

    def dense(observation: Tensor, task_id: Tensor) -> Tensor:
        return config.env.dense_reward(observation, library.parameters[task_id.squeeze(-1)])

    learnt = dense if config.transitions.reward == "dense" else None
    evidence = agent.evidence if config.context.latent_dim else None
    return LevelTransitions(agent.hierarchy, config.transitions, config.seed, learnt, evidence)


def make_exploration(config: Config, library: TaskLibrary, agent: Agent) -> Exploration:
    """What says on which tasks the top level is to explore."""
    values, tasks = dataclasses.asdict(config.exploration), library.split("train")
    return Exploration(
        tasks,
        library.num_tasks,
        **values,
        trajectories=config.train.trajectories,
        decisions=-(-config.env.horizon // agent.hierarchy.config.top_steps),
        seeds=config.seeds,
        seed=config.seed,
    )


def best_so_far(config: Config, exploration: Exploration) -> Tensor | float:
    """What the best episode was worth to the top level, in scaled reward; see :meth:`TopLevel.anneal`.

    A perfect one, where it learns from a dense reward, of which the task's own tells nothing.
    """
    dense = config.transitions.reward == "dense"
    return PERFECT if dense else config.transitions.reward_scale * exploration.worth


def make_novelty(config: PeachConfig | HacConfig, agent: Agent) -> Novelty:
    """What rewards the top level for new states, early in training."""
    return Novelty(
        agent.observation_spec,
        weight=config.novelty.weight * PERFECT,
        until=config.novelty.until,
        seeds=None if config.seeds == 1 else config.seeds,
        seed=config.seed,
    ).to(config.device)


def make_task_buffer(config: Config, library: TaskLibrary) -> TaskReplayBuffer:
    """The top level's replay, one partition B^i a training task, of each seed."""
    tasks = library.split("train")
    partitions = torch.full((library.num_tasks,), -1).index_copy(0, tasks, torch.arange(len(tasks)))
    return TaskReplayBuffer(
        len(tasks),
        config.replay.top_capacity,
        episodes=config.replay.episodes,
        seed=config.seed,
        partitions=partitions,
        seeds=config.seeds,
    )


def make_sequence_sampler(config: PeachConfig | HacConfig, buffer: TaskReplayBuffer) -> SequenceSampler:
    """S_c for a belief that is part of the state."""
    generator = named_generator("sequences", config.seed)
    return SequenceSampler(buffer, **dataclasses.asdict(config.sequences), generator=generator)


def make_context_sampler(config: SourceConfig, buffer: TaskReplayBuffer) -> ContextSampler:
    """S_c of Algorithm 1 as the source has it."""
    decisions = -(-config.env.horizon // config.hierarchy.top_steps)
    return ContextSampler(buffer, config.source.sampler(decisions), named_generator("context", config.seed))
