"""How the arithmetic of gradient steps is carried out: traced, and side by side for several agents.

The functions of :mod:`peach_trl.objectives.plain` and :mod:`peach_trl.modules.perceptron` are plain sequences of
operations on tensors. Recorded once by ``torch.jit.trace``, they run without Python between them: a quarter faster on
small networks, and free of Python's lock, so that threads with different networks run side by side. The operations, and
what they compute, stay the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Settings:
    trace = True
    threads = 1
    lock = Lock()
    pool: ThreadPoolExecutor | None = None


def set_execution(threads: int = 1, side_by_side: int = 1, trace: bool = True) -> None:
    """Sets how gradient steps are carried out in this process.

    Args:
        threads: of an operation, as ``torch.set_num_threads`` has it; small networks want one.
        side_by_side: threads for independent networks, those of several seeds.
        trace: whether functions are traced.
    """
    torch.set_num_threads(threads)
    _Settings.trace, _Settings.threads = trace, side_by_side
    _Settings.pool = ThreadPoolExecutor(side_by_side, "networks") if side_by_side > 1 else None


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results for all items, in their order; side by side where :func:`set_execution` says so.

    Examples:
        >>> each(lambda x: x + 1, [1, 2])
        [2, 3]
    """
    if _Settings.pool is None or len(items) < 2:
        return [function(item) for item in items]
    size = -(-len(items) // _Settings.threads)  # a thread gets all its items at once: handing over takes time
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return [
        found for part in _Settings.pool.map(lambda part: [function(item) for item in part], parts) for found in part
    ]


class Traced:
    """A function of tensors that is traced once it has been called some times.

    Args:
        function: takes tensors, always of the same shapes and types, and returns a tuple of them. It may write into its
            arguments, and must not branch on values.
        after: calls before it is traced; what comes up less often is not worth it.

    Examples:
        >>> double = Traced(lambda x: (2 * x,))
        >>> [double(torch.ones(1)) for _ in range(4)][-1]
        (tensor([2.]),)
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], after: int = 2) -> None:
        self.function, self.after, self.calls = function, after, 0
        self._trace: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the function returns."""
        if not _Settings.trace or tensors[0].device.type != "cpu":
            return self.function(*tensors)
        if self._trace is None:
            self.calls += 1
            if self.calls <= self.after:
                return self.function(*tensors)
            self._make_trace(tensors)
        return cast(Any, self._trace)(*tensors)

    def _make_trace(self, tensors: Sequence[Tensor]) -> None:
        with _Settings.lock, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            if self._trace is None:  # no other thread was faster
                warnings.simplefilter("ignore")  # of shapes that become constants, as they should
                copies = tuple(tensor.detach().clone() for tensor in tensors)
                self._trace = cast(Any, torch.jit.trace(self.function, copies, check_trace=False))


class TracedKinds:
    """Functions made and traced for each kind of arguments: their shapes, and what else tells them apart.

    Args:
        most: kinds that are kept.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self._kinds: dict[Hashable, Traced] = {}

    def get(self, kind: Hashable, make: Callable[[], Callable[..., tuple[Tensor, ...]]]) -> Traced:
        """The function of a kind; ``make`` makes it where there is none yet."""
        found = self._kinds.get(kind)
        if found is None:
            if len(self._kinds) >= self.most:
                self._kinds.clear()
            found = self._kinds[kind] = Traced(make())
        return found

    def __deepcopy__(self, memo: dict) -> TracedKinds:
        return TracedKinds(self.most)

    def __reduce__(self) -> Any:
        return TracedKinds, (self.most,)
