"""GraphML: what networkx reads back, and the same bytes every time."""

from __future__ import annotations

import io
import json

import networkx as nx
import numpy as np

from medpipe.centerline.graphml import graphml_bytes
from medpipe.centerline.tree import CenterlineTree
from medpipe.io.safe_xml import parse_xml


def small_tree(**more):
    fields = {
        "voxels": np.array([[0, 0, 0], [1, 0, 0], [2, 1, 0], [2, -1, 1]]),
        "parents": np.array([-1, 0, 1, 1]),
        "positions_mm": np.array([[0, 0, 0], [3, 4, 0], [3, 4, 1.25], [0, 4, 4.0]]),
        "radius_mm": np.array([2.0, 1.5, 1, 1]),
        "area_radius_mm": np.array([np.nan, 1.75, 1, np.nan]),
        "structures": np.array([4, 4, 4, 5]),
        "affine": np.diag([0.5, 0.5, 2, 1]),
        "shape": (8, 8, 4),
        "facts": {"root": "widest", "loops": [1, 2]},
    }
    return CenterlineTree(**(fields | more))


def read(content: bytes) -> nx.DiGraph:
    return nx.read_graphml(io.BytesIO(content), node_type=int)


def test_networkx_reads_numbers_as_numbers():
    graph = read(graphml_bytes(small_tree()))
    assert dict(graph.nodes[1]) == {
        "x_mm": 3.0, "y_mm": 4.0, "z_mm": 0.0, "radius_mm": 1.5, "area_radius_mm": 1.75,
        "distance_mm": 5.0, "i": 1, "j": 0, "k": 0, "structure": 4, "branch": 0,
    }  # fmt: skip
    assert "area_radius_mm" not in graph.nodes[0]
    assert {type(v) for name, v in graph.nodes[3].items() if name.endswith("mm")} == {float}
    # 0-1 is the hypotenuse of 3 and 4, 1-3 of 3 and 4 too
    assert {e: d["length_mm"] for *e, d in graph.edges(data=True) for e in [tuple(e)]} == {
        (0, 1): 5.0,
        (1, 2): 1.25,
        (1, 3): 5.0,
    }
    assert graph.is_directed()
    assert json.loads(graph.graph["affine"])[2] == [0, 0, 2, 0]
    assert json.loads(graph.graph["shape"]) == [8, 8, 4]
    assert json.loads(graph.graph["facts"]) == {"root": "widest", "loops": [1, 2]}
    assert graph.graph["space"] == "RAS+ mm"


def test_loops_are_marked():
    graph = read(graphml_bytes(small_tree(closing=np.array([[2, 3]]))))
    closing = [(a, b) for a, b, is_closing in graph.edges(data="closing") if is_closing]
    assert closing == [(2, 3)]


def test_the_bytes_are_the_same_and_declare_doubles():
    content = graphml_bytes(small_tree())
    assert content == graphml_bytes(small_tree())
    root = parse_xml(content, "GraphML file")
    kinds = {key.get("attr.name"): key.get("attr.type") for key in root.iter("key")}
    assert {name: kinds[name] for name in ("x_mm", "radius_mm", "length_mm", "structure")} == {
        "x_mm": "double", "radius_mm": "double", "length_mm": "double", "structure": "long",
    }  # fmt: skip


def test_a_radius_without_a_wall_is_left_out():
    tree = small_tree(radius_mm=np.full(4, np.inf))
    assert "radius_mm" not in read(graphml_bytes(tree)).nodes[0]
