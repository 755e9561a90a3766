# ruff: noqa: S314 - only documents of our own are parsed
"""Steps that make labels, tables, files, pictures and straight images of a centerline."""

from __future__ import annotations

import csv
import io
import json
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medpipe.centerline.dense import node_values
from medpipe.centerline.polydata import read_centerline_vtp
from medpipe.centerline.swc import read_swc
from medpipe.centerline.transforms.extract import Centerline
from medpipe.centerline.transforms.outputs import (
    CenterlineGraphmld,
    CenterlineLabels,
    CenterlineLabelsd,
    CenterlineSwcd,
    CenterlineTable,
    CenterlineVtpd,
)
from medpipe.centerline.transforms.pictures import CenterlinePictured, RadiusProfilesd
from medpipe.centerline.transforms.straighten import (
    Straighten,
    Straightend,
    StraightenedPicture,
)
from medpipe.centerline.tree import CenterlineTree
from medpipe.engine.tables import table_csv
from medpipe.errors import MedpipeError, ResourceError, StepError, UsageError

AFFINE = np.array([[0, 0.9, 0, 5.0], [-0.9, 0, 0, 60.0], [0, 0, 1.2, -20.0], [0, 0, 0, 1]])
SHAPE = (52, 48, 26)
TRUNK, ENDS = ((4, 24, 13), (24, 24, 13)), ((46, 8, 13), (46, 40, 13))


