# ruff: noqa: S314 - only documents of our own are parsed
"""Pictures of trees: what is drawn lies where the tree is."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from medpipe.centerline.palette import node_colours
from medpipe.centerline.pictures import longest_paths, profiles_svg, tree_svg
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"
SHAPE = (60, 50, 70)


def grown(seed: int = 0, nodes: int = 400, spread: float = 1.0, shape=SHAPE) -> CenterlineTree:
    """A tree of random walks that leave each other at random nodes."""
    rng = np.random.default_rng(seed)
    parents, voxels = [-1], [np.array(shape) // 2]
    tip = 0
    while len(parents) < nodes:
        if rng.random() < 0.05:
            tip = int(rng.integers(len(parents)))
        move = rng.integers(-1, 2, 3)
        voxels.append(np.clip(voxels[tip] + move, 1, np.array(shape) - 2))
        parents.append(tip)
        tip = len(parents) - 1
    affine = np.diag([-0.8, 0.8, 1.1, 1.0])
    affine[:3, 3] = [20.0, -31.0, 7.0]
    at = np.array(voxels)
    n = len(parents)
    radius = spread * (3.0 - 2.0 * np.arange(n) / n)
    area = np.where(np.arange(n) % 7 < 2, np.nan, 1.1 * radius)
    return CenterlineTree(
        at, np.array(parents), at @ affine[:3, :3].T + affine[:3, 3], radius, area,
        np.ones(n, np.int64), affine, shape,
    )  # fmt: skip


def line(lengths: list[int], closing: list[tuple[int, int]] | None = None) -> CenterlineTree:
    """A trunk of `lengths[0]` nodes to the back with side branches to the left from its end."""
    parents, at = [-1], [[30, 10, 30]]
    for step in range(lengths[0] - 1):
        parents.append(len(parents) - 1)
        at.append([30, 11 + step, 30])
    end = len(parents) - 1
    for rank, length in enumerate(lengths[1:]):
        tip = end
        for step in range(length):
            parents.append(tip)
            tip = len(parents) - 1
            at.append(
                [30 - (step + 1) * (-1) ** rank, 10 + lengths[0], 30 + (step + 1) * (rank > 1)]
            )
    n = len(parents)
    voxels = np.array(at)
    return CenterlineTree(
        voxels, np.array(parents), voxels.astype(float), np.full(n, 2.0), np.full(n, np.nan),
        np.ones(n, np.int64), np.eye(4), SHAPE, np.array(closing or [], np.int64).reshape(-1, 2),
    )  # fmt: skip


def mask_of(tree: CenterlineTree) -> torch.Tensor:
    mask = torch.zeros(tree.shape, dtype=torch.bool)
    mask[tuple(torch.from_numpy(tree.voxels).T)] = True
    return mask


def panels(svg: bytes) -> list:
    root = ElementTree.fromstring(svg)
    return [g for g in root if g.tag == f"{SVG}g"]


def vertices(path: str) -> list[np.ndarray]:
    parts = [part for part in path.split("M") if part]
    return [np.array([[float(v) for v in p.split()] for p in part.split("L")]) for part in parts]


def test_three_views_each_with_every_root_and_end() -> None:
    tree = grown()
    views = panels(tree_svg(tree, mask_of(tree)))
    assert len(views) == 3
    for view in views:
        kinds = [c.get("class") for c in view.iter(f"{SVG}circle")]
        assert kinds.count("leaf") == len(tree.leaves) > 5
        assert kinds.count("root") == 1
        letters = [t.text for t in view.iter(f"{SVG}text") if "letter" in t.get("class", "")]
        assert "".join(letters) in ("RLAP", "RLSI", "APSI")


def test_roots_and_ends_lie_on_one_scale_in_radiological_orientation() -> None:
    """Read back in mm by the scale bar, the picture gives the positions of root and ends."""
    tree = grown(3)
    svg = tree_svg(tree, mask_of(tree))
    root = ElementTree.fromstring(svg)
    bar = next(r for r in root.iter(f"{SVG}rect") if r.get("height") == "4")
    label = next(
        t.text for t in root.iter(f"{SVG}text") if re.fullmatch(r"[\d.]+ mm", t.text or "")
    )
    mm_per_px = float(label.split()[0]) / float(bar.get("width"))
    axes = ((0, 1), (0, 2), (1, 2))
    nodes = [*tree.leaves, *tree.roots]
    for view, pair in zip(panels(svg), axes, strict=True):
        circles = list(view.iter(f"{SVG}circle"))
        px = np.array([[float(c.get("cx")), float(c.get("cy"))] for c in circles])
        mm = -px * mm_per_px  # both directions fall
        true = tree.positions_mm[nodes][:, pair]
        assert mm - mm.mean(0) == pytest.approx(true - true.mean(0), abs=0.2)


def test_the_curves_pass_the_nodes_in_the_colour_of_their_generation() -> None:
    tree = line([12, 8, 9])
    colours = node_colours(tree, "generation")
    view = panels(tree_svg(tree, mask_of(tree)))[0]
    drawn = {p.get("stroke"): p.get("d") for p in view.iter(f"{SVG}path") if p.get("stroke")}
    assert set(drawn) == set(colours.levels)
    assert len(colours.levels) == 2
    assert [len(vertices(drawn[c])) for c in colours.levels] == [1, 2]
    (trunk,), sides = vertices(drawn[colours.levels[0]]), vertices(drawn[colours.levels[1]])
    assert trunk[-1] == pytest.approx(sides[0][0])
    # two branches of 8 and 9 steps to both sides from the end of a trunk of 11 steps
    assert np.ptp(trunk[:, 0]) == pytest.approx(0, abs=0.11)
    assert sorted(np.ptp(s[:, 0]) / np.ptp(trunk[:, 1]) for s in sides) == pytest.approx(
        [8 / 11, 9 / 11], abs=0.2
    )


def test_a_closing_edge_is_dashed_and_explained() -> None:
    open_, ring = line([12, 8, 9]), line([12, 8, 9], [(18, 27)])
    for tree, count in ((open_, 0), (ring, 1)):
        svg = tree_svg(tree, mask_of(tree))
        assert [
            len([p for p in v.iter(f"{SVG}path") if p.get("class") == "loop"]) for v in panels(svg)
        ] == [count] * 3
        assert (b"closes a loop" in svg) == bool(count)


@pytest.mark.parametrize("colour", ["generation", "radius", "structure"])
def test_every_edge_has_exactly_one_colour(colour: str) -> None:
    tree = grown(1)
    seen = sorted(
        (int(a), int(b))
        for chains in node_colours(tree, colour).runs(tree).values()
        for chain in chains
        for a, b in itertools.pairwise(chain)
    )
    assert seen == sorted((int(p), n) for n, p in enumerate(tree.parents) if p >= 0)


def test_thick_and_thin_have_different_colours_with_a_scale_in_mm() -> None:
    tree = grown(2)
    colours = node_colours(tree, "radius")
    order = np.argsort(tree.radius_mm)
    assert (np.diff(colours.level[order]) >= 0).all()
    assert colours.name == "radius, mm"
    values = [float(v) for v in colours.labels.values()]
    assert values == sorted(values)
    assert 0 <= min(values) <= max(values) <= tree.radius_mm.max()


def test_bytes_repeat_and_do_not_depend_on_the_device_order_of_threads() -> None:
    tree = grown(7)
    assert tree_svg(tree, mask_of(tree)) == tree_svg(tree, mask_of(tree))


def test_ten_thousand_nodes_stay_a_small_picture() -> None:
    tree = grown(0, 10_000, shape=(160, 150, 170))
    svg = tree_svg(tree, mask_of(tree))
    assert len(svg) < 4_000_000
    ElementTree.fromstring(svg)


def test_an_image_is_windowed_and_a_mask_is_lit() -> None:
    tree = grown(1)
    image = mask_of(tree).float() * 300 - 50
    shown = tree_svg(tree, image, background="image", window=(0, 200))
    assert shown != tree_svg(tree, image, background="image", window=(0, 400))
    assert shown != tree_svg(tree, mask_of(tree))


def test_one_node_and_two_roots_are_drawn() -> None:
    one = line([1])
    assert b"0 branches, 0 ends, 1 root" in tree_svg(one, mask_of(one))
    profiles_svg(one)
    both = CenterlineTree(
        np.array([[5, 5, 5], [5, 6, 5], [20, 20, 20], [21, 20, 20]]), np.array([-1, 0, -1, 2]),
        np.array([[5.0, 5, 5], [5, 6, 5], [20, 20, 20], [21, 20, 20]]), np.ones(4), np.ones(4),
        np.array([1, 1, 2, 2]), np.eye(4), SHAPE,
    )  # fmt: skip
    svg = tree_svg(both, mask_of(both), colour="structure")
    assert b"2 branches, 2 ends, 2 roots" in svg


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "length"}, "colour is wrong"),
        ({"image": torch.zeros(3, 3, 3)}, "not on the grid"),
    ],
)
def test_what_cannot_be_drawn_is_said(changes: dict, message: str) -> None:
    tree = grown()
    with pytest.raises(UsageError, match=message):
        tree_svg(**({"tree": tree, "image": mask_of(tree)} | changes))


def test_a_title_is_escaped() -> None:
    tree = grown()
    assert b"<script>" not in tree_svg(tree, mask_of(tree), title="<script>")
    assert b"<script>" not in profiles_svg(tree, title="<script>")


def test_the_longest_paths_start_where_others_left_and_end_farthest() -> None:
    tree = grown(4)
    paths = longest_paths(tree, 10**6)
    ends = [tree.distance_mm[p[-1]] for p in paths]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == tree.distance_mm.max()
    edges = [(int(a), int(b)) for p in paths for a, b in itertools.pairwise(p)]
    assert sorted(edges) == sorted((int(p), n) for n, p in enumerate(tree.parents) if p >= 0)
    assert [len(p) for p in longest_paths(tree, 3)] == [len(p) for p in paths[:3]]


def test_profiles_show_both_radii_of_each_path_and_name_its_length() -> None:
    tree = grown(6)
    root = ElementTree.fromstring(profiles_svg(tree, paths=3))
    styles = [p.get("stroke-width") for p in root.iter(f"{SVG}path")]
    assert styles == ["1.1"] * 3 + ["2"] * 3
    texts = [t.text for t in root.iter(f"{SVG}text")]
    longest = tree.distance_mm.max()
    assert f"end 1, {longest:.0f} mm" in texts
    assert {"radius, mm", "distance from the root, mm", "area of the section"} <= set(texts)
    unmeasured = line([12, 8, 9])
    assert b"area of the section" not in profiles_svg(unmeasured)
    with pytest.raises(UsageError, match="paths is wrong"):
        profiles_svg(tree, paths=0)
