"""In which order the tokens of a grid are drawn.

The Hilbert curve is defined for cubes of 2ⁿ cells. Here it is generalised to any box: the
box is cut in halves along its long axes, the parts are passed in turn, and in each part the
path leads from corner to corner, so that the next part begins one step further. Which
corners are used is searched for: a path of single steps exists between two corners only if
the number of its steps is odd where the corners are of different colours of a chessboard,
and even where they are of the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.errors import UsageError

__all__ = ["OrderKind", "check_grid", "inverse_order", "token_order"]

OrderKind = Literal["raster", "s-curve", "hilbert"]

_Cells = NDArray[np.int64]
_Corner = tuple[int, ...]
_Leg = tuple[_Corner, _Corner, _Corner]  # a part, and where it is entered and left
_SMALL = 3  # boxes up to this size along every axis are searched cell by cell


def token_order(grid: tuple[int, ...], kind: OrderKind) -> torch.Tensor:
    """Return the place in the grid of every token of the sequence.

    Parameters
    ----------
    grid : tuple of int
        One to three axes.
    kind : {"raster", "s-curve", "hilbert"}
        Row by row; row by row with every other row and plane reversed, so that each step
        leads to a neighbour; along a Hilbert curve generalised to boxes of any size (each
        step leads to a neighbour, and what is near in the sequence is near in space).

    Returns
    -------
    Tensor
        int64 (L,), on the host: flat raster index by position in the sequence.

    Raises
    ------
    UsageError
        If the grid or the kind cannot be.
    """
    grid = check_grid(grid)
    if kind == "raster":
        return torch.arange(math.prod(grid))
    if kind == "s-curve":
        return torch.from_numpy(_s_curve(grid))
    if kind == "hilbert":
        padded = grid + (1,) * (3 - len(grid))
        return torch.from_numpy(np.ravel_multi_index(tuple(_hilbert(padded).T), padded))
    raise UsageError("unknown order of tokens", expected="raster, s-curve or hilbert", got=kind)


def inverse_order(order: torch.Tensor) -> torch.Tensor:
    """Return the position in the sequence of every place in the grid, int64 (L,)."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return inverse


