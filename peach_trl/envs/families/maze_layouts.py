"""Cell maps of mazes: which cells are walls, where episodes start, and where goals may lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Wall(NamedTuple):
    """A rectangle of wall cells, in cells, from its upper left cell."""

    row: int
    column: int
    rows: int
    columns: int


class MazeLayout:
    """A maze of square cells, drawn with one character per cell.

    ``#`` is a wall, ``.`` is free, ``S`` is the free cell where episodes start. As in D4RL (Fu et al. 2020,
    arXiv 2004.07219) and gymnasium-robotics, the first line is the far end of the y axis, x grows to the right, and the
    origin is the middle of the map.

    Args:
        text: the map, one line per row of cells; blank lines and indentation do not count.

    Attributes:
        rows: number of rows of cells, outer walls included.
        columns: number of columns, likewise.
        start: row and column of the start, int ``[2]``.
        goals: rows and columns of the free cells other than the start, in reading order, int ``[n, 2]``.

    Raises:
        ValueError: for a map that is no rectangle, has other characters, not exactly one start or no goal, is open to
            the outside, or has free cells that cannot be reached from the start.

    Examples:
        >>> layout = MazeLayout('''
        ...     #####
        ...     #S..#
        ...     #####
        ... ''')
        >>> layout.start.tolist(), layout.goals.tolist()
        ([1, 1], [[1, 2], [1, 3]])
        >>> layout.centres(layout.goals, size=2.0)
        array([[0., 0.],
               [2., 0.]])
        >>> layout.walls()[0]
        Wall(row=0, column=0, rows=1, columns=5)
    """

    def __init__(self, text: str) -> None:
        lines = text.split()
        if not lines or len({len(line) for line in lines}) > 1 or set("".join(lines)) - set("#.S"):
            raise ValueError(f"maze {lines}: draw rows of equal length with the characters '#', '.' and 'S'")
        cells = np.array([list(line) for line in lines])
        self._free = cells != "#"
        self.rows, self.columns = cells.shape
        starts = np.argwhere(cells == "S")
        self.goals = np.argwhere(cells == ".")
        if len(starts) != 1 or not len(self.goals):
            raise ValueError(f"maze {lines}: mark exactly one start 'S', and leave at least one more cell free '.'")
        self.start = starts[0]
        if self._free[[0, -1]].any() or self._free[:, [0, -1]].any():
            raise ValueError(f"maze {lines}: close the first and last row and column with walls '#'")
        lost = np.argwhere(self._free & ~self._reached()).tolist()
        if lost:
            raise ValueError(f"maze {lines}: the cells (row, column) {lost} cannot be reached from the start 'S'")

    def is_free(self, cells: np.ndarray) -> np.ndarray:
        """Whether ``cells`` ``[..., 2]`` (row, column) are free: bool ``[...]``."""
        return self._free[cells[..., 0], cells[..., 1]]

    def centres(self, cells: np.ndarray, size: float) -> np.ndarray:
        """Centres of ``cells`` ``[..., 2]``, x and y ``[..., 2]`` in metres, for cells ``size`` metres wide."""
        x = cells[..., 1] + 0.5 - self.columns / 2
        y = self.rows / 2 - cells[..., 0] - 0.5
        return size * np.stack([x, y], axis=-1)

    def cells(self, positions: np.ndarray, size: float) -> np.ndarray:
        """The cells ``[..., 2]`` in which ``positions`` ``[..., 2]``, x and y in metres, lie."""
        row = self.rows / 2 - positions[..., 1] / size
        column = positions[..., 0] / size + self.columns / 2
        return np.floor(np.stack([row, column], axis=-1)).astype(np.int64)

    def half_extent(self, size: float) -> np.ndarray:
        """Half the width and height between the outer walls, ``[2]`` in metres."""
        return size * np.array([self.columns / 2 - 1, self.rows / 2 - 1])

    def walls(self) -> list[Wall]:
        """The wall cells, joined to few rectangles: fewer boxes to collide with, and fewer seams to slide over."""
        left, walls = ~self._free, []
        for row, column in np.argwhere(left).tolist():
            if not left[row, column]:
                continue
            right, below = column, row
            while right < self.columns and left[row, right]:
                right += 1
            while below < self.rows and left[below, column:right].all():
                below += 1
            left[row:below, column:right] = False
            walls.append(Wall(row, column, below - row, right - column))
        return walls

    def rectangles(self, size: float) -> np.ndarray:
        """The walls as (x_low, y_low, x_high, y_high), ``[W, 4]`` in metres, for cells ``size`` metres wide."""
        row, column, rows, columns = np.array(self.walls()).T
        x, y = column - self.columns / 2, self.rows / 2 - row - rows
        return size * np.stack([x, y, x + columns, y + rows], axis=1)

    def _reached(self) -> np.ndarray:
        """Which cells can be reached from the start by steps to the four neighbours, bool ``[rows, columns]``."""
        reached = np.zeros_like(self._free)
        frontier = [tuple(self.start)]
        while frontier:
            row, column = frontier.pop()
            if self._free[row, column] and not reached[row, column]:
                reached[row, column] = True
                frontier += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        return reached


def maze_walls(family: Any) -> np.ndarray | None:
    """The walls of a maze as (x_low, y_low, x_high, y_high), ``[W, 4]`` in metres; None where there are none.

    Args:
        family: a class of environments, or one of these, also transformed. It is a maze if it has a ``layout`` and the
            width of a ``cell``.

    Examples:
        >>> from peach_trl.envs.families.mazes import PointUMaze
        >>> maze_walls(PointUMaze)[0]  # the outer wall at the top: 5 x 1 cells of 1 m
        array([-2.5,  1.5,  2.5,  2.5])
    """
    layout = getattr(family, "layout", None)
    return layout.rectangles(family.cell) if isinstance(layout, MazeLayout) else None


U_MAZE = MazeLayout("""
    #####
    #S..#
    ###.#
    #...#
    #####
""")

MEDIUM_MAZE = MazeLayout("""
    ########
    #S.#...#
    #..#.#.#
    #......#
    #.##.#.#
    #..#.#.#
    ##...#.#
    ########
""")

LARGE_MAZE = MazeLayout("""
    ############
    #S...#.....#
    #.##.#.###.#
    #.#......#.#
    #.#.##.#.#.#
    #...#..#...#
    #.#.#.##.#.#
    #.#....#.#.#
    ############
""")
