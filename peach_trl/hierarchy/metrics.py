"""How each level fares, read off a recorded batch."""

from __future__ import annotations

from typing import cast

import torch
from tensordict import TensorDictBase

from peach_trl.envs.goal_space import GoalSpace
from peach_trl.hierarchy.structure import Hierarchy


def level_metrics(hierarchy: Hierarchy, batch: TensorDictBase) -> dict[str, float]:
    """Success of each level on its own goals, and the share of proposals that were tested.

    Args:
        hierarchy: the hierarchy that recorded the batch.
        batch: recorded steps [N, T].

    Returns:
        ``success/level_i``: share of the attempts that ended with the goal achieved, for each level that has one;
        ``distance/level_i``: how far from its goal an attempt ended, on average, in the units of the goal space;
        ``tested/level_i``: share of the proposals to level i that were tested; nothing of these for a flat policy.
        ``failures``: share of the episodes that ended with the body failing, where the environment says so.

    Examples:
        >>> import torch
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", overrides=["env.horizon=40"])
        >>> library = make_library(config)
        >>> agent = make_agent(config, library)
        >>> policy = agent.make_policy()
        >>> batch = make_env(config, library, torch.arange(3), policy).rollout(40, policy)
        >>> sorted(level_metrics(agent.hierarchy, batch))
        ['distance/level_0', 'success/level_0', 'tested/level_0']
    """
    columns, failed = {}, batch.get(("next", "failed"), None)
    if failed is not None:
        columns["failures"] = (failed.sum() / batch["next", "done"].sum().clamp(min=1)).item()
    if hierarchy.depth == 1 and hierarchy.goal_space is None:
        return columns
    achieved, end, _ = hierarchy.recorded_ends(batch)
    reached = batch["next", "observation"]
    for level in range(hierarchy.depth if hierarchy.goal_space is not None else hierarchy.top):
        ended = end[..., level]
        columns[f"success/level_{level}"] = ((achieved[..., level] & ended).sum() / ended.sum().clamp(min=1)).item()
        space = cast(GoalSpace, hierarchy.space_of(level))
        goal = batch["hierarchy", "goal"][..., level, :] if level < hierarchy.top else batch["goal"]
        left = torch.linalg.vector_norm(space.project(reached) - goal, dim=-1)
        columns[f"distance/level_{level}"] = ((left * ended).sum() / ended.sum().clamp(min=1)).item()
    for level in range(hierarchy.top):
        proposed = batch["hierarchy", "acts"][..., level + 1]
        tested = batch["hierarchy", "tested"][..., level] & proposed
        columns[f"tested/level_{level}"] = (tested.sum() / proposed.sum().clamp(min=1)).item()
    return columns
