"""Colours of the nodes of a tree: by generation, radius or structure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.branching import generations
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import UsageError
from medpipe.figures.colours import hex_colour, label_colour
from medpipe.figures.svg import ticks

__all__ = ["NodeColours", "node_colours"]

_POINTS = (
    (0.00, (255, 84, 84)),
    (0.18, (255, 158, 64)),
    (0.36, (250, 220, 80)),
    (0.54, (120, 220, 110)),
    (0.72, (70, 205, 225)),
    (0.86, (105, 150, 255)),
    (1.00, (200, 120, 255)),
)
"""From warm to cool, all bright on black; next to each other well apart."""
_RADIUS_LEVELS = 24
_MANY = 20


@dataclass(frozen=True, eq=False)
class NodeColours:
    """A colour level for each node.

    Parameters
    ----------
    name : str
        What the colours mean, with its unit.
    level : int array (N,)
        Of each node; it colours the edge to the parent.
    levels : tuple of str
        ``"#rrggbb"`` of each level.
    labels : dict of int to str
        Text below some of the levels.
    """

    name: str
    level: NDArray[np.int64]
    levels: tuple[str, ...]
    labels: dict[int, str]

    def runs(self, tree: CenterlineTree) -> dict[int, list[NDArray[np.int64]]]:
        """Return for each level the chains of nodes that are drawn in its colour."""
        found: dict[int, list[NDArray[np.int64]]] = {}
        for branch in tree.branches:
            nodes = branch.nodes
            of = self.level[nodes[1:]]
            cuts = np.flatnonzero(np.diff(of)) + 1
            bounds = [0, *cuts.tolist(), len(of)]
            for start, stop in pairwise(bounds):
                found.setdefault(int(of[start]), []).append(nodes[start : stop + 1])
        return dict(sorted(found.items()))


def node_colours(tree: CenterlineTree, colour: str) -> NodeColours:
    """Return the colours of a tree.

    Parameters
    ----------
    tree : CenterlineTree
    colour : {"generation", "radius", "structure"}

    Raises
    ------
    UsageError
        If `colour` is something else.
    """
    if colour == "generation":
        return _by_generation(tree)
    if colour == "radius":
        return _by_radius(tree)
    if colour == "structure":
        return _by_structure(tree)
    raise UsageError(
        "colour is wrong", expected="generation, radius or structure", got=str(colour)[:20]
    )


def _by_generation(tree: CenterlineTree) -> NodeColours:
    generation = np.array(generations(tree), np.int64)
    of = tree.branch_of
    level = np.where(of >= 0, generation[of] if len(generation) else 0, 0)
    count = int(level.max(initial=0)) + 1
    every = max(1, -(-count // _MANY))
    labels = {n: str(n) for n in range(0, count, every)}
    return NodeColours("generation", level, _palette(count), labels)


def _by_radius(tree: CenterlineTree) -> NodeColours:
    radius = np.where(np.isfinite(tree.radius_mm), tree.radius_mm, 0.0)
    top = max(float(radius.max()), 1e-9)
    level = np.minimum((radius / top * _RADIUS_LEVELS).astype(np.int64), _RADIUS_LEVELS - 1)
    labels = {}
    for value in ticks(0.0, top, 4):
        labels[min(int(value / top * _RADIUS_LEVELS), _RADIUS_LEVELS - 1)] = f"{value:g}"
    # thick is warm, as the first generations are
    return NodeColours("radius, mm", level, _palette(_RADIUS_LEVELS)[::-1], labels)


def _by_structure(tree: CenterlineTree) -> NodeColours:
    values, level = np.unique(tree.structures, return_inverse=True)
    colours = tuple(hex_colour(label_colour(int(v))) for v in values)
    labels = {n: str(v) for n, v in enumerate(values.tolist())}
    return NodeColours("structure", level.reshape(-1).astype(np.int64), colours, labels)


def _palette(count: int) -> tuple[str, ...]:
    places = [place for place, _ in _POINTS]
    channels = list(zip(*(colour for _, colour in _POINTS), strict=True))
    # few levels stay within the part where neighbours differ most
    at = np.linspace(0, 1, max(count, 2)) * min(1.0, (max(count, 2) - 1) / 5)
    out = []
    for share in at[:count].tolist():
        r, g, b = (round(float(np.interp(share, places, channel))) for channel in channels)
        out.append(hex_colour((r, g, b)))
    return tuple(out)
