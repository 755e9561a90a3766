"""Centerline trees as GraphML, which Gephi, Cytoscape, igraph and networkx read."""

from __future__ import annotations

import json

import numpy as np

from medpipe.centerline.tree import CenterlineTree

__all__ = ["graphml_bytes"]

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'


def graphml_bytes(tree: CenterlineTree) -> bytes:
    """Return a tree as the content of a ``.graphml`` file, the same bytes for the same tree.

    Nodes carry ``x_mm``, ``y_mm``, ``z_mm`` (RAS+), ``radius_mm`` and ``area_radius_mm``
    (left out where they are not known), ``distance_mm`` from the root, the voxel as ``i``,
    ``j``, ``k``, ``structure`` and ``branch``; edges go from parent to child and carry
    ``length_mm`` and ``closing``. Affine, shape and facts, which are no numbers, are JSON
    texts of the graph.
    """
    import networkx as nx

    source = tree.graph
    about = {
        name: value if isinstance(value, str | int) else json.dumps(value, allow_nan=False)
        for name, value in source.graph.items()
    }
    graph = nx.DiGraph(**about)
    for node, record in source.nodes(data=True):
        values = {name: v for name, v in record.items() if v is not None and v != np.inf}
        place = dict(zip(("x_mm", "y_mm", "z_mm"), values.pop("position_mm"), strict=True))
        voxel = dict(zip("ijk", values.pop("voxel"), strict=True))
        graph.add_node(node, **place, **values, **voxel)
    for a, b, record in source.edges(data=True):
        length = float(np.linalg.norm(tree.positions_mm[a] - tree.positions_mm[b]))
        closing = bool(record.get("closing", False))
        graph.add_edge(a, b, length_mm=round(length, 5), closing=closing)
    lines = nx.generate_graphml(graph, named_key_ids=True)
    return "\n".join([_DECLARATION, *lines, ""]).encode()
