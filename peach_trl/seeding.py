"""One seed for a run, one named generator for each use of randomness.

A draw made for one purpose never moves the draws of another: evaluating more often, say, leaves training as it was,
bit for bit.
"""

from __future__ import annotations

import hashlib

import torch


def named_generator(name: str, seed: int | None = None, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on nothing but a seed and a name.

    Args:
        name: what the draws are for, such as ``"replay"``.
        seed: the seed of the run; ``None`` takes ``torch.initial_seed()``, which ``torch.manual_seed`` sets, and which
            TorchRL's multi-process collectors set to another value in each worker.
        device: of what is drawn; other kinds of devices draw other numbers.

    Examples:
        >>> a, b = named_generator("replay", seed=0), named_generator("policy", seed=0)
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        False
    """
    seed = torch.initial_seed() if seed is None else seed
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class ProcessGenerator:
    """A named generator for modules that are sent to other processes: made where it is used, and never sent along.

    It starts anew whenever ``torch.manual_seed`` gives the process another seed, as TorchRL's multi-process collectors
    do in their workers, after a trial call of the policy.

    Args:
        name: what the draws are for.
        seed: the seed; ``None`` follows the process's.

    Examples:
        >>> generator = ProcessGenerator("exploration")
        >>> _ = torch.manual_seed(0)
        >>> first = torch.rand(1, generator=generator.get())
        >>> _ = torch.manual_seed(1), torch.rand(1, generator=generator.get()), torch.manual_seed(0)
        >>> bool(torch.rand(1, generator=generator.get()) == first)
        True
    """

    def __init__(self, name: str, seed: int | None = None) -> None:
        self.name, self.seed = name, seed
        self._generator: torch.Generator | None = None
        self._of: int | None = None

    def get(self) -> torch.Generator:
        """The generator of this process and seed."""
        seed = torch.initial_seed() if self.seed is None else self.seed
        if self._generator is None or self._of != seed:
            self._generator, self._of = named_generator(self.name, seed), seed
        return self._generator

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The state of this process's generator."""
        return {"generator": self.get().get_state()}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Restores what :meth:`state_dict` gave, in a process of the same seed."""
        self.get().set_state(state_dict["generator"])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_generator": None}
