"""The belief about the task: what is known of it after the decisions so far, as a state that grows with evidence.

A belief has a state, one vector of numbers, which is zero where nothing is known, takes in one decision of the top
level after the other, and gives a Gaussian over the context variable z at any time. There are three:

- :class:`GaussianProduct`: PEARL's product of Gaussians, one a transition (Rakelly et al. 2019, arXiv 1903.08254,
  section 4.1), here with the prior N(0, I) as one of the factors;
- :class:`~peach_trl.context.kinds.Attention`: learnt queries over the transitions (Lee et al. 2019, Set Transformer,
  arXiv 1810.00825, section 3.2: pooling by attention);
- :class:`~peach_trl.context.kinds.Recurrent`: a GRU, as RL^2 (Duan et al. 2016, arXiv 1611.02779) and VariBAD (Zintgraf
  et al. 2020, arXiv 1910.08348) have it.

The first two do not depend on the order of the decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from peach_trl.config import ConfigError, imported, option
from peach_trl.context.encoder import ContextEncoder, Transition
from peach_trl.context.products import Products, exponential
from peach_trl.hierarchy.evidence import Evidence

EVIDENCE = ("reward", "peak")
BELIEFS = ("product", "attention", "recurrent")


@dataclass(frozen=True)
class BeliefConfig:
    """The context variable, its encoder and the belief; see ``configs/`` for values and comments."""

    latent_dim: int = option(low=0, high=64, help="dimensions of the context variable z; 0 is no context at all")
    belief: str = option(choices=BELIEFS, help="how the decisions so far are summed up")
    encoder: str | None = option(help="an encoder of one's own, module:Class; null for ContextEncoder")
    evidence: str = option(
        choices=EVIDENCE, help="what it reads of a decision's rewards: their sum, or also the highest and its state"
    )
    reward_factor: float = option(above=0, auto=True, help="further factor on the scaled rewards that it reads")
    cells: tuple[int, ...] = option(low=1, high=10**6, help="units of the encoder's hidden layers")
    norm: bool = option(help="layer normalisation in the encoder")
    bf16: bool = option(help="compute the encoder in bfloat16")
    precision: str = option(
        choices=("exponential", "softplus"), help="belief=product: the precision of one factor as a function of x"
    )
    features: int = option(low=1, high=10**6, help="belief=attention | recurrent: size of a transition's embedding")
    decisions: int | None = option(
        low=1, high=10**6, help="the belief is made of the last so many decisions; null: of all"
    )

    def evidence_dim(self, observation_dim: int) -> int:
        """How many numbers the encoder reads of a decision's rewards, E."""
        return Evidence(peak=self.evidence == "peak").dim(observation_dim)

    def check(self) -> None:
        """Refuses a window where there is none, and an encoder that is not there."""
        if self.encoder is not None:
            imported("encoder", self.encoder)
        if self.belief == "recurrent" and self.decisions is not None:
            raise ConfigError(
                f"decisions = {self.decisions}: a recurrent belief cannot forget; set it to null, or belief=product"
            )


