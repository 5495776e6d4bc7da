"""One seed for a run, one named generator for each use of randomness.

A draw made for one purpose never moves the draws of another: evaluating more often, say, leaves training as it was,
bit for bit.
"""

from __future__ import annotations

import hashlib

import torch


def named_generator(name: str, seed: int | None = None) -> torch.Generator:
    """A CPU generator that depends on nothing but a seed and a name.

    Args:
        name: what the draws are for, such as ``"replay"``.
        seed: the seed of the run; ``None`` takes ``torch.initial_seed()``, which ``torch.manual_seed`` sets, and which
            TorchRL's multi-process collectors set to another value in each worker.

    Examples:
        >>> a, b = named_generator("replay", seed=0), named_generator("policy", seed=0)
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        False
    """
    seed = torch.initial_seed() if seed is None else seed
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
