"""The arithmetic of perceptrons on plain tensors: layers forward, and their gradients written out.

K networks of one shape are computed together, as products of batched matrices; :mod:`peach_trl.modules.perceptron` has
the module, and says which networks go together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Tuple, TypeAlias  # noqa: UP035

import torch
from torch import Tensor

_relu_backward = torch.ops.aten.threshold_backward.grad_input
_EPS = 1e-5  # of layer normalisation, as nn.LayerNorm has it
_VECTOR, _NARROW = 16, 64  # numbers that a processor takes at once; shorter rows than that are narrow
Layers: TypeAlias = list[tuple[Tensor, ...]]
Mix: TypeAlias = tuple[float, float]  # x becomes mix[0] x + mix[1] y
REPLACE: Mix = (0.0, 1.0)


def sizes(x: Tensor) -> list[int]:
    """The shape of a tensor, in numbers that a trace takes as they are: it would ask for them at every call."""
    return [int(size) for size in x.shape]


def shared(x: Tensor, count: int) -> Tensor:
    """Rows [S, B, F] as those of ``count`` networks [E S, B, F], of which every E-th reads the same."""
    agents, *shape = sizes(x)
    return x if agents == count else x.expand(count // agents, agents, *shape).reshape(count, *shape)


def run(x: Tensor, layers: Layers, bf16: bool = False, tape: list[Tensor] | None = None) -> Tensor:
    """K networks, [K, B, F] to [K, B, out], on plain tensors; notes on the ``tape`` what :func:`gradient` needs."""
    last = layers[-1]
    for layer in layers:
        weight, bias, *affine = layer
        if bf16:
            x, weight, bias, affine = x.bfloat16(), weight.bfloat16(), bias.bfloat16(), [a.bfloat16() for a in affine]
        h = _affine(bias, x, weight.mT)
        if tape is not None:
            tape += [x, weight]
        if layer is last:
            return h.float() if bf16 else h
        if not affine:
            x = h.relu_()
            continue
        x, mean, deviation = _normalise(h, *affine)
        x = x.relu_()
        if tape is not None:
            tape += [h, mean, deviation, affine[0]]
    raise AssertionError


def gradient(
    grad: Tensor,
    tape: list[Tensor],
    norm: bool,
    into: Sequence[Tensor] = (),
    wants_x: bool = False,
    mix: Mix = REPLACE,
) -> Tensor:
    """From the gradient of what :func:`run` put out [K, B, out] to that of its input [K, B, F]; empties the tape.

    Args:
        grad: of the output.
        tape: as :func:`run` left it.
        norm: whether the networks have layer normalisation.
        into: the gradients of the parameters [K, ...], in their order, which are written; none to leave them out.
        wants_x: whether the input's gradient is of interest; else it is not that.
        mix: of what is in ``into`` before, and of the gradient that comes to it.
    """
    y: Tensor | None = None  # what the layer put out, after its ReLU
    into = list(into)
    if grad.dtype != tape[0].dtype:
        grad = grad.to(tape[0].dtype)
    while tape:
        if y is not None:
            grad = _relu_backward(grad, y, 0, grad_input=grad)
            if norm:
                gain, deviation, mean, h = tape.pop(), tape.pop(), tape.pop(), tape.pop()
                grad, *affine = _normalise_backward(grad, h, mean, deviation, gain, bool(into))
                if into:
                    _write(into.pop(), affine[1], mix)
                    _write(into.pop(), affine[0], mix)
        weight, x = tape.pop(), tape.pop()
        if into:
            _write_sum(into.pop(), grad, mix)
            _write_product(into.pop(), grad.mT, x, mix)
        if tape or wants_x:
            grad = _product(grad, weight)
        y = x
    return grad if grad.dtype == torch.float32 else grad.float()


def _write(into: Tensor, part: Tensor, mix: Mix) -> None:
    before, share = mix
    if before:
        into.mul_(before).add_(part, alpha=share)
    else:
        into.copy_(part if share == 1 else part * share)


def _write_sum(into: Tensor, grad: Tensor, mix: Mix) -> None:
    if mix == REPLACE and grad.dtype == into.dtype:
        torch.sum(grad, 1, out=into)
    else:
        _write(into, grad.sum(1), mix)


def _write_product(into: Tensor, one: Tensor, other: Tensor, mix: Mix) -> None:
    if one.dtype != into.dtype or _is_narrow(one, other):
        _write(into, _product(one, other), mix)
    else:
        torch.baddbmm(into, one, other, beta=mix[0], alpha=mix[1], out=into)


def _is_narrow(one: Tensor, other: Tensor) -> bool:
    """Whether a product has short rows, and many: BLAS is up to four times faster with its transpose."""
    rows, columns = sizes(one)[-2], sizes(other)[-1]
    return 1 < columns < min(rows, _NARROW) and columns % _VECTOR != 0


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Products of batched matrices."""
    if sizes(other)[-2] == 1:
        return one * other
    return torch.bmm(other.mT, one.mT).mT if _is_narrow(one, other) else torch.bmm(one, other)


def _affine(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """A layer's x W + b."""
    return torch.baddbmm(bias.mT, weight.mT, x.mT).mT if _is_narrow(x, weight) else torch.baddbmm(bias, x, weight)


def _normalise(x: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalisation [K, B, H], with gain and shift [K, H]; also mean and 1 / deviation, [K, B, 1] each."""
    size = x.shape[-1:]
    if x.shape[0] == 1:
        return torch.native_layer_norm(x, size, gain[0], shift[0], _EPS)
    parts = [torch.native_layer_norm(*rows, _EPS) for rows in zip(x, [size] * x.shape[0], gain, shift, strict=True)]
    y, mean, deviation = (torch.stack(part) for part in zip(*parts, strict=True))
    return y, mean, deviation


def _normalise_backward(
    grad: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, gain: Tensor, affine: bool
) -> Sequence[Tensor]:
    """Gradients of x, and of gain and shift if asked for."""
    if x.shape[0] == 1:
        return _norm_backward(grad, x, mean, deviation, gain[0], affine)
    parts = [_norm_backward(*rows, affine) for rows in zip(grad, x, mean, deviation, gain, strict=True)]
    return [torch.stack(column) for column in zip(*parts, strict=True)]


def _norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, gain: Tensor, affine: bool
) -> Sequence[Tensor]:
    # Tracing does not know the operation's list of booleans.
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        every, first = _scripted_norm_backward()
        return every(grad, x, mean, deviation, gain) if affine else [first(grad, x, mean, deviation, gain)]
    arguments = grad, x, x.shape[-1:], mean, deviation, gain, gain, [True, affine, affine]
    return torch.ops.aten.native_layer_norm_backward.default(*arguments)[: 3 if affine else 1]


@cache
def _scripted_norm_backward() -> tuple[Callable[..., Sequence[Tensor]], Callable[..., Tensor]]:
    def every(grad: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, gain: Tensor) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
        size = [x.shape[-1]]
        return torch.ops.aten.native_layer_norm_backward(grad, x, size, mean, deviation, gain, gain, [True, True, True])

    def first(grad: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, gain: Tensor) -> Tensor:
        size = [x.shape[-1]]
        return torch.ops.aten.native_layer_norm_backward(
            grad, x, size, mean, deviation, gain, gain, [True, False, False]
        )[0]

    return torch.jit.script(every), torch.jit.script(first)
