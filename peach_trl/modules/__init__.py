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
from peach_trl.modules.normaliser import Normaliser
from peach_trl.modules.perceptron import Perceptron
from peach_trl.modules.slow_copy import SlowCopy
from peach_trl.modules.views import HeadingView, View, ViewsConfig

__all__ = [
    "BoundedValue",
    "CarriedState",
    "FeatureNet",
    "Features",
    "HeadingView",
    "NetworkConfig",
    "Normaliser",
    "Perceptron",
    "SlowCopy",
    "View",
    "ViewsConfig",
    "deterministic_actor",
    "observation_scale",
    "stochastic_actor",
]
