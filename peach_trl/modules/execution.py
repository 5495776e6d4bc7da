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

KINDS = 4096  # of arguments whose calls are counted
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
        may: asked before it is traced; as long as it says no, it is not.

    Examples:
        >>> double = Traced(lambda x: (2 * x,))
        >>> [double(torch.ones(1)) for _ in range(4)][-1]
        (tensor([2.]),)
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], after: int = 2, may: Callable[[], bool] = lambda: True
    ) -> None:
        self.function, self.after, self.calls, self._may = function, after, 0, may
        self._trace: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the function returns."""
        if not _Settings.trace or tensors[0].device.type != "cpu":
            return self.function(*tensors)
        if self._trace is None:
            self.calls += 1
            if self.calls <= self.after or not self._may():
                return self.function(*tensors)
            self._make_trace(tensors)
        return cast(Any, self._trace)(*tensors)

    @property
    def traced(self) -> bool:
        """Whether it is."""
        return self._trace is not None

    def _make_trace(self, tensors: Sequence[Tensor]) -> None:
        with _Settings.lock, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            if self._trace is None:  # no other thread was faster
                warnings.simplefilter("ignore")  # of shapes that become constants, as they should
                copies = tuple(tensor.detach().clone() for tensor in tensors)
                self._trace = cast(Any, torch.jit.trace(self.function, copies, check_trace=False))


class TracedKinds:
    """Functions made and traced for each kind of arguments: their shapes, and what else tells them apart.

    torch keeps a trace for ever, some megabytes each. Where shapes are always others, as with episodes of any length,
    few of them are worth one: the first kinds are traced soon, later ones only if they come up often, and never more
    than ``most`` of them.

    Args:
        most: kinds that are traced.
        soon: how many of them soon.
        often: calls after which later ones are.
    """

    def __init__(self, most: int = 32, soon: int = 8, often: int = 100) -> None:
        self.most, self.soon, self.often = most, soon, often
        self._kinds: dict[Hashable, Traced] = {}
        self._left = most

    def get(self, kind: Hashable, make: Callable[[], Callable[..., tuple[Tensor, ...]]]) -> Traced:
        """The function of a kind; ``make`` makes it where there is none yet."""
        found = self._kinds.get(kind)
        if found is None:
            if len(self._kinds) >= KINDS:
                self._kinds = {kind: one for kind, one in self._kinds.items() if one.traced}
            after = 2 if len(self._kinds) < self.soon else self.often
            found = self._kinds[kind] = Traced(make(), after, self._may)
        return found

    def _may(self) -> bool:
        with _Settings.lock:
            self._left -= self._left >= 0
            return self._left >= 0

    def __deepcopy__(self, memo: dict) -> TracedKinds:
        return TracedKinds(self.most, self.soon, self.often)

    def __reduce__(self) -> Any:
        return TracedKinds, (self.most, self.soon, self.often)
