"""Meta-test by trajectory: what an agent gains, episode by episode, on tasks that it was not trained on.

Protocol: PEARL (Rakelly et al. 2019, arXiv 1903.08254). Trajectory 1 knows nothing of the task; what a trajectory
shows is known from then on: within it, where the belief is read at every decision, or before the next one. The policy
does not explore, apart from draws of z.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.collectors.rollout import require_count, rollout
from peach_trl.context.tracker import BeliefTracker
from peach_trl.declared import declared
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.hierarchy.policy import HierarchyPolicy

COLUMNS = ("split", "task", "rollout", "trajectory", "return", "success", "found")


@dataclass(frozen=True)
class MetaTest:
    """Results of R meta-tests of K trajectories of T steps.

    Attributes:
        task_ids: [R], ids in the library that was tested.
        goals: [R, P], the parameters of these tasks.
        returns: [R, K], sum of the rewards, divided by the horizon: where rewards are 0 or 1, the share of the highest.
        success: [R, K], whether the episode ended in the task's goal; where the environment says ``success`` of each
            step, what it said of the last one; without a goal space, whether it ended with a positive reward.
        found: [R, K], whether any of its rewards was positive; where the environment says ``success``, whether any step
            was one, as Meta-World counts it.
        positions: [R, K, T, G], the path, projected to the subgoal space; it stays where a shorter episode ended.
            Observations as they are, where the policy is no hierarchy.
        subgoals: [R, K, T, h, G] in force, bottom level first, or ``None`` at depth 1.
        loc: [R, Z], mean of q(z | c) in the end, or ``None`` without a context variable.
        scale: [R, Z], its standard deviation.
        failed: [R, K], whether the body failed, which ended the episode; ``None`` where nothing is said of failures.
        goal_space: the environment's, or ``None`` where tasks are no states to reach.
    """

    task_ids: Tensor
    goals: Tensor
    returns: Tensor
    success: Tensor
    found: Tensor
    positions: Tensor
    subgoals: Tensor | None
    loc: Tensor | None
    scale: Tensor | None
    failed: Tensor | None
    goal_space: GoalSpace | None

    def of_seeds(self, seeds: int, num_tasks: int) -> list[MetaTest]:
        """The results of each seed's agent, its tasks numbered as in the library of ``num_tasks`` that each has."""
        if seeds == 1:
            return [self]
        columns: dict[str, Any] = {
            field.name: [value] * seeds if not isinstance(value, Tensor) else value.chunk(seeds)
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        columns["task_ids"] = (self.task_ids % num_tasks).chunk(seeds)
        return [MetaTest(**{name: column[seed] for name, column in columns.items()}) for seed in range(seeds)]

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Means over tasks and rollouts, by trajectory number from 1; ``prefix`` begins each name."""
        columns = {}
        for k in range(self.returns.shape[1]):
            columns[f"{prefix}return/trajectory_{k + 1}"] = self.returns[:, k].mean().item()
            columns[f"{prefix}success/trajectory_{k + 1}"] = self.success[:, k].mean().item()
            if self.failed is not None:
                columns[f"{prefix}failures/trajectory_{k + 1}"] = self.failed[:, k].mean().item()
        return columns

    def save_csv(self, path: Path | str, split: str) -> None:
        """Writes a row for each task, rollout (from 0) and trajectory (from 1), with the columns ``COLUMNS``."""
        seen: dict[int, int] = {}
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row, task in enumerate(self.task_ids.tolist()):
                rollout = seen[task] = seen.get(task, -1) + 1
                for k in range(self.returns.shape[1]):
                    values = (float(column[row, k]) for column in (self.returns, self.success, self.found))
                    writer.writerow([split, task, rollout, k + 1, *(f"{value:.6g}" for value in values)])


@torch.no_grad()
def meta_test(
    policy: nn.Module,
    env: EnvBase,
    trajectories: int,
    horizon: int | None = None,
    *,
    observation_key: NestedKey = "observation",
    reward_key: NestedKey = "reward",
    task_key: NestedKey = "task_id",
) -> MetaTest:
    """Runs a meta-test on every row of an environment, all in lock-step: its first ``trajectories`` episodes.

    Args:
        policy: a hierarchy, or any other TensorDictModule; of a belief tracker in it, meta-episodes are at least
            ``trajectories`` long.
        env: any TorchRL environment whose episodes end; each row is a meta-test of its task, ``task_id`` [N, 1] among
            the observations (else the row's number). Rows of the same task differ where z is drawn. What it has of
            ``library`` (the tasks' parameters), ``goal_space`` and ``horizon`` is used. It is closed in the end.
        trajectories: K.
        horizon: the most steps of an episode; ``None`` for ``env.horizon``.
        observation_key: of the observation [N, D], whose course is ``positions``.
        reward_key: of the reward [N, 1].
        task_key: of the task, int64 [N, 1].

    Raises:
        ValueError: if the policy's meta-episodes are shorter than ``trajectories``, the horizon is not known, or
            episodes are longer; and for none of either.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", overrides=["env.horizon=40"])
        >>> library = make_library(config)
        >>> policy = make_agent(config, library).make_policy(trajectories=3)
        >>> result = meta_test(policy, make_env(config, library, library.split("validation")), trajectories=3)
        >>> result.returns.shape  # 60 tasks, 3 trajectories
        torch.Size([60, 3])
    """
    hierarchy = policy.actor.hierarchy if isinstance(policy, HierarchyPolicy) else None
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        batch, steps, length, tracker = played(policy, env, trajectories, horizon)
    task_ids, goals, goal_space = *tasks_of(env, batch, task_key), declared(env, "goal_space")

    def by_episode(values: Tensor) -> Tensor:
        return values[torch.arange(len(values)).view(-1, 1, 1), steps]  # [R, K, T, ...]

    following: Any = batch["next"]
    reached, within = by_episode(following[observation_key]), torch.arange(steps.shape[-1]) < length.unsqueeze(-1)
    reward = by_episode(following[reward_key].squeeze(-1))
    last, reward = reward[..., -1] > 0, reward * within
    if goal_space is not None and goals.shape[-1] == goal_space.dim:  # else where the goals are is not known
        last = goal_space.achieved(reached[:, :, -1], goals.unsqueeze(1))
    found, said = reward > 0, following.get("success", None)
    if said is not None:
        said = by_episode(said.squeeze(-1) > 0)
        found, last = said & within, said[..., -1]  # of an episode that ends early the last step is repeated
    loc = scale = None
    if tracker is not None:
        loc, scale = tracker.belief.posterior(tracker.after(batch[torch.arange(len(goals)), steps[:, -1, -1]]))
    failed = following.get("failed", None)
    return MetaTest(
        task_ids=task_ids,
        goals=goals,
        returns=reward.sum(-1) / steps.shape[-1],
        success=last.float(),
        found=found.any(-1).float(),
        positions=reached if hierarchy is None else hierarchy.subgoal_space.project(reached),
        subgoals=by_episode(batch["hierarchy", "goal"]) if hierarchy is not None and hierarchy.depth > 1 else None,
        loc=loc,
        scale=scale,
        failed=None if failed is None else by_episode(failed.squeeze(-1)).any(-1).float(),
        goal_space=goal_space,
    )


def played(
    policy: nn.Module, env: EnvBase, trajectories: int, horizon: int | None = None
) -> tuple[TensorDictBase, Tensor, Tensor, BeliefTracker | None]:
    """The steps of a meta-test on every row; arguments and errors: see :func:`meta_test`.

    Returns:
        ``(batch, steps, length, tracker)``: what was recorded, [R, S]; where in it each episode's steps are, int64
        [R, K, T], the last one repeated where it is shorter; its number of steps, [R, K]; and what keeps the belief.
    """
    parts = policy.modules() if isinstance(policy, nn.Module) else ()  # TorchRL's RandomPolicy is none
    tracker = next((part for part in parts if isinstance(part, BeliefTracker)), None)
    horizon = declared(env, "horizon") if horizon is None else horizon
    require_count("trajectories", trajectories)
    if tracker is not None and tracker.trajectories < trajectories:
        raise ValueError(
            f"trajectories = {trajectories}: this policy forgets the task after {tracker.trajectories}; make it with "
            f"make_policy(trajectories={trajectories}), or its tracker"
        )
    if horizon is None:
        raise ValueError(f"horizon: {type(env).__name__} has none; say how many steps an episode has at most")
    require_count("horizon", horizon)
    try:
        batch = rollout(env, policy, trajectories * horizon)
    finally:
        env.close()
    batch = batch if batch.ndim > 1 else batch.unsqueeze(0)
    return batch, *_episodes(batch["next", "done"].squeeze(-1), trajectories, horizon), tracker


def tasks_of(env: EnvBase, batch: TensorDictBase, key: NestedKey = "task_id") -> tuple[Tensor, Tensor]:
    """The tasks that rows played, [R], and their parameters [R, P]; P is 0 where these are not known."""
    shown, library = batch.get(key, None), declared(env, "library")
    task_ids = torch.arange(len(batch)) if shown is None else shown[:, 0].flatten()
    return task_ids, torch.zeros(len(batch), 0) if library is None else library.parameters[task_ids]


def _episodes(done: Tensor, number: int, horizon: int) -> tuple[Tensor, Tensor]:
    """The steps of the first episodes of rows [R, number * horizon].

    Returns:
        ``(steps, length)``: indices [R, number, horizon], the last step of a short episode repeated, and [R, number].
    """
    episode = done.long().cumsum(1) - done.long()
    which = torch.arange(number).view(1, -1, 1)
    length = (episode.unsqueeze(1) == which).sum(-1)
    first = (episode.unsqueeze(1) < which).sum(-1)
    if length.min() < 1 or length.max() > horizon:
        raise ValueError(f"horizon = {horizon}: an episode has {int(length.max())} steps or more; it must be the most")
    if not done.gather(1, first + length - 1).all():
        raise ValueError(f"horizon = {horizon}: an episode goes on after so many steps; it must be the most it has")
    return first.unsqueeze(-1) + torch.minimum(torch.arange(horizon), length.unsqueeze(-1) - 1), length
