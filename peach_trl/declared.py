"""What an environment says of itself beside its specs, such as its subgoal space."""

from __future__ import annotations

from typing import Any

from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase


def declared(env: EnvBase, name: str, value: Any = None) -> Any:
    """An attribute of an environment, or of one that it transforms; ``value`` where there is none.

    TorchRL's :class:`~torchrl.envs.SerialEnv` and :class:`~torchrl.envs.ParallelEnv` ask their copies for what they
    have not themselves, and get functions or lists, or start processes: only what is set on them counts.

    Args:
        env: any environment.
        name: of the attribute.
        value: the default.

    Examples:
        >>> from torchrl.envs import GymEnv, RewardSum, SerialEnv, TransformedEnv
        >>> env = SerialEnv(2, lambda: GymEnv("Pendulum-v1"))
        >>> declared(TransformedEnv(env, RewardSum()), "horizon") is None
        True
        >>> env.horizon = 200
        >>> declared(TransformedEnv(env, RewardSum()), "horizon")
        200
    """
    if isinstance(env, (TransformedEnv, BatchedEnvBase)):
        own = name in vars(env) or name in dict(env.named_children()) or hasattr(type(env), name)
        if not own:
            return declared(env.base_env, name, value) if isinstance(env, TransformedEnv) else value
    return getattr(env, name, value)
