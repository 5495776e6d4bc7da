"""The beliefs that learn how to sum up transitions, and what makes the one that a configuration names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchrl.data import TensorSpec

from peach_trl.config import imported
from peach_trl.context.belief import Belief, BeliefConfig, GaussianProduct, SummedBelief, stop
from peach_trl.context.encoder import ContextEncoder, Transition
from peach_trl.context.trial import try_encoder
from peach_trl.modules.views import View


class Attention(SummedBelief):
    """Attention over the transitions with learnt queries, one a head, and a token for knowing nothing.

    A query that does not depend on the state makes the attention's sums additive: the state holds, for each head, the
    sum of the weights exp(score) and the weighted sum of values.

    Args:
        encoder: puts out an embedding of ``features`` numbers.
        latent_dim: Z.
        features: size of the embedding, and of the values of all heads together.
        heads: number of queries; it divides ``features``.
        decisions: the window; ``None`` for no limit.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> belief = Attention(ContextEncoder(Unbounded((4,)), 2, out_features=32), latent_dim=5, features=32)
        >>> c = Transition(torch.randn(3, 7, 4), torch.randn(3, 7, 2), torch.randn(3, 7, 1), torch.randn(3, 7, 4))
        >>> loc, scale = belief(c)
        >>> loc.shape, scale.shape
        (torch.Size([3, 5]), torch.Size([3, 5]))
    """

    def __init__(
        self, encoder: nn.Module, latent_dim: int, *, features: int = 64, heads: int = 4, decisions: int | None = None
    ) -> None:
        if features % heads:
            raise ValueError(f"features = {features}: must be a multiple of heads = {heads}")
        super().__init__(encoder, latent_dim, heads + features, decisions)
        self.heads = heads
        self.score, self.value = nn.Linear(features, heads), nn.Linear(features, features)
        self.head = GaussianHead(features + heads, latent_dim, features)

    def statistics(self, transition: Transition) -> Tensor:
        """Each transition's weight by head, and its weighted values, [..., heads + features]."""
        embedding = self.encoder(*transition)
        weight = self.score(embedding).clamp(-8, 8).exp()
        value = self.value(embedding).unflatten(-1, (self.heads, -1)) * weight.unsqueeze(-1)
        return torch.cat([weight, value.flatten(-2)], -1)

    def conclude(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """The mean value of each head, nothing counting as a zero of weight 1, through a small network."""
        weight, value = 1 + total[..., : self.heads], total[..., self.heads :]
        mean = value.unflatten(-1, (self.heads, -1)) / weight.unsqueeze(-1)
        return self.head(torch.cat([mean.flatten(-2), weight.log()], -1))


class Recurrent(Belief):
    """A gated recurrent unit over the transitions; it may learn that order matters.

    Args:
        encoder: puts out an embedding of ``features`` numbers.
        latent_dim: Z.
        features: size of the embedding and of the recurrent state.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> belief = Recurrent(ContextEncoder(Unbounded((4,)), 2, out_features=32), latent_dim=5, features=32)
        >>> c = Transition(torch.randn(3, 7, 4), torch.randn(3, 7, 2), torch.randn(3, 7, 1), torch.randn(3, 7, 4))
        >>> belief.scan(c).shape
        torch.Size([3, 8, 32])
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, *, features: int = 64) -> None:
        super().__init__(encoder, latent_dim)
        self.state_dim = features
        self.gru = nn.GRU(features, features, batch_first=True)
        self.head = GaussianHead(features, latent_dim, features)

    def update(self, state: Tensor, transition: Transition) -> Tensor:
        """See :meth:`Belief.update`."""
        self.check_state(state)
        embedding = self.encoder(*transition)
        rows = state.reshape(1, -1, self.state_dim).contiguous()
        return self.gru(embedding.reshape(-1, 1, embedding.shape[-1]), rows)[0].view(state.shape)

    def scan(self, transitions: Transition, mask: Tensor | None = None) -> Tensor:
        """See :meth:`Belief.scan`; the transitions of ``mask`` must come first."""
        embedding = self.encoder(*transitions.where(mask))
        states = self.gru(embedding.reshape(-1, *embedding.shape[-2:]))[0].reshape(embedding.shape)
        return stop(pad(states, (0, 0, 1, 0)), mask)

    def posterior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Belief.posterior`."""
        self.check_state(state)
        return self.head(state)


class GaussianHead(nn.Module):
    """A layer of its own between features and a Gaussian over z, which starts as N(0, I).

    Args:
        features: size of the input.
        latent_dim: Z.
        cells: units of the hidden layer.
    """

    def __init__(self, features: int, latent_dim: int, cells: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, cells), nn.ReLU(), nn.Linear(cells, 2 * latent_dim))
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [..., Z] each."""
        loc, log_scale = self.net(features).chunk(2, -1)
        return loc, log_scale.clamp(-6, 3).exp()


class BeliefOfSeeds(Belief):
    """Several beliefs of one kind, one after the other: for those whose networks cannot be stacked.

    Args:
        belief: the first; the others are copies of it.
        seeds: how many. Each reads one of so many equal parts of what is handed over.
    """

    def __init__(self, belief: Belief, seeds: int) -> None:
        nn.Module.__init__(self)
        self.copies = nn.ModuleList([belief, *(copy.deepcopy(belief) for _ in range(seeds - 1))])
        self.latent_dim, self.state_dim = belief.latent_dim, belief.state_dim

    def _each(self, name: str, *inputs: Any) -> Any:
        """Calls a method of each belief with its part of the inputs, and joins the results."""
        count = len(self.copies)

        def part(value: Any, number: int) -> Any:
            if isinstance(value, Transition):
                return Transition(*(part(column, number) for column in value))
            return None if value is None else value.reshape(count, -1, *value.shape[1:])[number]

        found = [getattr(belief, name)(*(part(value, i) for value in inputs)) for i, belief in enumerate(self.copies)]
        if isinstance(found[0], tuple):
            return tuple(torch.cat(column) for column in zip(*found, strict=True))
        return torch.cat(found)

    def update(self, state: Tensor, transition: Transition) -> Tensor:
        """See :meth:`Belief.update`."""
        return self._each("update", state, transition)

    def scan(self, transitions: Transition, mask: Tensor | None = None) -> Tensor:
        """See :meth:`Belief.scan`."""
        return self._each("scan", transitions, mask)

    def posterior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Belief.posterior`."""
        return self._each("posterior", state)


