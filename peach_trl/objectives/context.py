"""Losses of a top level that reads a context: who learns from which gradient.

Algorithm 1: the encoder learns from L_critic and L_KL, never from L_actor (PEARL, Rakelly et al. 2019, arXiv
1903.08254, algorithm 1). Bootstrapped values read the context of the next decision, which has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives import SACLoss

from peach_trl.modules.networks import features_and_end
from peach_trl.objectives.sac import PlainSACLoss

if TYPE_CHECKING:
    from torchrl.objectives import LossModule

    _Loss = LossModule
else:
    _Loss = object


class ContextMixin(_Loss):
    """Routes gradients of a context through one of TorchRL's actor-critic losses, such as SACLoss or CrossQLoss.

    Put it before the loss among the base classes, and add the key ``context`` to the accepted keys. The loss must have
    a method ``actor_loss``, called by its ``forward``, as SACLoss, CrossQLoss and TD3Loss do.

    - ``actor_loss`` sees the context detached, and refuses any other input of actor and critics that carries a
      gradient: it would be the encoder's.
    - Critics see it with its gradient.
    - Targets see ``("next", context)`` detached: the belief after the decision. Where there is none, they see the same
      context as the critics, as PEARL has it.

    Examples:
        >>> from torchrl.objectives import CrossQLoss
        >>> class ContextCrossQLoss(ContextMixin, CrossQLoss):
        ...     @dataclass
        ...     class _AcceptedKeys(CrossQLoss._AcceptedKeys):
        ...         context: NestedKey = "belief"
        ...     default_keys = _AcceptedKeys
        >>> ContextCrossQLoss.default_keys().context
        'belief'
    """

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses, as the class behind the mixin has them, of a batch with a context."""
        key: NestedKey = self.tensor_keys.context  # type: ignore[attr-defined]
        now = tensordict.get(key, None)
        if now is None or self.is_plain(tensordict):
            return super().forward(tensordict)
        whole = tensordict.copy()
        after = whole.get(("next", *_path(key)), None)
        whole.set(("next", *_path(key)), (now if after is None else after).detach())
        losses = super().forward(whole)
        priority = getattr(self.tensor_keys, "priority", None)  # type: ignore[attr-defined]
        if priority is not None and (found := whole.get(priority, None)) is not None:
            tensordict.set(priority, found)  # where replay looks for it
        return losses

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_actor, with the context held fixed."""
        return super().actor_loss(self.held(tensordict))  # type: ignore[misc]

    def held(self, tensordict: TensorDictBase) -> TensorDictBase:
        """A batch whose context has no gradient.

        Raises:
            ValueError: if any other input of actor and critics has one.
        """
        key: NestedKey = self.tensor_keys.context  # type: ignore[attr-defined]
        context = tensordict.get(key, None)
        networks: Any = (self.actor_network, self.qvalue_network)
        for name in {name for network in networks for name in network.in_keys if name != key}:
            value = tensordict.get(name, None)
            if value is not None and value.requires_grad:
                raise self.refused(name)
        return tensordict if context is None else tensordict.copy().set(key, context.detach())

    def refused(self, name: NestedKey) -> ValueError:
        """The error of an input of the actor's that carries a gradient."""
        key: NestedKey = self.tensor_keys.context  # type: ignore[attr-defined]
        return ValueError(
            f"the actor's loss reads {name!r}, which carries a gradient: L_actor must not reach the encoder; "
            f"call set_keys(context={name!r}), or detach it (the context is {key!r} now)"
        )

    def is_plain(self, tensordict: TensorDictBase) -> bool:
        """Whether the loss computes on plain tensors, see :class:`~peach_trl.objectives.adapter.PlainMixin`."""
        return False