def tubes() -> np.ndarray:
    """A trunk along i that parts in two, and a tube that passes close by."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1).astype(float)

    def tube(start: tuple, end: tuple, radius: float) -> np.ndarray:
        a, way = np.array(start, float), np.array(end, float) - start
        share = np.clip(((grid - a) @ way) / (way @ way), 0, 1)
        return np.linalg.norm(grid - a - share[..., None] * way, axis=-1) <= radius

    mask = tube(*TRUNK, 3.6)
    for end in ENDS:
        mask |= tube(TRUNK[1], end, 2.6)
    return mask


def meta(data: np.ndarray | torch.Tensor, affine: np.ndarray = AFFINE) -> MetaTensor:
    values = torch.as_tensor(np.asarray(data))
    made = MetaTensor(values[None], affine=torch.from_numpy(affine))
    made.meta["medpipe"] = {"source": {"modality": "CT"}, "findings": []}
    return made


@pytest.fixture(scope="module")
def mask() -> MetaTensor:
    return meta(tubes().astype(np.float32))


@pytest.fixture(scope="module")
def document(mask: MetaTensor) -> bytes:
    (x, y, z) = AFFINE[:3, :3] @ TRUNK[0][:3] + AFFINE[:3, 3]
    return Centerline(root_points_mm=[[float(x), float(y), float(z)]])(mask)


@pytest.fixture(scope="module")
def tree(document: bytes) -> CenterlineTree:
    found = CenterlineTree.from_json(document)
    assert (len(found.branches), len(found.leaves)) == (3, 2)
    return found


def at(labels: MetaTensor, *voxel: int) -> int:
    return int(labels[0][voxel])


def test_every_voxel_of_the_mask_has_the_label_of_its_branch(
    mask: MetaTensor, document: bytes, tree: CenterlineTree
) -> None:
    labels = CenterlineLabelsd("m", tree="t")({"m": mask, "t": document})["m"]
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.as_tensor() > 0, mask.as_tensor() > 0)
    trunk = at(labels, 12, 24, 13)
    assert trunk == 1
    # the surface of each tube, far from the junction
    assert at(labels, 12, 27, 13) == at(labels, 8, 24, 15) == trunk
    sides = {at(labels, 40, 12, 13), at(labels, 40, 36, 13)}
    assert sides == {2, 3}
    # brute force on the graph of the mask: nearest node along it
    index = {tuple(v): n for n, v in enumerate(np.argwhere(mask[0].numpy() > 0).tolist())}
    graph = nx.Graph()
    for voxel, n in index.items():
        for move in np.ndindex(3, 3, 3):
            other = tuple(int(a + b - 1) for a, b in zip(voxel, move, strict=True))
            if other in index and other != voxel:
                step = AFFINE[:3, :3] @ (np.array(move) - 1)
                graph.add_edge(n, index[other], weight=float(np.linalg.norm(step)))
    nodes = [index[tuple(v)] for v in tree.voxels.tolist()]
    near = nx.multi_source_dijkstra_path_length(graph, set(nodes))
    values = node_values(tree, "branch")
    by_label = {
        label: nx.multi_source_dijkstra_path_length(
            graph, {n for n, v in zip(nodes, values, strict=True) if v == label}
        )
        for label in (1, 2, 3)
    }
    for voxel, n in index.items():
        own = by_label[at(labels, *voxel)]
        assert own[n] == pytest.approx(near[n])


def test_a_vessel_does_not_take_voxels_of_one_that_passes_by() -> None:
    mask = np.zeros((40, 20, 12), np.float32)
    mask[3:37, 4:8, 4:8] = 1
    mask[3:37, 9:12, 4:8] = 2
    image = meta(mask)
    document = Centerline()(image)
    labels = CenterlineLabels("structure")(image, document)
    assert torch.equal(labels[0].float(), image[0])


def test_a_part_without_a_tree_is_0(tree: CenterlineTree, document: bytes) -> None:
    data = tubes().astype(np.float32)
    data[1:3, 1:3, 1:3] = 1  # too small for a tree
    image = meta(data)
    labels = CenterlineLabels()(image, Centerline()(image))
    assert at(labels, 1, 1, 1) == 0
    assert at(labels, 12, 24, 13) > 0
    assert any("small" in f["check"] for f in labels.meta["medpipe"]["findings"])


@pytest.mark.parametrize("show", ["branch", "generation", "strahler", "structure", "line"])
def test_the_thin_line_is_the_nodes(
    mask: MetaTensor, document: bytes, tree: CenterlineTree, show: str
) -> None:
    line = CenterlineLabels(show, thin=True)(mask, document)
    assert sorted(map(tuple, torch.nonzero(line[0]).tolist())) == sorted(
        map(tuple, tree.voxels.tolist())
    )
    expected = {
        "branch": {1, 2, 3}, "generation": {1, 2}, "strahler": {1, 2}, "structure": {1},
        "line": {1},
    }[show]  # fmt: skip
    assert set(torch.unique(line[line > 0]).tolist()) == expected
    dense = CenterlineLabels(show)(mask, document)
    if show == "line":
        assert torch.equal(dense.as_tensor(), line.as_tensor())
    else:
        # a node is nearest to itself
        assert torch.equal(dense[line > 0], line[line > 0])


def test_facts_and_findings_travel_with_the_labels(mask: MetaTensor, document: bytes) -> None:
    record = json.loads(document)
    record["graph"]["facts"]["findings"] = [
        {
            "check": "centerline.x",
            "severity": "warning",
            "message": "m",
            "fix": None,
            "fixed": False,
        }
    ]
    about = CenterlineLabels()(mask, json.dumps(record).encode()).meta["medpipe"]
    assert [f["check"] for f in about["findings"]] == ["centerline.x"]
    assert about["source"]["modality"] == "CT"
    assert "findings" not in about["source"]["centerline"]
    assert set(about["source"]["centerline"]) == set(record["graph"]["facts"]) - {"findings"}


def test_more_labels_than_16_bits_hold_are_refused() -> None:
    n = 70_000
    nodes = np.stack(np.unravel_index(np.arange(n), (60, 60, 60)), 1)
    many = CenterlineTree(
        nodes, np.where(np.arange(n) == 0, -1, 0), nodes.astype(float), np.ones(n), np.ones(n),
        np.ones(n, np.int64), np.eye(4), (60, 60, 60),
    )  # fmt: skip
    with pytest.raises(StepError, match="too many labels; expected 65535 at most, got 69999"):
        node_values(many, "branch")


def test_tables_have_rows_that_fit_the_labels(
    mask: MetaTensor, document: bytes, tree: CenterlineTree
) -> None:
    branches = CenterlineTable("branches")(document)
    assert list(branches) == ["label 1", "label 2", "label 3"]
    rows = list(csv.DictReader(io.StringIO(table_csv(branches))))
    labels = CenterlineLabels()(mask, document)
    for row in rows:
        middle = tree.branches[int(row["branch"])].nodes[-3]
        assert row["name"] == f"label {at(labels, *tree.voxels[middle].tolist())}"
    lengths = [float(row["length_mm"]) for row in rows]
    # straight lines between known points, to a voxel at each end
    true = [0.9 * 20, *[0.9 * np.hypot(22, 16)] * 2]
    assert lengths == pytest.approx(true, abs=3.5)
    total = CenterlineTable()(document)
    assert total["length_mm"] == pytest.approx(sum(lengths))
    assert list(CenterlineTable("bifurcations")(document)) == ["bifurcation 1"]


def test_files_hold_the_same_tree(document: bytes, tree: CenterlineTree) -> None:
    data = {"t": document}
    swc = read_swc(CenterlineSwcd("t")(data)["t"])
    assert swc.points_mm == pytest.approx(tree.positions_mm, abs=1e-4)
    assert swc.parents.tolist() == tree.parents.tolist()
    lines = read_centerline_vtp(CenterlineVtpd("t")(data)["t"])
    assert len(lines.lines) == len(tree.branches)
    graph = nx.parse_graphml(CenterlineGraphmld("t")(data)["t"].decode())
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (len(tree), len(tree) - 1)
    only = read_swc(CenterlineSwcd("t", tree=1)(data)["t"])
    assert len(only.parents) == len(tree)
    with pytest.raises(UsageError, match="no such tree"):
        CenterlineSwcd("t", tree=2)(data)


def test_pictures_are_svg_and_follow_their_parameters(mask: MetaTensor, document: bytes) -> None:
    data = {"t": document, "m": mask, "ct": meta(tubes() * 300.0 - 40)}
    plain = CenterlinePictured("t", image="m")(data)["t"]
    for changes in ({"colour": "radius"}, {"background": "image"}, {"title": "another"}):
        other = CenterlinePictured("t", image="m", **changes)(data)["t"]
        assert other != plain
        ElementTree.fromstring(other)
    # a mask is found to be one, an image is not
    assert plain == CenterlinePictured("t", image="m", background="mask")(data)["t"]
    ct = CenterlinePictured("t", image="ct")(data)["t"]
    assert ct == CenterlinePictured("t", image="ct", background="image")(data)["t"]
    assert ct != CenterlinePictured("t", image="ct", window=[0, 900])(data)["t"]
    chart = RadiusProfilesd("t", paths=1)(data)["t"]
    assert chart.count(b"end ") < RadiusProfilesd("t", paths=2)(data)["t"].count(b"end ")


def test_an_image_is_straight_along_its_vessel(mask: MetaTensor, document: bytes) -> None:
    """The planes across the tube are its section; the middle is inside from end to end."""
    data = {"m": mask, "t": document}
    for end in (1, 2):
        out = Straightend("m", "t", end=end, width_mm=16.0, step_mm=0.5)(data)["m"]
        facts = out.meta["medpipe"]["source"]["straightened"]
        true = 0.9 * (20 + np.hypot(22, 16))
        assert facts["length_mm"] == pytest.approx(true, abs=4.0)
        assert out.shape[3] * 0.5 == pytest.approx(facts["length_mm"], abs=0.6)
        middle = out.shape[1] // 2
        assert (out[0, middle, middle, 6:-6] > 0.5).all()
        # area of the section of the trunk, an ellipse by the anisotropic voxels
        area = float((out[0, :, :, 14] > 0.5).sum()) * 0.25
        assert area == pytest.approx(np.pi * 3.6 * 0.9 * 3.6 * 1.2, rel=0.2)
    branch = Straighten(branch=0)(mask, document).meta["medpipe"]["source"]["straightened"]
    assert branch["length_mm"] == pytest.approx(0.9 * 20, abs=3.5)
    assert (branch["branch"], branch["end"]) == (0, None)
    labels = Straighten(mode="nearest", step_mm=0.7)(meta(tubes() * 5), document)
    assert set(torch.unique(labels.as_tensor()).tolist()) == {0, 5}


def test_the_strip_has_two_planes_and_axes_in_mm(mask: MetaTensor, document: bytes) -> None:
    ct = meta((tubes() * 340.0 - 40).astype(np.float32))
    straight = Straighten(width_mm=16.0, step_mm=0.5)(ct, document)
    svg = StraightenedPicture()(straight)
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    pictures = list(root.iter(f"{space}image"))
    assert len(pictures) == 2
    wide, tall = (float(pictures[0].get(name, "0")) for name in ("width", "height"))
    assert wide / tall == pytest.approx(straight.shape[3] / straight.shape[1], rel=0.01)
    assert b"path to end 1" in svg
    assert svg != StraightenedPicture(window_hu=[0, 100])(straight)
    assert svg != StraightenedPicture(slab_mm=6.0)(straight)
    with pytest.raises(StepError, match="the image is not straightened"):
        StraightenedPicture()(ct)


WRONG = {
    "an image for a tree": lambda m, d: CenterlineTable()(m),
    "a table for a tree": lambda m, d: CenterlineTable()({"rows": 1}),
    "bytes that are no tree": lambda m, d: CenterlineTable()(b"<xml/>"),
    "a tree for an image": lambda m, d: CenterlineLabels()(d, d),
    "a mask elsewhere": lambda m, d: CenterlineLabels()(meta(m[0], np.eye(4)), d),
    "a picture elsewhere": lambda m, d: CenterlinePictured("t", "m")({"t": d, "m": meta(m[0, 1:])}),
    "no picture": lambda m, d: CenterlinePictured("t", "m")({"t": d}),
    "no tree for labels": lambda m, d: CenterlineLabelsd("m", "t")({"m": m}),
    "no tree to straighten": lambda m, d: Straightend("m", "t")({"m": m}),
    "no such end": lambda m, d: Straighten(end=3)(m, d),
    "no such branch": lambda m, d: Straighten(branch=3)(m, d),
    "too large": lambda m, d: Straighten(step_mm=0.01)(m, d),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_said_in_one_line(name: str, mask: MetaTensor, document: bytes) -> None:
    with pytest.raises(MedpipeError) as caught:
        WRONG[name](mask, document)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ResourceError) == (name == "too large")


@pytest.mark.parametrize(
    "make",
    [
        lambda: CenterlineLabels("length"),
        lambda: CenterlineTable("nodes"),
        lambda: CenterlineSwcd("t", radius="mean"),
        lambda: CenterlineSwcd("t", tree=0),
        lambda: RadiusProfilesd("t", paths=0),
        lambda: CenterlinePictured("t", colour="red"),
        lambda: CenterlinePictured("t", background="none"),
        lambda: CenterlinePictured("t", window=[3, 1]),
        lambda: Straightend("t", end=0),
        lambda: Straightend("t", branch=-1),
        lambda: Straightend("t", width_mm=0.0),
        lambda: Straightend("t", step_mm=-1.0),
        lambda: Straightend("t", mode="cubic"),
        lambda: StraightenedPicture(slab_mm=-1.0),
    ],
)
def test_wrong_parameters_are_refused_before_any_image(make) -> None:
    with pytest.raises(UsageError):
        make()
