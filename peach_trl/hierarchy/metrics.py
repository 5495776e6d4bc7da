"""How each level fares, read off a recorded batch."""

from __future__ import annotations

from tensordict import TensorDictBase

from peach_trl.hierarchy.structure import Hierarchy


def level_metrics(hierarchy: Hierarchy, batch: TensorDictBase) -> dict[str, float]:
    """Success of each level on its own goals, and the share of proposals that were tested.

    Args:
        hierarchy: the hierarchy that recorded the batch.
        batch: recorded steps [N, T].

    Returns:
        ``success/level_i``: share of the attempts that ended with the goal achieved, for each level that has one;
        ``tested/level_i``: share of the proposals to level i that were tested. Nothing for a flat policy.

    Examples:
        >>> import torch
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", "configs", ["env.horizon=40"])
        >>> library = make_library(config)
        >>> agent = make_agent(config, library)
        >>> policy = agent.make_policy()
        >>> batch = make_env(config, library, torch.arange(3), policy).rollout(40, policy)
        >>> sorted(level_metrics(agent.hierarchy, batch))
        ['success/level_0', 'tested/level_0']
    """
    if hierarchy.depth == 1:
        return {}
    achieved, end, _ = hierarchy.recorded_ends(batch)
    columns = {}
    for level in range(hierarchy.depth if hierarchy.goal_space is not None else hierarchy.top):
        ended = end[..., level]
        columns[f"success/level_{level}"] = ((achieved[..., level] & ended).sum() / ended.sum().clamp(min=1)).item()
    for level in range(hierarchy.top):
        proposed = batch["hierarchy", "acts"][..., level + 1]
        tested = batch["hierarchy", "tested"][..., level] & proposed
        columns[f"tested/level_{level}"] = (tested.sum() / proposed.sum().clamp(min=1)).item()
    return columns
