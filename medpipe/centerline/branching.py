"""Orders of the branches of a tree, and the geometry of its bifurcations."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from medpipe.centerline.tree import Branch, CenterlineTree
from medpipe.types import Json

__all__ = [
    "angle_deg",
    "bifurcations",
    "direction",
    "generations",
    "horsfield",
    "murray_exponent",
    "strahler",
]

Array = NDArray[np.float64]

_FIT_POINTS = 17
_MOST_EXPONENT = 100.0
"""A daughter within 0.7 % of the radius of its parent beside one as wide; no law any more."""


def generations(tree: CenterlineTree) -> list[int]:
    """Return the generation of each branch: 0 at the root, one more at each bifurcation.

    The numbering of airways by Weibel (1963, Morphometry of the Human Lung).
    """
    out: list[int] = []
    for branch in tree.branches:
        out.append(0 if branch.parent < 0 else out[branch.parent] + 1)
    return out


def strahler(tree: CenterlineTree) -> list[int]:
    """Return the Strahler order of each branch.

    1 at branches that end in a leaf; otherwise the highest order among the daughters,
    plus 1 where two or more of them share it (Strahler 1957,
    doi 10.1029/TR038i006p00913; the rule for more than two daughters is the usual one).
    """
    out = [1] * len(tree.branches)
    for branch in reversed(tree.branches):
        orders = [out[c] for c in branch.children]
        if orders:
            highest = max(orders)
            out[branch.id] = highest + (orders.count(highest) > 1)
    return out


def horsfield(tree: CenterlineTree) -> list[int]:
    """Return the Horsfield order: 1 at leaves, else one more than the highest daughter.

    Horsfield et al. 1971, doi 10.1152/jappl.1971.31.2.207.
    """
    out = [1] * len(tree.branches)
    for branch in reversed(tree.branches):
        out[branch.id] = 1 + max((out[c] for c in branch.children), default=0)
    return out


def direction(points_mm: Array, radius_mm: float) -> Array | None:
    """Return the direction in which a polyline leaves its first point, a unit vector.

    The line of least squares through the part between one and three radii from there,
    along the curve: nearer the course is that of the junction, not of the branch. Where
    the line is shorter its last two thirds are used.

    Returns
    -------
    float64 array (3,) or None
        None for a line without length.
    """
    arc = np.append(0.0, np.linalg.norm(np.diff(points_mm, axis=0), axis=1).cumsum())
    if arc[-1] == 0:
        return None
    far = min(3 * radius_mm, arc[-1]) if radius_mm > 0 else arc[-1]
    at = np.linspace(far / 3, far, _FIT_POINTS)
    line = np.stack([np.interp(at, arc, x) for x in points_mm.T], axis=1)
    axis = np.linalg.svd(line - line.mean(axis=0), full_matrices=False)[2][0]
    forward = axis @ (line[-1] - line[0])
    if forward == 0:
        return None
    return axis * np.sign(forward)


def angle_deg(a: Array, b: Array) -> float:
    """Return the angle between two directions, 0 to 180°."""
    cross = np.linalg.norm(np.cross(a, b))
    return float(np.degrees(np.arctan2(cross, np.dot(a, b))))


def murray_exponent(parent_mm: float, daughters_mm: ArrayLike) -> float | None:
    """Return x with parent^x = Σ daughter^x for radii; Murray's law has x = 3.

    Murray 1926, doi 10.1073/pnas.12.3.207.

    Returns
    -------
    float or None
        None where no exponent up to 100 solves it: a daughter is as wide as the parent,
        or there are fewer than two.
    """
    ratio = np.asarray(daughters_mm, np.float64) / parent_mm if parent_mm > 0 else np.ones(1)
    if len(ratio) < 2 or not ((ratio > 0) & (ratio < 1)).all():
        return None

    def excess(x: float) -> float:
        return float((ratio**x).sum() - 1)  # falls from n - 1 to -1

    if excess(_MOST_EXPONENT) > 0:
        return None
    return float(brentq(excess, 0.0, _MOST_EXPONENT, xtol=1e-12))


def radius_near_mm(tree: CenterlineTree, nodes: NDArray[np.int64], reach_mm: float) -> float:
    """Return the mean inscribed radius between one and three `reach_mm` from the first node.

    Nearer, the ball inside a junction is wider than either vessel.
    """
    steps = np.linalg.norm(np.diff(tree.positions_mm[nodes], axis=0), axis=1)
    arc = np.append(0.0, steps.cumsum())
    far = min(3 * reach_mm, arc[-1]) if reach_mm > 0 else arc[-1]
    at = np.linspace(far / 3, far, _FIT_POINTS)
    return float(np.interp(at, arc, tree.radius_mm[nodes]).mean())


def bifurcations(tree: CenterlineTree) -> list[dict[str, Json]]:
    """Return one row for each junction.

    Directions and radii are those between one and three radii of the junction from it,
    on the smoothed curves. None stands where something cannot be told: the parent at a
    root that branches, an exponent that does not exist.

    Returns
    -------
    list of dict
        ``node``, ``tree``, ``x_mm``, ``y_mm``, ``z_mm`` (RAS+), ``parent`` (branch),
        ``daughters`` (how many), ``daughter_1`` and ``daughter_2`` (branches, the widest
        first), ``parent_radius_mm``, ``daughter_1_radius_mm``, ``daughter_2_radius_mm``,
        ``angle_deg`` between these two, ``daughter_1_angle_deg`` and
        ``daughter_2_angle_deg`` (to the course of the parent, 0 is straight on),
        ``area_ratio`` (daughters' Σ r² over the parent's), ``asymmetry`` (r₂ / r₁) and
        ``murray_exponent``.
    """
    starts: dict[int, list[Branch]] = {}
    for branch in tree.branches:
        starts.setdefault(int(branch.nodes[0]), []).append(branch)
    return [_bifurcation(tree, node, starts[node]) for node in tree.junctions.tolist()]


def _bifurcation(tree: CenterlineTree, node: int, daughters: list[Branch]) -> dict[str, Json]:
    reach = float(tree.radius_mm[node])
    above = daughters[0].parent
    course, parent_radius = None, None
    if above >= 0:
        back = tree.branches[above].nodes[::-1]
        course = direction(tree.positions_mm[back], reach)
        parent_radius = radius_near_mm(tree, back, reach)
    widths = [radius_near_mm(tree, d.nodes, reach) for d in daughters]
    order = sorted(range(len(daughters)), key=lambda n: (-widths[n], n))
    ways = [direction(tree.positions_mm[daughters[n].nodes], reach) for n in order]
    radii = [widths[n] for n in order]
    x, y, z = tree.positions_mm[node].tolist()

    def bend(n: int) -> float | None:
        way = ways[n]
        return None if course is None or way is None else angle_deg(-course, way)

    ratio = exponent = None
    if parent_radius:
        ratio = float(np.square(radii).sum() / parent_radius**2)
        exponent = murray_exponent(parent_radius, radii)
    apart = None if ways[0] is None or ways[1] is None else angle_deg(ways[0], ways[1])
    return {
        "node": node,
        "tree": daughters[0].tree,
        "x_mm": x,
        "y_mm": y,
        "z_mm": z,
        "parent": above if above >= 0 else None,
        "daughters": len(daughters),
        "daughter_1": daughters[order[0]].id,
        "daughter_2": daughters[order[1]].id,
        "parent_radius_mm": parent_radius,
        "daughter_1_radius_mm": radii[0],
        "daughter_2_radius_mm": radii[1],
        "angle_deg": apart,
        "daughter_1_angle_deg": bend(0),
        "daughter_2_angle_deg": bend(1),
        "area_ratio": ratio,
        "asymmetry": radii[1] / radii[0] if radii[0] > 0 else None,
        "murray_exponent": exponent,
    }
