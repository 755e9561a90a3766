"""Optimal surfaces as a transform, and what is made of maps of surfaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.convex import ConvexPrior
from medpipe.graphcut.octexplorer import read_octexplorer
from medpipe.graphcut.surface_costs import gradient_cost
from medpipe.graphcut.surfaces import Separation, SurfaceProblem, optimal_surfaces
from medpipe.graphcut.transforms.height_map import height_image, read_heights
from medpipe.graphcut.transforms.surface_outputs import (
    LayerThickness,
    LayerThicknessd,
    OctExplorerXml,
    OctExplorerXmld,
    SurfaceLabels,
    SurfaceLabelsd,
    SurfaceMesh,
    SurfaceMeshd,
)
from medpipe.graphcut.transforms.surfaces import OptimalSurfaces, OptimalSurfacesd, edge_scale
from medpipe.io.transforms import SaveVolume
from medpipe.io.vtp import read_vtp

SPACING = (0.5, 0.2, 0.8)
SHAPE = (12, 30, 9)


def affine() -> np.ndarray:
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    out = np.eye(4)
    out[:3, :3] = turn @ np.diag(SPACING)
    out[:3, 3] = (-20, 5, 40)
    return out


def truth_mm() -> torch.Tensor:
    """Return two smooth surfaces (2, X, Y), closed along Y, in mm from the first sample."""
    x = torch.arange(SHAPE[0], dtype=torch.float64)[:, None]
    turn = 2 * torch.pi * torch.arange(SHAPE[2], dtype=torch.float64)[None] / SHAPE[2]
    first = 1.5 + 0.03 * x + 0.2 * torch.cos(turn)
    return torch.stack([first, first + 1.7 + 0.1 * torch.sin(turn)])


def layered(axis: int = 1, noise: float = 0.0) -> MetaTensor:
    """Return an image that is dark, bright between the surfaces, and dark, by area average."""
    surfaces = truth_mm() / SPACING[1]
    k = torch.arange(SHAPE[1], dtype=torch.float64)
    share = [(k + 0.5 - s[..., None]).clamp(0, 1) for s in surfaces]
    data = (share[0] - share[1]) * 100 + 10
    data = data + noise * torch.randn(data.shape, generator=torch.Generator().manual_seed(1))
    matrix = affine()
    order = [0, 2]
    order.insert(axis, 1)
    matrix[:, :3] = matrix[:, order]
    data = data.movedim(-1, axis)
    return MetaTensor(data[None].float(), affine=torch.from_numpy(matrix))


OPTIONS = {
    "edges": ["dark_to_bright", "bright_to_dark"],
    "axis": 1,
    "sigma_mm": 0.2,
    "weight": 0.3,
    "max_jump_mm": 0.6,
    "min_separation_mm": 0.5,
    "wrap": [2],
}


@pytest.fixture(scope="module")
def heights() -> MetaTensor:
    return OptimalSurfaces(**OPTIONS, names=["top", "bottom"])(layered())


def test_surfaces_between_samples_are_found(heights: MetaTensor) -> None:
    assert heights.shape == (2, 12, 1, 9)
    assert heights.dtype == torch.float32
    error = (heights[:, :, 0].as_tensor() - truth_mm()).abs()
    # samples are 0.2 mm apart; ignoring what lies between them costs 0.05 mm on average
    assert float(error.mean()) < 0.01
    rounded = OptimalSurfaces(**OPTIONS, irregular=False)(layered())
    coarse = (rounded[:, :, 0].as_tensor() - truth_mm()).abs()
    assert float(error.mean()) < 0.3 * float(coarse.mean())


def test_the_transform_equals_the_pure_functions() -> None:
    image = layered(noise=20.0)
    found = OptimalSurfaces(**OPTIONS, irregular=False, smoothness="quadratic")(image)
    columns = image.as_tensor()[0].movedim(1, -1)
    costs = torch.stack(
        [
            gradient_cost(
                columns,
                0.2,
                direction=d,
                sigma_mm=0.2,
                scale=edge_scale(columns, 0.2, d, 0.2),
                between=True,
            )
            for d in OPTIONS["edges"]
        ]
    )
    result = optimal_surfaces(
        SurfaceProblem(
            costs,
            (torch.arange(29, dtype=torch.float64) + 0.5) * 0.2,
            ConvexPrior("quadratic", 0.3, max_jump_mm=0.6),
            Separation(0.5),
            wrap=(1,),
        )
    )
    torch.testing.assert_close(found[:, :, 0].as_tensor(), result.position_mm.float())
    proof = found.meta["medpipe"]["source"]["minimum_cut"]["optimal_surfaces"]
    assert proof["proved"] is True
    assert proof["energy"] == pytest.approx(result.energy)
    assert "graphcut.optimal" in {f["check"] for f in found.meta["medpipe"]["findings"]}


def test_the_scale_of_edges_counts_columns_not_nodes() -> None:
    heights = torch.arange(1.0, 201.0)  # one edge a column, 1 to 200 high
    columns = torch.zeros(200, 1, 40)
    columns[..., 20:] = heights[:, None, None]
    found = edge_scale(columns, 1.0, "dark_to_bright", 0.2)
    assert float(found) == pytest.approx(198, rel=1e-3)
    longer = torch.nn.functional.pad(columns, (500, 0))
    assert float(edge_scale(longer, 1.0, "dark_to_bright", 0.2)) == pytest.approx(float(found))
    assert float(edge_scale(columns, 1.0, "bright_to_dark", 0.2)) < 1e-3


@pytest.mark.parametrize("axis", [0, 2])
def test_the_axis_does_not_matter(axis: int, heights: MetaTensor) -> None:
    wrap = [2] if axis == 0 else [1]
    found = OptimalSurfaces(**(OPTIONS | {"axis": axis, "wrap": wrap}))(layered(axis))
    torch.testing.assert_close(
        read_heights(found).positions_mm, read_heights(heights).positions_mm, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        read_heights(found).points_mm, read_heights(heights).points_mm, atol=1e-4, rtol=0
    )


def test_the_direction_of_the_columns_does_not_matter(heights: MetaTensor) -> None:
    image = layered()
    turned = OptimalSurfaces(**OPTIONS, reverse=True)(image)
    # counted from the other end, and in the other order, these are the same points
    there, here = read_heights(turned), read_heights(heights)
    # up to how equally good surfaces are chosen: a twentieth of a sample
    torch.testing.assert_close(there.points_mm.flip(0), here.points_mm, atol=0.01, rtol=0)
    a, b = SurfaceLabels()(turned, image), SurfaceLabels()(heights, image)
    assert float((a != b).float().mean()) < 0.005


def test_columns_without_data_are_bridged() -> None:
    image = layered()
    image[0, 4, 11, 3] = torch.nan
    image[0, 5, :, 3:6] = torch.nan
    found = OptimalSurfaces(**OPTIONS, lateral_mm=0.4)(image)
    assert bool(torch.isfinite(found.as_tensor()).all())
    error = (found[:, :, 0].as_tensor() - truth_mm()).abs()
    assert float(error[:, 4, 3].max()) < 0.15
    assert float(error[:, 5, 3:6].max()) < 0.15
    texts = [f["message"] for f in found.meta["medpipe"]["findings"]]
    assert any("4 of 108 columns without data" in text for text in texts)
    with pytest.raises(StepError, match="no column has data"):
        OptimalSurfaces(**OPTIONS)(layered() * torch.nan)


def test_a_file_of_the_map_needs_nothing_else(heights: MetaTensor, tmp_path) -> None:
    again = SaveVolume(str(tmp_path), "float32")(heights, "surfaces.nii.gz")
    assert again.shape == heights.shape
    bare = MetaTensor(again.as_tensor(), affine=again.affine)
    torch.testing.assert_close(
        read_heights(bare).points_mm, read_heights(heights).points_mm, atol=1e-4, rtol=0
    )


def test_labels_by_hand(heights: MetaTensor) -> None:
    image = layered()
    labels = SurfaceLabels(beyond=True)(heights, image)
    assert labels.shape == image.shape
    assert labels.dtype == torch.uint8
    at = torch.arange(30, dtype=torch.float64)[None, :, None] * 0.2
    tops = heights.as_tensor().double()
    due = (at > tops[0]).int() + (at > tops[1]).int()
    clear = ((at[None] - tops).abs() > 1e-6).all(0)  # float32 decides where a sample is hit
    assert float(clear.float().mean()) > 0.98
    assert torch.equal(labels[0].as_tensor().int()[clear], due[clear])
    inside = SurfaceLabels()(heights, image)[0].as_tensor()
    assert torch.equal(inside.int()[clear], torch.where(due == 2, 0, due)[clear])
    out = SurfaceLabelsd("s", image="i")({"s": heights, "i": image})
    assert torch.equal(out["s"][0].as_tensor(), inside)


def test_a_map_of_another_grid_is_refused(heights: MetaTensor) -> None:
    with pytest.raises(StepError, match="not on the grid of the image"):
        SurfaceLabels()(heights, layered()[:, 1:])
    shifted = layered()
    shifted.affine[:3, 3] += 1.0
    with pytest.raises(StepError, match="not on the grid of the image"):
        SurfaceLabels()(heights, shifted)
    with pytest.raises(StepError, match="no map of surfaces"):
        LayerThickness()(layered())
    with pytest.raises(StepError, match="the image is absent"):
        SurfaceLabelsd("s", image="i")({"s": heights})
    with pytest.raises(StepError, match="axis of the columns is open"):
        LayerThickness()(torch.rand(2, 1, 5, 1))


def test_thickness_by_hand(heights: MetaTensor) -> None:
    table = LayerThickness()(heights)
    gap = 1000 * heights.as_tensor().double().diff(dim=0)
    row = table["top to bottom"]
    assert row["mean_um"] == pytest.approx(float(gap.mean()))
    assert row["mean_um"] == pytest.approx(1700, abs=10)
    assert row["area_mm2"] == pytest.approx(12 * 9 * 0.5 * 0.8)
    # closed along Y: nine columns of 40 degrees; superior holds 80, 120
    assert {name for name in table if "/" in name} >= {"top to bottom/nasal"}
    parts = LayerThickness(["layer"], sectors="quadrants")(heights)
    assert parts["layer/superior"]["mean_um"] == pytest.approx(float(gap[..., 2:4].mean()))
    turned = LayerThickness(["layer"], sectors="quadrants", start_deg=90, descending=True)
    # columns at 90, 50, 10, -30, -70 … degrees
    assert turned(heights)["layer/temporal"]["mean_um"] == pytest.approx(
        float(gap[..., 2:4].mean())
    )
    out = LayerThicknessd("s", names=["layer"], sectors="none", unit="mm")({"s": heights})
    assert list(out["s"]) == ["layer"]
    assert out["s"]["layer"]["mean_mm"] == pytest.approx(row["mean_um"] / 1000)


def test_sectors_need_a_ring() -> None:
    image = layered()
    flat = height_image(image, truth_mm(), axis=1)
    assert not any("/" in name for name in LayerThickness()(flat))
    with pytest.raises(StepError, match="sectors are those of a ring"):
        LayerThickness(sectors="six")(flat)


def test_the_mesh_lies_where_the_labels_change(heights: MetaTensor) -> None:
    mesh = read_vtp(SurfaceMesh()(heights))
    assert len(mesh.points_mm) == 2 * 12 * 9
    assert len(mesh.triangles) == 2 * 2 * 11 * 8
    index = np.linalg.inv(affine()) @ np.c_[mesh.points_mm, np.ones(len(mesh.points_mm))].T
    depth = (index[1] * 0.2).reshape(2, 12, 9)
    np.testing.assert_allclose(depth, heights[:, :, 0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(np.unique(mesh.point_data["surface"]), [1, 2])
    gap = mesh.point_data["to_next_um"].reshape(2, 12, 9)
    np.testing.assert_allclose(gap[0], np.diff(depth, axis=0)[0] * 1000, atol=0.05)
    row = heights[:, :, :, :1]
    line = read_vtp(SurfaceMeshd("s")({"s": row})["s"])
    assert [len(part) for part in line.lines] == [12, 12]
    with pytest.raises(StepError, match="two columns"):
        SurfaceMesh(axis=1)(heights[:, :1, :, :1])


def test_the_xml_holds_the_heights_in_voxels(heights: MetaTensor) -> None:
    image = layered()
    read = read_octexplorer(OctExplorerXml("OS")(heights, image))
    assert read.names == ("top", "bottom")
    assert read.size == (12, 30, 9)
    assert read.laterality == "OS"
    np.testing.assert_allclose(read.voxel_size_mm, SPACING)
    due = heights[:, :, 0].as_tensor().transpose(1, 2).numpy() / 0.2
    np.testing.assert_allclose(read.heights_voxels, due, atol=1e-4)
    out = OctExplorerXmld("s", image="i", b_scan_axis=0)({"s": heights, "i": image})
    turned = read_octexplorer(out["s"])
    assert turned.size == (9, 30, 12)
    np.testing.assert_array_equal(turned.heights_voxels, read.heights_voxels.transpose(0, 2, 1))
    with pytest.raises(UsageError, match="b_scan_axis"):
        OctExplorerXml(b_scan_axis=1)(heights, image)


def test_the_dictionary_form_takes_the_same_options(heights: MetaTensor) -> None:
    out = OptimalSurfacesd("i", **OPTIONS, names=["top", "bottom"])({"i": layered()})
    assert torch.equal(out["i"].as_tensor(), heights.as_tensor())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"edges": []}, "no surface"),
        ({"edges": ["up"]}, "direction of an edge"),
        ({"smoothness": "cubic"}, "smoothness"),
        ({"wrap": [1]}, "axis or wrap"),
        ({"axis": 3}, "axis or wrap"),
        ({"sigma_mm": 0.0}, "width"),
        ({"weight": [1.0]}, "weight is wrong"),
        ({"names": ["a", "a"]}, "names is wrong"),
    ],
)
def test_wrong_options_are_refused(options: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        OptimalSurfaces(**(OPTIONS | options))