def make_belief(
    config: BeliefConfig,
    observation_spec: TensorSpec,
    action_dim: int,
    encoder: nn.Module | None = None,
    seeds: int | None = None,
    view: View | None = None,
    normalise: bool = False,
) -> Belief:
    """The belief that ``config`` names, with the encoder that it names, or with ``encoder``.

    Args:
        config: kind and sizes.
        observation_spec: spec of s, [..., D].
        action_dim: dimensions of the top level's proposal, P.
        encoder: any module that maps (s, a, r, s') to what the belief needs: 2 Z numbers for ``product``,
            ``config.features`` for the others.
        seeds: with a number, the beliefs of so many agents at once.
        view: what our own encoder reads of an observation; ``None`` for all of it.
        normalise: whether what has no bounds is normalised there.

    Raises:
        ConfigError: if the encoder takes or puts out something else.
    """
    out = 2 * config.latent_dim if config.belief == "product" else config.features
    dim = observation_spec.shape[-1]
    evidence = config.evidence_dim(dim)
    own = encoder is not None or config.encoder is not None
    if seeds is not None and (own or config.belief != "product"):
        one = make_belief(config, observation_spec, action_dim, encoder, None, view, normalise)
        return BeliefOfSeeds(one, seeds)
    if encoder is None and config.encoder is not None:
        encoder = imported("encoder", config.encoder)(observation_spec, action_dim, out)
    if encoder is None:
        encoder = ContextEncoder(
            *(observation_spec, action_dim, out, config.cells, config.norm, evidence, view, normalise),
            seeds=seeds,
            bf16=config.bf16,
        )
    try_encoder(encoder, (dim, action_dim, evidence), out, seeds or 1)
    make: dict[str, Callable[[], Belief]] = {
        "product": lambda: GaussianProduct(
            encoder, config.latent_dim, decisions=config.decisions, precision=config.precision
        ),
        "attention": lambda: Attention(
            encoder,
            config.latent_dim,
            features=config.features,
            heads=next(heads for heads in (4, 3, 2, 1) if config.features % heads == 0),
            decisions=config.decisions,
        ),
        "recurrent": lambda: Recurrent(encoder, config.latent_dim, features=config.features),
    }
    return make[config.belief]()
