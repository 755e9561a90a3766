"""Foreground voxels as a graph: a list of voxels and a table of their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import StepError
from medpipe.geometry import affine_problem
from medpipe.jit import compiled

__all__ = ["OFFSETS", "ForegroundGraph", "foreground_graph"]

Ints = NDArray[np.int32]

OFFSETS: tuple[tuple[int, int, int], ...] = tuple(
    (i, j, k) for i, j, k in product((-1, 0, 1), repeat=3) if (i, j, k) != (0, 0, 0)
)
"""Steps to the 26 neighbours, by ascending linear index; offset 25 - n is minus offset n."""


@dataclass(frozen=True, eq=False)
class ForegroundGraph:
    """Voxels of the structures of a label map and which of them touch.

    Parameters
    ----------
    voxels : Tensor
        int32 (N, 3), by ascending linear index of the array.
    structures : Tensor
        int32 (N,), the label value of each voxel.
    neighbours : Tensor
        int32 (N, 26), the number of the voxel at each of `OFFSETS`, -1 where there is
        none or one of another structure.
    steps_mm : Tensor
        float64 (26,), the length of each offset under the affine.
    shape : (I, J, K)
        Of the label map.
    """

    voxels: torch.Tensor
    structures: torch.Tensor
    neighbours: torch.Tensor
    steps_mm: torch.Tensor
    shape: tuple[int, int, int]


def foreground_graph(labels: torch.Tensor, affine: ArrayLike) -> ForegroundGraph:
    """Return the 26-connected graph of a label map; edges join voxels of the same label.

    Parameters
    ----------
    labels : Tensor
        Integers or bool (I, J, K); values above 0 are structures.
    affine : (4, 4)
        Voxel index to mm, sheared or not.

    Returns
    -------
    ForegroundGraph
        On the device of `labels`, without voxels where no label is above 0.

    Raises
    ------
    StepError
        If `labels` are no integers (I, J, K) that fit int32, or the affine is not usable.
    """
    if labels.ndim != 3 or labels.is_floating_point() or labels.is_complex():
        raise StepError(
            "the structures are not a label map",
            expected="integers of shape (I, J, K)",
            got=f"{str(labels.dtype).removeprefix('torch.')} of {labels.ndim} axes",
        )
    problem = affine_problem(affine)
    if problem is not None:
        raise StepError(problem)
    labels = labels.detach()
    table = _host if labels.device.type == "cpu" else _table
    voxels, structures, neighbours = table(labels)
    matrix = np.asarray(affine, np.float64)[:3, :3]
    # summed here in one order, so that a step and its opposite have the same bits
    vectors = [matrix[:, 0] * i + matrix[:, 1] * j + matrix[:, 2] * k for i, j, k in OFFSETS]
    lengths = [float(np.sqrt((v * v).sum())) for v in vectors]
    return ForegroundGraph(
        voxels=voxels,
        structures=structures,
        neighbours=neighbours,
        steps_mm=torch.tensor(lengths, dtype=torch.float64, device=labels.device),
        shape=(labels.shape[0], labels.shape[1], labels.shape[2]),
    )


def _check_range(most: int) -> None:
    limit = np.iinfo(np.int32).max
    if most > limit:
        raise StepError("a label is too large", expected=f"{limit} at most")


def _host(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return voxels, structures and neighbours of labels of the host; nothing is copied."""
    array = labels.cpu().numpy()
    linear = np.flatnonzero(array > 0)
    values = array.reshape(-1)[linear]
    if values.size:
        _check_range(int(values.max()))
    structures = values.astype(np.int32)
    voxels, neighbours = _neighbours(linear, structures, *array.shape)
    return (
        torch.from_numpy(voxels),
        torch.from_numpy(structures),
        torch.from_numpy(neighbours),
    )


@compiled
def _neighbours(
    linear: NDArray[np.int64], structures: Ints, rows: int, columns: int, depth: int
) -> tuple[Ints, Ints]:
    """Return the voxels (N, 3) and their neighbours (N, 26).

    The voxels of a line along K follow each other in the list, so all that the search
    needs is where each line begins: no array of the size of the image.
    """
    n = linear.size
    voxels = np.empty((n, 3), np.int32)
    neighbours = np.full((n, 26), -1, np.int32)
    begin = np.zeros(rows * columns + 1, np.int32)
    for a in range(n):
        line = linear[a] // depth
        voxels[a, 0] = line // columns
        voxels[a, 1] = line % columns
        voxels[a, 2] = linear[a] % depth
        begin[line + 1] += 1
    for line in range(rows * columns):
        begin[line + 1] += begin[line]
    for line in range(rows * columns):
        first, end = begin[line], begin[line + 1]
        if first == end:
            continue
        i, j = line // columns, line % columns
        for di in range(-1, 2):
            for dj in range(-1, 2):
                if not (0 <= i + di < rows and 0 <= j + dj < columns):
                    continue
                other = (i + di) * columns + j + dj
                b, last = begin[other], begin[other + 1]
                column = (di + 1) * 9 + (dj + 1) * 3
                for a in range(first, end):
                    k = voxels[a, 2]
                    while b < last and voxels[b, 2] < k - 1:
                        b += 1
                    c = b
                    while c < last and voxels[c, 2] <= k + 1:
                        if structures[c] == structures[a] and c != a:
                            offset = column + voxels[c, 2] - k + 1
                            neighbours[a, offset - (offset > 13)] = c
                        c += 1
    return voxels, neighbours


def _table(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return voxels, structures and neighbours by an array of voxel numbers, on any device."""
    inside = labels > 0
    index = inside.nonzero()
    values = labels[inside]
    if values.numel():
        _check_range(int(values.max()))
    structures = values.to(torch.int32)
    count, device = index.shape[0], labels.device
    numbers = torch.full([s + 2 for s in labels.shape], -1, dtype=torch.int32, device=device)
    numbers[1:-1, 1:-1, 1:-1][inside] = torch.arange(count, dtype=torch.int32, device=device)
    strides = numbers.stride()
    linear = sum(((index[:, a] + 1) * strides[a] for a in range(3)), torch.zeros_like(index[:, 0]))
    neighbours = torch.empty((count, 26), dtype=torch.int32, device=device)
    flat = numbers.view(-1)
    for n, offset in enumerate(OFFSETS):
        near = flat[linear + sum(o * s for o, s in zip(offset, strides, strict=True))]
        same = structures[near.clamp_min(0)] == structures
        neighbours[:, n] = torch.where(same, near, -1)
    return index.to(torch.int32), structures, neighbours
