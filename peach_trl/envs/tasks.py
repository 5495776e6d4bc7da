"""Libraries of tasks: the parameters of every task, and which tasks are for training, validation and testing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from peach_trl.seeding import named_generator


class TaskLibrary:
    """A fixed, finite set of tasks, numbered from 0, in disjoint splits.

    Args:
        parameters: ``[num_tasks, P]`` float32, what tells one task from another, such as a goal's coordinates.
        splits: a name for each group of task ids, such as ``{"train": ids, "test": ids}``; 1-D integer tensors,
            disjoint, each id at most once. A task may be in no split.
        name: what the list of tasks is called, such as ``"HalfCheetahVel-v1"``; the version goes up whenever the same
            seed would give other tasks.

    Attributes:
        name: likewise.
        parameters: ``[num_tasks, P]`` float32.
        num_tasks: number of tasks.
        source_ids: ``[num_tasks]`` int64, each task's id in the library that the first :meth:`subset` was called on, or
            its own id.
        single: the library of which this is a :meth:`repeat`, else itself.

    Raises:
        ValueError: for overlapping splits (naming the ids), ids out of range, or wrong shapes.

    Examples:
        >>> library = TaskLibrary(torch.tensor([[1.0], [2.0], [3.0]]), {"train": torch.tensor([0, 1])})
        >>> library.parameters[library.split("train")]
        tensor([[1.],
                [2.]])
        >>> twice = library.subset([2], repeats=2)
        >>> twice.split("all"), twice.source_ids
        (tensor([0, 1]), tensor([2, 2]))
    """

    def __init__(self, parameters: Tensor, splits: Mapping[str, Tensor], name: str = "tasks") -> None:
        if parameters.ndim != 2 or not parameters.shape[0] or not bool(parameters.isfinite().all()):
            raise ValueError(
                f"parameters of shape {tuple(parameters.shape)}: give finite numbers of shape [num_tasks, P]"
            )
        self.name = name
        self.parameters = parameters.to(torch.float32)
        self.num_tasks = parameters.shape[0]
        self.source_ids = torch.arange(self.num_tasks)
        self.single: TaskLibrary = self
        self._splits = {name: self._ids(name, ids) for name, ids in splits.items()}
        owner: dict[int, str] = {}
        for name, ids in self._splits.items():
            shared = sorted({i for i in ids.tolist() if i in owner})
            if shared:
                raise ValueError(
                    f"splits {owner[shared[0]]!r} and {name!r} share the task ids {shared}:"
                    " give each id to one split only"
                )
            owner.update(dict.fromkeys(ids.tolist(), name))

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self._splits)

    def split(self, name: str) -> Tensor:
        """The task ids of the split ``name``, int64 ``[n]``; a ``KeyError`` lists the known names."""
        if name not in self._splits:
            raise KeyError(f"split {name!r} is unknown: this library has {', '.join(map(repr, self._splits))}")
        return self._splits[name].clone()

    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 over parameters and splits: equal for equal lists of tasks only."""
        digest = hashlib.sha256(self.parameters.numpy().tobytes())
        for name, ids in sorted(self._splits.items()):
            digest.update(name.encode() + ids.numpy().tobytes())
        return digest.hexdigest()[:16]

    def identity(self) -> dict[str, str]:
        """What files say of which tasks they are: the list's name and fingerprint."""
        return {"list": self.name, "fingerprint": self.fingerprint()}

    def subset(self, ids: Sequence[int] | Tensor, repeats: int = 1) -> TaskLibrary:
        """A library of some of these tasks, renumbered from 0, with one split, ``"all"``.

        Args:
            ids: the tasks to keep, in this order.
            repeats: how often each becomes a task of its own, consecutively; for several independent adaptations to
                one task, say.
        """
        if repeats < 1:
            raise ValueError(f"repeats = {repeats}: must be >= 1")
        chosen = self._ids("subset", torch.as_tensor(ids)).repeat_interleave(repeats)
        library = TaskLibrary(self.parameters[chosen], {"all": torch.arange(len(chosen))}, self.name)
        library.source_ids = self.source_ids[chosen]
        return library

    def repeat(self, seeds: int) -> TaskLibrary:
        """The same tasks for each of several agents: those of agent s have the ids s * ``num_tasks`` and up.

        Splits hold the tasks of all agents, the first agent's first. :attr:`single` is the library of one of them.

        Examples:
            >>> library = TaskLibrary(torch.tensor([[1.0], [2.0]]), {"train": torch.tensor([1])}).repeat(3)
            >>> library.split("train"), library.single.num_tasks
            (tensor([1, 3, 5]), 2)
        """
        offsets = self.num_tasks * torch.arange(seeds).unsqueeze(1)
        splits = {name: (ids + offsets).flatten() for name, ids in self._splits.items()}
        library = TaskLibrary(self.parameters.repeat(seeds, 1), splits, self.name)
        library.source_ids, library.single = self.source_ids.repeat(seeds), self
        return library

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(ids)}" for name, ids in self._splits.items())
        return f"TaskLibrary({self.name}: {self.num_tasks} tasks of {self.parameters.shape[1]} parameters; {sizes})"

    def _ids(self, name: str, ids: Tensor) -> Tensor:
        if ids.ndim != 1 or not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"{name}: task ids {ids!r} must be a non-empty 1-D tensor of integers")
        wrong = [i for i in ids.tolist() if not 0 <= i < self.num_tasks]
        if wrong:
            raise ValueError(
                f"{name}: task ids {wrong} are out of range; the library's ids are 0..{self.num_tasks - 1}"
            )
        values, counts = ids.unique(return_counts=True)
        twice = values[counts > 1].tolist()
        if twice:
            raise ValueError(f"{name}: task ids {twice} are given more than once; give each once")
        return ids.to(torch.int64).clone()


