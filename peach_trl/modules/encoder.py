"""The context encoder q_phi(z | c): one Gaussian per transition, multiplied with the prior N(0, I).

Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254, section 4.1), here with the prior as one of the factors, so that
an empty context gives the prior itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.nn.functional import softplus
from torchrl.data import TensorSpec
from torchrl.modules import MLP

from peach_trl.config import option
from peach_trl.modules.networks import observation_scale


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the context encoder; see ``configs/`` for values and comments."""

    latent_dim: int = option(low=0, help="dimensions of the context variable z; 0 is no context at all (HAC)")
    cells: tuple[int, ...] = option(low=1, help="units of the encoder's hidden layers")
    min_scale: float = option(above=0, help="smallest standard deviation of one transition's Gaussian")


def product_of_gaussians(precision: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a Gaussian given in natural parameters.

    A product of Gaussians adds up their precisions 1 / sigma^2 and their shifts mu / sigma^2, in any order.

    Args:
        precision: summed precisions, the prior's included, [..., Z].
        shift: summed shifts, [..., Z].

    Examples:
        >>> loc, scale = product_of_gaussians(torch.tensor([1.0 + 3.0]), torch.tensor([0.0 + 3.0 * 2.0]))
        >>> loc.item(), scale.item()  # N(0, 1) times N(2, 1 / 3)
        (1.5, 0.5)
    """
    return shift / precision, precision.rsqrt()


class ContextEncoder(TensorDictModuleBase):
    """q_phi(z | c), a TensorDictModule from a context to the posterior's ``z_loc`` and ``z_scale``.

    Reads, from a TensorDict of batch size [M], ``("context", "observation" | "action")``, ``("context", "next",
    "observation" | "reward")`` and ``("context", "mask")``, bool [M, C], False where there is no transition; writes
    ``z_loc`` and ``z_scale``, [M, Z].

    Args:
        observation_spec: spec of the observation, [..., D]; a bounded one gives the scale of the network's input.
        action_dim: dimensions of the top level's proposal.
        config: latent dimension and network.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Unbounded
        >>> encoder = ContextEncoder(Unbounded((4,)), 2, EncoderConfig(latent_dim=5, cells=(32,), min_scale=1e-3))
        >>> context = TensorDict({"observation": torch.randn(3, 7, 4), "action": torch.randn(3, 7, 2),
        ...     "mask": torch.zeros(3, 7, dtype=torch.bool),
        ...     "next": {"observation": torch.randn(3, 7, 4), "reward": torch.randn(3, 7, 1)}}, [3, 7])
        >>> posterior = encoder(TensorDict({"context": context}, [3]))
        >>> posterior["z_loc"].shape, bool((posterior["z_loc"] == 0).all()), bool((posterior["z_scale"] == 1).all())
        (torch.Size([3, 5]), True, True)
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey] = ["z_loc", "z_scale"]
    scale: Tensor

    def __init__(self, observation_spec: TensorSpec, action_dim: int, config: EncoderConfig) -> None:
        super().__init__()
        if config.latent_dim < 1:
            raise ValueError(f"context.latent_dim = {config.latent_dim}: a context encoder needs at least 1 dimension")
        self.latent_dim, self.min_scale = config.latent_dim, config.min_scale
        self.in_keys = [("context", key) for key in ("observation", "action", "mask")]
        self.in_keys += [("context", "next", "observation"), ("context", "next", "reward")]
        self.register_buffer("scale", observation_scale(observation_spec))
        features = 2 * observation_spec.shape[-1] + action_dim + 1
        self.net = MLP(features, 2 * config.latent_dim, num_cells=list(config.cells), activation_class=torch.nn.ReLU)

    def factors(self, observation: Tensor, action: Tensor, reward: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
        """Each transition's Gaussian in natural parameters: ``(precision, shift)``, [..., Z] each.

        Args:
            observation: s, [..., D].
            action: the top level's proposal, [..., P].
            reward: r, [..., 1].
            reached: s', [..., D].
        """
        features = torch.cat([observation * self.scale, action, reward, reached * self.scale], -1)
        loc, scale = self.net(features).chunk(2, -1)
        precision = (softplus(scale) + self.min_scale).pow(-2)
        return precision, loc * precision

    def factors_of(self, transitions: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The same for a TensorDict of top-level transitions, of any batch size."""
        return self.factors(
            transitions.get("observation"),
            transitions.get("action"),
            transitions.get(("next", "reward")),
            transitions.get(("next", "observation")),
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes ``z_loc`` and ``z_scale``; see the class."""
        precision, shift = self.natural(tensordict.get("context"))
        loc, scale = product_of_gaussians(precision, shift)
        return tensordict.set("z_loc", loc).set("z_scale", scale)

    def natural(self, context: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The posterior given a context [M, C], prior included, in natural parameters, [M, Z] each."""
        precision, shift = self.factors_of(context)
        mask = context.get("mask").unsqueeze(-1)
        assert precision.shape[:-1] == mask.shape[:-1], (precision.shape, mask.shape)
        return 1 + (precision * mask).sum(-2), (shift * mask).sum(-2)


def sample_latent(loc: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Draws z ~ N(loc, scale^2), reparametrised, [..., Z]."""
    return loc + scale * torch.randn(loc.shape, generator=generator)
