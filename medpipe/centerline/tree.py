"""A centerline tree: nodes along the middle of a tubular structure, each with its parent.

The tree is held as arrays, a node a row, parents before their children; a forest has
several roots. `CenterlineTree.graph` is the same as a networkx graph, and
`CenterlineTree.to_json` writes that graph as node-link JSON, which other programs read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, StepError
from medpipe.types import Affine, Json

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Branch", "CenterlineTree"]

FORMAT = "medpipe-centerline"
VERSION = 1
_DECIMALS = 5
"""Lengths in the file are in mm and rounded to a hundredth of a micrometre."""


@dataclass(frozen=True, eq=False)
class Branch:
    """The nodes between two of: root, junction, leaf.

    Parameters
    ----------
    id, parent : int
        Of this branch and of the one it leaves, -1 where it starts at a root.
    tree : int
        Number of the tree, in the order of the roots.
    nodes : int64 array (n,)
        From the root or junction where it starts, which is included, to its end.
    children : tuple of int
        Branches that start at its end.
    """

    id: int
    parent: int
    tree: int
    nodes: NDArray[np.int64]
    children: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CenterlineTree:
    """One tree per root, as arrays of nodes.

    Parameters
    ----------
    voxels : int64 array (N, 3)
        Voxel of each node; a node and its parent are 26-neighbours.
    parents : int64 array (N,)
        -1 at roots; a parent comes before its children.
    positions_mm : float64 array (N, 3)
        Points of the smoothed curve in RAS+ mm.
    radius_mm : float64 array (N,)
        Of the largest ball inside the structure around there.
    area_radius_mm : float64 array (N,)
        √(area / π) of the cross-section, NaN where none could be measured.
    structures : int64 array (N,)
        Label value of the structure that the node lies in.
    affine : float64 array (4, 4)
        Of the voxels, index to RAS+ mm.
    shape : (int, int, int)
        Of the volume.
    closing : int64 array (E, 2), optional
        Edges between nodes that close loops; the tree is whole without them.
    facts : dict of JSON values, optional
        How the tree was made and what was noticed.

    Raises
    ------
    StepError
        If the arrays do not fit together.
    """

    voxels: NDArray[np.int64]
    parents: NDArray[np.int64]
    positions_mm: NDArray[np.float64]
    radius_mm: NDArray[np.float64]
    area_radius_mm: NDArray[np.float64]
    structures: NDArray[np.int64]
    affine: Affine
    shape: tuple[int, int, int]
    closing: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    facts: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.parents)
        shapes = {
            "voxels": (n, 3), "positions_mm": (n, 3), "radius_mm": (n,),
            "area_radius_mm": (n,), "structures": (n,), "affine": (4, 4),
            "closing": (len(self.closing), 2),
        }  # fmt: skip
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise StepError(
                    f"{name} of a centerline does not fit its nodes",
                    expected=f"shape {shape}",
                    got=f"shape {np.shape(getattr(self, name))}",
                )
        order = np.arange(n)
        if n == 0 or (self.parents >= order).any() or (self.parents < -1).any():
            raise StepError(
                "the parents of a centerline are wrong",
                expected="at least one node, and a parent before each child (-1 at roots)",
            )
        if self.closing.size and not ((self.closing >= 0) & (self.closing < n)).all():
            raise StepError("an edge of a centerline joins nodes that are not there")
        a, b = self.closing.T
        if ((a == b) | (self.parents[a] == b) | (self.parents[b] == a)).any():
            raise StepError("an edge that closes a loop joins a node and its neighbour")

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.parents)

    @cached_property
    def roots(self) -> NDArray[np.int64]:
        """Nodes without a parent, (T,)."""
        return np.flatnonzero(self.parents < 0)

    @cached_property
    def n_children(self) -> NDArray[np.int64]:
        """Children of each node, (N,)."""
        return np.bincount(self.parents[self.parents >= 0], minlength=len(self))

    @cached_property
    def leaves(self) -> NDArray[np.int64]:
        """Nodes without children that are no roots, (L,)."""
        return np.flatnonzero((self.n_children == 0) & (self.parents >= 0))

    @cached_property
    def junctions(self) -> NDArray[np.int64]:
        """Nodes with two or more children, (J,)."""
        return np.flatnonzero(self.n_children > 1)

    @cached_property
    def tree_of(self) -> NDArray[np.int64]:
        """Number of the tree of each node, in the order of the roots, (N,)."""
        number = np.cumsum(self.parents < 0) - 1
        tree = number.tolist()
        for n, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                tree[n] = tree[parent]
        return np.array(tree, np.int64)

    @cached_property
    def lengths_mm(self) -> NDArray[np.float64]:
        """Length of the edge to the parent along the smoothed curve, 0 at roots, (N,)."""
        step = self.positions_mm - self.positions_mm[np.maximum(self.parents, 0)]
        return np.where(self.parents < 0, 0.0, np.linalg.norm(step, axis=1))

    @cached_property
    def distance_mm(self) -> NDArray[np.float64]:
        """Distance from the root along the smoothed curve, (N,)."""
        total = self.lengths_mm.tolist()
        for n, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                total[n] += total[parent]
        return np.array(total)

    @cached_property
    def branch_of(self) -> NDArray[np.int64]:
        """Branch that ends at or passes each node, (N,); the first one at a root, -1 if none."""
        starts = (self.n_children != 1) | (self.parents < 0)
        begins = (self.parents >= 0) & starts[self.parents]
        branch = (np.cumsum(begins) - 1).tolist()
        goes_on = (~begins & (self.parents >= 0)).tolist()
        for n, parent in enumerate(self.parents.tolist()):
            if goes_on[n]:
                branch[n] = branch[parent]
        for root in self.roots.tolist():
            below = np.flatnonzero(self.parents == root)
            branch[root] = branch[below[0]] if below.size else -1
        return np.array(branch, np.int64)

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """All branches; a branch comes after the one it leaves."""
        of = self.branch_of
        inner = np.flatnonzero(self.parents >= 0)
        inner = inner[np.argsort(of[inner], kind="stable")]
        chains = np.split(inner, np.flatnonzero(np.diff(of[inner])) + 1) if inner.size else []
        starts = [int(self.parents[chain[0]]) for chain in chains]
        above = [-1 if self.parents[s] < 0 else int(of[s]) for s in starts]
        children: list[list[int]] = [[] for _ in chains]
        for number, parent in enumerate(above):
            if parent >= 0:
                children[parent].append(number)
        return tuple(
            Branch(
                id=number,
                parent=above[number],
                tree=int(self.tree_of[start]),
                nodes=np.concatenate([[start], chain]),
                children=tuple(children[number]),
            )
            for number, (start, chain) in enumerate(zip(starts, chains, strict=True))
        )

    @cached_property
    def graph(self) -> nx.DiGraph:
        """The tree as a networkx graph, edges from parent to child.

        Nodes carry ``voxel``, ``position_mm``, ``radius_mm``, ``area_radius_mm`` (None
        where it is not known), ``structure``, ``branch`` and ``distance_mm``. Edges that
        close a loop carry ``closing=True``.
        """
        import networkx as nx

        graph = nx.DiGraph(**self._about())
        areas = [None if np.isnan(a) else a for a in self.area_radius_mm.round(_DECIMALS).tolist()]
        columns = {
            "voxel": self.voxels.tolist(),
            "position_mm": self.positions_mm.round(_DECIMALS).tolist(),
            "radius_mm": self.radius_mm.round(_DECIMALS).tolist(),
            "area_radius_mm": areas,
            "structure": self.structures.tolist(),
            "branch": self.branch_of.tolist(),
            "distance_mm": self.distance_mm.round(_DECIMALS).tolist(),
        }
        for n, row in enumerate(zip(*columns.values(), strict=True)):
            graph.add_node(n, **dict(zip(columns, row, strict=True)))
        graph.add_edges_from((p, n) for n, p in enumerate(self.parents.tolist()) if p >= 0)
        graph.add_edges_from((a, b, {"closing": True}) for a, b in self.closing.tolist())
        return graph

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "space": "RAS+ mm",
            "affine": np.asarray(self.affine).tolist(),
            "shape": [int(n) for n in self.shape],
            "facts": dict(self.facts),
        }

    def to_json(self) -> bytes:
        """Return the graph as node-link JSON (networkx, ``edges="edges"``), deterministic bytes."""
        import networkx as nx

        record = nx.node_link_data(self.graph, edges="edges")
        return (json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n").encode()

    @classmethod
    def from_json(cls, document: bytes) -> CenterlineTree:
        """Return the tree of a document that `to_json` wrote.

        Raises
        ------
        InputError
            If it is no such document.
        """
        wrong = InputError(
            "the document is no centerline",
            expected=f'node-link JSON with format "{FORMAT}", version {VERSION}',
            hint="name the key that the step centerline writes",
        )
        try:
            record = json.loads(document)
            about = record["graph"]
            if about["format"] != FORMAT or about["version"] != VERSION:
                raise wrong
            return cls._from_record(record, about)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise wrong from None

    @classmethod
    def _from_record(cls, record: dict[str, Any], about: dict[str, Any]) -> CenterlineTree:
        nodes = record["nodes"]
        parents = np.full(len(nodes), -1, np.int64)
        closing = []
        for edge in record["edges"]:
            if edge.get("closing"):
                closing.append((edge["source"], edge["target"]))
            else:
                parents[edge["target"]] = edge["source"]
        areas = [n["area_radius_mm"] for n in nodes]
        return cls(
            voxels=np.array([n["voxel"] for n in nodes], np.int64),
            parents=parents,
            positions_mm=np.array([n["position_mm"] for n in nodes], np.float64),
            radius_mm=np.array([n["radius_mm"] for n in nodes], np.float64),
            area_radius_mm=np.array([np.nan if a is None else a for a in areas], np.float64),
            structures=np.array([n["structure"] for n in nodes], np.int64),
            affine=np.array(about["affine"], np.float64),
            shape=(int(about["shape"][0]), int(about["shape"][1]), int(about["shape"][2])),
            closing=np.array(closing, np.int64).reshape(-1, 2),
            facts=dict(about["facts"]),
        )
