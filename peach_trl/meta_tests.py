"""The meta-test of an agent as its configuration has it: carried out, saved, drawn and printed, beside its bounds."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from peach_trl.agent import Agent
from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.families.maze_layouts import maze_walls
from peach_trl.envs.families.wind import Wind
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.evaluation import MetaTest, meta_test
from peach_trl.experiment import Config, make_env
from peach_trl.hierarchy.policy import HierarchyPolicy
from peach_trl.references import references
from peach_trl.utils.plots import plot_posterior, plot_trajectories
from peach_trl.utils.run import Run


def policy_for_meta_test(agent: Agent, config: Config, seed: int) -> HierarchyPolicy:
    """The policy of meta-tests, with averaged weights, on the CPU, where environments are; ``seed``: of draws of z."""
    policy = agent.make_policy(config.evaluation.trajectories, average=True, seed=seed)
    return policy if config.device == "cpu" else copy.deepcopy(policy).to("cpu")


def run_meta_test(agent: Agent, config: Config, library: TaskLibrary, split: str, seed: int) -> MetaTest:
    """A meta-test as ``config.evaluation`` has it, with the averaged weights of actor and encoder.

    Args:
        agent: what was learnt.
        config: environment, trajectories and rollouts.
        library: the tasks.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        seed: of the draws of z; nothing here moves the generators of training.

    Raises:
        FloatingPointError: for returns that are not finite; it names the tasks.
    """
    policy = policy_for_meta_test(agent, config, seed)
    tasks = library.split(split).repeat_interleave(config.evaluation.rollouts)
    result = meta_test(policy, make_env(config, library, tasks), config.evaluation.trajectories)
    broken = ~result.returns.isfinite().all(-1)
    if broken.any():
        raise FloatingPointError(
            f"meta-test on the {split} tasks: rewards of tasks {tasks[broken].unique().tolist()} are not finite; "
            "look at the environment's reward"
        )
    return result


def bounds_of(config: Config, library: TaskLibrary, split: str) -> dict[str, list[float]]:
    """What can be had on the tasks of a split: the reference policies' returns / horizon by trajectory, if known."""
    env = make_env(config, library, library.split(split))
    try:
        steps = config.hierarchy.top_steps
        bounded = config.hierarchy.subgoal == "relative" and config.hierarchy.depth > 1  # a flat agent sets no subgoals
        found = references(
            env,  # type: ignore[arg-type]
            trajectories=config.evaluation.trajectories,
            decision_steps=steps,
            reach=config.hierarchy.subgoal_reach * steps if bounded else math.inf,
            seed=0,
        )
    finally:
        env.close()
    return {name: values.tolist() for name, values in found.items()}


def save_meta_test(
    run: Run, config: Config, library: TaskLibrary, result: MetaTest, split: str, tasks: int = 5
) -> None:
    """Writes a meta-test's CSV and pictures: the belief in the end; where goals are places, paths of some tasks."""
    result.save_csv(run.folder / "meta_test.csv", split)
    goals = result.goals
    env = make_env(config, library, library.split("train")[:1])
    places = _in_the_plane(env, goals[0])
    result = _where(env, result) if places else result
    if result.positions.shape[-1] == 2:
        if places:
            tolerance = float(cast(GoalSpace, result.goal_space).tolerance.max())
            _plot_paths(run, config, result, goals, tolerance, tasks, candidates=library.parameters, env=env)
        elif isinstance(env, Wind):  # the place is the same in all tasks
            place = torch.tensor(env.place).expand(len(goals), 2)
            _plot_paths(run, config, result, place, env.place_radius, tasks, candidates=None, env=env)
    env.close()
    if result.loc is not None:
        values = torch.atan2(goals[:, 1], goals[:, 0]).rad2deg() if places else goals[:, 0]
        label = "direction of the goal, degrees" if places else "first parameter of the task"
        plot_posterior(run.folder / "posterior.png", result.loc, result.scale, values, label)


def _where(env: Any, result: MetaTest) -> MetaTest:
    """Only those entries of positions and subgoals that goals have, where there are more."""
    named = {index: i for i, index in enumerate(env.subgoal_space.indices)} if env.subgoal_space is not None else {}
    chosen = [named.get(index) for index in env.goal_space.indices]
    if result.positions.shape[-1] != len(named) or None in chosen:
        return result
    subgoals = None if result.subgoals is None else result.subgoals[..., chosen]
    return dataclasses.replace(result, positions=result.positions[..., chosen], subgoals=subgoals)


def _in_the_plane(env: Any, goal: Tensor) -> bool:
    """Whether goals [2] are places x, y in metres, and not angles, say."""
    if env.goal_space is None or len(goal) != 2:
        return False
    if not isinstance(env, BatchedMujocoEnv):
        return env.goal_space.metric == "euclidean"
    place = env.goal_position(goal.double().numpy(), *env.simulation(0))
    return place is not None and bool(abs(place[:2] - goal.double().numpy()).max() < 1e-6)


def _plot_paths(
    run: Run,
    config: Config,
    result: MetaTest,
    goals: Tensor,
    tolerance: float,
    tasks: int,
    *,
    candidates: Tensor | None,
    env: Any,
) -> None:
    """Draws the paths of some tasks, whose ``goals`` [R, 2] count within ``tolerance``, in metres."""
    first = torch.arange(0, len(goals), config.evaluation.rollouts)  # the first rollout of each task
    rows = first[torch.linspace(0, len(first) - 1, min(tasks, len(first))).round().long()]
    plot_trajectories(
        run.folder / "trajectories.png",
        result.positions[rows],
        goals[rows],
        tolerance,
        subgoals=None if result.subgoals is None else result.subgoals[rows],
        found=result.found[rows],
        candidates=candidates,
        walls=maze_walls(env),
        names=[f"task {task}" for task in result.task_ids[rows].tolist()],
    )


def print_meta_test(result: MetaTest, split: str, bounds: Mapping[str, list[float]], seed: int | None = None) -> None:
    """Prints return and success by trajectory number, and beside them what can be had."""
    of_seed = "" if seed is None else f"seed {seed}: "
    rollouts = f"{len(result.returns)} rollouts"
    print(f"{of_seed}meta-test on the {split} tasks, {rollouts}: return divided by the horizon (success)")
    for k, (value, success) in enumerate(zip(result.returns.mean(0), result.success.mean(0), strict=True)):
        print(f"  trajectory {k + 1}: {value:.3f} ({success:.2f}){_beside(bounds, k)}")


def _beside(bounds: Mapping[str, list[float]], k: int) -> str:
    return "".join(f"; {name} {values[k]:.3f}" for name, values in bounds.items())
