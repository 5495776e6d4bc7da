"""What the recipes share: schemas of their configurations, and what is built from them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
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
from peach_trl.collectors.workers import ENGINES, worker_collector
from peach_trl.config import ConfigError, build, option
from peach_trl.context.belief import Belief
from peach_trl.context.contexts import ContextConfig, ContextSampler
from peach_trl.context.sequences import SequenceConfig, SequenceSampler
from peach_trl.data.task_replay import TaskReplayBuffer
from peach_trl.envs.families import BodyFamilyConfig, FamilyConfig, PackageFamilyConfig, PlaceFamilyConfig
from peach_trl.envs.made import MadeConfig
from peach_trl.envs.point import PointConfig
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.hierarchy.exploration import Exploration, ExplorationConfig
from peach_trl.hierarchy.policy import HierarchyPolicy
from peach_trl.hierarchy.structure import Hierarchy, HierarchyConfig
from peach_trl.hierarchy.transitions import LevelTransitions, TransitionsConfig
from peach_trl.levels.goal_level import GoalLevel, LowerConfig
from peach_trl.levels.novelty import Novelty, NoveltyConfig
from peach_trl.levels.top_level import ReadingConfig, TopConfig
from peach_trl.modules.execution import set_execution
from peach_trl.modules.views import ViewsConfig
from peach_trl.objectives.context import ContextSACLoss
from peach_trl.rules import PERFECT, resolved
from peach_trl.seeding import named_generator
from peach_trl.utils.loggers import LoggingConfig
from peach_trl.utils.run import load_checkpoint


@dataclass(frozen=True)
class ReplayConfig:
    """Sizes of the buffers; see ``configs/`` for values."""

    top_capacity: int = option(low=1, help="top-level transitions kept of each task")
    lower_capacity: int = option(low=1, help="transitions kept of each goal-reaching level")
    episodes: int = option(low=1, help="episodes of each task that are remembered as such")


@dataclass(frozen=True)
class TrainConfig:
    """Length and batch sizes of meta-training; see ``configs/`` for values."""

    iterations: int = option(low=0, auto=True, help="passes through the outer loop of Algorithm 1; 0: no top level")
    warmup: int = option(low=0, help="iterations before those, in which only the goal-reaching levels learn")
    prefill: int = option(low=0, help="iterations after the warm-up with proposals at random, at least")
    prefill_met: float = option(low=0, help="they go on until a task met rewards so often, on average; 0: they do not")
    prefill_most: float = option(low=0, high=1, help="share of all iterations that they may take at most")
    envs_per_task: int = option(low=1, auto=True, help="environments that play each task side by side")
    trajectories: int = option(low=1, help="L, successive trajectories of each task per iteration")
    warmup_updates: int = option(low=0, help="gradient steps of each goal-reaching level an iteration in the warm-up")
    lower_updates: int = option(low=0, help="gradient steps of each goal-reaching level an iteration, from then on")
    top_updates: int = option(low=0, help="gradient steps of encoder and top level per iteration")
    lower_batch: int = option(low=1, help="batch size of the goal-reaching levels")
    meta_batch: int = option(low=1, help="tasks in a gradient step of the top level, M")


@dataclass(frozen=True)
class CollectorConfig:
    """How experience is collected; see ``configs/`` for values."""

    workers: int = option(low=0, help="0 collects in this process, more in as many workers")
    engine: str = option(choices=ENGINES, help="what workers are: processes of this machine, or actors of Ray")


@dataclass(frozen=True)
class EvaluationConfig:
    """Meta-test during and after training; see ``configs/`` for values."""

    every: int = option(low=1, help="iterations between evaluations")
    split: str = option(choices=("train", "validation", "test"), help="tasks to evaluate on while training")
    final: str = option(choices=("train", "validation", "test"), help="tasks that the final agent is tested on")
    agent: str = option(
        choices=("last", "best"), help="the final agent: after the last update, or the best while training"
    )
    rollouts: int = option(low=1, help="independent meta-tests of each task")
    trajectories: int = option(low=1, help="trajectories of a meta-test")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints while training, besides the final one; see ``configs/`` for values."""

    every: int | None = option(low=1, help="iterations between checkpoints of the agent; null: none")
    keep: int = option(low=1, help="how many of the latest are kept")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the configurations of all recipes have in common, one group for each component."""

    seed: int = option(low=0, help="the seed of the run")
    seeds: int = option(low=1, help="how many agents are trained at once, with the seeds seed, seed + 1, ...")
    torch_threads: int = option(low=1, help="threads of torch, one for small networks; of several seeds side by side")
    device: str = option(help="where networks learn: cpu, cuda, cuda:1, ...; environments stay on the CPU")
    compile: str = option(choices=("trace", "none"), help="how gradient steps are carried out")
    env: PointConfig | FamilyConfig | BodyFamilyConfig | PlaceFamilyConfig | PackageFamilyConfig | MadeConfig
    views: ViewsConfig
    hierarchy: HierarchyConfig
    transitions: TransitionsConfig
    context: ReadingConfig
    top: TopConfig
    lower: LowerConfig
    replay: ReplayConfig
    train: TrainConfig
    exploration: ExplorationConfig
    collector: CollectorConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig

    def resolved(self) -> Config:
        """With values by rule in place of ``auto``, see :mod:`peach_trl.rules`."""
        return resolved(self)

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
        if self.transitions.reward == "dense" and not self.env.has_dense_reward:
            family = getattr(self.env, "family", "this family")
            raise ConfigError(f"transitions.reward = 'dense': {family} has no dense reward; set it to task")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"device = {self.device!r}: {str(error).splitlines()[0]}") from None
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device = {self.device!r}: there is none here; set device=cpu")
        if self.collector.engine == "ray" and self.collector.workers:
            if find_spec("ray") is None:
                raise ConfigError("collector.engine = 'ray': it is not installed; pip install peach-trl[ray]")
            if self.env.train_tasks % self.collector.workers:
                raise ConfigError(
                    f"collector.workers = {self.collector.workers}: those of Ray play as many tasks each; choose a "
                    f"number that divides env.train_tasks = {self.env.train_tasks}"
                )
        if self.device != "cpu" and self.collector.workers > 0:
            raise ConfigError(
                f"device = {self.device!r}, collector.workers = {self.collector.workers}: workers play on the CPU; set "
                "one of them to cpu or 0"
            )
        if self.seeds > 1 and self.collector.workers > 0:
            raise ConfigError(
                f"collector.workers = {self.collector.workers}: several seeds share one simulator; set it to 0, or "
                "seeds=1"
            )
        if self.seeds > 1 and "mlflow" in self.logging.loggers:
            raise ConfigError("logging.loggers = mlflow: it knows one run at a time; set seeds=1, or leave it out")
        if self.top.objective == "goal" and not self.top.observe_goal:
            raise ConfigError(
                "top.objective = 'goal': the top level cannot reach for a hidden goal; set top.observe_goal=true"
            )
        if self.top.observe_goal and self.context.latent_dim > 0:
            raise ConfigError(
                f"context.latent_dim = {self.context.latent_dim}: a known goal leaves nothing to infer; set "
                "context.latent_dim=0"
            )


@dataclass(frozen=True, kw_only=True)
class PeachConfig(Config):
    """The configuration of ``recipes/peach.py``."""

    sequences: SequenceConfig
    novelty: NoveltyConfig

    def check(self) -> None:
        """Refuses what the recipe cannot run."""
        super().check()
        if self.top.objective == "goal":
            raise ConfigError("top.objective = 'goal': this top level follows the reward; use recipes/hac.py")
        if self.sequences.consecutive > 0 and self.train.trajectories > self.sequences.episodes:
            raise ConfigError(
                f"sequences.episodes = {self.sequences.episodes}: a meta-episode has train.trajectories = "
                f"{self.train.trajectories}, whose later ones would never be trained on; raise sequences.episodes"
            )


@dataclass(frozen=True, kw_only=True)
class HacConfig(Config):
    """The configuration of ``recipes/hac.py``."""

    sequences: SequenceConfig
    novelty: NoveltyConfig

    def check(self) -> None:
        """Refuses a context variable."""
        if self.context.latent_dim > 0:
            raise ConfigError(f"context.latent_dim = {self.context.latent_dim}: HAC has no z; use recipes/peach.py")
        super().check()


@dataclass(frozen=True)
class SourceGroup(ContextConfig):
    """Contexts and RL batches as the source and PEARL draw them, apart from each other."""

    transitions: int | None = option(low=1, help="most transitions in a context, C; null for `episodes` whole episodes")
    batch: int = option(low=1, help="transitions of each task in the RL batch b^i, B")
    best_fraction: float = option(low=0, high=1, help="share of the RL batch from good episodes")
    kl_annealing: int = option(low=0, help="gradient steps over which beta grows from 0 to its value")

    def __post_init__(self) -> None:
        if self.transitions is not None:
            super().__post_init__()

    def sampler(self, decisions: int) -> ContextConfig:
        """What the sampler needs; an open C becomes ``episodes`` x ``decisions``, the decisions of an episode."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(ContextConfig)}
        if self.transitions is None:
            values["transitions"] = self.episodes * decisions
        return ContextConfig(**values)


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Config):
    """The configuration of ``recipes/source.py`` and ``recipes/pearl.py``."""

    source: SourceGroup

    def check(self) -> None:
        """Refuses what the literal algorithm does not have."""
        super().check()
        if self.context.latent_dim == 0:
            raise ConfigError("context.latent_dim = 0: this recipe needs a context variable; use recipes/hac.py")
        if self.context.update != "trajectory" or self.context.next != "same":
            raise ConfigError(
                f"context.update = {self.context.update!r}, context.next = {self.context.next!r}: contexts drawn from "
                "B^i tell what is known for a whole trajectory; set trajectory and same, or use recipes/peach.py"
            )
        if self.context.bootstrap or self.top.batch is not None:
            raise ConfigError(
                f"context.bootstrap = {self.context.bootstrap}, top.batch = {self.top.batch}: decisions are drawn one "
                "by one here, source.batch of each task; set false and null, or use recipes/peach.py"
            )
        if self.top.n_step > 1:
            raise ConfigError(
                f"top.n_step = {self.top.n_step}: decisions are drawn one by one here; set it to 1, or use "
                "recipes/peach.py"
            )
        if self.source.recent > self.replay.episodes:
            raise ConfigError(
                f"source.recent = {self.source.recent}: only replay.episodes = {self.replay.episodes} episodes are "
                "remembered; lower source.recent"
            )


def common_config(values: Mapping[str, Any]) -> Config:
    """The common part of any recipe's configuration, as a checkpoint holds it: enough to act and to test.

    Raises:
        ConfigError: for a key or a value that this version does not know.
    """
    names = {field.name for field in dataclasses.fields(Config)}
    return build(Config, {name: value for name, value in values.items() if name in names})


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


def _read_checkpoint(path: str, key: str = "checkpoint") -> dict[str, Any]:
    """A checkpoint's content; a ConfigError that names the key where it cannot be read."""
    try:
        return load_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{key} = {path}: {error}") from None


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
    agent = make_agent(config, library, encoder, belief)
    try:
        agent.load_state_dict(state["agent"])
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ConfigError(f"checkpoint = {checkpoint}: {first}; hand over the encoder it was trained with") from None
    return config, library, agent


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
