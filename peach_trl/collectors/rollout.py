"""Rollouts of any policy in any TorchRL environment, the fast way where there is one."""

from __future__ import annotations

from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, EnvBase, Transform, TransformedEnv
from torchrl.modules import get_primers_from_module

from peach_trl.collectors.lockstep import Lockstep


def rollout(env: EnvBase, policy: Any, steps: int) -> TensorDictBase:
    """Plays ``steps`` steps of each row from a reset on; rows that are done are reset on the way.

    Environments that can be stepped without a TensorDict are (:class:`~peach_trl.collectors.Lockstep`), with the same
    results; others by TorchRL's own ``EnvBase.rollout``.

    Args:
        env: any TorchRL environment, of batch size ``[N]`` or none.
        policy: a TensorDictModule; what state it carries from step to step is added to the environment.
        steps: T.

    Returns:
        a batch ``[N, T]``, or ``[T]`` for an environment without batch size.

    Raises:
        ValueError: for no steps.

    Examples:
        >>> from torchrl.envs import GymEnv, StepCounter
        >>> from torchrl.modules import RandomPolicy
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(max_steps=5))
        >>> batch = rollout(env, RandomPolicy(env.action_spec), 12)
        >>> batch.shape, int(batch["next", "done"].sum())
        (torch.Size([12]), 2)
    """
    require_count("steps", steps)
    env = with_state_of(policy, env)
    if Lockstep.takes(env, policy):
        return Lockstep(env, policy).run(steps)
    with torch.no_grad():
        return env.rollout(steps, policy, break_when_any_done=False, trust_policy=True)


def require_count(name: str, value: Any) -> None:
    """Raises a ValueError for what is no whole number from 1 on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} = {value!r}: must be a whole number, 1 or more")


def with_state_of(policy: Any, env: EnvBase) -> EnvBase:
    """The environment with what ``policy`` carries from step to step, where it is not there already."""
    if not hasattr(policy, "modules"):
        return env
    primers = cast(Transform | None, get_primers_from_module(policy, warn=False))
    if primers is None:
        return env
    single = list(primers) if isinstance(primers, Compose) else [primers]
    known = set(env.observation_spec.keys(True, True))
    wanted = [key for part in single for key in cast(Any, part).primers.keys(True, True)]
    return env if known.issuperset(wanted) else TransformedEnv(env, primers)
