"""Collection of experience without a TensorDict a step."""

from peach_trl.collectors.lockstep import Lockstep, LockstepCollector

__all__ = ["Lockstep", "LockstepCollector"]
