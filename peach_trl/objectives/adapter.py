"""How losses of TorchRL's come to compute on plain tensors, for one agent or for those of several seeds.

A loss that has :class:`PlainMixin` among its base classes goes the short way where its networks, its estimator and the
batch allow it: the networks are those of :mod:`peach_trl.modules.networks`. With any others it is TorchRL's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor
from torchrl.objectives.value import TD0Estimator

from peach_trl.modules.execution import TracedKinds, each
from peach_trl.modules.layers import Mix
from peach_trl.modules.networks import EndedNet, FeatureNet, features_and_end
from peach_trl.objectives.plain import Net

if TYPE_CHECKING:
    from torchrl.objectives import LossModule

    _Loss = LossModule
else:
    _Loss = object


#: methods of TorchRL's losses that the short way stands for, unless a subclass has its own
_METHODS = ("actor_loss", "qvalue_loss", "qvalue_v2_loss", "value_loss", "_compute_target_v2", "_alpha_loss")


class Part:
    """The actor or the critics of a loss: of S agents, and E of each.

    Args:
        leaves: the parameters, [E, S, ...], without these dimensions where there is one network.
        network: the module that they are.
        buffers: of its features.
        end: what follows their last layers.
        members: E, or ``None`` where the parameters have no such dimension.
    """

    def __init__(
        self, leaves: list[Tensor], network: FeatureNet, buffers: list[Tensor], end: nn.Module, members: int | None
    ) -> None:
        self.leaves, self.network, self.buffers, self.end, self.members = leaves, network, buffers, end, members
        self.memory = self._memory()
        self.dims = [0 if members is None else 1] * len(leaves)  # of the seeds
        self._made: dict[tuple[bool, bool], list[list[Net]]] = {}  # one by one or together; all, or the first
        self._pools: dict[bool, list[_Held]] = {}

    def _memory(self) -> list[int]:
        return [self.leaves[0].data_ptr(), self.leaves[-1].data_ptr()]

    def moved(self) -> bool:
        """Whether the parameters are in other memory than before, as after ``parameter.data = ...``."""
        return self.memory != self._memory()

    def nets(self, rows: int, first: bool = False) -> list[list[Net]]:
        """The networks of each group of agents: of all, where they are computed together, or of one.

        Args:
            rows: of each agent's batch.
            first: only the first member of each.
        """
        key = (self.network.net.together(rows), first)
        if key not in self._made:
            self._made[key] = self._make(rows, [leaf[0] for leaf in self.leaves] if first else self.leaves)
        return self._made[key]

    def learning(self, rows: int) -> Learning:
        """Networks with tensors for the gradients of the leaves, which are not lent to anybody else at the moment."""
        pool = self._pools.setdefault(self.network.net.together(rows), [])
        free = next((held for held in pool if held.borrower() is None), None)
        if free is None:
            gradients = [torch.empty_like(leaf) for leaf in self.leaves]
            pool.append(free := _Held(gradients, self._make(rows, self.leaves, gradients)))
        lent = Learning(free.gradients, free.nets)
        free.borrower = weakref.ref(lent)
        return lent

    def _make(self, rows: int, leaves: list[Tensor], gradients: Sequence[Tensor] = ()) -> list[list[Net]]:
        net, features, seeds = self.network.net, self.network.features, self.network.seeds or 1
        blocks = net.blocks(leaves, rows)
        into: list[Sequence[Tensor]] = [()] * len(blocks)
        if gradients:
            flat = [
                part.view(seeds * (self.members or 1), *part.shape[self.leaves[0].ndim - 2 :]) for part in gradients
            ]
            into = [flat] if len(blocks) == 1 else list(zip(*(part.split(1) for part in flat), strict=True))
        made = [
            Net(features, self.buffers, block, self.end, part, net.norm, net.bf16, most=net.most)
            for block, part in zip(blocks, into, strict=True)
        ]
        return [made] if len(made) == 1 else [made[seed::seeds] for seed in range(seeds)]


@dataclass
class Learning:
    """Gradients of the parameters [E, S, ...], and the networks that write them; lent as long as this object lives."""

    gradients: list[Tensor]
    nets: list[list[Net]]


@dataclass
class _Held:
    """What is lent, and to whom: nobody where the reference is dead."""

    gradients: list[Tensor]
    nets: list[list[Net]]
    borrower: Callable[[], Learning | None] = lambda: None


class PlainMixin(_Loss):
    """What a loss of TorchRL's needs to go the short way; put it before the loss among the base classes."""

    _parts: dict[str, Part] | None = None
    _kinds: TracedKinds | None = None
    _fits: bool | None = None
    _lent: list[Any] = []  # noqa: RUF012  # what the parameters' ``grad`` is in, after :meth:`learn`

    @cached_property
    def seeds(self) -> int | None:
        """How many agents the networks are of; each then has a loss of its own, in a vector [S]."""
        return getattr(_inner(self.qvalue_network).module, "seeds", None)

    def is_plain(self, tensordict: TensorDictBase) -> bool:
        """Whether networks, estimator and batch allow for the short way."""
        if self._fits is None:
            self._fits = self._has_plain_networks()
        return (
            self._fits
            and all(tensordict.get(key, None) is None for key in self._weighs())
            and not any(column.requires_grad for column in self._of(tensordict, self.plain_keys[: self._scaled]))
        )

    def _weighs(self) -> list[NestedKey]:
        """What would weigh rows, or mask some of them."""
        return [cast(Any, self.tensor_keys).priority_weight, *self._loss_mask_keys()]

    def _of(self, tensordict: TensorDictBase, keys: Sequence[NestedKey]) -> list[Tensor]:
        """Entries of a batch; a ValueError that names those that are missing."""
        found = [tensordict.get(key, None) for key in keys]
        if any(column is None for column in found):
            every = [*self.plain_keys, self.tensor_keys.action, "next"]  # type: ignore[attr-defined]
            missing = [key for key in every if tensordict.get(key, None) is None]
            known = sorted(map(str, tensordict.keys()))
            raise ValueError(f"the batch has no {missing}, which {type(self).__name__} reads; it has {known}")
        return cast(list[Tensor], found)

    def _has_plain_networks(self) -> bool:
        actor, critic = _inner(self.actor_network), _inner(self.qvalue_network)
        return (
            all(isinstance(module.module, FeatureNet | EndedNet) for module in (actor, critic))
            and critic.in_keys == [*actor.in_keys, cast(Any, self.tensor_keys).action]
            and isinstance(self.value_estimator, TD0Estimator)
            and not self.value_estimator.average_rewards
            and self.loss_function == "l2"
            and self.reduction == "mean"
            and getattr(self, "fixed_alpha", True)
            and not any(self._is_overridden(name) for name in _METHODS)
        )

    def _is_overridden(self, name: str) -> bool:
        """Whether a subclass from elsewhere has a method of its own."""
        method = getattr(type(self), name, None)
        return method is not None and method.__module__.partition(".")[0] not in ("peach_trl", "torchrl", "tensordict")

    def learns_short(self, tensordict: TensorDictBase) -> bool:
        """Whether :meth:`learn` need not call the loss: it :meth:`is_plain`, and ``forward`` is no subclass's own."""
        return self.is_plain(tensordict) and not self._is_overridden("forward")

    def set_keys(self, **kwargs: Any) -> None:
        """As in TorchRL."""
        self._fits = None
        super().set_keys(**kwargs)

    def make_value_estimator(self, *args: Any, **kwargs: Any) -> Any:
        """As in TorchRL."""
        self._fits = None
        return super().make_value_estimator(*args, **kwargs)

    @cached_property
    def plain_keys(self) -> list[NestedKey]:
        """What actor and critics read, in their order, but for the action."""
        return _inner(self.actor_network).in_keys

    @cached_property
    def _scaled(self) -> int:
        """How many of its inputs a network scales: the observation, and the goal where it reads one."""
        return 1 if features_and_end(_inner(self.actor_network).module)[0].features.goal_space is None else 2

    def learn(
        self, tensordict: TensorDictBase, weights: Mapping[str, float] | None = None, others: Sequence[Tensor] = ()
    ) -> TensorDictBase:
        """The losses of a batch, detached; the gradients of their sum replace those in the parameters' ``grad``.

        The same as ``loss(batch)``, ``backward`` and ``detach``; where the loss goes the short way, autograd has only
        what is behind the batch and behind ``others``.

        Args:
            tensordict: the batch.
            weights: of the losses in the sum; 1 for all by default.
            others: losses that are added to the sum as they are, [] or [S] each.
        """
        weights = {"loss_actor": 1.0, "loss_qvalue": 1.0} if weights is None else weights
        others = [other for other in others if other.requires_grad]
        if not self.learns_short(tensordict):
            losses = self(tensordict)
            weighed = [weight * losses.get(name) for name, weight in weights.items() if name in losses.keys()]
            torch.stack([*weighed, *others]).sum().backward()
            return losses.detach()
        self._lent = []  # those of the last call
        losses, self._lent = self.compute(tensordict)
        roots, grads = [*others], [torch.ones_like(other) for other in others]
        for name, (part, learning, *inputs) in zip(("loss_actor", "loss_qvalue"), self._lent, strict=True):
            if weights[name] != 1:
                torch._foreach_mul_(learning.gradients, weights[name])  # type: ignore[attr-defined]
            for leaf, gradient in zip(part.leaves, learning.gradients, strict=True):
                leaf.grad = gradient
            for column, by_group in inputs[0] if inputs else ():
                roots.append(column)
                grads.append((torch.cat(list(by_group)) * weights[name]).view(column.shape))
        if roots:
            torch.autograd.backward(roots, grads)
        return TensorDict(losses)

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses, as the class behind the mixin has them."""
        if not self.is_plain(tensordict):
            return super().forward(tensordict)
        losses, (by_actor, by_critics) = self.compute(tensordict)
        if torch.is_grad_enabled():
            losses["loss_actor"] = self.with_gradients(losses["loss_actor"], *by_actor)
            losses["loss_qvalue"] = self.with_gradients(losses["loss_qvalue"], *by_critics)
        return TensorDict(losses)

    def compute(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], list[Any]]:
        """The losses without their gradients, and how :meth:`with_gradients` adds these: parts and gradients."""
        raise NotImplementedError

    def steps(
        self,
        kind: Hashable,
        function: Callable[[list[list[Net]], Sequence[Tensor]], tuple[Tensor, ...]],
        groups: Sequence[Sequence[list[Net]]],
        numbers: Sequence[Tensor],
        columns: Sequence[Sequence[Tensor]],
    ) -> list[tuple[Tensor, ...]]:
        """What a function makes of each group of agents.

        Large batches go through it in parts whose activations stay in a CPU's cache.

        Args:
            kind: tells apart what the function does, and the shapes of what it reads.
            function: of the networks of a group, and of numbers and rows. It returns means over rows, [G], and what
                each row adds to the gradient of one of them, [G, n, D].
            groups: the networks, by what they are for.
            numbers: which all rows have in common.
            columns: the rows [G, n, D] of each group.
        """
        first, rows = groups[0], columns[0][0].shape[1]
        size = -(-rows // -(-rows // min(net.most for nets in first for net in nets)))  # parts of about one size
        kinds = self._kinds = TracedKinds() if self._kinds is None else self._kinds

        def make(mix: Mix) -> Callable[..., tuple[Tensor, ...]]:
            def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
                read, rest = tensors[:count], iter(tensors[count:])
                return function([[net.like(rest, mix) for net in nets] for nets in first], read)

            return flat

        count = len(numbers) + len(columns[0])

        def of_group(group: int) -> tuple[Tensor, ...]:
            tensors = [tensor for nets in groups[group] for net in nets for tensor in net.tensors()]
            found, shares = [], []
            for part in zip(*(column.split(size, 1) for column in columns[group]), strict=True):
                shares.append(part[0].shape[1] / rows)
                mix = float(len(shares) > 1), shares[-1]
                traced = kinds.get((kind, part[0].shape, mix), lambda mix=mix: make(mix))
                with torch.inference_mode():
                    found.append(traced(*numbers, *part, *tensors))
            return _joined(found, shares)

        return each(of_group, range(len(groups)))

    def rows(self, tensordict: TensorDictBase) -> int:
        """How many rows each agent's batch has."""
        return tensordict.numel() // (self.seeds or 1)

    def inputs(self, tensordict: TensorDictBase, after: bool = False) -> list[Tensor]:
        """What actor and critics read of a batch, or of what comes ``after``, as rows [n, ...]."""
        source = tensordict.get("next") if after else tensordict
        return [source.get(key, None) for key in self.plain_keys]

    def part(self, name: str) -> Part:
        """The networks whose parameters are ``name_params``, target networks included."""
        if self._parts is None:
            self._parts = {}
        if name not in self._parts or self._parts[name].moved():
            function = _inner(getattr(self, name.removeprefix("target_"))).module
            self._parts[name] = _make_part(function, getattr(self, f"{name}_params"), self.seeds)
        return self._parts[name]

    def columns(self, tensordict: TensorDictBase, *noise: Tensor) -> list[Tensor]:
        """What a step reads: s, s', a, r, terminated, draws, and the steps of each decision where they are known."""
        keys: Any = self.tensor_keys
        after = tensordict.get("next")
        found = [*self.inputs(tensordict), *self.inputs(tensordict, after=True), tensordict.get(keys.action)]
        found += [after.get(keys.reward), after.get(keys.terminated), *noise]
        steps = tensordict.get(self.value_estimator.tensor_keys.steps_to_next_obs, None)
        return found if steps is None else [*found, steps]

    def parts_of(self, gamma: Tensor, rows: Sequence[Tensor], draws: int) -> tuple[Any, ...]:
        """Columns [G, n, ...] as s, s', a, r, the discount and the draws.

        The discount is gamma^k for a decision of k steps, and 0 where nothing follows, [G, n, 1].
        """
        number = len(self.plain_keys)
        s, s_after, (a, r, terminated, *rest) = rows[:number], rows[number : 2 * number], rows[2 * number :]
        noise, steps = rest[:draws], rest[draws:]
        return s, s_after, a, r, ~terminated * (gamma ** steps[0] if steps else gamma), *noise

    def bounded(self, target: Tensor) -> Tensor:
        """Targets within the estimator's bounds, if it has any."""
        low, high = getattr(self.value_estimator, "low", None), getattr(self.value_estimator, "high", None)
        return target if low is None else target.clamp_(low, high)

    def by_seed(self, groups: int, *columns: Tensor) -> list[tuple[Tensor, ...]]:
        """Rows [S n, ...] as those of each group of agents, [G, n, ...]; all leading dimensions become one."""
        seeds = self.seeds or 1
        flat = [column.reshape(seeds, -1, column.shape[-1]) for column in columns]
        return [tuple(flat)] if groups == 1 else list(zip(*(column.split(1) for column in flat), strict=True))

    def joined(self, losses: Sequence[Tensor]) -> Tensor:
        """The losses of all groups [G] as those of all seeds, [S], or the only one, []."""
        return losses[0].squeeze(0).clone() if self.seeds is None else torch.cat(list(losses))

    def with_gradients(
        self, loss: Tensor, part: Part, learning: Learning, inputs: Sequence[tuple[Tensor, Sequence[Tensor]]] = ()
    ) -> Tensor:
        """A loss with the gradients of its parameters, and of the inputs [..., D] that come with theirs, by group."""
        of, gradients, dims = [*part.leaves], [*learning.gradients], [*part.dims]
        for column, by_group in inputs:
            whole = by_group[0].clone() if len(by_group) == 1 else torch.cat(list(by_group))
            of, gradients, dims = [*of, column.reshape(whole.shape)], [*gradients, whole], [*dims, 0]
        return WithGradients.apply(loss, learning, gradients, dims, *of)  # type: ignore[return-value]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a batch, of each seed's part of it where there are several, [S]."""
        return x.mean() if self.seeds is None else x.reshape(self.seeds, -1).mean(-1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None, "_kinds": None, "_lent": []}

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self._parts = self._kinds = self._fits = None  # tensors may be others after this
        return super()._apply(fn, *args, **kwargs)