class Belief(nn.Module):
    """Base class: what trackers, losses and meta-tests ask of a belief.

    Subclasses set ``state_dim`` and give :meth:`update`, :meth:`scan` and :meth:`posterior`.

    Args:
        encoder: maps (s, a, r, s') to what a single transition says.
        latent_dim: dimensions of z, Z.
    """

    state_dim: int

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim = {latent_dim}: a belief needs at least 1 dimension; leave it out for none")
        self.encoder, self.latent_dim = encoder, latent_dim

    def initial(self, *batch_size: int) -> Tensor:
        """The state where nothing is known, zeros [..., S], of ``batch_size``."""
        return next(self.parameters()).new_zeros(*batch_size, self.state_dim)

    def check_state(self, state: Tensor) -> None:
        """Raises a ValueError for what is no state of this belief, [..., S]."""
        if state.shape[-1] != self.state_dim:
            raise ValueError(f"state of shape {list(state.shape)}: one of this belief has {self.state_dim} numbers")

    def update(self, state: Tensor, transition: Transition) -> Tensor:
        """The state [..., S] after one more transition, [..., S]."""
        raise NotImplementedError

    def scan(self, transitions: Transition, mask: Tensor | None = None) -> Tensor:
        """The states before, between and after L transitions: [..., L + 1, S].

        Args:
            transitions: [..., L, ...], in order of time, of any leading dimensions.
            mask: bool [..., L], False where there is no transition. A recurrent belief and a window want the
                transitions of a row first.
        """
        raise NotImplementedError

    def posterior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | c) for states [..., S], [..., Z] each."""
        raise NotImplementedError

    def trace(self, transitions: Transition, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The posteriors before, between and after L transitions: mean and deviation, [..., L + 1, Z] each."""
        return self.posterior(self.scan(transitions, mask))

    def read(self, state: Tensor, noise: Tensor | None = None) -> Tensor:
        """What a level reads of states [..., S]: the parameters of q, [..., 2 Z], or with ``noise`` a sample of it.

        Args:
            state: of the belief.
            noise: standard normal draws [..., Z], of which ``mean + deviation * noise`` is the sample z ~ q(z | c).
        """
        return reading(*self.posterior(state), noise)

    def forward(self, transitions: Transition, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q(z | c) of whole contexts [..., L]: mean and standard deviation, [..., Z] each."""
        return self.posterior(self.scan(transitions, mask)[..., -1, :])


def reading(loc: Tensor, scale: Tensor, noise: Tensor | None = None) -> Tensor:
    """A Gaussian as a level reads it: b = [mean, log deviation], [..., 2 Z], or with noise a sample, [..., Z].

    Examples:
        >>> reading(torch.zeros(2), torch.ones(2)).tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    return torch.cat([loc, scale.log()], -1) if noise is None else loc + scale * noise


class SummedBelief(Belief):
    """A belief whose state is the sum of one vector a transition, so that a cumulative sum is all of a sequence.

    Subclasses give :meth:`statistics` [..., F] and :meth:`conclude`. With a window, the state holds the last
    ``decisions`` vectors instead of their sum.

    Args:
        encoder: as in :class:`Belief`.
        latent_dim: Z.
        size: F.
        decisions: the window; ``None`` for no limit.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, size: int, decisions: int | None = None) -> None:
        super().__init__(encoder, latent_dim)
        if decisions is not None and decisions < 1:
            raise ValueError(f"decisions = {decisions}: the window must hold at least 1; None for no limit")
        self.size, self.window = size, decisions
        self.state_dim = size * (decisions or 1)

    def statistics(self, transition: Transition) -> Tensor:
        """What each transition adds to the state, [..., F]."""
        raise NotImplementedError

    def conclude(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z given the sum [..., F] over all transitions that count."""
        raise NotImplementedError

    def update(self, state: Tensor, transition: Transition) -> Tensor:
        """See :meth:`Belief.update`."""
        self.check_state(state)
        added = self.statistics(transition)
        return state + added if self.window is None else torch.cat([state[..., self.size :], added], -1)

    def scan(self, transitions: Transition, mask: Tensor | None = None) -> Tensor:
        """See :meth:`Belief.scan`."""
        added = self.statistics(transitions.where(mask))
        if mask is not None:
            added = added * mask.unsqueeze(-1)
        if self.window is None:
            return pad(added.cumsum(-2), (0, 0, 1, 0))
        windows = pad(added, (0, 0, self.window, 0)).unfold(-2, self.window, 1)  # [B, L + 1, F, C]
        return stop(windows.transpose(-1, -2).flatten(-2), mask)

    def posterior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Belief.posterior`."""
        self.check_state(state)
        return self.conclude(state if self.window is None else state.unflatten(-1, (self.window, self.size)).sum(-2))


class GaussianProduct(SummedBelief):
    """The product of one Gaussian a transition and the prior N(0, I).

    A product of Gaussians adds up precisions lambda and precision-weighted means eta = lambda mu, in any order: after t
    transitions q has the precision Lambda_t = 1 + sum lambda_j and the mean sum eta_j / Lambda_t.

    Args:
        encoder: puts out (mu, x), 2 Z numbers.
        latent_dim: Z.
        decisions: the window; ``None`` for no limit.
        precision: ``"exponential"``: lambda = exp(x - 1), bounded to [e^-8, e^10]; ``"softplus"``: lambda = 1 /
            (softplus(x) + 0.001)^2, as PEARL has it.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> _ = torch.manual_seed(0)
        >>> belief = GaussianProduct(ContextEncoder(Unbounded((4,)), 2, out_features=2 * 5), latent_dim=5)
        >>> c = Transition(torch.randn(3, 7, 4), torch.randn(3, 7, 2), torch.randn(3, 7, 1), torch.randn(3, 7, 4))
        >>> states = belief.scan(c)
        >>> loc, scale = belief.posterior(states)
        >>> loc.shape, bool((loc[:, 0] == 0).all() and (scale[:, 0] == 1).all())  # the prior
        (torch.Size([3, 8, 5]), True)
        >>> belief.read(states).shape
        torch.Size([3, 8, 10])
    """

    def __init__(
        self, encoder: nn.Module, latent_dim: int, *, decisions: int | None = None, precision: str = "exponential"
    ) -> None:
        if precision not in ("exponential", "softplus"):
            raise ValueError(f"precision = {precision!r}: use exponential or softplus")
        if isinstance(encoder, ContextEncoder) and encoder.net.out != 2 * latent_dim:
            raise ValueError(
                f"out_features = {encoder.net.out} of the encoder: a product of Gaussians over latent_dim = "
                f"{latent_dim} needs {2 * latent_dim}, mean and precision of each"
            )
        super().__init__(encoder, latent_dim, 2 * latent_dim, decisions)
        self.precision = precision

    def statistics(self, transition: Transition) -> Tensor:
        """Each transition's factor: its precision lambda and lambda mu, [..., 2 Z]."""
        mu, x = self.encoder(*transition).chunk(2, -1)
        if self.precision == "exponential":
            precision = exponential(x)
        else:
            precision = (softplus(x) + 1e-3).pow(-2)
        return torch.cat([precision, precision * mu], -1)

    def trace(self, transitions: Transition, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Belief.trace`; encoder and product are one node of autograd, as there it is mostly overhead."""
        encoder = self.encoder
        if self.window is not None or self.precision != "exponential" or type(encoder) is not ContextEncoder:
            return super().trace(transitions, mask)
        x = encoder.features(*transitions.where(mask))
        given = () if mask is None else (mask,)
        loc, scale = encoder.net.ended(x, Products(x.shape[-2]), *given)
        shape = *transitions.observation.shape[:-2], *loc.shape[-2:]
        return loc.reshape(shape), scale.reshape(shape)

    def conclude(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """The product with the prior, [..., Z] each."""
        precision, precision_mean = total.chunk(2, -1)
        precision = 1 + precision
        return precision_mean / precision, precision.rsqrt()


def stop(states: Tensor, mask: Tensor | None) -> Tensor:
    """States [..., L + 1, S] that stay as they are behind the last transition of ``mask`` [..., L]."""
    if mask is None:
        return states
    if bool((mask[..., 1:] & ~mask[..., :-1]).any()):
        raise ValueError("this belief wants the transitions of its mask first: pack each row to the left")
    step = torch.arange(states.shape[-2], device=mask.device).minimum(mask.sum(-1, keepdim=True))
    return states.gather(-2, step.unsqueeze(-1).expand_as(states))
