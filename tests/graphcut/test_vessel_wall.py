"""Lumen and membrane of simulated frames against their true contours."""

import numpy as np
import pytest
import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.vessel_wall import VesselWallParameters, vessel_wall
from medpipe.phantoms.ivus import ivus

SMALL = {"size": 260, "spacing_mm": 0.03}
FAST = VesselWallParameters(angles=128, node_mm=0.03)


def run(phantom, parameters=FAST):
    image = torch.from_numpy(phantom.volume.data)[None]
    center = torch.from_numpy(phantom.center_mm)
    found = vessel_wall(image, phantom.volume.affine, center_mm=center, parameters=parameters)
    every = phantom.lumen_mm.shape[1] // parameters.angles
    truth = np.stack([phantom.lumen_mm, phantom.media_mm])[..., ::every].transpose(0, 2, 1)
    return (found.radius_mm.numpy() - truth) * 1000, found, phantom.shadow[:, ::every].T


@pytest.fixture(scope="module")
def phantom():
    return ivus(1, frames=3, **SMALL)


@pytest.fixture(scope="module")
def outcome(phantom):
    return run(phantom)


def test_lumen_and_membrane_are_found_through_speckle_and_shadow(outcome):
    error, found, _ = outcome
    assert found.proved
    lumen, media = np.abs(error).mean((1, 2))
    assert lumen < 35  # µm, about one pixel
    assert media < 25


def test_shadows_are_recognised_and_bridged(outcome):
    error, found, shadow = outcome
    assert shadow.any()
    assert (found.seen[1].numpy() == ~shadow).mean() > 0.98
    assert bool((found.seen[0] | ~found.seen[1]).all())
    assert np.abs(error[1, shadow]).mean() < 60


def test_the_lumen_lies_inside_the_membrane_whatever_the_image():
    noise = np.random.default_rng(0).uniform(0, 255, (120, 120, 2)).astype(np.float32)
    affine = np.diag([0.06, 0.06, 0.5, 1.0])
    p = VesselWallParameters(angles=64, node_mm=0.05, min_wall_mm=0.15, max_wall_mm=1.0)
    found = vessel_wall(torch.from_numpy(noise)[None], affine, parameters=p)
    wall = found.radius_mm[1] - found.radius_mm[0]
    assert float(wall.min()) >= 0.15 - 1e-6
    assert float(wall.max()) <= 1.0 + 1e-6
    assert found.radius_mm.shape == (2, 64, 2)  # one radius a ray: a single closed contour


def test_the_first_ray_does_not_matter(phantom, outcome):
    quarter = np.rot90(phantom.volume.data, 1, axes=(0, 1)).copy()
    image = torch.from_numpy(quarter)[None]
    found = vessel_wall(
        image,
        phantom.volume.affine,
        center_mm=torch.from_numpy(phantom.center_mm),
        parameters=FAST,
    )
    # rot90 brings what was along the first axis to minus the second
    back = found.radius_mm.roll(FAST.angles // 4, 1), found.radius_mm.roll(-FAST.angles // 4, 1)
    apart = min(float((b - outcome[1].radius_mm).abs().mean()) for b in back)
    assert apart * 1000 < 1.0


def test_areas_are_those_of_the_polygons(outcome, phantom):
    area = outcome[1].area_mm2()
    truth = 0.5 * (phantom.lumen_mm**2).mean(1) * 2 * np.pi
    np.testing.assert_allclose(area[0], truth, rtol=0.03)
    points = outcome[1].columns.points_at(outcome[1].radius_mm)
    x, y = points[1, :, 0, 0], points[1, :, 0, 1]
    shoelace = 0.5 * abs(float((x * y.roll(-1) - y * x.roll(-1)).sum()))
    assert float(area[1, 0]) == pytest.approx(shoelace, rel=1e-6)


@pytest.mark.real_data
def test_vessels_of_real_shape(real_data):
    rows = np.loadtxt(real_data / "ivus_contours" / "diastolic_contours.csv", delimiter="\t")
    frames = [rows[rows[:, 0] == f][:, 1:3] for f in np.unique(rows[:, 0])[:3]]
    error, found, _ = run(ivus(2, lumen_mm=[f - f.mean(0) for f in frames], **SMALL))
    assert found.proved
    lumen, media = np.abs(error).mean((1, 2))
    assert lumen < 40
    assert media < 25


def test_unusable_frames_are_refused():
    affine = np.diag([0.05, 0.05, 0.5, 1.0])
    with pytest.raises(StepError, match="nothing at all"):
        vessel_wall(torch.zeros(1, 64, 64, 1), affine)
    with pytest.raises(StepError, match="nothing at all"):
        vessel_wall(torch.full((1, 64, 64, 1), torch.nan), affine)
    with pytest.raises(StepError, match="too short"):
        vessel_wall(torch.rand(1, 20, 20, 1), affine)
    with pytest.raises(StepError, match="wrong axes"):
        vessel_wall(torch.rand(64, 64), affine)
    with pytest.raises(UsageError, match="edge_mm is out of range"):
        VesselWallParameters(edge_mm=0)
    with pytest.raises(UsageError, match="min_wall_mm"):
        VesselWallParameters(min_wall_mm=-1)