def draw_library(
    name: str,
    draw: Callable[[int, torch.Generator], Tensor],
    *,
    train: int,
    validation: int,
    test: int,
    seed: int,
    stream: str = "tasks",
) -> TaskLibrary:
    """A library whose splits are drawn one by one, each from its own stream: no split's size changes another's tasks.

    Args:
        name: name and version of the list.
        draw: the parameters ``[size, P]`` of ``size`` tasks, from the generator that it is handed.
        train: number of training tasks, ids 0 to ``train - 1``.
        validation: number of validation tasks, the ids that follow.
        test: number of test tasks, the last ids.
        seed: fixes all the tasks.
        stream: name of the random streams; another name gives other tasks.

    Examples:
        >>> def velocities(size, generator):
        ...     return 3 * torch.rand(size, 1, generator=generator)
        >>> library = draw_library("Velocities-v1", velocities, train=3, validation=2, test=2, seed=0)
        >>> library, library.split("test")
        (TaskLibrary(Velocities-v1: 7 tasks of 1 parameters; train: 3, validation: 2, test: 2), tensor([5, 6]))
    """
    parameters, splits, start = [], {}, 0
    for split, size in (("train", train), ("validation", validation), ("test", test)):
        if size < 1:
            raise ValueError(f"{split} = {size}: each split needs at least 1 task")
        parameters.append(draw(size, named_generator(f"{stream}/{split}", seed)))
        splits[split] = torch.arange(start, start + size)
        start += size
    return TaskLibrary(torch.cat(parameters), splits, name)


