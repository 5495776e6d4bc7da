"""The schemas of the recipes' configurations; see ``configs/`` for values and comments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from peach_trl.collectors.workers import ENGINES
from peach_trl.config import MANY, ConfigError, build, option
from peach_trl.context.contexts import ContextConfig
from peach_trl.context.sequences import SequenceConfig
from peach_trl.envs.families import BodyFamilyConfig, FamilyConfig, PackageFamilyConfig, PlaceFamilyConfig
from peach_trl.envs.made import MadeConfig
from peach_trl.envs.point import PointConfig
from peach_trl.estimates import check_memory
from peach_trl.hierarchy.exploration import ExplorationConfig
from peach_trl.hierarchy.structure import HierarchyConfig
from peach_trl.hierarchy.transitions import TransitionsConfig
from peach_trl.levels.goal_level import LowerConfig
from peach_trl.levels.novelty import NoveltyConfig
from peach_trl.levels.top_level import ReadingConfig, TopConfig
from peach_trl.modules.views import ViewsConfig
from peach_trl.rules import resolved
from peach_trl.utils.loggers import LoggingConfig


@dataclass(frozen=True)
class ReplayConfig:
    """Sizes of the buffers; see ``configs/`` for values."""

    top_capacity: int = option(low=1, high=10**15, help="top-level transitions kept of each task")
    lower_capacity: int = option(low=1, high=10**15, help="transitions kept of each goal-reaching level")
    episodes: int = option(low=1, high=10**15, help="episodes of each task that are remembered as such")


@dataclass(frozen=True)
class TrainConfig:
    """Length and batch sizes of meta-training; see ``configs/`` for values."""

    iterations: int = option(
        low=0, high=MANY, auto=True, help="passes through the outer loop of Algorithm 1; 0: no top level"
    )
    warmup: int = option(low=0, high=MANY, help="iterations before those, in which only the goal-reaching levels learn")
    prefill: int = option(low=0, high=MANY, help="iterations after the warm-up with proposals at random, at least")
    prefill_met: float = option(low=0, help="they go on until a task met rewards so often, on average; 0: they do not")
    prefill_most: float = option(low=0, high=1, help="share of all iterations that they may take at most")
    envs_per_task: int = option(low=1, high=10**6, auto=True, help="environments that play each task side by side")
    trajectories: int = option(low=1, high=10**4, help="L, successive trajectories of each task per iteration")
    warmup_updates: int = option(
        low=0, high=MANY, help="gradient steps of each goal-reaching level an iteration in the warm-up"
    )
    lower_updates: int = option(
        low=0, high=MANY, help="gradient steps of each goal-reaching level an iteration, from then on"
    )
    top_updates: int = option(low=0, high=MANY, help="gradient steps of encoder and top level per iteration")
    lower_batch: int = option(low=1, high=MANY, help="batch size of the goal-reaching levels")
    meta_batch: int = option(
        low=1, high=MANY, help="tasks in a gradient step of the top level, M; all, where there are fewer"
    )


@dataclass(frozen=True)
class CollectorConfig:
    """How experience is collected; see ``configs/`` for values."""

    workers: int = option(low=0, high=10**4, help="0 collects in this process, more in as many workers")
    engine: str = option(choices=ENGINES, help="what workers are: processes of this machine, or actors of Ray")
    timeout: float | None = option(above=0, help="seconds in which workers must bring a batch; null: no limit")
    restart_workers: bool = option(help="new workers take over from one that was killed; false: the run ends")


@dataclass(frozen=True)
class EvaluationConfig:
    """Meta-test during and after training; see ``configs/`` for values."""

    every: int = option(low=1, high=MANY, help="iterations between evaluations")
    split: str = option(choices=("train", "validation", "test"), help="tasks to evaluate on while training")
    final: str = option(choices=("train", "validation", "test"), help="tasks that the final agent is tested on")
    agent: str = option(
        choices=("last", "best"), help="the final agent: after the last update, or the best while training"
    )
    rollouts: int = option(low=1, high=10**6, help="independent meta-tests of each task")
    trajectories: int = option(low=1, high=10**4, help="trajectories of a meta-test")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints while training, besides the final one; see ``configs/`` for values."""

    every: int | None = option(low=1, high=MANY, help="iterations between checkpoints and savepoints; null: none")
    keep: int = option(low=1, high=MANY, help="how many of the latest are kept")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the configurations of all recipes have in common, one group for each component."""

    resume: str | None = option(help="a run's folder, with which it goes on; auto: with the run's own; null: a new run")
    resume_allow: tuple[str, ...] = option(help="keys in which a resumed run may differ from what it was")
    seed: int = option(low=0, high=2**62, help="the seed of the run")
    seeds: int = option(
        low=1, high=1000, help="how many agents are trained at once, with the seeds seed, seed + 1, ..."
    )
    torch_threads: int = option(
        low=1, high=1024, help="threads of torch, one for small networks; of several seeds side by side"
    )
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
        checks = _check_tasks, _check_values, _check_sizes, check_memory, _check_replay, _check_machine, _check_top
        for check in checks:
            check(self)


@dataclass(frozen=True, kw_only=True)
class StoredConfig(Config):
    """The common part of a configuration that a checkpoint holds, perhaps of a run on another machine."""

    def check(self) -> None:
        """Nothing: it was checked where it was run, and acting wants neither its memory nor its workers."""


def _check_tasks(config: Config) -> None:
    env, collector = config.env, config.collector
    if collector.workers > env.train_tasks:
        raise ConfigError(
            f"collector.workers = {collector.workers}: each worker needs a task of its own; lower it to "
            f"env.train_tasks = {env.train_tasks} at most"
        )
    if collector.engine == "ray" and collector.workers:
        if find_spec("ray") is None:
            raise ConfigError("collector.engine = 'ray': it is not installed; pip install peach-trl[ray]")
        if env.train_tasks % collector.workers:
            raise ConfigError(
                f"collector.workers = {collector.workers}: those of Ray play as many tasks each; choose a number that "
                f"divides env.train_tasks = {env.train_tasks}"
            )
    if config.transitions.reward == "dense" and not env.has_dense_reward:
        family = getattr(env, "family", "this family")
        raise ConfigError(f"transitions.reward = 'dense': {family} has no dense reward; set it to task")


def _check_values(config: Config) -> None:
    """Values that mean nothing beside others."""
    if config.evaluation.agent == "best" and config.evaluation.split == "test":
        raise ConfigError(
            "evaluation.split = 'test': the best agent would be chosen by the test tasks; set it to validation"
        )
    if config.lower.algorithm == "sac" and config.lower.alpha == 0:
        raise ConfigError("lower.alpha = 0.0: SAC's entropy coefficient must be > 0; set lower.alpha")


def _check_sizes(config: Config) -> None:
    """Clocks that fit into an episode, and passes in which something is done."""
    hierarchy, horizon, train = config.hierarchy, config.env.horizon, config.train
    if hierarchy.top_steps > horizon:
        raise ConfigError(
            f"hierarchy.decision_steps = {hierarchy.decision_steps}: a decision of the top level takes up to "
            f"{hierarchy.top_steps} environment steps, more than env.horizon = {horizon}; lower decision_steps or depth"
        )
    levels = hierarchy.depth > 1 or config.top.objective == "goal"
    if train.iterations + train.prefill + levels * train.warmup == 0:
        raise ConfigError(
            f"train.iterations = {train.iterations}, train.prefill = {train.prefill}, train.warmup = {train.warmup}: "
            "there is nothing to do; let one of them be 1 at least (train.warmup counts where there are lower levels)"
        )
    fewest = 2 ** (hierarchy.depth - 1)
    if hierarchy.steps is None and hierarchy.depth > 2 and hierarchy.decision_steps < fewest:
        raise ConfigError(
            f"hierarchy.depth = {hierarchy.depth}: within decision_steps = {hierarchy.decision_steps} not every level "
            f"below the top can make 2 decisions on a goal; raise decision_steps to {fewest}, or lower depth"
        )


def _check_replay(config: Config) -> None:
    """Buffers that hold what is brought to them at once."""
    hierarchy, horizon, train = config.hierarchy, config.env.horizon, config.train
    decisions = train.trajectories * hierarchy.most_decisions(horizon)
    if config.top.objective == "reward" and config.replay.top_capacity < train.envs_per_task * decisions:
        raise ConfigError(
            f"replay.top_capacity = {config.replay.top_capacity}: a pass brings train.envs_per_task = "
            f"{train.envs_per_task} meta-episodes of {decisions} decisions of each task, which would not be whole; "
            "raise it, to some hundred times as many"
        )
    rows = train.envs_per_task * train.trajectories
    if config.top.objective == "reward" and config.replay.episodes < rows:
        raise ConfigError(
            f"replay.episodes = {config.replay.episodes}: a pass brings train.envs_per_task = {train.envs_per_task} "
            f"meta-episodes of {train.trajectories} trajectories of each task, which would not be whole; raise it to "
            f"{rows} at least"
        )
    levels = hierarchy.depth > 1 or config.top.objective == "goal"
    copies = 1 + (config.transitions.hindsight_goals > 0)  # each with the last state reached as its goal
    brought = config.env.train_tasks * train.envs_per_task * horizon * copies
    if levels and config.replay.lower_capacity < brought:
        raise ConfigError(
            f"replay.lower_capacity = {config.replay.lower_capacity}: one trajectory of env.train_tasks = "
            f"{config.env.train_tasks} x train.envs_per_task = {train.envs_per_task} rows of env.horizon = {horizon} "
            f"steps brings {brought} transitions at least, which would not all be kept; raise it, to ten times as many"
        )


def _check_machine(config: Config) -> None:
    try:
        torch.device(config.device)
    except RuntimeError as error:
        raise ConfigError(f"device = {config.device!r}: {str(error).splitlines()[0]}") from None
    if torch.device(config.device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device = {config.device!r}: there is none here; set device=cpu")
    workers = config.collector.workers
    if config.device != "cpu" and workers > 0:
        raise ConfigError(
            f"device = {config.device!r}, collector.workers = {workers}: workers play on the CPU; set one of them to "
            "cpu or 0"
        )
    if config.seeds > 1 and workers > 0:
        raise ConfigError(f"collector.workers = {workers}: several seeds share one simulator; set it to 0, or seeds=1")
    if config.seeds > 1 and "mlflow" in config.logging.loggers:
        raise ConfigError("logging.loggers = mlflow: it knows one run at a time; set seeds=1, or leave it out")


def _check_top(config: Config) -> None:
    if config.top.objective == "goal" and not config.top.observe_goal:
        raise ConfigError(
            "top.objective = 'goal': the top level cannot reach for a hidden goal; set top.observe_goal=true"
        )
    if config.top.observe_goal and config.context.latent_dim > 0:
        raise ConfigError(
            f"context.latent_dim = {config.context.latent_dim}: a known goal leaves nothing to infer; set "
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

    transitions: int | None = option(
        low=1, high=10**6, help="most transitions in a context, C; null for `episodes` whole episodes"
    )
    batch: int = option(low=1, high=10**6, help="transitions of each task in the RL batch b^i, B")
    best_fraction: float = option(low=0, high=1, help="share of the RL batch from good episodes")
    kl_annealing: int = option(low=0, high=10**12, help="gradient steps over which beta grows from 0 to its value")

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


#: keys that came after checkpoints were written: the group, the key, what was done before, and a key of its groups
LATER = (
    ("transitions", "goal_reward", "sparse", "hindsight_goals"),
    ("env", "subgoals", "place", "goals"),
    ("hierarchy", "steps", None, "depth"),
)


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys that came later, as things were done without them.

    Examples:
        >>> completed({"transitions": {"hindsight_goals": 3}})
        {'transitions': {'goal_reward': 'sparse', 'hindsight_goals': 3}}
    """
    values = dict(values)
    for group, key, before, among in LATER:
        if among in values.get(group, {}):
            values[group] = {key: before, **values[group]}
    return values


def common_config(values: Mapping[str, Any]) -> Config:
    """The common part of any recipe's configuration, as a checkpoint holds it: enough to act and to test.

    Where the device of training is not there, it is the CPU.

    Raises:
        ConfigError: for a key or a value that this version does not know.
    """
    names = {field.name for field in dataclasses.fields(Config)}
    values = {name: value for name, value in completed(values).items() if name in names}
    values["logging"] = {**values.get("logging", {}), "loggers": ()}  # nothing more is logged, and they may be missing
    config = build(StoredConfig, values)
    device = torch.device(config.device)
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    return dataclasses.replace(config, device="cpu") if missing else config
