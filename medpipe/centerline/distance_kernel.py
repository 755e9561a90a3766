"""The exact distance transform of the host, over the foreground alone.

Squared distances pass along one axis after the other as lower envelopes of parabolas
(Felzenszwalb and Huttenlocher 2012, doi 10.4086/toc.2012.v008a019). Only foreground has
a distance, and a background voxel hides all that lies behind it on its line: so each
pass goes over the runs of foreground voxels between two background voxels and never
sees a line without foreground. Time and memory go with the number of foreground voxels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.jit import compiled

__all__ = ["foreground_squares"]

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]


def foreground_squares(linear: Longs, shape: tuple[int, ...], spacing_mm: Any) -> Floats:
    """Return the squared distances in mm² from foreground voxels to the background.

    Parameters
    ----------
    linear : (N,)
        Linear indices of the foreground voxels, ascending.
    shape : (I, J, K)
        Of the array; what lies outside is no background.
    spacing_mm : three numbers
        One per axis.

    Returns
    -------
    (N,)
        inf where no background lies anywhere.
    """
    squares = np.full(linear.size, np.inf)
    stride = 1
    for axis in (2, 1, 0):
        _pass(linear, squares, stride, shape[axis], float(spacing_mm[axis]), int(np.prod(shape)))
        stride *= shape[axis]
    return squares


@compiled
def _pass(
    linear: Longs, squares: Floats, stride: int, extent: int, spacing: float, size: int
) -> None:
    """Take the minimum over the lines of one axis, in place."""
    order = _by_line(linear, stride, extent, size)
    n = linear.size
    place = np.empty(extent + 2)
    height = np.empty(extent + 2)
    start = np.empty(extent + 2)
    first = 0
    while first < n:
        index = linear[order[first]]
        end = first + 1
        while end < n and linear[order[end]] == index + (end - first) * stride:
            if (index // stride + end - first) % extent == 0:
                break  # the next line follows
            end += 1
        at = (index // stride) % extent
        opens, closes = at > 0, at + end - first < extent
        _run(order[first:end], squares, spacing, opens, closes, place, height, start)
        first = end


@compiled
def _by_line(linear: Longs, stride: int, extent: int, size: int) -> NDArray[np.int32]:
    """Return the order in which voxels lie line by line, by counting."""
    n = linear.size
    order = np.empty(n, np.int32)
    if stride == 1:
        for a in range(n):
            order[a] = a
        return order
    block = stride * extent
    begin = np.zeros(size // extent + 1, np.int32)
    for a in range(n):
        begin[linear[a] // block * stride + linear[a] % stride + 1] += 1
    for line in range(begin.size - 1):
        begin[line + 1] += begin[line]
    for a in range(n):
        line = linear[a] // block * stride + linear[a] % stride
        order[begin[line]] = a
        begin[line] += 1
    return order


@compiled
def _run(
    voxels: NDArray[np.int32],
    squares: Floats,
    spacing: float,
    opens: bool,
    closes: bool,
    place: Floats,
    height: Floats,
    start: Floats,
) -> None:
    """Replace the values of a run by their lower envelope with the background at its ends.

    `place`, `height` and `start` are room for the parabolas and for where each begins
    to be the lowest.
    """
    length = voxels.size
    scale = 1.0 / (spacing * spacing)
    count = 0
    for q in range(-1, length + 1):
        if q < 0:
            h = 0.0 if opens else np.inf
        elif q == length:
            h = 0.0 if closes else np.inf
        else:
            h = squares[voxels[q]]
        if h == np.inf:
            continue
        x = -np.inf
        while count > 0:
            p = place[count - 1]
            x = ((h - height[count - 1]) * scale + (q * q - p * p)) / (2.0 * (q - p))
            if x > start[count - 1]:
                break
            count -= 1
            x = -np.inf
        place[count], height[count], start[count] = q, h, x
        count += 1
    if count == 0:
        return
    low = 0
    for q in range(length):
        while low + 1 < count and start[low + 1] <= q:
            low += 1
        best = np.inf
        # where two parabolas meet, the rounding of that place must not choose
        for c in range(max(low - 1, 0), min(low + 2, count)):
            step = spacing * (q - place[c])
            best = min(best, height[c] + step * step)
        squares[voxels[q]] = best