def half_circle_tasks(
    radius: float, train: int, validation: int, test: int, seed: int, name: str = "HalfCircle-v2"
) -> TaskLibrary:
    """Goals (x, y) on a half circle around the origin, one in each of as many equal arcs as a split has tasks.

    Within its arc an angle is drawn uniformly. Drawn from the whole half circle, 15 goals lie as unevenly as chance has
    it, and a policy that knows nothing of the task scores well on some splits by going where they cluster.

    Args:
        radius: distance of the goals from the origin, in metres.
        train: number of training tasks, see :func:`draw_library`.
        validation: number of validation tasks.
        test: number of test tasks.
        seed: fixes all the goals.
        name: name and version of the list.

    Examples:
        >>> library = half_circle_tasks(8.0, train=3, validation=2, test=2, seed=0)
        >>> library.split("test"), bool((library.parameters[:, 1] >= 0).all())
        (tensor([5, 6]), True)
    """
    return _library_of(partial(half_circle_goals, radius=radius), train, validation, test, seed, name)


def _library_of(
    draw: Callable[[int, torch.Generator], Tensor], train: int, validation: int, test: int, seed: int, name: str
) -> TaskLibrary:
    """A library with random streams of its own, by its name."""
    return draw_library(name, draw, train=train, validation=validation, test=test, seed=seed, stream=f"{name}/tasks")


def half_circle_goals(size: int, generator: torch.Generator, radius: float) -> Tensor:
    """Goals (x, y), ``[size, 2]``, one in each of ``size`` equal arcs; see :func:`half_circle_tasks`."""
    return _arc_goals(size, generator, radius, math.pi)


def circle_tasks(
    radius: float, train: int, validation: int, test: int, seed: int, name: str = "Circle-v1"
) -> TaskLibrary:
    """Goals (x, y) on a whole circle around the origin, one in each of as many equal arcs as a split has tasks.

    Arguments: see :func:`half_circle_tasks`.

    Examples:
        >>> library = circle_tasks(8.0, train=4, validation=2, test=2, seed=0)
        >>> library.parameters[:4].sign().tolist()  # one in each quadrant
        [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
    """
    return _library_of(partial(circle_goals, radius=radius), train, validation, test, seed, name)


def circle_goals(size: int, generator: torch.Generator, radius: float) -> Tensor:
    """Goals (x, y), ``[size, 2]``, one in each of ``size`` equal arcs; see :func:`circle_tasks`."""
    return _arc_goals(size, generator, radius, 2 * math.pi)


def _arc_goals(size: int, generator: torch.Generator, radius: float, length: float) -> Tensor:
    within = torch.rand(size, generator=generator, dtype=torch.float64)
    angle = length * (torch.arange(size) + within) / size
    return radius * torch.stack([angle.cos(), angle.sin()], dim=-1)


def square_tasks(
    half_width: float, train: int, validation: int, test: int, seed: int, name: str = "Square-v1"
) -> TaskLibrary:
    """Goals (x, y) in a square around the origin, one in each of as many equal rectangles as a split has tasks.

    Within its rectangle a goal is drawn uniformly. The rectangles are as near to squares as the number of tasks can be
    divided: 60 tasks make 6 rows of 10, a prime number of them one row.

    Args:
        half_width: of the square, in metres.
        train: number of training tasks, see :func:`draw_library`.
        validation: number of validation tasks.
        test: number of test tasks.
        seed: fixes all the goals.
        name: name and version of the list.

    Examples:
        >>> library = square_tasks(6.0, train=4, validation=2, test=2, seed=0)
        >>> library.parameters[:4].sign().tolist(), bool((library.parameters.abs() <= 6.0).all())
        ([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]], True)
    """
    return _library_of(partial(square_goals, half_width=half_width), train, validation, test, seed, name)


def square_goals(size: int, generator: torch.Generator, half_width: float) -> Tensor:
    """Goals (x, y), ``[size, 2]``, one in each of ``size`` equal rectangles; see :func:`square_tasks`."""
    rows = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
    columns = size // rows
    cell = torch.stack([torch.arange(size) % columns, torch.arange(size) // columns], dim=-1)
    within = torch.rand(size, 2, generator=generator, dtype=torch.float64)
    return half_width * (2 * (cell + within) / torch.tensor([columns, rows]) - 1)
