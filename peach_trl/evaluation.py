"""Meta-test by trajectory: what the posterior gains, episode by episode, on tasks that were not trained on.

Protocol: PEARL (Rakelly et al. 2019, arXiv 1903.08254). Trajectory 1 draws z from the prior; what a trajectory shows is
multiplied into the posterior before the next one. The policy does not explore, apart from the draw of z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.agent import Agent
from peach_trl.collectors.lockstep import Lockstep
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.experiment import Config, make_env
from peach_trl.hierarchy.policy import HierarchyPolicy
from peach_trl.hierarchy.transitions import HINDSIGHT_ACTION, LevelTransitions


@dataclass(frozen=True)
class MetaTest:
    """Results of R meta-tests of K trajectories of T steps.

    Attributes:
        task_ids: [R], ids in the library that was tested.
        returns: [R, K], sum of the rewards of the first episode, divided by the horizon: where rewards are 0 or 1, the
            share of the highest return.
        success: [R, K], whether that episode ended in the task's goal; without a goal space, with a positive reward.
        positions: [R, K, T, G], the path, projected to the subgoal space.
        subgoals: [R, K, T, G] of the level above the bottom, or None at depth 1.
        loc: [R, Z], mean of the final posterior, or None without z.
        scale: [R, Z], its standard deviation.
        goal_space: the environment's, or None where tasks are no states to reach.
    """

    task_ids: Tensor
    returns: Tensor
    success: Tensor
    positions: Tensor
    subgoals: Tensor | None
    loc: Tensor | None
    scale: Tensor | None
    goal_space: GoalSpace | None

    def metrics(self) -> dict[str, float]:
        """Means over tasks and rollouts, by trajectory number from 1."""
        columns = {}
        for k in range(self.returns.shape[1]):
            columns[f"return/trajectory_{k + 1}"] = self.returns[:, k].mean().item()
            columns[f"success/trajectory_{k + 1}"] = self.success[:, k].mean().item()
        return columns


@torch.no_grad()
def meta_test(agent: Agent, config: Config, library: TaskLibrary, split: str, seed: int) -> MetaTest:
    """Runs ``config.evaluation.rollouts`` meta-tests of every task of ``split``, all in lock-step.

    Args:
        agent: what was learnt.
        config: environment and number of trajectories and rollouts.
        library: the tasks.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        seed: of the draws of z; nothing here moves the generators of training.

    Examples:
        >>> from peach_trl.experiment import Config, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(Config, "peach", "configs", ["env.horizon=40"])
        >>> library = make_library(config)
        >>> agent = make_agent(config, library)
        >>> result = meta_test(agent, config, library, "validation", seed=0)
        >>> result.returns.shape  # 15 tasks x 4 rollouts, 3 trajectories
        torch.Size([60, 3])
    """
    tests = library.subset(library.split(split), repeats=config.evaluation.rollouts)  # one entry a rollout
    policy = agent.make_policy(tests.num_tasks, seed=seed)
    posterior = policy.posterior
    tasks = torch.arange(tests.num_tasks)
    lockstep = Lockstep(make_env(config, tests, tasks, policy), policy)
    returns, success, positions, subgoals = [], [], [], []
    for _ in range(config.evaluation.trajectories):
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            lockstep.reset()
            batch = lockstep.run(config.env.horizon)
        value, solved = _first_episode(batch, lockstep.base.goal_space, tests.parameters)
        returns.append(value / config.env.horizon)
        success.append(solved.float())
        positions.append(agent.hierarchy.subgoal_space.project(batch["next", "observation"]))
        if agent.hierarchy.depth > 1:
            subgoals.append(batch["hierarchy", "goal"][:, :, 0])
        update_posterior(policy, batch, config, seed)
    lockstep.env.close()
    loc, scale = (None, None) if posterior is None else posterior.posterior(tasks)
    return MetaTest(
        task_ids=tests.source_ids,
        returns=torch.stack(returns, 1),
        success=torch.stack(success, 1),
        positions=torch.stack(positions, 1),
        subgoals=torch.stack(subgoals, 1) if subgoals else None,
        loc=loc,
        scale=scale,
        goal_space=lockstep.base.goal_space,
    )


def update_posterior(policy: HierarchyPolicy, batch: TensorDictBase, config: Config, seed: int) -> None:
    """Multiplies what whole recorded trajectories [R, T] show into their tasks' posteriors, if there is a z."""
    if policy.posterior is not None:
        top = LevelTransitions(policy.actor.hierarchy, config.transitions, seed)(batch)[-1]
        policy.posterior.update(top[(top["kind"] == HINDSIGHT_ACTION).squeeze(-1)])


def _first_episode(batch: TensorDictBase, space: GoalSpace | None, goals: Tensor) -> tuple[Tensor, Tensor]:
    """Return and success, [R] each, of the first episode of every row of a recorded batch [R, T]."""
    reward, done = batch["next", "reward"].squeeze(-1), batch["next", "done"].squeeze(-1).long()
    within = done.cumsum(1) - done == 0
    last, rows = within.sum(1) - 1, torch.arange(len(reward))
    if space is None:
        solved = reward[rows, last] > 0
    else:
        solved = space.achieved(batch["next", "observation"][rows, last], goals)
    return (reward * within).sum(1), solved
