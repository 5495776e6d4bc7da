"""Collection of experience without a TensorDict a step, where an environment can do without."""

from peach_trl.collectors.lockstep import Lockstep, LockstepCollector, PlainActs, PlainSteps
from peach_trl.collectors.rollout import rollout
from peach_trl.collectors.workers import worker_collector

__all__ = ["Lockstep", "LockstepCollector", "PlainActs", "PlainSteps", "rollout", "worker_collector"]
