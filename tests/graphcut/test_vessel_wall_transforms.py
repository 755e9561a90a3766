"""Lumen and media as MONAI transforms: labels, tables and meshes of contours."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from scipy.ndimage import label

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.meshes import mesh_area_mm2
from medpipe.graphcut.transforms.vessel_wall import (
    LumenMedia,
    LumenMediad,
    VesselWallMesh,
    VesselWallMeshd,
    VesselWallTable,
    VesselWallTabled,
)
from medpipe.graphcut.transforms.wall_contours import WallContours
from medpipe.graphcut.vessel_measures import frame_table, summary_table
from medpipe.graphcut.vessel_wall import VesselWallParameters, vessel_wall
from medpipe.io.vtp import read_vtp
from medpipe.phantoms.ivus import ivus
from medpipe.phantoms.ivus_file import ivus_labels, write_ivus

FAST = {"angles": 96, "node_mm": 0.04}
SMALL = {"size": 200, "spacing_mm": 0.04}


@lru_cache(maxsize=1)
def outcome():
    """Return phantom, image, labels and contours of three frames."""
    phantom = ivus(3, frames=3, **SMALL)
    image = MetaTensor(torch.from_numpy(phantom.volume.data)[None], affine=phantom.volume.affine)
    labels, contours = LumenMedia(**FAST).both(image)
    return phantom, image, labels, contours


def circles(lumen, media, shift=(0.0, 0.0), frames=2, angles=512):
    """Return the contours of circles, the lumen shifted away from the middle of the media.

    The catheter is in the middle of the media.
    """
    turn = torch.arange(angles, dtype=torch.float64) * (2 * math.pi / angles)
    x, y = shift
    along = x * turn.cos() + y * turn.sin()
    inner = along + (along**2 + lumen**2 - x**2 - y**2).sqrt()
    radius = torch.stack([inner, torch.full_like(turn, media)])
    return WallContours(
        radius[..., None].repeat(1, 1, frames),
        torch.ones((2, angles, frames), dtype=torch.bool),
        np.diag([0.02, 0.02, 0.5, 1.0]),
    )


def whole(found: WallContours) -> MetaTensor:
    return found.image(MetaTensor(torch.zeros(1, 2, 2, 2)))


def test_the_transform_is_the_pure_function():
    phantom, image, labels, contours = outcome()
    found = vessel_wall(
        image.as_tensor(), phantom.volume.affine, parameters=VesselWallParameters(**FAST)
    )
    kept = WallContours.read(contours)
    np.testing.assert_allclose(kept.radius_mm, found.radius_mm, atol=1e-6)  # kept as float32
    np.testing.assert_array_equal(kept.seen, found.seen)
    np.testing.assert_allclose(
        kept.points_mm, found.columns.points_at(found.radius_mm).transpose(1, 2), atol=1e-5
    )
    before = found.columns.labels(found.radius_mm, labels.shape[1:], phantom.volume.affine)
    assert labels.dtype == torch.uint8
    assert bool((labels.as_tensor() == torch.tensor([1, 2, 0])[before.long()]).all())
    data = LumenMediad(keys="x", contours="c", **FAST)({"x": image})
    assert bool((data["x"] == labels).all())
    assert bool((data["c"] == contours).all())
    np.testing.assert_array_equal(labels.affine, image.affine)


def test_labels_are_close_to_the_truth():
    phantom, _, labels, _ = outcome()
    truth = ivus_labels(phantom)
    for value in (1, 2):
        a, b = labels[0].numpy() == value, truth == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.93


def test_the_truth_has_the_area_of_its_contours():
    phantom = outcome()[0]
    truth = ivus_labels(phantom)
    turn = 0.5 * np.sin(2 * np.pi / 512)
    for values, radius in (((1,), phantom.lumen_mm), ((1, 2), phantom.media_mm)):
        area = np.isin(truth, values).sum((0, 1)) * SMALL["spacing_mm"] ** 2
        exact = turn * (radius * np.roll(radius, -1, 1)).sum(1)
        np.testing.assert_allclose(area, exact, rtol=0.005)


def test_every_cut_carries_its_proof():
    _, _, labels, _ = outcome()
    record = labels.meta["medpipe"]
    proofs = record["source"]["minimum_cut"]
    assert list(proofs) == [f"lumen and media, round {n}" for n in (1, 2, 3)]
    for proof in proofs.values():
        assert proof["proved"]
        assert proof["flow"] == proof["cut"]
        assert 0 <= proof["energy"] - proof["bound"] < 0.005 * proof["energy"]
    assert (
        "bridged" in next(f for f in record["findings"] if f["check"] == "ivus.shadow")["message"]
    )


def dark(phantom, share, seed):
    """Return the frames with a shadow over a share of the circle from some depth on."""
    data = phantom.volume.data.copy()
    middle = (data.shape[0] - 1) / 2
    x, y = np.meshgrid(*(np.arange(n) - middle for n in data.shape[:2]), indexing="ij")
    start = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    behind = (np.arctan2(y, x) - start) % (2 * np.pi) < share * 2 * np.pi
    data[behind & (np.hypot(x, y) * SMALL["spacing_mm"] > 1.0)] = 0
    return data


@pytest.mark.parametrize(("seed", "share"), [(0, 0.0), (1, 0.25), (2, 0.5), (4, 0.75)])
def test_regions_are_nested_closed_and_in_one_piece(seed, share):
    phantom = ivus(seed, frames=2, **SMALL)
    image = MetaTensor(
        torch.from_numpy(dark(phantom, share, seed))[None], affine=phantom.volume.affine
    )
    labels, contours = LumenMedia(**FAST, rounds=2).both(image)
    found = WallContours.read(contours)
    assert float((found.radius_mm[1] - found.radius_mm[0]).min()) >= 0.08 - 1e-6
    for frame in range(2):
        drawn = labels[0, ..., frame].numpy()
        lumen, vessel = drawn == 1, drawn > 0
        # one piece each, the wall is a ring: it parts the lumen from one outside
        pieces = [label(m)[1] for m in (lumen, vessel, ~vessel, drawn == 2, ~(drawn == 2))]
        assert pieces == [1, 1, 1, 1, 2]
    findings = labels.meta["medpipe"]["findings"]
    shadow = next(f for f in findings if f["check"] == "ivus.shadow")
    assert shadow["severity"] == ("warning" if share >= 0.5 else "info")


def test_concentric_circles_have_closed_forms():
    row = VesselWallTable(per_frame=True)(whole(circles(1.5, 2.1)))["1"]
    assert row["lumen_area_mm2"] == pytest.approx(math.pi * 1.5**2, rel=1e-4)
    assert row["vessel_area_mm2"] == pytest.approx(math.pi * 2.1**2, rel=1e-4)
    assert row["plaque_burden_percent"] == pytest.approx(100 * (1 - (1.5 / 2.1) ** 2), abs=1e-3)
    for name, diameter in (("lumen", 3.0), ("vessel", 4.2)):
        assert row[f"{name}_diameter_min_mm"] == pytest.approx(diameter, rel=1e-4)
        assert row[f"{name}_diameter_max_mm"] == pytest.approx(diameter, rel=1e-4)
    for name in ("mean", "min", "max"):
        assert row[f"wall_{name}_um"] == pytest.approx(600, abs=0.2)
    assert row["lumen_bridged_percent"] == 0.0


def test_an_eccentric_lumen_is_measured_from_its_own_centre():
    row = VesselWallTable(per_frame=True)(whole(circles(1.2, 2.0, shift=(0.3, 0.4))))["2"]
    assert row["position_mm"] == 0.5
    assert row["lumen_area_mm2"] == pytest.approx(math.pi * 1.44, rel=1e-3)
    assert row["lumen_diameter_min_mm"] == pytest.approx(2.4, rel=1e-3)
    assert row["lumen_diameter_max_mm"] == pytest.approx(2.4, rel=1e-3)
    assert row["wall_max_um"] == pytest.approx(1300, abs=1)  # R - r + d
    assert row["wall_min_um"] == pytest.approx(300, abs=1)  # R - r - d
    turn = np.arange(3600) * 2 * np.pi / 3600
    along = 0.5 * np.cos(turn)
    wall = -along + np.sqrt(along**2 + 4 - 0.25) - 1.2
    assert row["wall_mean_um"] == pytest.approx(1000 * wall.mean(), abs=1)


def test_the_summary_names_the_narrowest_frame():
    found = circles(1.5, 2.0, frames=12)
    found.radius_mm[0, :, 6] = 1.0
    found.radius_mm[1, :, 2] = 2.2
    rows = frame_table(found.in_plane_mm, found.step_mm)
    assert list(rows) == [f"{n:02d}" for n in range(1, 13)]
    table = summary_table(rows, found.step_mm)
    assert VesselWallTable()(whole(found)) == pytest.approx(table, rel=1e-6)
    assert table["frames"] == 12
    assert table["minimal_lumen_area_frame"] == 7
    assert table["minimal_lumen_area_mm2"] == pytest.approx(math.pi, rel=1e-4)
    assert table["plaque_burden_there_percent"] == pytest.approx(75, abs=1e-3)
    assert table["minimal_lumen_diameter_mm"] == pytest.approx(2.0, rel=1e-4)
    assert (table["wall_max_frame"], table["greatest_plaque_burden_frame"]) == (7, 7)
    assert table["wall_max_um"] == pytest.approx(1000, abs=0.2)
    lumen = math.pi * 0.5 * (11 * 1.5**2 + 1)
    vessel = math.pi * 0.5 * (11 * 4 + 2.2**2)
    assert table["lumen_volume_mm3"] == pytest.approx(lumen, rel=1e-4)
    assert table["percent_atheroma_volume"] == pytest.approx(100 * (1 - lumen / vessel), abs=1e-3)


def test_the_mesh_is_two_tubes_that_face_outwards():
    found = circles(1.0, 1.5, frames=5, angles=128)
    for handed in (1.0, -1.0):
        found.affine[0, 0] = 0.02 * handed
        found.affine[:3, 3] = (3.0, -2.0, 7.0)
        content = VesselWallMesh()(whole(found))
        assert content == VesselWallMesh()(whole(found))
        mesh = read_vtp(content)
        points, triangles = torch.from_numpy(mesh.points_mm), torch.from_numpy(mesh.triangles)
        assert mesh.point_data["surface"].tolist() == [1] * 640 + [2] * 640
        assert mesh.point_data["frame"].tolist()[::128] == [1, 2, 3, 4, 5] * 2
        np.testing.assert_allclose(mesh.point_data["wall_um"], 500, atol=1e-3)
        for kind, radius in ((1, 1.0), (2, 1.5)):
            own = mesh.point_data["surface"][mesh.triangles[:, 0]] == kind
            area = mesh_area_mm2(points, triangles[own])
            assert area == pytest.approx(2 * math.pi * radius * 2.0, rel=1e-3)
            away = np.hypot(*(mesh.points_mm - [3.0, -2.0, 7.0])[:, :2].T)
            np.testing.assert_allclose(away[mesh.point_data["surface"] == kind], radius, atol=1e-6)
        a, b, c = (mesh.points_mm[mesh.triangles[:, n]] for n in range(3))
        outward = (a + b + c) / 3 - [3.0, -2.0, 0.0]
        outward[:, 2] = 0
        assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), outward) > 0).all()


def test_a_single_frame_gives_labels_a_table_and_two_closed_lines():
    phantom, image, _, _ = outcome()
    one = MetaTensor(image.as_tensor()[..., :1], affine=phantom.volume.affine)
    labels, contours = LumenMedia(**FAST, rounds=1).both(one)
    assert set(labels.unique().tolist()) == {0, 1, 2}
    mesh = read_vtp(VesselWallMesh()(contours))
    assert [len(line) for line in mesh.lines] == [97, 97]
    assert all(line[0] == line[-1] for line in mesh.lines)
    assert VesselWallTable()(contours)["frames"] == 1


def test_pixels_need_not_be_square_and_the_catheter_not_in_the_middle():
    phantom, image, _, contours = outcome()
    cut = image.as_tensor()[:, :, 20:190:2]  # every other row, off-centre
    affine = phantom.volume.affine @ np.diag([1.0, 2.0, 1.0, 1.0])
    affine[1, 3] += 20 * SMALL["spacing_mm"]
    center = [float(c) for c in phantom.center_mm[0]]
    found = LumenMedia(center_mm=center, outer_mm=3.0, **FAST).both(MetaTensor(cut, affine=affine))
    mine, before = (WallContours.read(c).radius_mm for c in (found[1], contours))
    assert float((mine - before).abs().mean()) < 0.04  # half of a coarse pixel


def test_dictionary_classes_take_contours():
    contours = whole(circles(1.0, 1.5))
    data = {"t": contours, "m": contours, "keep": 1}
    out = VesselWallTabled("t")(data)
    assert out["t"] == VesselWallTable()(contours)
    assert VesselWallMeshd("m")(data)["m"] == VesselWallMesh()(contours)
    assert VesselWallTabled(["t", "no"], allow_missing_keys=True)(data)["keep"] == 1


def test_unusable_frames_and_contours_are_refused_in_one_line():
    image = MetaTensor(torch.rand(1, 80, 80, 2), affine=np.diag([0.1, 0.1, 0.5, 1.0]))
    outside = "outside the frames; .*80 × 80 pixels, got pixel \\(-50, 20\\)"
    with pytest.raises(StepError, match=outside):
        LumenMedia(center_mm=[-5.0, 2.0, 0.0])(image)
    with pytest.raises(StepError, match="right axes"):
        LumenMedia()(MetaTensor(torch.rand(1, 80, 80, 0)))
    with pytest.raises(StepError, match="NaN"):
        LumenMedia()(image * torch.nan)
    with pytest.raises(StepError, match="not scalar"):
        LumenMedia()(image.repeat(3, 1, 1, 1))
    with pytest.raises(StepError, match="too short"):
        LumenMedia(outer_mm=0.75)(image)
    with pytest.raises(UsageError, match="center_mm is wrong"):
        LumenMedia(center_mm=[1.0, 2.0])
    with pytest.raises(UsageError, match="angles is out of range"):
        LumenMedia(angles=3)
    with pytest.raises(UsageError, match="one image"):
        LumenMediad(keys=["a", "b"], contours="c")
    with pytest.raises(StepError, match="no map of contours"):
        VesselWallTable()(image)
    crossed = circles(1.0, 1.5)
    crossed.radius_mm[0, :9, 1] = 2.0
    with pytest.raises(StepError, match="frame 2: the lumen leaves the vessel"):
        VesselWallTable()(whole(crossed))
    with pytest.raises(StepError, match="wrong shape"):
        frame_table(torch.rand(2, 3, 2), 0.5)
    with pytest.raises(StepError, match="not finite"):
        frame_table(torch.full((2, 1, 9, 2), torch.nan, dtype=torch.float64), 0.5)


def test_a_written_pullback_is_whole_numbers_and_its_truth_lies_beside_it(tmp_path):
    image, truth = write_ivus(tmp_path / "a" / "pullback.nii.gz", seed=1, frames=2, size=160)
    assert [p.name for p in (image, truth)] == ["pullback.nii.gz", "pullback-truth.nii.gz"]
    from medpipe.io.nifti import read_nifti

    frames, labels = (read_nifti(p, ndim=(3,)) for p in (image, truth))
    assert frames.data.shape == labels.data.shape == (160, 160, 2)
    assert (frames.data == np.rint(frames.data)).all()
    np.testing.assert_allclose(np.diag(frames.affine)[:3], [0.0625, 0.0625, 0.5], rtol=1e-6)
    assert set(np.unique(labels.data)) == {0, 1, 2}
    again, _ = write_ivus(tmp_path / "b" / "pullback.nii.gz", seed=1, frames=2, size=160)
    assert again.read_bytes() == image.read_bytes()
