"""Networks of the levels, and state of a policy that outlives an episode."""

from peach_trl.modules.carried import CarriedState
from peach_trl.modules.networks import (
    BoundedValue,
    FeatureNet,
    Features,
    NetworkConfig,
    deterministic_actor,
    observation_scale,
    stochastic_actor,
)
from peach_trl.modules.perceptron import Perceptron
from peach_trl.modules.slow_copy import SlowCopy

__all__ = [
    "BoundedValue",
    "CarriedState",
    "FeatureNet",
    "Features",
    "NetworkConfig",
    "Perceptron",
    "SlowCopy",
    "deterministic_actor",
    "observation_scale",
    "stochastic_actor",
]