def check_grid(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Return the grid as a tuple; UsageError unless it has one to three axes of 1 or more."""
    grid = tuple(int(n) for n in grid)
    if not 1 <= len(grid) <= 3 or min(grid) < 1:
        raise UsageError(
            "the grid of tokens is wrong", expected="one to three sizes of 1 or more", got=str(grid)
        )
    return grid


def _s_curve(grid: tuple[int, ...]) -> _Cells:
    order = np.arange(math.prod(grid))
    for axis in range(len(grid) - 1, 0, -1):
        lines = order.reshape(-1, grid[axis - 1], math.prod(grid[axis:]))
        lines[:, 1::2] = lines[:, 1::2, ::-1].copy()
    return order


def _hilbert(grid: tuple[int, ...]) -> _Cells:
    """Return the cells of the curve through a box, (L, 3)."""
    wide = [axis for axis in range(3) if grid[axis] > 1]
    if not wide:
        return np.zeros((1, 3), np.int64)
    # between the ends of one even axis, or of any axis if all are odd, a path exists
    ends = sorted(wide, key=lambda axis: (grid[axis] % 2, -grid[axis]))
    for axis in ends:
        found = _path(grid, tuple(int(i == axis) for i in range(3)))
        if found is not None:
            return found
    raise AssertionError("a box without a curve")


@lru_cache(maxsize=4096)
def _path(size: tuple[int, ...], end: _Corner) -> _Cells | None:
    """Return a path of single steps from corner (0, 0, 0) to corner `end`; None without one.

    `end` has a 1 for every axis at whose far side the path ends.
    """
    steps = math.prod(size) - 1
    apart = sum((n - 1) * e for n, e in zip(size, end, strict=True))
    if (steps - apart) % 2 or (steps > 0 and not any(end)):
        return None
    if max(size) <= _SMALL:
        return _searched(size, end)
    for cuts in _cuts(size):
        found = _through_parts(size, end, cuts)
        if found is not None:
            return found
    return None


def _cuts(size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield where each axis is cut (0: nowhere): halves of all long axes first."""
    long = {axis for axis in range(3) if 3 * size[axis] > 2 * max(size) and size[axis] > 1}
    axes = [a for a in range(3) if size[a] > 1]
    chosen = [set(c) for n in range(1, len(axes) + 1) for c in itertools.combinations(axes, n)]
    for cut in sorted(chosen, key=lambda c: (len(c ^ long), -len(c))):
        places = [_halves(size[a]) if a in cut else (0,) for a in range(3)]
        yield from sorted(itertools.product(*places), key=lambda c: _unevenness(size, c))


def _halves(n: int) -> tuple[int, ...]:
    return tuple(m for m in (n // 2, n // 2 + 1, n // 2 - 1) if 0 < m < n)


def _unevenness(size: tuple[int, ...], cut: tuple[int, ...]) -> int:
    return sum(abs(2 * c - n) for n, c in zip(size, cut, strict=True) if c)


def _through_parts(size: tuple[int, ...], end: _Corner, cut: tuple[int, ...]) -> _Cells | None:
    """Return a path that passes the parts of a box one after another."""
    last = tuple(int(bool(c) and e) for c, e in zip(cut, end, strict=True))
    count = 2 ** sum(c > 0 for c in cut)
    failed: set[tuple[_Corner, _Corner, frozenset[_Corner]]] = set()

    def extent(part: _Corner) -> tuple[int, ...]:
        return tuple((n - c if p else c) or n for n, c, p in zip(size, cut, part, strict=True))

    def walk(part: _Corner, entry: _Corner, passed: frozenset[_Corner]) -> list[_Leg] | None:
        """Return the way through the parts that are left; None if there is none."""
        if part == last:
            through = len(passed) + 1 == count and _joined(extent(part), entry, end) is not None
            return [(part, entry, end)] if through else None
        if (part, entry, passed) in failed:
            return None
        for axis in (a for a in range(3) if cut[a]):
            further = _flipped(part, axis)
            if further in passed:
                continue
            for leave in itertools.product((0, 1), repeat=3):
                if leave[axis] != further[axis] or _joined(extent(part), entry, leave) is None:
                    continue
                rest = walk(further, _flipped(leave, axis), passed | {part})
                if rest is not None:
                    return [(part, entry, leave), *rest]
        failed.add((part, entry, passed))
        return None

    legs = walk((0, 0, 0), (0, 0, 0), frozenset())
    if legs is None:
        return None
    placed = []
    for part, entry, leave in legs:
        cells, box = _joined(extent(part), entry, leave), np.array(extent(part))
        if cells is not None:
            placed.append(np.where(entry, box - 1 - cells, cells) + np.array(part) * cut)
    return np.concatenate(placed)


def _flipped(corner: _Corner, axis: int) -> _Corner:
    return tuple(b ^ (i == axis) for i, b in enumerate(corner))


def _joined(extent: tuple[int, ...], entry: _Corner, leave: _Corner) -> _Cells | None:
    """Return a path through a box from one corner to another, as if it began at (0, 0, 0)."""
    end = tuple(int(n > 1 and a != b) for n, a, b in zip(extent, entry, leave, strict=True))
    return _path(extent, end)


def _searched(size: tuple[int, ...], end: _Corner) -> _Cells | None:
    """Return a path through a small box, found by trying."""
    goal = tuple((n - 1) * e for n, e in zip(size, end, strict=True))
    left = set(itertools.product(*map(range, size)))
    path: list[_Corner] = []

    def beside(cell: _Corner) -> list[_Corner]:
        steps = ((axis, by) for axis in range(3) for by in (-1, 1))
        near = (tuple(c + by * (i == axis) for i, c in enumerate(cell)) for axis, by in steps)
        return [c for c in near if c in left]

    def go(cell: _Corner) -> bool:
        path.append(cell)
        left.remove(cell)
        # first where there are fewest ways on (Warnsdorff's rule)
        further = [] if cell == goal else sorted(beside(cell), key=lambda c: len(beside(c)))
        if (cell == goal and not left) or any(go(c) for c in further):
            return True
        path.pop()
        left.add(cell)
        return False

    return np.array(path, np.int64) if go((0, 0, 0)) else None
