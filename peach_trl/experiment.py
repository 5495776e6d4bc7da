"""What the recipes share: what is built from their configurations."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase, Transform, TransformedEnv
from torchrl.modules import get_primers_from_module

from peach_trl.agent import Agent
from peach_trl.config import ConfigError
from peach_trl.context.belief import Belief
from peach_trl.context.contexts import ContextSampler
from peach_trl.context.sequences import SequenceSampler
from peach_trl.data.task_replay import TaskReplayBuffer
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.hierarchy.exploration import Exploration
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
from peach_trl.utils.checkpoints import load_checkpoint
from peach_trl.utils.files import checkpoint_file


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
    try:
        library = config.env.make_library()
    except ConfigError:
        raise
    except ValueError as error:  # of the family, such as more tasks than a maze has cells
        raise ConfigError(f"env: {error}") from None
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
    path = levels_file(config)
    if path is not None and (config.resume is None or path.is_file()):  # a resumed run has them in its savepoint
        state = _read_checkpoint(str(path), "lower.checkpoint")
        _compare_levels(str(path), common_config(state["config"]), config)
        agent.load_levels(state["agent"])
    return agent.to(config.device)


def levels_file(config: Config) -> Path | None:
    """What ``lower.checkpoint`` names for this seed."""
    named = config.lower.checkpoint
    return None if named is None else checkpoint_file(named.replace("{seed}", str(config.seed)))


def _compare_levels(path: str, trained: Config, config: Config) -> None:
    """Says what levels of another run were asked for there, where it differs, which no shape would show.

    Raises:
        ConfigError: if their subgoals were relative and these are not, or the other way round; or if the topmost was
            the top of its hierarchy, whose goals are the tasks', and is not here.
    """
    there, here, objective = trained.hierarchy, config.hierarchy, trained.top.objective
    if objective != config.top.objective:
        raise ConfigError(
            f"lower.checkpoint = {path}: it is of top.objective = {objective}, whose levels reach for other goals; "
            f"set top.objective={objective}, or train others"
        )
    if there.subgoal != here.subgoal:
        raise ConfigError(
            f"lower.checkpoint = {path}: its levels were trained with hierarchy.subgoal = {there.subgoal}; set "
            f"hierarchy.subgoal={there.subgoal}, or train others"
        )
    names = ["horizons", "clock", "failure", *(["subgoal_reach"] if here.subgoal == "relative" else [])]
    values = {name: (getattr(there, name), getattr(here, name)) for name in names}
    values = {f"hierarchy.{name}": both for name, both in values.items()}
    for name in ("goal_reward", "goal_terminates"):
        values[f"transitions.{name}"] = getattr(trained.transitions, name), getattr(config.transitions, name)
    differ = [f"{name} = {old} there and {new} here" for name, (old, new) in values.items() if old != new]
    if differ:
        warnings.warn(f"lower.checkpoint = {path}: {', '.join(differ)}", stacklevel=3)


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
    try:
        agent.load_seeds(states)
    except ValueError as error:  # of levels of other runs
        raise ConfigError(f"lower.checkpoint = {config.lower.checkpoint}: {error}; set seeds=1") from None
    if config.lower.checkpoint is not None:
        agent.settle_levels()
    return agent


def of_seeds(config: Config) -> list[Config]:
    """The configuration of each seed's run, as if it were alone."""
    return [dataclasses.replace(config, seed=config.seed + number, seeds=1) for number in range(config.seeds)]


FORMAT = 1  # of the checkpoints of agents


def checkpoint_of(config: Config, library: TaskLibrary, agent: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint of an agent holds, by its ``state_dict()``; :func:`load_agent` reads it.

    Raises:
        FloatingPointError: for weights that are not finite, which nobody could use.
    """
    if broken := _not_finite(agent):
        raise FloatingPointError(f"{broken}: this agent is not saved; lower the learning rates, or look at the rewards")
    own = {"config": dataclasses.asdict(config), "tasks": library.identity(), "agent": dict(agent)}
    return {"format": FORMAT, **own}


def _read_checkpoint(path: Path | str, key: str = "checkpoint") -> dict[str, Any]:
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
    agent, config = state["agent"], state["config"]
    if not isinstance(agent, Mapping) or not all(isinstance(value, Tensor) for value in agent.values()):
        raise ConfigError(f"{key} = {path}: its weights are no tensors by name; give final.pt or levels.pt of a run")
    if not isinstance(config, Mapping):
        raise ConfigError(f"{key} = {path}: it holds no configuration; give final.pt or levels.pt of a run")
    if broken := _not_finite(agent):
        raise ConfigError(f"{key} = {path}: {broken}; use another one")
    return state


def _not_finite(agent: Mapping[str, Tensor]) -> str:
    """What to say of weights that are not finite; nothing where all are."""
    broken = [name for name, value in agent.items() if value.is_floating_point() and not value.isfinite().all()]
    return f"{broken[0]} is not finite, and so are {len(broken) - 1} more" if broken else ""


def stored_config(checkpoint: Path | str) -> dict[str, Any]:
    """The whole configuration of the recipe that a checkpoint was trained with, as it holds it."""
    return _read_checkpoint(checkpoint)["config"]


def load_agent(
    checkpoint: Path | str, encoder: nn.Module | None = None, belief: Belief | None = None
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
    if agent.top is not None and all(name.startswith("levels.") for name in state["agent"]):
        raise ConfigError(
            f"checkpoint = {checkpoint}: it holds goal-reaching levels alone; give the run's final.pt. Levels are "
            "read by lower.checkpoint and load_levels()"
        )
    parts = state["agent"], agent.state_dict()
    found, wanted = ({name: (value.shape, value.dtype) for name, value in part.items()} for part in parts)
    if found != wanted:
        name = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise ConfigError(
            f"checkpoint = {checkpoint}: {name} is {_said(found.get(name))} there and {_said(wanted.get(name))} in an "
            "agent of its configuration; hand over the encoder or belief that it was trained with, or use the "
            "version that its run's manifest.json names"
        )
    agent.load_state_dict(state["agent"])
    return config, library, agent


def _said(kind: tuple[torch.Size, torch.dtype] | None) -> str:
    return "missing" if kind is None else f"{list(kind[0])} {str(kind[1]).removeprefix('torch.')}"


def load_levels(checkpoint: Path | str) -> tuple[Hierarchy, Sequence[GoalLevel]]:
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
    config = dataclasses.replace(config, lower=dataclasses.replace(config.lower, checkpoint=str(checkpoint)))
    agent = make_agent(config, make_library(config))
    return agent.hierarchy, agent.levels


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
    decisions = config.hierarchy.most_decisions(config.env.horizon)
    return ContextSampler(buffer, config.source.sampler(decisions), named_generator("context", config.seed))
