"""What both kinds of levels need: target networks, the parameters of a loss, batches on their device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from peach_trl.levels.adam import FusedAdam
from peach_trl.levels.errors import NotFiniteGradients, NotFiniteLossError
from peach_trl.modules.networks import Features
from peach_trl.modules.normaliser import Normaliser
from peach_trl.modules.slow_copy import follow


class Targets:
    """What TorchRL's ``SoftUpdate`` does, in one call for all tensors: targets follow their networks at the rate tau.

    Args:
        loss: with parameters ``target_x_params`` that are to follow ``x_params``.
        tau: the rate, 0 to 1.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach")
        >>> top = make_agent(config, make_library(config)).top
        >>> targets = Targets(top.loss, tau=0.02)
        >>> targets.step()
    """

    def __init__(self, loss: LossModule, tau: float) -> None:
        self.loss, self.tau = loss, tau
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None
        for name in loss._has_update_associated:  # which TorchRL asks for, and warns of
            loss._has_update_associated[name] = True

    def step(self) -> None:
        """Target <- (1 - tau) target + tau source."""
        if self._pairs is None:
            pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
            for name, targets in self.loss.named_children():
                if name.startswith("target_") and name.endswith("_params"):
                    sources = getattr(self.loss, name.removeprefix("target_"))
                    for key, source in cast(TensorDictBase, sources).items(True, True):
                        if isinstance(source, nn.Parameter):
                            pairs[0].append(cast(Any, targets).get(key).detach())
                            pairs[1].append(source.detach())
            self._pairs = pairs
        follow(*self._pairs, self.tau)

    def forget(self) -> None:
        """To be called when the loss's tensors have become others, as on another device."""
        self._pairs = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pairs": None}


def leaves(params: TensorDictBase) -> list[Tensor]:
    """The parameters in a TensorDict of parameters, each once."""
    return [p for p in params.values(True, True) if isinstance(p, nn.Parameter)]


def on_device(batch: TensorDictBase, device: torch.device) -> TensorDictBase:
    """A batch on a device; itself where it is there, whether or not it says so."""
    first = next(value for value in batch.values() if isinstance(value, Tensor))
    return batch if first.device == device else batch.to(device)


def normalisers(module: nn.Module, steps: int, seeds: int | None = None) -> nn.ModuleList:
    """A normaliser for each kind of features within a module that normalise, told apart by their names.

    Args:
        module: networks.
        steps: environment steps of each agent that its statistics are of.
        seeds: of how many agents they are.
    """
    kinds = {
        name.rpartition(".")[2]: part
        for name, part in module.named_modules()
        if isinstance(part, Features) and part.normalises
    }
    return nn.ModuleList(Normaliser(part, name, steps * (seeds or 1)) for name, part in kinds.items())


class Learner(nn.Module):
    """What learns by itself: losses and optimisers hold its parameters, which must stay the same ones."""

    acts = "Its actor"  # what can be copied

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Weights of another one, copied into this one's.

        Raises:
            ValueError: with ``assign``, which would part actors from the losses and optimisers that train them.
        """
        if assign:
            raise ValueError(
                "assign = True: losses and optimisers would go on with the weights of before; leave it out"
            )
        return super().load_state_dict(state_dict, strict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Learner:
        """Refused: TensorDict's parameters would be copied twice, and what acts would be trained by nothing."""
        name = type(self).__name__
        raise TypeError(
            f"{'an' if name[0] in 'AEIOU' else 'a'} {name} cannot be deep-copied, as its copy would not learn; make "
            f"another one and load state_dict() or training_state(). {self.acts} can"
        )


class Level(Learner):
    """What both kinds of levels have in common: an optimiser and targets, which follow the networks to a device."""

    optimiser: FusedAdam
    targets: Targets
    normalisers: nn.ModuleList
    name = "level"
    _share = 1.0  # of the learning rates, to which they have fallen
    _doing: tuple[Any, Any] = (None, {})  # the batch and the losses of the gradient step that is under way

    def _descend(self) -> None:
        """The optimiser's step.

        Raises:
            NotFiniteLossError: if a gradient is not finite; nothing is changed then.
        """
        (batch, losses), self._doing = self._doing, (None, {})
        try:
            self.optimiser.step()
        except NotFiniteGradients:
            raise NotFiniteLossError(self.name, losses, batch) from None
        finally:
            self.optimiser.zero_grad()  # else what is not finite would be part of the next gradient

    def see(self, observation: Tensor) -> None:
        """Takes observations [..., D] into the statistics by which the networks normalise what has no bounds."""
        for normaliser in cast(Sequence[Normaliser], self.normalisers):
            if normaliser.see(observation):
                normaliser.write(self)

    def training_state(self) -> dict[str, Any]:
        """What an exact resume needs besides the ``state_dict()``: the optimiser's state, and what is left of rates."""
        return {"optimiser": self.optimiser.state_dict(), "share": self._share}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`training_state` gave, into a level as it was made; rates are a share of its own."""
        rates = [group["lr"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        self._share = state["share"]
        self._set_rates(rates)

    @property
    def device(self) -> torch.device:
        """Where the networks are; batches are moved there."""
        return self.optimiser.param_groups[0]["params"][0].device

    def _lower_rates(self, rates: Sequence[float], end: float, progress: float) -> None:
        """Learning rates, one a group of the optimiser, that fall linearly to the share ``end`` of themselves."""
        self._share = 1 - (1 - end) * progress
        self._set_rates(rates)

    def _set_rates(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = self._share * rate

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        super()._apply(fn, *args, **kwargs)
        self.targets.forget()
        self.optimiser.forget()
        return self
