"""Lengths, radii, bends and orders of the branches of a centerline tree.

Everything is measured on the smoothed curves of the tree, in mm. A branch starts at the
middle of the junction it leaves, and its length counts from there; its radii, volume and
curvature are those of the part outside the ball of that junction, which is not its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.branching import (
    angle_deg,
    bifurcations,
    direction,
    generations,
    horsfield,
    strahler,
)
from medpipe.centerline.curves import SpaceCurve, soam_rad_per_mm, tortuosity
from medpipe.centerline.tree import Branch, CenterlineTree
from medpipe.types import Json

__all__ = [
    "bifurcations",
    "branch_table",
    "generations",
    "horsfield",
    "strahler",
    "summary",
]

Array = NDArray[np.float64]

_MM3_PER_ML = 1000.0
_SAME_MM = 1e-9


def branch_table(tree: CenterlineTree) -> list[dict[str, Json]]:
    """Return one row for each branch, in the order of `tree.branches`.

    None stands where a measure cannot be told: the tortuosity of a closed curve, the
    parent at a root, the radius of a branch that does not leave the ball of its junction
    is that of its end and has no taper.

    Returns
    -------
    list of dict
        ``branch``, ``parent``, ``tree`` (numbers from 0), ``structure`` (label value),
        ``generation``, ``strahler``, ``horsfield``, ``daughters``;
        ``length_mm``, ``chord_mm``, ``tortuosity`` (length / chord - 1),
        ``soam_rad_per_mm`` (sum of angles), ``curvature_mean_per_mm``,
        ``curvature_max_per_mm``; ``radius_mean_mm`` (along the length),
        ``radius_min_mm``, ``radius_max_mm`` (inscribed), ``area_radius_mean_mm`` (of the
        cross-sections), ``taper_mm_per_mm`` (loss of radius per length, a line of least
        squares), ``volume_ml`` (of the tube, by the radius of the cross-section where
        there is one); ``angle_deg`` to the parent, 0 is straight on; ``start_x_mm`` …
        ``end_z_mm`` (RAS+).
    """
    orders = (generations(tree), strahler(tree), horsfield(tree))
    return [
        _row(_Track(tree, branch), *(order[branch.id] for order in orders))
        for branch in tree.branches
    ]


def summary(tree: CenterlineTree) -> dict[str, Json]:
    """Return the measures of a forest as a whole.

    Returns
    -------
    dict
        ``trees``, ``branches``, ``junctions``, ``leaves``, ``loops_kept`` (edges that
        close one), ``length_mm``, ``max_generation``, ``max_strahler``,
        ``tortuosity_mean`` (by length), ``radius_min_mm``, ``radius_max_mm``,
        ``volume_ml``; None where there is no branch to tell from.
    """
    rows = branch_table(tree)
    total = float(tree.lengths_mm.sum())
    bends = [(r["length_mm"], r["tortuosity"]) for r in rows if r["tortuosity"] is not None]
    weight, bend = np.array(bends, np.float64).reshape(-1, 2).T
    return {
        "trees": len(tree.roots),
        "branches": len(rows),
        "junctions": len(tree.junctions),
        "leaves": len(tree.leaves),
        "loops_kept": len(tree.closing),
        "length_mm": total,
        "max_generation": max(generations(tree), default=None),
        "max_strahler": max(strahler(tree), default=None),
        "tortuosity_mean": float(weight @ bend / weight.sum()) if weight.sum() > 0 else None,
        "radius_min_mm": float(tree.radius_mm.min()),
        "radius_max_mm": float(tree.radius_mm.max()),
        "volume_ml": _total([r["volume_ml"] for r in rows]),
    }


def _total(values: Sequence[Any]) -> float | None:
    return float(sum(values)) if values else None


class _Track:
    """A branch as a curve, with the part that is its own."""

    def __init__(self, tree: CenterlineTree, branch: Branch) -> None:
        self.tree, self.branch = tree, branch
        self.points: Array = tree.positions_mm[branch.nodes]
        steps = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        self.arc: Array = np.append(0.0, steps.cumsum())
        self.length = float(self.arc[-1])
        self.junction_radius = float(tree.radius_mm[branch.nodes[0]])
        leaves_junction = tree.n_children[branch.nodes[0]] > 1
        self.own_from = min(self.junction_radius, self.length) if leaves_junction else 0.0

    @cached_property
    def own_arc(self) -> Array:
        """Distances along the branch of where its own part starts and of the nodes on it."""
        return np.append(self.own_from, self.arc[self.arc > self.own_from + _SAME_MM])

    def own(self, values: Array) -> Array:
        """Return values of the nodes at `own_arc`; where there is none (NaN) by neighbours."""
        known = np.isfinite(values)
        if not known.any():
            return np.full(len(self.own_arc), np.nan)
        return np.interp(self.own_arc, self.arc[known], values[known])

    @cached_property
    def radius(self) -> Array:
        """Inscribed radius at `own_arc`."""
        return self.own(self.tree.radius_mm[self.branch.nodes])

    def mean(self, values: Array) -> float | None:
        """Return the mean along the length of values at `own_arc`, None of NaN."""
        if len(values) > 1:
            length = self.own_arc[-1] - self.own_arc[0]
            mean = float(np.trapezoid(values, self.own_arc) / length)
        else:
            mean = float(values[-1])
        return mean if np.isfinite(mean) else None

    def taper(self) -> float | None:
        """Return the loss of radius per length."""
        if len(self.own_arc) < 3:
            return None
        arc = self.own_arc - self.own_arc.mean()
        return float(-(arc @ (self.radius - self.radius.mean())) / (arc @ arc))

    def volume_ml(self) -> float:
        """Return the volume of the tube, frustum by frustum."""
        area = self.tree.area_radius_mm[self.branch.nodes]
        r = np.where(np.isfinite(area), area, self.tree.radius_mm[self.branch.nodes])
        r = self.own(r)
        mean_square = (r[1:] ** 2 + r[1:] * r[:-1] + r[:-1] ** 2) / 3
        return float(np.pi * (np.diff(self.own_arc) @ mean_square) / _MM3_PER_ML)

    def bends(self) -> dict[str, float | None]:
        """Return curvature and the sum of angles of the own part, at the spacing of the nodes."""
        none = dict.fromkeys(("soam_rad_per_mm", "curvature_mean_per_mm", "curvature_max_per_mm"))
        if len(self.own_arc) < 4 or self.length == 0:
            return none
        curve = SpaceCurve(self.points)
        even = curve.even_arc_mm(self.length / (len(self.points) - 1))
        even = even[even > self.own_from * curve.length_mm / self.length - _SAME_MM]
        if len(even) < 4:
            return none
        bend = curve.curvature_per_mm(even)
        return {
            "soam_rad_per_mm": soam_rad_per_mm(curve.at(even)),
            "curvature_mean_per_mm": float(bend.mean()),
            "curvature_max_per_mm": float(bend.max()),
        }

    def angle_deg(self) -> float | None:
        """Return the angle to the course of the parent."""
        if self.branch.parent < 0:
            return None
        back = self.tree.branches[self.branch.parent].nodes[::-1]
        course = direction(self.tree.positions_mm[back], self.junction_radius)
        way = direction(self.points, self.junction_radius)
        return None if course is None or way is None else angle_deg(-course, way)


def _row(track: _Track, generation: int, strahler_order: int, horsfield_order: int) -> Any:
    branch, tree = track.branch, track.tree
    ends = {
        f"{end}_{axis}_mm": float(track.points[n, a])
        for end, n in (("start", 0), ("end", -1))
        for a, axis in enumerate("xyz")
    }
    return {
        "branch": branch.id,
        "parent": branch.parent if branch.parent >= 0 else None,
        "tree": branch.tree,
        "structure": int(tree.structures[branch.nodes[-1]]),
        "generation": generation,
        "strahler": strahler_order,
        "horsfield": horsfield_order,
        "daughters": len(branch.children),
        "length_mm": track.length,
        "chord_mm": float(np.linalg.norm(track.points[-1] - track.points[0])),
        "tortuosity": tortuosity(track.points),
        **track.bends(),
        "radius_mean_mm": track.mean(track.radius),
        "radius_min_mm": float(track.radius.min()),
        "radius_max_mm": float(track.radius.max()),
        "area_radius_mean_mm": track.mean(track.own(tree.area_radius_mm[branch.nodes])),
        "taper_mm_per_mm": track.taper(),
        "volume_ml": track.volume_ml(),
        "angle_deg": track.angle_deg(),
        **ends,
    }
