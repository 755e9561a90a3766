"""How far the lines of a result lie from those of a reference, and the row of all measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.metrics.distances import distance_to_lines_mm, weighted_percentile
from medpipe.centerline.metrics.leaves import LeafMatch, bifurcation_errors_mm, match_leaves
from medpipe.centerline.metrics.line_graph import LineGraph, Samples
from medpipe.errors import UsageError

__all__ = [
    "CurveError",
    "compare_trees",
    "coverage",
    "curve_errors",
    "hausdorff_mm",
    "path_length_ratios",
]

STEP_MM = 0.1
STEPS_PER_VOXEL = 2


@dataclass(frozen=True)
class CurveError:
    """Distances from a result to a reference in mm, NaN for a result without points."""

    mean_mm: float
    median_mm: float
    p95_mm: float
    max_mm: float


def curve_errors(reference: Any, result: Any, *, step_mm: float = STEP_MM) -> CurveError:
    """Return how far the lines of a result are from the lines of a reference.

    One way only: what the result lacks is not seen here, but by `coverage`. Every part of
    the result counts by its length.

    Parameters
    ----------
    reference, result : LineGraph or tree
        See `LineGraph.of`.
    step_mm : float
        Largest distance between points of the result whose distance is taken; the distance
        of each is exact, so `max_mm` is at most half a step too small.
    """
    return _Way.between(LineGraph.of(result), LineGraph.of(reference), step_mm).error()


def coverage(reference: Any, result: Any, *, step_mm: float = STEP_MM) -> float:
    """Return the share of the length of a reference that a result is near.

    Near is no farther than the radius of the reference there. NaN for a reference without
    points, 0 for a result without any.

    Raises
    ------
    UsageError
        If the reference has no radii.
    """
    return _Way.between(LineGraph.of(reference), LineGraph.of(result), step_mm).within()


def hausdorff_mm(
    reference: Any, result: Any, *, percent: float = 100.0, step_mm: float = STEP_MM
) -> float:
    """Return the Hausdorff distance of two sets of lines, or a percentile of it.

    The larger of both ways. With `percent` below 100 each way is the distance that this
    share of its length does not exceed; 95 is the usual robust choice.

    Returns
    -------
    float
        inf where one of both has no points, 0 where both have none.
    """
    a, b = LineGraph.of(reference), LineGraph.of(result)
    ways = (_Way.between(a, b, step_mm), _Way.between(b, a, step_mm))
    return max(way.farthest(percent) for way in ways)


@dataclass(frozen=True, eq=False)
class _Way:
    """Distances from points along one graph to another."""

    at: Samples
    gap_mm: NDArray[np.float64]

    @classmethod
    def between(cls, one: LineGraph, other: LineGraph, step_mm: float) -> _Way:
        at = one.samples(step_mm, ends=True)
        return cls(at, distance_to_lines_mm(at.points_mm, other))

    def error(self) -> CurveError:
        weights = self.at.weights_mm
        if not weights.size:
            return CurveError(*[float("nan")] * 4)
        return CurveError(
            mean_mm=float((self.gap_mm * weights).sum() / weights.sum()),
            median_mm=weighted_percentile(self.gap_mm, weights, 50),
            p95_mm=weighted_percentile(self.gap_mm, weights, 95),
            max_mm=float(self.gap_mm.max()),
        )

    def within(self) -> float:
        """Return the share of the length that is no farther than its radius."""
        if self.at.radius_mm is None:
            raise UsageError("coverage needs the radius of the reference")
        weights = self.at.weights_mm
        near = weights[self.gap_mm <= self.at.radius_mm]
        return float(near.sum() / weights.sum()) if weights.size else float("nan")

    def farthest(self, percent: float = 100.0) -> float:
        """Return the distance that a share of the length does not exceed, 0 of nothing."""
        if percent < 100 and self.gap_mm.size:
            return weighted_percentile(self.gap_mm, self.at.weights_mm, percent)
        return float(self.gap_mm.max(initial=0.0))


def path_length_ratios(
    reference: Any, result: Any, match: LeafMatch, *, common_start: bool = True
) -> NDArray[np.float64]:
    """Return the length from the root to each matched leaf over that of the reference, (P,).

    Parameters
    ----------
    reference, result : LineGraph or tree
        Each is measured from its own root by the shortest way.
    match : LeafMatch
    common_start : bool
        Whether to leave out the piece at the root that only one of both has: a mask may
        begin before its reference does. No more than two radii of the reference are left
        out, so that another root shows.

    Returns
    -------
    array (P,)
        NaN where there is no way to a root, or none of any length in the reference.
    """
    a, b = LineGraph.of(reference), LineGraph.of(result)
    true, found = a.from_root_mm[match.pairs[:, 0]], b.from_root_mm[match.pairs[:, 1]]
    if common_start and a.radius_mm is not None:
        roots = np.stack([a.root_of[match.pairs[:, 0]], b.root_of[match.pairs[:, 1]]], 1)
        for one, other in np.unique(roots[(roots >= 0).all(axis=1)], axis=0):
            these = (roots == [one, other]).all(axis=1)
            most = 2 * float(a.radius_mm[one])
            true = true - these * _before(a, int(one), b.points_mm[other], most)
            found = found - these * _before(b, int(other), a.points_mm[one], most)
    usable = np.isfinite(true) & np.isfinite(found) & (true > 0) & (found > 0)
    return np.divide(found, true, out=np.full(len(true), np.nan), where=usable)


def _before(graph: LineGraph, root: int, place_mm: NDArray[np.float64], most_mm: float) -> float:
    """Return the way from a root to the place of its tree that is nearest to a point.

    0 if that is more than `most_mm`: then the point is not one near the root.
    """
    edges = graph.edges[graph.root_of[graph.edges[:, 0]] == root]
    if not len(edges):
        return 0.0
    starts, ends = graph.points_mm[edges[:, 0]], graph.points_mm[edges[:, 1]]
    along = ends - starts
    square = (along * along).sum(axis=1)
    at = ((place_mm - starts) * along).sum(axis=1) / np.where(square > 0, square, 1)
    at = np.clip(at, 0, 1)
    gap = np.linalg.norm(place_mm - starts - at[:, None] * along, axis=1)
    nearest = int(gap.argmin())
    (a, b), part = edges[nearest], at[nearest] * np.sqrt(square[nearest])
    way = min(
        graph.from_root_mm[a] + part,
        graph.from_root_mm[b] + np.sqrt(square[nearest]) - part,
    )
    return float(way) if way <= most_mm else 0.0


def compare_trees(
    reference: Any,
    result: Any,
    *,
    voxel_mm: float | None = None,
    count_removable: bool = True,
) -> dict[str, float | int | None]:
    """Return all measures of a tree against a reference as one row.

    Parameters
    ----------
    reference : LineGraph or tree
        With radii; see `LineGraph.of`.
    result : LineGraph or tree
        What a `CenterlineTree` says of its voxels is looked at too.
    voxel_mm : float, optional
        Edge of a voxel; of a `CenterlineTree` the cube root of the volume of its voxels.
    count_removable : bool
        Whether to count removable voxels: that thins an image, which takes longer than all
        the rest.

    Returns
    -------
    dict
        ``leaves`` of the reference, of which ``missed``, and ``spurious`` ones of the result
        (`match_leaves`); ``error_mm`` and ``p95_mm`` from the result to the reference
        (`curve_errors`); ``coverage``; ``hausdorff_mm``; ``cycles`` of the result as a graph;
        ``bifurcation_mm`` and ``bifurcation_p90_mm``, median and 90th percentile of
        `bifurcation_errors_mm`; ``length_ratio``, the mean of `path_length_ratios` from a
        common start. Of a result with voxels also ``loops`` of their image and ``removable`` voxels
        (`medpipe.centerline.metrics.voxel_facts`). None where a value is not defined.

    Raises
    ------
    UsageError
        If the reference has no radii, or `voxel_mm` is needed and not given.
    """
    edge = _voxel_mm(result) if voxel_mm is None else voxel_mm
    a, b = LineGraph.of(reference), LineGraph.of(result)
    match = match_leaves(a, b, voxel_mm=edge)
    step = edge / STEPS_PER_VOXEL
    there, back = _Way.between(b, a, step), _Way.between(a, b, step)
    error = there.error()
    forks = bifurcation_errors_mm(a, b)
    ratio = path_length_ratios(a, b, match)
    ratio = ratio[np.isfinite(ratio)]
    row: dict[str, float | int | None] = {
        "leaves": len(a.leaves),
        "missed": len(match.missed),
        "spurious": len(match.spurious),
        "error_mm": _known(error.mean_mm),
        "p95_mm": _known(error.p95_mm),
        "coverage": _known(back.within()),
        "hausdorff_mm": _known(max(there.farthest(), back.farthest())),
        "cycles": b.cycles,
        "bifurcation_mm": _known(weighted_percentile(forks, np.ones(len(forks)), 50)),
        "bifurcation_p90_mm": _known(weighted_percentile(forks, np.ones(len(forks)), 90)),
        "length_ratio": float(ratio.mean()) if ratio.size else None,
        "loops": None,
        "removable": None,
    }
    return row | _voxel_facts(result, count_removable)


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _voxel_mm(result: Any) -> float:
    affine = getattr(result, "affine", None)
    if affine is None:
        raise UsageError(
            "the size of a voxel is not known",
            hint="give voxel_mm, which sets the tolerance of leaves",
        )
    return float(np.cbrt(abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3]))))


def _voxel_facts(result: Any, count_removable: bool) -> dict[str, float | int | None]:
    """Return what the voxels of a tree are as an image, nothing where it has none."""
    voxels = getattr(result, "voxels", None)
    if voxels is None:
        return {}
    import torch

    from medpipe.centerline.metrics.voxel_facts import loops, removable_voxels

    index = torch.as_tensor(voxels, dtype=torch.long)
    index = index - index.amin(dim=0)
    mask = torch.zeros(*(index.amax(dim=0) + 1).tolist(), dtype=torch.bool)
    mask[tuple(index.T)] = True
    removable = removable_voxels(mask) if count_removable else None
    return {"loops": loops(mask), "removable": removable}