class WithGradients(torch.autograd.Function):
    """A loss whose gradients were found along with it: ``apply(loss, holder, gradients, dims, *of)``.

    ``gradients`` are those of the tensors ``of``; with a vector of losses [S], ``dims`` says which dimension of each is
    that of the seeds.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, holder: Any, gradients: list[Tensor], dims: list[int], *of: Tensor) -> Tensor:
        """The loss as it is; ``holder`` is kept as long as the gradients may be asked for."""
        ctx.holder, ctx.gradients, ctx.dims = holder, gradients, dims
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """The gradients, times that of the loss."""
        (grad,) = grads
        if grad.ndim == 0:
            return None, None, None, None, *torch._foreach_mul(ctx.gradients, grad)  # type: ignore[attr-defined]
        scaled = []
        for gradient, dim in zip(ctx.gradients, ctx.dims, strict=True):
            shape = [1] * gradient.ndim
            shape[dim] = len(grad)
            scaled.append(gradient * grad.view(shape))
        return None, None, None, None, *scaled


def _joined(found: list[tuple[Tensor, ...]], shares: list[float]) -> tuple[Tensor, ...]:
    """What parts of a batch gave, with their shares of its rows, as that of the batch: means, or what rows add."""
    if len(found) == 1:
        return found[0]
    with torch.inference_mode():
        scaled = [[value * share for value in values] for values, share in zip(found, shares, strict=True)]
        columns = [list(column) for column in zip(*scaled, strict=True)]
        return tuple(torch.cat(parts, 1) if parts[0].ndim > 1 else torch.stack(parts).sum(0) for parts in columns)


def _make_part(function: nn.Module, params: TensorDictBase, seeds: int | None) -> Part:
    flat = {".".join(key) if isinstance(key, tuple) else key: part for key, part in params.items(True, True)}

    def find(name: str) -> Tensor:
        return next(part for key, part in flat.items() if f".{key}".endswith(f".{name}"))

    leaves = [find(name) for name, _ in function.named_parameters()]
    net, end = features_and_end(function)
    bare = 2 if seeds is None else 3
    members = len(leaves[0]) if leaves[0].ndim > bare else None
    (prefix,) = (name for name, module in function.named_modules() if module is net.features)
    buffers = [find(f"{prefix}.{name}") for name in net.features.names]
    buffers = buffers if members is None else [part[0] for part in buffers]  # members share them
    return Part(leaves, net, buffers, end, members)


def _inner(network: Any) -> Any:
    """The module of plain tensors with its keys: that of an actor without its distribution."""
    return network[0] if isinstance(network, ProbabilisticActor) else network
