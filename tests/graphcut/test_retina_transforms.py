"""The retinal boundaries as a transform, and the workflow that ships with them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.cli.main import invoke
from medpipe.errors import StepError, UsageError
from medpipe.graphcut.octexplorer import read_octexplorer
from medpipe.graphcut.retina import BOUNDARIES, retina_surfaces
from medpipe.graphcut.transforms.height_map import height_image, read_heights
from medpipe.graphcut.transforms.retina import (
    OctLayers,
    OctLayersd,
    OctView,
    OctViewd,
    closes_on_itself,
    scan_axes,
)
from medpipe.io.vtp import read_vtp
from medpipe.phantoms.retina_oct import OCTPhantom, retina_oct

RING = {"kind": "ring", "shape": (96, 400, 1), "spacing_mm": (0.114, 0.00387, 1.0)}


def image_of(scan: OCTPhantom) -> MetaTensor:
    return MetaTensor(
        torch.from_numpy(scan.volume.data)[None], affine=torch.from_numpy(scan.volume.affine)
    )


@pytest.fixture(scope="module")
def ring() -> OCTPhantom:
    return retina_oct(1, **RING)


@pytest.fixture(scope="module")
def found(ring: OCTPhantom) -> MetaTensor:
    return OctLayers()(image_of(ring))


def test_the_transform_equals_the_recipe(ring: OCTPhantom, found: MetaTensor) -> None:
    image = torch.from_numpy(ring.volume.data)[None]
    pure = retina_surfaces(image, ring.volume.affine, axis=1, wrap=(0,))
    torch.testing.assert_close(found[:, :, 0].as_tensor(), pure.depth_mm.float())
    error = np.abs(found[:, :, 0].numpy() - ring.surfaces_mm) * 1000
    assert error.mean() < 4
    surfaces = read_heights(found)
    assert surfaces.names == tuple(b.name for b in BOUNDARIES)
    assert surfaces.wrap == (0,)
    proofs = found.meta["medpipe"]["source"]["minimum_cut"]
    assert len(proofs) == len(pure.cuts)
    assert all(proof["proved"] for proof in proofs.values())
    texts = [f["message"] for f in found.meta["medpipe"]["findings"]]
    assert any("closes on itself (ring scan), as its ends look" in text for text in texts)


def test_the_order_of_the_axes_does_not_matter(ring: OCTPhantom, found: MetaTensor) -> None:
    affine = ring.volume.affine[:, [2, 1, 0, 3]]
    data = torch.from_numpy(ring.volume.data)[None]
    turned = OctLayersd("i")(
        {"i": MetaTensor(data.permute(0, 3, 2, 1), affine=torch.from_numpy(affine))}
    )["i"]
    assert turned.shape == (9, 1, 1, 96)
    assert read_heights(turned).wrap == (2,)
    torch.testing.assert_close(turned[:, 0].as_tensor(), found[:, :, :, 0].as_tensor().mT)


def test_which_axis_is_which() -> None:
    assert scan_axes((768, 496, 1), (0.014, 0.0039, 1.0)) == (0, 1, 2)
    assert scan_axes((25, 512, 496), (0.12, 0.012, 0.0039)) == (1, 2, 0)
    # one B-scan, thin or thick: its axis is never the depth or the A-scans
    assert scan_axes((1, 512, 496), (0.001, 0.012, 0.0039)) == (1, 2, 0)
    assert scan_axes((64, 64, 1), (0.01, 0.01, 1.0), depth=0) == (1, 0, 2)
    with pytest.raises(StepError, match="not clear which axis is the depth"):
        scan_axes((64, 64, 64), (1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="axis is wrong"):
        scan_axes((64, 64, 64), (1.0, 1.0, 1.0), depth=3)


def test_rings_and_lines_are_told_apart() -> None:
    wide = RING | {"shape": (256, 400, 1), "spacing_mm": (0.0427, 0.00387, 1.0)}
    for seed in range(5):
        scan = torch.from_numpy(retina_oct(seed, **wide).volume.data[..., 0]) ** 0.25
        assert closes_on_itself(scan, 0.0427), seed
        assert closes_on_itself(scan.roll(70, 0), 0.0427), seed
        assert not closes_on_itself(scan[:120], 0.0911), seed  # half of it, as if as long
    assert not closes_on_itself(scan, 0.0284)  # shorter than any ring
    assert not closes_on_itself(scan[:40], 0.273)  # too few columns to tell


def test_views_are_upright_and_keep_volumes(ring: OCTPhantom) -> None:
    image = image_of(ring)
    depth = torch.from_numpy(ring.surfaces_mm)
    heights = height_image(image, depth, axis=1)
    view = OctView(exponent=0.5, stretch=2.0, margin_mm=0.05)(image, heights)
    first = int((ring.surfaces_mm.min() - 0.05) / 0.00387)
    due = image[0, :, first : first + view.shape[2]].as_tensor() ** 0.5
    torch.testing.assert_close(view[0].as_tensor(), due)
    step = np.abs(np.diag(view.affine.numpy())[:3])
    np.testing.assert_allclose(step[:2], [0.114, 2 * 0.00387])
    assert np.prod(step) == pytest.approx(0.114 * 0.00387)
    # pictures show R and A first: the first A-scan is left, the vitreous above
    assert (np.diag(view.affine.numpy())[:2] < 0).all()
    other = MetaTensor(image.as_tensor().flip(2), affine=image.affine)
    upside = height_image(other, depth, axis=1, reverse=True)
    same = OctViewd("i", surfaces="s", exponent=0.5, stretch=2.0, margin_mm=0.05)
    torch.testing.assert_close(same({"i": other, "s": upside})["i"], view)


@pytest.mark.usefixtures("cases_here")
def test_medpipe_run_from_an_empty_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(["data", "retina-oct", "ring.nii.gz", "--a-scans", "96", "--seed", "1"]) == 0
    assert invoke(["run", "oct-layers", "ring.nii.gz", "OUT", "--workers", "1"]) == 0
    capsys.readouterr()
    case = next((tmp_path / "OUT" / "cases").iterdir())
    scan, surfaces = nib.load("ring.nii.gz"), nib.load(case / "surfaces.nii.gz")
    truth = nib.load("ring-truth.nii.gz")
    assert surfaces.shape == truth.shape == (96, 1, 1, 9)
    error = np.abs(surfaces.get_fdata() - truth.get_fdata()) * 1000
    assert error.mean() < 4
    labels = nib.load(case / "layers.nii.gz").get_fdata()
    assert labels.shape == scan.shape
    assert set(np.unique(labels)) == set(range(9))
    table = json.loads((case / "thickness.json").read_text())
    assert {"RNFL", "RPE", "total", "RNFL/nasal"} <= set(table)
    total = np.ptp(truth.get_fdata(), axis=3).mean() * 1000
    # both ends lie up to 3.6 µm on the darker side of the edge, as `retina_surfaces` says
    assert table["total"]["mean_um"] == pytest.approx(total, abs=7)
    mesh = read_vtp((case / "surfaces.vtp").read_bytes())
    assert len(mesh.lines) == 9
    read = read_octexplorer((case / "surfaces.xml").read_bytes())
    assert read.names == tuple(b.name for b in BOUNDARIES)
    np.testing.assert_allclose(read.heights_mm[:, 0], surfaces.get_fdata()[:, 0, 0].T, atol=1e-5)
    picture = json.loads((case / "qc-picture-view.json").read_text())
    assert [entry["name"] for entry in picture["labels"]][:2] == ["RNFL", "GCL+IPL"]
    # the volume in the picture is the one of the label map
    voxel_ml = float(np.prod(scan.header.get_zooms())) / 1000
    rnfl = int((labels == 1).sum())
    assert picture["labels"][0]["voxels"] == rnfl
    assert picture["labels"][0]["ml"] == pytest.approx(rnfl * voxel_ml, abs=1e-6)


@pytest.mark.real_data
def test_the_real_ring_needs_no_options(real_data: Path) -> None:
    scan = nib.load(real_data / "oct_ring" / "ring_scan.nii.gz")
    data = torch.from_numpy(scan.get_fdata(dtype=np.float32))
    zooms = tuple(float(z) for z in scan.header.get_zooms())
    assert scan_axes(scan.shape, zooms) == (0, 1, 2)
    assert closes_on_itself(data[..., 0] ** 0.25, zooms[0])
    assert not closes_on_itself(data[:650, :, 0] ** 0.25, zooms[0])
