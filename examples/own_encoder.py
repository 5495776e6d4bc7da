"""A context encoder of your own in PEACH, without touching the package.

    PYTHONPATH=examples python recipes/peach.py context.encoder=own_encoder:OwnEncoder

Checkpoints keep the name, so `recipes/evaluate.py` and `recipes/video.py` find the class in the same way. In your own
code, hand the module over as an object: `make_agent(config, library, encoder=OwnEncoder(spec, 2, 10))`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrl.data import TensorSpec


class OwnEncoder(nn.Module):
    """Any module that maps the four parts of a top-level transition to ``out_features`` numbers.

    Here: how far the decision came, and what was rewarded, each through a layer of its own.

    Args:
        observation_spec: spec of the observation, [..., D].
        action_dim: dimensions of the top level's proposal, P.
        out_features: what the belief needs: 2 x latent_dim for a product of Gaussians.
    """

    def __init__(self, observation_spec: TensorSpec, action_dim: int, out_features: int) -> None:
        super().__init__()
        dim = observation_spec.shape[-1]
        self.place, self.reward = nn.Linear(2 * dim + action_dim, 64), nn.LazyLinear(64)
        self.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, out_features))

    def forward(self, observation: Tensor, action: Tensor, evidence: Tensor, next_observation: Tensor) -> Tensor:
        """[..., D], [..., P], [..., E] and [..., D] to [..., out_features]."""
        place = self.place(torch.cat([observation, action, next_observation], -1))
        return self.head(place.tanh() * self.reward(evidence).sigmoid())
