"""Minimum cut problems of every kind the package builds, made from a seed.

The tests solve small ones with every solver, `benchmarks/min_cut.py` large ones.
They are built here from the formulas alone, so that they check the builders of
`medpipe.graphcut` too. All capacities are integers; terminals stay below 2^13 and
arcs below 2^12, or are INFINITE.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from medpipe.graphcut.problem import INFINITE, ArcFamily, CutProblem

TOP = 2**12 - 1
Psi = Callable[[np.ndarray], np.ndarray]
"""Convex cost of a position difference, an even function with psi(0) = 0."""


def tensor(values: np.ndarray) -> torch.Tensor:
    """Return an int32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32))


def whole(values: np.ndarray) -> np.ndarray:
    """Round to integers in [0, TOP]."""
    return np.clip(np.rint(values), 0, TOP).astype(np.int32)


# --- voxel grids -------------------------------------------------------------------


def blobs(shape: tuple[int, ...], seed: int, *, sigma: float = 0.0) -> np.ndarray:
    """Draw an image of random bright blobs, 0 to 1, with noise smoothed by `sigma` voxels."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), min(shape) / 8)
    noise = rng.standard_normal(shape)
    if sigma:
        noise = ndimage.gaussian_filter(noise, sigma)
        noise /= noise.std()
    return (smooth > np.quantile(smooth, 0.6)) + 0.25 * noise


def half_space(reach: int) -> list[tuple[int, int, int]]:
    """Return one offset of every pair of opposite neighbours, 3 (faces) or 13 of them."""
    every = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
    return [o for o in every if o > (0, 0, 0) and sum(map(abs, o)) <= reach]


def contrast(
    image: np.ndarray, offset: tuple[int, ...], weight: float, sigma: float = 0.3
) -> np.ndarray:
    """Weights of links: weight * exp(-difference^2 / 2 sigma^2) / distance."""
    there = np.roll(image, [-o for o in offset], range(image.ndim))
    return whole(weight * np.exp(-((image - there) ** 2) / (2 * sigma**2)) / np.linalg.norm(offset))


def grid(
    kind: str, size: int = 128, neighbours: int = 6, weight: float = 60, seed: int = 0
) -> CutProblem:
    """Binary segmentation of a size^3 grid.

    ``regional``: unaries from two Gaussians and contrast links. ``seeds``: no unaries
    but seeds inside and a frame outside. ``smooth``: correlated noise and strong links.
    """
    shape = (size,) * 3
    image = blobs(shape, seed, sigma=1.5 if kind == "smooth" else 0)
    # -log of the two Gaussians, difference of background and object
    pull = np.rint(40 * (image - 0.5) / 0.25).astype(np.int64)
    source, sink = whole(pull), whole(-pull)
    if kind == "seeds":
        source[:], sink[:] = 0, 0
        inside = ndimage.binary_erosion(image > 0.5, iterations=max(size // 32, 1))
        source[inside] = INFINITE
        sink[[0, -1]], sink[:, [0, -1]], sink[:, :, [0, -1]] = (INFINITE,) * 3
        source[sink > 0] = 0
    arcs = [
        ArcFamily(o, w, w)
        for o in half_space(1 if neighbours == 6 else 3)
        for w in [tensor(contrast(image, o, weight))]
    ]
    return CutProblem(tensor(source), tensor(sink), arcs)


def nested(size: int = 128, margin: int = 4, seed: int = 0, weight: float = 30) -> CutProblem:
    """Two star-shaped objects, one inside the other by `margin` voxels: lattice (2, n, n, n).

    Infinite arcs go from every voxel to the neighbour that the field towards the
    centre points at, and from the inner to the outer object at `margin` along the axes.
    """
    shape = (size,) * 3
    rng = np.random.default_rng(seed)
    at = np.indices(shape) - np.reshape(size / 2 + rng.uniform(-1, 1, 3), (3, 1, 1, 1))
    radius = np.sqrt((at**2).sum(0)) / size
    image = (radius < 0.25).astype(float) + (radius < 0.38) + 0.8 * rng.standard_normal(shape)
    pull = np.rint(30 * np.stack([image - 1.5, image - 0.5])).astype(np.int64)
    sink = whole(-pull)
    for axis in range(3):
        border = np.moveaxis(sink[0], axis, 0)
        border[:margin], border[-margin:] = INFINITE, INFINITE
    source = np.where(sink == INFINITE, 0, whole(pull))
    step = np.rint(-at / np.abs(at).max(0)).astype(np.int64)
    arcs = []
    for offset in half_space(3):
        o = np.reshape(offset, (3, 1, 1, 1))
        ahead = (step == o).all(0)
        # stored at the tail of the forward arc: the voxel at o points back to here
        back = np.roll((step == -o).all(0), [-v for v in offset], (0, 1, 2))
        link = contrast(image, offset, weight) if sum(map(abs, offset)) == 1 else 0
        forward = np.where(ahead, INFINITE, link)
        backward = np.where(back, INFINITE, link)
        arcs.append(ArcFamily((0, *offset), tensor(forward[None]), tensor(backward[None])))
    for axis in range(3):
        for sign in (1, -1):
            offset = [1, 0, 0, 0]
            offset[axis + 1] = sign * margin
            arcs.append(ArcFamily(tuple(offset), INFINITE))
    return CutProblem(tensor(source), tensor(sink), arcs)


def maze(size: int = 128, depth: int = 8, seed: int = 0) -> CutProblem:
    """Corridors one voxel wide that wind through each of `depth` planes.

    All flow walks from one end of a corridor to the other, which is the worst case
    for solvers that work on many nodes at once.
    """
    rng = np.random.default_rng(seed)
    open_ = np.zeros((depth, size, size), bool)
    open_[:, ::2] = True
    open_[:, 1::4, -1] = True
    open_[:, 3::4, 0] = True
    source, sink = np.zeros((2, *open_.shape), np.int32)
    source[:, 0, 0] = TOP
    last = (size - 1) // 2 * 2
    sink[:, last, 0 if (last // 2) % 2 else -1] = TOP
    arcs = []
    for offset in ((0, 1, 0), (0, 0, 1)):
        joined = open_ & np.roll(open_, [-o for o in offset], (0, 1, 2))
        width = np.where(joined, rng.integers(1, TOP, open_.shape), 0)
        arcs.append(ArcFamily(offset, tensor(width), tensor(width)))
    return CutProblem(tensor(source), tensor(sink), arcs)


def random_levels(levels: int = 64, width: int = 64, seed: int = 0) -> CutProblem:
    """Levels of nodes with three random arcs each to the next level.

    In the manner of the Washington RLG generator; random links make it a lattice.
    """
    rng = np.random.default_rng(seed)
    links = torch.from_numpy(np.stack([rng.permutation(width) for _ in range(3)]))
    shape = (levels, width, 1)
    source, sink = np.zeros((2, *shape), np.int32)
    source[0], sink[-1] = TOP, TOP
    arcs = [ArcFamily((1, j + 1, 0), tensor(rng.integers(1, TOP, shape))) for j in range(3)]
    return CutProblem(tensor(source), tensor(sink), arcs, links=links)


# --- columns -----------------------------------------------------------------------


def layer_costs(
    surfaces: int = 3, width: tuple[int, int] = (64, 64), depth: int = 64, seed: int = 0
) -> np.ndarray:
    """Noisy costs (S, X, Y, K) of smooth layers, with layers that are not meant beside them."""
    rng = np.random.default_rng(seed)
    k = np.arange(depth)
    field = ndimage.gaussian_filter(rng.standard_normal(width), max(min(width) / 10, 1))
    field *= depth / 16 / max(field.std(), 1e-9)
    wanted = (np.arange(surfaces) + 1) / (surfaces + 1) * depth
    lure = wanted + depth / (surfaces + 1) / 2
    costs = rng.normal(0, 12, (surfaces, *width, depth))
    for s in range(surfaces):
        for place, strength in ((wanted[s], 60), (lure[s], 50)):
            distance = k - (place + field)[..., None]
            costs[s] -= strength * np.exp(-(distance**2) / 4)
    return np.rint(costs).astype(np.int64)


def closure(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[ArcFamily]]:
    """Source, sink and column arcs: the surface is the top of the source side of a column."""
    weight = np.diff(costs, axis=-1, prepend=0)
    source, sink = whole(-weight), whole(weight)
    source[..., 0], sink[..., 0] = INFINITE, 0
    down = (0,) * (costs.ndim - 1) + (-1,)
    return source, sink, [ArcFamily(down, INFINITE)]


def separation(
    sink: np.ndarray, surfaces: int, depth: int, dmin: int, dmax: int
) -> list[ArcFamily]:
    """Arcs that keep surface s + 1 between `dmin` and `dmax` nodes above s; changes `sink`."""
    if surfaces == 1:
        return []
    sink[:-1, ..., depth - dmin :] = INFINITE
    rest = (0,) * (sink.ndim - 2)
    return [ArcFamily((1, *rest, dmin), INFINITE), ArcFamily((-1, *rest, -dmax), INFINITE)]


def regular_arcs(psi: Psi, jump: int, offsets: list[tuple[int, ...]]) -> list[ArcFamily]:
    """Arcs of a convex cost of the jump in nodes, at most `jump`, between equal columns."""
    d = np.arange(jump + 2)
    cost = psi(d).astype(np.int64)
    second = [int(cost[1])] + [int(cost[i + 1] - 2 * cost[i] + cost[i - 1]) for i in d[1:-1]]
    second[jump] = INFINITE
    arcs = []
    for offset in offsets:
        arcs.append(ArcFamily((*offset, 0), second[0], second[0]))
        for step in range(1, jump + 1):
            if second[step]:
                arcs.append(ArcFamily((*offset, -step), second[step]))
                arcs.append(ArcFamily((*offset, step), 0, second[step]))
    return arcs


def irregular_arcs(
    positions: np.ndarray, psi: Psi, jump: int | None, axes: tuple[int, ...], reach: int
) -> tuple[list[ArcFamily], np.ndarray]:
    """Arcs of a convex cost of the difference in position between columns along `axes`.

    `positions` (X, Y, K) are integers and increase along K, `jump` is the largest
    difference, and arcs go at most `reach` nodes up or down. Also returned: what is
    to be added to `sink`, for differences beyond the top of a neighbour (X, Y, K).
    """
    depth = positions.shape[-1]
    beyond = np.zeros(positions.shape, np.int64)
    arcs = []
    for axis in axes:
        n = positions.shape[axis]
        here = np.take(positions, np.arange(n - 1), axis)
        there = np.take(positions, np.arange(1, n), axis)
        offset = [0, 0, 0]
        offset[axis + 1] = 1
        for step in range(-reach, reach + 1):
            out = _between(here, there, psi, jump, step)
            back = _between(there, here, psi, jump, -step)
            # `back` is stored at the tail of the forward arc, whose node is `step` lower
            back = _shift(back, step, depth)
            if out.any() or back.any():
                pad = [(0, int(a == axis)) for a in range(3)]
                arcs.append(
                    ArcFamily(
                        (*offset, step),
                        tensor(np.pad(out, pad)[None]),
                        tensor(np.pad(back, pad)[None]),
                    )
                )
        for tail, head, low in ((here, there, 0), (there, here, 1)):
            place = [slice(None)] * 3
            place[axis] = slice(low, n - 1 + low)
            beyond[tuple(place)] += _over_the_top(tail, head, psi, jump)
    return arcs, np.minimum(beyond, INFINITE)


def _one_sided(psi: Psi, x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, psi(np.maximum(x, 0)), 0).astype(np.int64)


def _between(
    tail: np.ndarray, head: np.ndarray, psi: Psi, jump: int | None, step: int
) -> np.ndarray:
    """Capacity of the arcs from node k of one column to node k + step of the other, k first."""
    depth = tail.shape[-1]
    weight = np.zeros(tail.shape, np.int64)
    k = np.arange(max(0, 1 - step), min(depth, depth - step))
    if not k.size:
        return weight
    a, b, lower = tail[..., k], head[..., k + step], head[..., k + step - 1]
    below = tail[..., np.maximum(k - 1, 0)]
    first = k == 0
    weight[..., k] = _one_sided(psi, a - lower) - _one_sided(psi, a - b)
    weight[..., k] -= np.where(
        first, 0, _one_sided(psi, below - lower) - _one_sided(psi, below - b)
    )
    if jump is not None:
        weight[..., k] = np.where((a - b <= jump) & (a - lower > jump), INFINITE, weight[..., k])
    return weight


def _over_the_top(tail: np.ndarray, head: np.ndarray, psi: Psi, jump: int | None) -> np.ndarray:
    """Cost of the part of a difference that lies beyond the last node of the neighbour."""
    top = head[..., -1:]
    cost = _one_sided(psi, tail - top)
    cost[..., 1:] -= _one_sided(psi, tail - top)[..., :-1]
    return cost if jump is None else np.where(tail - top > jump, INFINITE, cost)


def _shift(values: np.ndarray, step: int, depth: int) -> np.ndarray:
    """Move what is stored at node k + step to node k."""
    out = np.zeros_like(values)
    k = np.arange(max(0, -step), min(depth, depth - step))
    out[..., k] = values[..., k + step]
    return out


def linear(weight: int = 4) -> Psi:
    """weight * |d|."""
    return lambda d: weight * np.abs(d)


def quadratic(weight: int = 2) -> Psi:
    """weight * d^2."""
    return lambda d: weight * d**2


def free(d: np.ndarray) -> np.ndarray:
    """No cost within the limit."""
    return 0 * d


SMOOTH: dict[str, tuple[Psi, int]] = {
    "linear": (linear(), 4),
    "hard": (free, 2),
    "quadratic": (quadratic(), 3),
}
"""Smoothness of the regular instances: cost of a jump in nodes, and the largest jump."""


def columns(
    kind: str = "linear",
    width: tuple[int, int] = (64, 64),
    depth: int = 64,
    surfaces: int = 3,
    seed: int = 0,
    wrap: tuple[int, ...] = (),
) -> CutProblem:
    """Optimal surfaces on regular columns; `kind` is a key of SMOOTH."""
    costs = layer_costs(surfaces, width, depth, seed)
    source, sink, arcs = closure(costs)
    psi, jump = SMOOTH[kind]
    arcs += regular_arcs(psi, jump, [(0, 1, 0), (0, 0, 1)])
    arcs += separation(sink, surfaces, depth, *limits(surfaces, depth))
    return CutProblem(tensor(source), tensor(sink), arcs, wrap)


def limits(surfaces: int, depth: int) -> tuple[int, int]:
    """Smallest and largest distance of neighbouring surfaces of an instance, in nodes."""
    return max(depth // (4 * surfaces), 1), max(depth * 3 // (2 * surfaces), 2)


def jittered(width: tuple[int, int], depth: int, seed: int = 0) -> np.ndarray:
    """Positions (X, Y, K) in quarters of a node, each moved by at most one quarter."""
    rng = np.random.default_rng(seed)
    return 4 * np.arange(depth) + rng.integers(-1, 2, (*width, depth))


def irregular(
    width: tuple[int, int] = (64, 64),
    depth: int = 64,
    surfaces: int = 3,
    seed: int = 0,
    *,
    psi: Psi | None = None,
    jump: int | None = 16,
    positions: np.ndarray | None = None,
    reach: int = 5,
) -> CutProblem:
    """Optimal surfaces on columns whose nodes are not equally spaced; linear cost by default."""
    costs = layer_costs(surfaces, width, depth, seed)
    source, sink, arcs = closure(costs)
    places = jittered(width, depth, seed) if positions is None else positions
    more, beyond = irregular_arcs(places, psi or linear(1), jump, (0, 1), reach)
    sink = np.minimum(sink.astype(np.int64) + beyond, INFINITE)
    arcs += more + separation(sink, surfaces, depth, *limits(surfaces, depth))
    return CutProblem(tensor(source), tensor(sink), arcs)


def ring(size: int = 32, depth: int = 24, seed: int = 0, *, linked: bool = False) -> CutProblem:
    """Two surfaces on columns in a ring, joined by `wrap` or, the same, by `links`."""
    costs = layer_costs(2, (size, 1), depth, seed)
    source, sink, arcs = closure(costs)
    arcs += regular_arcs(linear(), 2, [(0, 1, 0)])
    arcs += separation(sink, 2, depth, *limits(2, depth))
    if not linked:
        return CutProblem(tensor(source), tensor(sink), arcs, (1,))
    arcs = [ArcFamily((a.offset[0], a.offset[1], a.offset[3]), a.forward, a.backward) for a in arcs]
    links = torch.roll(torch.arange(size), -1)[None]
    return CutProblem(tensor(source[:, :, 0]), tensor(sink[:, :, 0]), arcs, links=links)


def real_ring(folder: Path) -> CutProblem:
    """Three surfaces of the real circular OCT scan: lattice (3, 768, 1, 284), wrapped.

    The costs are the vertical derivative: dark to bright for the inner limiting
    membrane and for the ellipsoid zone, bright to dark for the outermost boundary.
    """
    import nibabel

    scan = nibabel.load(folder / "oct_ring" / "ring_scan.nii.gz")
    image = np.asarray(scan.dataobj)[:, 64:348, 0]
    smooth = ndimage.gaussian_filter1d(image.astype(float), 3, axis=0, mode="wrap")
    slope = ndimage.sobel(smooth, axis=1)
    slope = np.rint(1000 * slope / np.abs(slope).max()).astype(np.int64)
    costs = np.stack([-slope, -slope, slope])[:, :, None]
    source, sink, arcs = closure(costs)
    arcs += regular_arcs(linear(10), 3, [(0, 1, 0)])
    arcs += separation(sink, 3, costs.shape[-1], 8, 140)
    return CutProblem(tensor(source), tensor(sink), arcs, (1,))


# --- what they are checked against ---------------------------------------------------


def energies(
    index: np.ndarray,
    costs: np.ndarray,
    positions: np.ndarray,
    psi: Psi,
    jump: int | None,
    between: tuple[int, int],
) -> np.ndarray:
    """Energies of many surfaces `index` (N, S, X, Y), inf where a limit is broken; by definition.

    `between` is the smallest and largest distance of neighbouring surfaces, in nodes.
    """
    x, y = np.indices(index.shape[2:])
    at = positions[x, y, index]
    s = np.arange(index.shape[1])[:, None, None]
    total = costs[s, x, y, index].sum((1, 2, 3)).astype(float)
    for axis in (2, 3):
        jumps = np.abs(np.diff(at, axis=axis)).reshape(len(index), -1)
        total += psi(jumps).sum(1)
        if jump is not None:
            total[(jumps > jump).any(1)] = np.inf
    gaps = np.diff(index, axis=1).reshape(len(index), -1)
    total[((gaps < between[0]) | (gaps > between[1])).any(1)] = np.inf
    return total
