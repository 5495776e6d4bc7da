"""Networks of the levels, the context encoder, and the posterior over z."""

from peach_trl.modules.encoder import ContextEncoder, EncoderConfig, product_of_gaussians, sample_latent
from peach_trl.modules.networks import NetworkConfig, make_goal_level, make_top
from peach_trl.modules.posterior import PosteriorState

__all__ = [
    "ContextEncoder",
    "EncoderConfig",
    "NetworkConfig",
    "PosteriorState",
    "make_goal_level",
    "make_top",
    "product_of_gaussians",
    "sample_latent",
]
