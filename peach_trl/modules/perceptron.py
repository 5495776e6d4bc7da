"""Perceptrons that are fast when they are small, alone or many at once.

A gradient step on networks of a few thousand weights is mostly overhead: a node of autograd an operation, a TensorDict
a call, a module a layer. Here a whole perceptron is one node with its gradient written out, and parameters may have
leading dimensions, for the critics of an ensemble or the agents of several seeds, which are then products of batched
matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from peach_trl.modules.execution import TracedKinds, each
from peach_trl.modules.layers import Layers, gradient, run, shared

_CACHED = 2**17  # numbers that fit a core's cache several times


class Perceptron(nn.Sequential):
    """Linear layers with ReLUs between them, and layer normalisation before each ReLU if asked for.

    The same network as ``nn.Sequential`` of ``nn.Linear``, ``nn.LayerNorm`` and ``nn.ReLU``, with the names of its
    parameters, and initialised alike from torch's global generator.

    Args:
        features: size of the input.
        out: size of the output.
        cells: units of the hidden layers.
        norm: layer normalisation behind each hidden layer (Ba et al. 2016, arXiv 1607.06450).
        seeds: with a number S, that many networks at once: each parameter has a leading dimension [S, ...], and an
            input is divided evenly among them along its first dimension. ``None`` for one network.
        bf16: compute in bfloat16, with weights and results in float32.

    Examples:
        >>> net = Perceptron(3, 2, (64, 64), norm=True)
        >>> net(torch.randn(5, 7, 3)).shape
        torch.Size([5, 7, 2])
        >>> four = Perceptron(3, 2, (64, 64), seeds=4)
        >>> four(torch.randn(4 * 10, 3)).shape, four[0].weight.shape  # 10 rows for each of 4 networks
        (torch.Size([40, 2]), torch.Size([4, 64, 3]))
    """

    def __init__(
        self,
        features: int,
        out: int,
        cells: Sequence[int] = (64, 64),
        norm: bool = False,
        *,
        seeds: int | None = None,
        bf16: bool = False,
    ) -> None:
        sizes, layers = [features, *cells, out], []
        for i, size in enumerate(sizes[:-1]):
            layers.append(_stacked(lambda size=size, i=i: nn.Linear(size, sizes[i + 1]), seeds))
            if i < len(cells):
                layers += [_stacked(lambda i=i: nn.LayerNorm(sizes[i + 1]), seeds)] * norm + [nn.ReLU()]
        super().__init__(*layers)
        self.features, self.out, self.norm, self.seeds, self.bf16 = features, out, norm, seeds, bf16
        self.width = max(sizes[1:])
        self._views: dict[tuple[int, ...], list[Layers]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] to [..., out]."""
        return self.functional(self._in_order(), x)

    def functional(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """The network with other parameters.

        Args:
            parameters: in the order of ``self.parameters()``; a further leading dimension [E, ...] makes an ensemble,
                whose members all read the same input.
            x: [..., F].

        Returns:
            [..., out]; of an ensemble [E, ..., out].
        """
        rows = self._rows(x)
        members = parameters[0].shape[: parameters[0].ndim - (2 if self.seeds is None else 3)]
        blocks = self.blocks(parameters, rows.shape[1])
        if len(blocks) == 1 and not torch.is_grad_enabled():
            y = run(shared(rows, blocks[0][0][0].shape[0]), blocks[0], self.bf16)
        else:
            (y,) = _Perceptron.apply(rows, (), blocks, self.norm, self.bf16, _NOTHING, *parameters)  # type: ignore
        return y.reshape(*members, *x.shape[:-1], self.out)

    def ended(self, x: Tensor, end: End, *given: Tensor) -> tuple[Tensor, ...]:
        """What an ``end`` makes of the network's output, in the same node of autograd.

        Args:
            x: [..., F], divided among the seeds.
            end: equal ones do the same.
            given: whatever else the end reads, [..., D] with the same leading dimensions; without a gradient.

        Returns:
            The outputs of the end, [S, ...] each.
        """
        rows, parameters = self._rows(x), self._in_order()
        given = tuple(part.reshape(*rows.shape[:-1], -1) for part in given)
        blocks = self.blocks(parameters, rows.shape[1])
        return _Perceptron.apply(rows, given, blocks, self.norm, self.bf16, end, *parameters)  # type: ignore

    def _in_order(self) -> list[Tensor]:
        layers = [layer for layer in self if not isinstance(layer, nn.ReLU)]
        return [cast(Tensor, part) for layer in layers for part in (layer.weight, layer.bias)]

    def _rows(self, x: Tensor) -> Tensor:
        """An input [..., F] as [S, B, F]."""
        if x.shape[-1] != self.features:
            raise ValueError(f"an input of {x.shape[-1]} numbers: this network reads {self.features}")
        return x.reshape(self.seeds or 1, -1, self.features)

    def together(self, rows: int) -> bool:
        """Whether all networks are computed together, as batched matrices, or one after the other.

        Together they are fewer operations; one by one their activations stay in the cache of a CPU.
        """
        return rows * self.width <= 32768 or self[0].weight.device.type != "cpu"

    @property
    def most(self) -> int:
        """How many rows to compute at a time, so that what a layer puts out stays in the cache of a CPU."""
        if self[0].weight.device.type != "cpu":
            return 2**62
        return max(1, _CACHED // self.width) * (2 if self.bf16 else 1)

    def blocks(self, parameters: Sequence[Tensor], rows: int) -> list[Layers]:
        """The layers of the networks with these parameters, as views that are made once for the same memory."""
        together = parameters[0].shape[:-2].numel() if self.together(rows) else 1
        if parameters[0].device.type == "meta" or torch.compiler.is_compiling():
            return blocks_of(parameters, self.norm, together)
        key = (together, parameters[0].ndim, *[part.data_ptr() for part in parameters])
        if key not in self._views:
            if len(self._views) >= 16:
                self._views.clear()
            self._views[key] = blocks_of([part.detach() for part in parameters], self.norm, together)
        return self._views[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": {}}


def _stacked(make: Callable[[], nn.Module], seeds: int | None) -> nn.Module:
    """A layer, or as many as there are seeds as one: each parameter with a leading dimension, each drawn by itself."""
    layer, *others = [make() for _ in range(seeds or 1)]
    if seeds is not None:
        for name, parameter in list(layer.named_parameters()):
            same: list[Tensor] = [parameter, *(other.get_parameter(name) for other in others)]
            setattr(layer, name, nn.Parameter(torch.stack(same).detach()))
    return layer


class End:
    """What follows the last layer within a perceptron's node of autograd: nothing, here.

    Attributes:
        outputs: how many tensors it puts out.
        keeps: how many more :meth:`gradient` needs.
    """

    outputs, keeps = 1, 0

    def forward(self, y: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """From the output of K networks [K, B, out], and ``given`` [K, B, D], to outputs [K, ...] and what is kept."""
        return (y,)

    def gradient(self, found: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
        """From the gradients of the outputs to that of the networks' output; ``found`` is what ``forward`` returned."""
        return grads[0]


_NOTHING = End()


class _Perceptron(torch.autograd.Function):
    """Forward and backward of perceptrons and what ends them, [S, B, F] to [E S, ...], as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        given: tuple[Tensor, ...],
        blocks: list[Layers],
        norm: bool,
        bf16: bool,
        end: End,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        size, seeds, keep = blocks[0][0][0].shape[0], x.shape[0], any(ctx.needs_input_grad)
        kind = ("run", x.shape, keep, norm, bf16, end, len(given), *[layer[0].shape for layer in blocks[0]])

        def make() -> Callable[..., tuple[Tensor, ...]]:
            def function(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
                tape: list[Tensor] = []
                y = run(x, _layers(tensors[len(given) :], norm), bf16, tape if keep else None)
                found = end.forward(y, *tensors[: len(given)])
                return (*found, *tape) if keep else found[: end.outputs]

            return function

        traced = _KINDS.get(kind, make)

        def of_block(number: int) -> tuple[Tensor, ...]:
            first = number * size % seeds
            with torch.no_grad():
                rows = [shared(part[first : first + size], size) for part in (x, *given)]
                return traced(*rows, *(part for layer in blocks[number] for part in layer))

        found = each(of_block, range(len(blocks)))
        if keep:
            ctx.save_for_backward(*(part for parts in found for part in parts))
        ctx.norm, ctx.end, ctx.blocks, ctx.size, ctx.seeds = norm, end, len(blocks), size, seeds
        ctx.parameters = [part.shape for part in parameters]
        outputs = [parts[: end.outputs] for parts in found]
        return outputs[0] if len(found) == 1 else tuple(torch.cat(column) for column in zip(*outputs, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved, count, norm, end, size = ctx.saved_tensors, ctx.blocks * ctx.size, ctx.norm, ctx.end, ctx.size
        wants_x, wants_weights = ctx.needs_input_grad[0], any(ctx.needs_input_grad[6:])
        length, own = len(saved) // ctx.blocks, end.outputs + end.keeps
        into = []
        if wants_weights:
            matrix = len(ctx.parameters[0])
            into = [grads[0].new_empty(count, *shape[matrix - 2 :]) for shape in ctx.parameters]

        def make() -> Callable[..., tuple[Tensor, ...]]:
            def function(*tensors: Tensor) -> tuple[Tensor, ...]:
                grads, found, tape = tensors[: end.outputs], tensors[end.outputs :][:own], tensors[end.outputs + own :]
                grad = end.gradient(found, grads)
                return (gradient(grad, list(tape[: length - own]), norm, tape[length - own :], wants_x),)

            return function

        kind = ("gradient", saved[-1].dtype, grads[0].shape, size, length, norm, end, wants_x, wants_weights)
        traced = _KINDS.get((*kind, *ctx.parameters), make)

        def of_block(number: int) -> Tensor:
            rows, tape = slice(number * size, (number + 1) * size), saved[number * length : (number + 1) * length]
            with torch.no_grad():
                return traced(*(grad[rows] for grad in grads), *tape, *(part[rows] for part in into))[0]

        inputs = each(of_block, range(ctx.blocks))
        parameters: list[Any] = [part.view(shape) for part, shape in zip(into, ctx.parameters, strict=False)]
        x = None
        if wants_x:
            x = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
            x = x if count == ctx.seeds else x.unflatten(0, (-1, ctx.seeds)).sum(0)
        return x, None, None, None, None, None, *(parameters or [None] * len(ctx.parameters))


_KINDS = TracedKinds()


def _layers(flat: Sequence[Tensor], norm: bool) -> Layers:
    size = 4 if norm else 2
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


def blocks_of(parameters: Sequence[Tensor], norm: bool, together: int) -> list[Layers]:
    """The layers of networks [E, S, ...] or [S, ...], as views: so many of them ``together``, in their order.

    Returns:
        For each block its layers: weight [K, out, in], bias [K, 1, out], and gain and shift [K, out] if it has norms
        and is not the last.
    """
    size, stack = 4 if norm else 2, parameters[0].shape[:-2].numel()
    flat = [part.reshape(stack, *part.shape[parameters[0].ndim - 2 :]) for part in parameters]
    flat = [part.unsqueeze(1) if i % size == 1 else part for i, part in enumerate(flat)]  # biases
    parts = [part.split(together) if together < stack else (part,) for part in flat]
    return [
        [tuple(part[k] for part in parts[i : i + size]) for i in range(0, len(parts), size)]
        for k in range(len(parts[0]))
    ]
