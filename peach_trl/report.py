"""What a run writes: metrics while it trains, and at the end a checkpoint, plots and the meta-test."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict
from typing import cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

from peach_trl.agent import Agent
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.evaluation import MetaTest, meta_test
from peach_trl.experiment import Config
from peach_trl.hierarchy.metrics import level_metrics
from peach_trl.utils.plots import plot_curves, plot_posterior, plot_trajectories
from peach_trl.utils.run import Run, progress


class Report:
    """Gathers the metrics of an iteration and writes them to the run's folder.

    Logged: ``train_return/trajectory_l``, the mean reward of a step while exploring; ``return`` and ``success`` by
    trajectory of the meta-test; success and share tested of each level; losses, KL among them; speed.

    Args:
        run: the folder.
        agent: the learner.
        config: how often to evaluate.
        library: the tasks.
    """

    def __init__(self, run: Run, agent: Agent, config: Config, library: TaskLibrary) -> None:
        self.run, self.agent, self.config, self.library = run, agent, config, library
        self.env_steps, self.updates = 0, 0
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._clock = time.perf_counter()
        self._bar = progress(config.train.warmup + config.train.prefill + config.train.iterations, "meta-training")

    def collected(self, batch: TensorDictBase, trajectory: int) -> None:
        """Takes in a recorded batch [N, T], the ``trajectory``-th (from 0) of an iteration."""
        self.env_steps += batch.numel()
        reward = batch["next", "reward"].mean().item()
        self._sums[f"train_return/trajectory_{trajectory + 1}"].append(reward)
        for name, value in level_metrics(self.agent.hierarchy, batch).items():
            self._sums[name].append(value)

    def losses(self, level: str, losses: dict[str, float]) -> None:
        """Takes in the losses of one gradient step of ``level``."""
        self.updates += level == "top"
        for name, value in losses.items():
            self._sums[f"{name}/{level}"].append(value)

    def iteration(self, number: int) -> None:
        """Writes the means since the last call, and from time to time a meta-test on the evaluation split."""
        seconds = time.perf_counter() - self._clock
        metrics = {name: sum(values) / len(values) for name, values in sorted(self._sums.items())}
        metrics |= {"top_updates": self.updates, "speed/seconds_per_iteration": seconds}
        if (number + 1) % self.config.evaluation.every == 0:
            metrics |= self.test(self.config.evaluation.split).metrics()
        self.run.log(self.env_steps, metrics)
        returns = [value for name, value in metrics.items() if name.startswith("return/")]
        if returns:
            self._bar.set_postfix_str("return by trajectory " + " ".join(f"{value:.2f}" for value in returns))
        self._bar.update()
        self._sums.clear()
        self._clock = time.perf_counter()

    def test(self, split: str) -> MetaTest:
        """A meta-test of the current agent; the draws of z depend on the run's seed and the split only."""
        return meta_test(self.agent, self.config, self.library, split, self.config.seed)

    def finish(self, split: str = "test") -> MetaTest:
        """Checkpoint, plots and the meta-test of the final agent on held-out tasks, which it prints."""
        self._bar.close()
        self.run.checkpoint("final", {"config": asdict(self.config), "agent": self.agent.state_dict()})
        result = self.test(split)
        plot_curves(self.run.folder / "metrics.csv", self.run.folder / "curves.png")
        plot_meta_test(self.run, self.config, self.library, result)
        tasks = {"list": self.library.name, "fingerprint": self.library.fingerprint()}
        counts = {"env_steps": self.env_steps, "top_updates": self.updates}
        self.run.finish(**counts, tasks=tasks, **{split: result.metrics()})
        print_meta_test(result, split)
        return result


def plot_meta_test(run: Run, config: Config, library: TaskLibrary, result: MetaTest, tasks: int = 5) -> None:
    """Draws the final posterior over z, and where goals are places in the plane, the first paths of a few tasks."""
    goals = library.parameters[result.task_ids]
    places = goals.shape[1] == 2
    if places and result.goal_space is not None and result.positions.shape[-1] == 2:
        _plot_paths(run, config, goals, result, tasks)
    if result.loc is not None:
        values = torch.atan2(goals[:, 1], goals[:, 0]).rad2deg() if places else goals[:, 0]
        label = "direction of the goal, degrees" if places else "first parameter of the task"
        plot_posterior(run.folder / "posterior.png", result.loc, result.scale, values, label)


def _plot_paths(run: Run, config: Config, goals: Tensor, result: MetaTest, tasks: int) -> None:
    trajectories, space = result.returns.shape[1], cast(GoalSpace, result.goal_space)
    first = torch.arange(0, len(goals), config.evaluation.rollouts)  # the first rollout of each task
    rows = first[torch.linspace(0, len(first) - 1, min(tasks, len(first))).round().long()]
    titles = [f"task {result.task_ids[r]}, trajectory {k + 1}" for r in rows for k in range(trajectories)]
    plot_trajectories(
        run.folder / "trajectories.png",
        result.positions[rows].flatten(0, 1),
        goals[rows].repeat_interleave(trajectories, 0),
        float(space.tolerance.max()),
        None if result.subgoals is None else result.subgoals[rows].flatten(0, 1),
        float(space.high.max()),
        titles,
        trajectories,
    )


def print_meta_test(result: MetaTest, split: str) -> None:
    """Prints return and success by trajectory number."""
    print(f"meta-test on the {split} tasks, {len(result.returns)} rollouts: return divided by the horizon (success)")
    for k, (value, success) in enumerate(zip(result.returns.mean(0), result.success.mean(0), strict=True)):
        print(f"  trajectory {k + 1}: {value:.3f} ({success:.2f})")
