"""Products of Gaussians along sequences, and their gradient, as what ends an encoder.

After t transitions whose factors have precisions lambda_j and means mu_j, and with the prior N(0, I), the product has
the precision Lambda_t = 1 + sum lambda_j and the mean sum lambda_j mu_j / Lambda_t. A cumulative sum gives all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from peach_trl.modules.perceptron import End


def exponential(x: Tensor) -> Tensor:
    """The precision of a factor, lambda = exp(x - 1), bounded to [e^-8, e^10]."""
    return (x - 1).clamp(-8, 10).exp()


@dataclass(frozen=True)
class Products(End):
    """From an encoder's (mu, x) of transitions [K, B L, 2 Z] to mean and deviation of q after 0, 1, ... of them.

    Args:
        length: L, transitions of a sequence.

    Examples:
        >>> loc, scale, *_ = Products(length=3).forward(torch.zeros(1, 2 * 3, 2 * 5))
        >>> loc.shape, scale[0, 0, :, 0] ** -2  # 1 from the prior, and e^-1 of each transition
        (torch.Size([1, 2, 4, 5]), tensor([1.0000, 1.3679, 1.7358, 2.1036]))
    """

    length: int
    outputs, keeps = 2, 3

    def forward(self, y: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Mean and deviation, [K, B, L + 1, Z] each; ``given`` may be a mask [K, B L, 1]."""
        y, *masks = (part.unflatten(1, (-1, self.length)) for part in (y, *given))
        mu, x = y.chunk(2, -1)
        factor = exponential(x)
        for mask in masks:
            factor = factor * mask
        total = pad(torch.cat([factor, factor * mu], -1).cumsum(-2), (0, 0, 1, 0))
        precision, precision_mean = total.chunk(2, -1)
        precision = precision + 1
        return precision_mean / precision, precision.rsqrt(), y, factor, precision

    def gradient(self, found: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
        """What a factor adds, it adds to all beliefs after it."""
        (loc, scale, y, factor, precision), (d_loc, d_scale) = found, grads
        mu, x = y.chunk(2, -1)
        d_sum = d_loc / precision
        d_precision = (d_sum * loc).addcdiv(d_scale * scale, precision, value=0.5).neg()
        d_total = torch.cat([d_precision, d_sum], -1)[..., 1:, :]
        d_factor, d_product = d_total.flip(-2).cumsum(-2).flip(-2).chunk(2, -1)
        d_x = (d_factor + d_product * mu) * factor * ((x >= -7) & (x <= 11))
        return torch.cat([d_product * factor, d_x], -1).flatten(1, 2)
