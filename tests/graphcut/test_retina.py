"""Nine retinal boundaries against simulated truth and a manually marked real scan."""

import nibabel as nib
import numpy as np
import pytest
import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.retina import BOUNDARIES, RetinaParameters, retina_surfaces
from medpipe.phantoms.retina_oct import RETINA_BOUNDARIES, retina_oct

RING = {"kind": "ring", "shape": (256, 400, 1), "spacing_mm": (0.0427, 0.00387, 1.0)}
MACULA = {"kind": "macula", "shape": (160, 224, 2), "spacing_mm": (0.02, 0.00387, 0.12)}


def errors_um(scan, **options):
    image = torch.from_numpy(scan.volume.data)[None]
    wrap = (0,) if scan.facts["wraps"] else ()
    found = retina_surfaces(image, scan.volume.affine, wrap=wrap, **options)
    return (found.depth_mm.numpy() - scan.surfaces_mm) * 1000, found


@pytest.fixture(scope="module")
def ring():
    return retina_oct(1, **RING)


@pytest.fixture(scope="module")
def ring_found(ring):
    return errors_um(ring)


def test_the_boundaries_are_those_of_the_phantom():
    assert tuple(b.name for b in BOUNDARIES) == RETINA_BOUNDARIES


def test_all_nine_boundaries_of_a_ring_are_found(ring_found):
    error, found = ring_found
    assert found.proved
    # the proof is of use only where rounding is small beside the energy
    gaps = [(c.energy - c.bound) / abs(c.energy) for c in found.cuts]
    assert gaps[0] < 0.05, gaps
    assert max(gaps[1:]) < 0.01, gaps
    mean = np.abs(error).mean((1, 2))
    assert (mean < [4.5, 6, 9, 6, 3, 3, 3, 3, 3]).all(), mean.round(1)
    # all boundaries together, far below one sample of 3.87 µm
    assert mean.mean() < 3.6


def test_all_nine_boundaries_of_a_macula_with_its_pit_are_found():
    error, found = errors_um(retina_oct(3, **MACULA))
    assert found.proved
    mean = np.abs(error).mean((1, 2))
    assert (mean < [5, 5, 5, 5, 4, 3, 3, 3, 3]).all(), mean.round(1)


def test_boundaries_never_cross(ring_found):
    _, found = ring_found
    gaps = found.depth_mm.diff(dim=0) * 1000
    assert float(gaps.min()) >= 0
    for s, row in enumerate(BOUNDARIES[:-1]):
        if s not in (0, 4):  # these two join the two stages
            assert float(gaps[s].min()) >= row.min_um - 1e-3
            assert float(gaps[s].max()) <= row.max_um + 1e-3


def test_the_start_of_a_ring_does_not_matter(ring, ring_found):
    image = torch.from_numpy(np.roll(ring.volume.data, 64, 0))[None]
    turned = retina_surfaces(image, ring.volume.affine, wrap=(0,)).depth_mm
    torch.testing.assert_close(turned, ring_found[1].depth_mm.roll(64, 1), atol=1e-3, rtol=0)


def test_the_unit_and_the_direction_of_the_scan_do_not_matter(ring, ring_found):
    image = torch.from_numpy(ring.volume.data[:, ::-1].copy() * 4095)[None]
    found = retina_surfaces(image, ring.volume.affine, wrap=(0,), reverse=True)
    assert (found.depth_mm - ring_found[1].depth_mm).abs().mean() * 1000 < 0.2


def test_shadows_are_bridged(ring, ring_found):
    error, found = ring_found
    dark = ring.shadow > 0.6
    assert dark.any()
    assert float(found.confidence[torch.from_numpy(dark)].max()) < 0.6
    assert np.median(found.confidence[torch.from_numpy(ring.shadow < 0.05)]) == 1
    assert np.abs(error[:, dark]).mean() < 12


def test_subvoxel_positions_are_closer_to_the_truth(ring, ring_found):
    on_samples, _ = errors_um(ring, parameters=RetinaParameters(subvoxel=False))
    best = (5, 6, 7, 8)
    spread = [np.std(e[best, :], axis=(1, 2)).mean() for e in (ring_found[0], on_samples)]
    assert spread[0] < 0.9 * spread[1], spread


@pytest.mark.real_data
def test_the_real_ring_agrees_with_the_manual_boundaries(real_data):
    scan = nib.load(real_data / "oct_ring" / "ring_scan.nii.gz")
    manual = np.loadtxt(real_data / "oct_ring" / "manual_surfaces.csv", delimiter=",", skiprows=1)
    image = torch.from_numpy(scan.get_fdata(dtype=np.float32))[None]
    found = retina_surfaces(image, scan.affine, wrap=(0,))
    # the first sample of the manual depths is 1
    truth = (manual.T - 1) * np.linalg.norm(scan.affine[:3, 1])
    mean = np.abs(found.depth_mm[..., 0].numpy() - truth).mean(1) * 1000
    assert found.proved
    assert mean[0] <= 4.5
    assert mean[8] <= 4.0
    assert (mean < [4.5, 17, 18, 10, 7, 4, 4, 6, 4]).all(), mean.round(1)


def test_unusable_scans_are_refused():
    affine = np.diag([0.014, 0.004, 0.12, 1.0])
    with pytest.raises(StepError, match="NaN"):
        retina_surfaces(torch.full((1, 32, 64, 1), torch.nan), affine)
    with pytest.raises(StepError, match="negative"):
        retina_surfaces(torch.full((1, 32, 64, 1), -1.0), affine)
    with pytest.raises(StepError, match="empty"):
        retina_surfaces(torch.zeros((1, 32, 64, 1)), affine)
    with pytest.raises(StepError, match="wrong axes"):
        retina_surfaces(torch.zeros((32, 64, 1)), affine)
    with pytest.raises(StepError):  # 64 samples are 0.25 mm: no room for a retina
        retina_surfaces(torch.rand((1, 32, 32, 1)), affine)
    with pytest.raises(UsageError, match="edge_um is not positive"):
        RetinaParameters(edge_um=0)