class ContextSACLoss(ContextMixin, PlainSACLoss):
    """TorchRL's ``SACLoss`` (Haarnoja et al. 2018, arXiv 1812.05905) for a top level that reads a context.

    The batch may have any shape, such as [decisions] or [tasks, decisions]. The context, ``belief`` [..., 2 Z] or by
    ``set_keys(context="z")`` a sample z [..., Z], is made *before* the loss is called: within a LossModule TorchRL
    turns draws into means. Without a context in the batch this is ``SACLoss`` itself, for HAC's and SAC's top levels.

    With ``missed`` bool [..., 1] in the batch there is one more loss, of decisions whose tested ``proposal`` [..., P]
    the level below missed: ``loss_test``, the mean over the batch of (Q(s, b, proposal) + penalty)^2 where missed,
    summed over the critics (HAC, Levy et al. 2019, arXiv 1712.00948, section 4.3; here a column, no row of its own).

    Args:
        args: as ``SACLoss`` has them.
        test_penalty: what a missed test costs, in scaled reward.
        kwargs: likewise; ``deactivate_vmap=True`` is the default, which is faster.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import NormalParamExtractor, TensorDictModule
        >>> from torch import nn
        >>> from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
        >>> from torchrl.objectives import ValueEstimators
        >>> class Concat(MLP):
        ...     def forward(self, *inputs):
        ...         return super().forward(torch.cat(inputs, -1))
        >>> class Policy(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net, self.head = Concat(4 + 5, 2 * 2), NormalParamExtractor()
        ...     def forward(self, *inputs):
        ...         return self.head(self.net(*inputs))
        >>> keys = ["observation", "z"]
        >>> actor = ProbabilisticActor(TensorDictModule(Policy(), keys, ["loc", "scale"]), in_keys=["loc", "scale"],
        ...     out_keys=["action"], distribution_class=TanhNormal, return_log_prob=True)
        >>> critics = [ValueOperator(Concat(4 + 5 + 2, 1), in_keys=[*keys, "action"]) for _ in range(2)]
        >>> loss = ContextSACLoss(actor, critics, fixed_alpha=True, alpha_init=0.1, target_entropy=-2.0)
        >>> loss.set_keys(context="z")
        >>> loss.make_value_estimator(ValueEstimators.TD0, gamma=0.85)
        >>> z = torch.randn(3, 1, 5, requires_grad=True)  # one z a task
        >>> batch = TensorDict({"observation": torch.randn(3, 8, 4), "action": torch.rand(3, 8, 2),
        ...     "z": z.expand(3, 8, 5), "next": {"observation": torch.randn(3, 8, 4), "reward": torch.randn(3, 8, 1),
        ...     "done": torch.zeros(3, 8, 1, dtype=torch.bool), "terminated": torch.zeros(3, 8, 1, dtype=torch.bool)}},
        ...     [3, 8])
        >>> losses = loss(batch)
        >>> torch.autograd.grad(losses["loss_actor"], z, allow_unused=True, retain_graph=True)
        (None,)
        >>> bool(torch.autograd.grad(losses["loss_qvalue"], z)[0].abs().sum() > 0)
        True
    """

    @dataclass
    class _AcceptedKeys(SACLoss._AcceptedKeys):
        """``SACLoss``'s, and ``context``, ``missed`` and ``proposal``."""

        context: NestedKey = "belief"
        missed: NestedKey = "missed"
        proposal: NestedKey = "proposal"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    def __init__(self, *args: Any, test_penalty: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.test_penalty = test_penalty

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """``loss_actor``, ``loss_qvalue``, and ``loss_test`` where there are tests, scalars; see the class."""
        losses = super().forward(tensordict)
        missed = tensordict.get(self.tensor_keys.missed, None)
        if missed is not None:
            losses.set("loss_test", self._test(tensordict, missed.squeeze(-1)))
        return losses

    def learn(
        self, tensordict: TensorDictBase, weights: Mapping[str, float] | None = None, others: Sequence[Tensor] = ()
    ) -> TensorDictBase:
        """See :meth:`~peach_trl.objectives.adapter.PlainMixin.learn`."""
        missed = tensordict.get(self.tensor_keys.missed, None)
        if missed is None or not self.learns_short(tensordict):
            return super().learn(tensordict, weights, others)
        test = self._test(tensordict, missed.squeeze(-1))
        weighed = test if weights is None else weights["loss_test"] * test
        return super().learn(tensordict, weights, [*others, weighed]).set("loss_test", test.detach())

    def is_plain(self, tensordict: TensorDictBase) -> bool:
        """See :class:`~peach_trl.objectives.adapter.PlainMixin`."""
        return PlainSACLoss.is_plain(self, tensordict)

    def inputs(self, tensordict: TensorDictBase, after: bool = False) -> list[Tensor]:
        """What actor and critics read; where nothing is said of the context after a decision, it is the same."""
        found = super().inputs(tensordict, after)
        if after:
            key = self.tensor_keys.context
            now = (tensordict.get(name) if name == key else None for name in self.plain_keys)
            pairs = zip(found, now, strict=True)
            found = [cast(Tensor, same).detach() if column is None else column for column, same in pairs]
        return found

    def held_inputs(self, tensordict: TensorDictBase) -> list[Tensor]:
        """What actor and critics read: only the context may have a gradient, which L_actor does not reach."""
        key, inputs = self.tensor_keys.context, self._of(tensordict, self.plain_keys)
        for name, column in zip(self.plain_keys, inputs, strict=True):
            if column.requires_grad and name != key:
                raise self.refused(name)
        return inputs

    def _test(self, tensordict: TensorDictBase, missed: Tensor) -> Tensor:
        if self.is_plain(tensordict):
            part, net = self.part("qvalue_network"), features_and_end(cast(Any, self.qvalue_network).module)[0].net
            s = part.network.features.functional(part.buffers, *self.inputs(tensordict))
            x = torch.cat([s, tensordict.get(self.tensor_keys.proposal)], -1)
            error = (net.functional(part.leaves, x) + self.test_penalty).square()
            return self.mean(error.sum(0) * missed.unsqueeze(-1))
        keys = [key for key in self.qvalue_network.in_keys if key != self.tensor_keys.action]
        rows = cast(TensorDictBase, tensordict.select(*keys)[missed])
        rows.set(self.tensor_keys.action, tensordict.get(self.tensor_keys.proposal)[missed])
        return (self.values(rows) + self.test_penalty).square().sum() / missed.numel()

    def values(self, tensordict: TensorDictBase) -> Tensor:
        """Q of all critics where a batch has what they read, [E, ..., 1]; for losses of one's own."""
        critics: Any = self._vmap_qnetworkN0
        rows = tensordict.select(*self.qvalue_network.in_keys)
        return critics(rows, self.qvalue_network_params).get(self.tensor_keys.state_action_value)


def _path(key: NestedKey) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)
