"""Prepared volumes against the anatomy they were made from, and the way back."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_from_parts, axis_codes, to_mm
from medpipe.outcome.frame import VERTEX_MM
from medpipe.outcome.prepare import (
    GRIDS,
    OUTSIDE_HU,
    GridSettings,
    frame_matrix,
    grid_settings,
    prepare_volume,
    sample_prepared,
    to_input_space,
)
from medpipe.outcome.transforms.prepare import (
    CtChannelsd,
    CtCheck,
    CtCheckd,
    HeadFrame,
    HeadFramed,
    HeadGrid,
    HeadGridd,
)
from medpipe.phantoms.anatomy import HeadLabel, Subject
from medpipe.phantoms.head_ct import HeadCT

GRID = GridSettings((4.0, 4.0, 4.0), (48, 60, 48))
SHAPE = (76, 84, 36)
SPACING = np.array([3.0, 3.0, 5.5])
LEAN = 0.3  # mm along y for each mm along z: a gantry tilted by 17°


@cache
def scan():
    """A turned head in a scan with a tilted gantry, left, posterior and superior first."""
    subject = replace(Subject.from_seed(5), tilt_deg=(8.0, -5.0, 14.0))
    anatomy = HeadCT(5, subject=subject, edge_mm=2.0)
    affine = affine_from_parts(np.diag([-1.0, -1.0, 1.0]), SPACING, np.zeros(3))
    affine[1, 2] = LEAN * SPACING[2]
    affine[:3, 3] = (0, 0, -8) - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return torch.from_numpy(anatomy.sample(affine, SHAPE)[1])[None], affine, anatomy


@cache
def prepared():
    data, affine, _ = scan()
    return prepare_volume(data, affine, GRID)


@cache
def flat():
    data, affine, _ = scan()
    return prepare_volume(data, affine, replace(GRID, method="none"))


def image():
    data, affine, _ = scan()
    out = MetaTensor(data.clone(), affine=torch.from_numpy(affine))
    out.meta["medpipe"] = {"source": {"modality": "CT"}, "findings": []}
    return out


def test_every_voxel_shows_the_anatomy_at_its_place():
    """The truth is the phantom itself, asked at the points that the matrix says."""
    made = prepared()
    every = (slice(None), slice(None), slice(None, None, 4))
    quarter = made.matrix @ made.affine @ np.diag([1, 1, 4, 1])
    labels, hu = scan()[2].sample(quarter, (48, 60, 12))
    head = (labels > 0) & (labels < HeadLabel.TABLE)
    brain = np.isin(labels, [k for k in HeadLabel if HeadLabel.CSF <= k <= HeadLabel.BRAINSTEM])
    seen = np.ones_like(head)
    seen[:, :, :2] = False  # below the scan
    error = np.abs(made.hu[0].numpy()[every] - hu)
    assert np.median(error[head & seen]) < 20  # bone at 3 mm is blurred
    assert np.median(error[brain & seen]) < 5
    mask = made.head[0].numpy()[every] > 0
    assert 2 * (mask & head & seen).sum() / ((mask & seen).sum() + (head & seen).sum()) > 0.97
    assert made.hu.dtype == torch.float32
    assert torch.equal(made.hu, made.hu.round())
    assert float(made.hu.min()) == OUTSIDE_HU


def test_left_and_right_meet_in_the_middle():
    hu = prepared().hu[0].numpy().clip(-200, 300)
    assert np.corrcoef(hu.ravel(), hu[::-1].ravel())[0, 1] > 0.93
    # and a scan that is left as it lies does not
    hu = flat().hu[0].numpy().clip(-200, 300)
    assert np.corrcoef(hu.ravel(), hu[::-1].ravel())[0, 1] < 0.9


def test_there_is_one_interpolation():
    """A plane of HU comes out exact: each further step would smooth or shift it."""
    affine = scan()[1]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    slope = np.array([1.1, -0.7, 2.3])
    values = to_mm(affine, index) @ slope
    matrix = prepared().matrix
    out = sample_prepared(torch.from_numpy(values.astype(np.float32))[None], affine, matrix, GRID)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in GRID.size_voxels], indexing="ij"), -1)
    place = to_mm(matrix @ GRID.affine(), at)
    inside = to_mm(np.linalg.inv(affine), place)
    # away from the faces, where the smoothing of a coarser grid repeats the edge
    deep = ((inside > 2) & (inside < np.array(SHAPE) - 3)).all(-1)
    assert deep.sum() > 20_000
    assert np.abs(out[0].numpy() - place @ slope)[deep].max() < 0.6
    outside = ((inside < -0.6) | (inside > np.array(SHAPE) - 0.4)).any(-1)
    assert outside.any()
    assert (out[0].numpy()[outside] == OUTSIDE_HU).all()


def test_fine_voxels_are_averaged():
    """Noise of fine voxels becomes less by what is averaged; single voxels would keep it."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(0, 100, (1, 160, 160, 60)).astype(np.float32))
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    affine[:3, 3] = (-40, -40, -20)
    out = sample_prepared(noise, affine, np.eye(4), GridSettings((2.0, 2.0, 2.0), (32, 32, 48)))
    middle = out[0, 8:24, 8:24, 8:20]
    assert float(middle.std()) < 30


def test_a_map_comes_back_to_where_it_was():
    """A smooth map of the scan → the grid → the scan again."""
    made = prepared()
    data, affine, _ = scan()
    like = image()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in GRID.size_voxels], indexing="ij"), -1)
    place = to_mm(made.matrix @ made.affine, index)
    spot = made.matrix[:3, 3] + (12.0, -20.0, 15.0)

    def bump(points):
        return np.exp(-((points - spot) ** 2).sum(-1) / (2 * 14.0**2)).astype(np.float32)

    grid_map = MetaTensor(torch.from_numpy(bump(place))[None], affine=torch.from_numpy(made.affine))
    back = to_input_space(grid_map, like, made.matrix)
    assert back.shape == data.shape
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    world = to_mm(affine, voxels)
    truth = bump(world)
    assert np.abs(back[0].numpy() - truth).max() < 0.04
    top = world[np.unravel_index(int(back.as_tensor().argmax()), SHAPE)]
    assert np.linalg.norm(top - spot) < 4
    # outside the grid there is nothing
    assert float(back[0, 0, 0, 0]) == 0


def test_the_steps_do_what_the_function_does():
    chain = CtCheckd("ct", small_out="small", mask_out="mask")({"ct": image()})
    chain = HeadFramed("ct", small="small", mask="mask")(chain)
    grid = HeadGridd("ct", spacing_mm=4.0, size_voxels=[48, 60, 48], mask="mask", mask_out="head")
    assert torch.equal(chain["ct"].as_tensor(), image().as_tensor())
    out = grid(chain)
    made = prepared()
    assert torch.equal(out["ct"].as_tensor(), made.hu)
    assert torch.equal(out["head"].as_tensor(), made.head)
    assert np.allclose(out["ct"].affine.tolist(), made.affine)
    assert np.allclose(frame_matrix(out["ct"]), made.matrix)
    source = out["ct"].meta["medpipe"]["source"]
    assert source["modality"] == "CT"
    assert source["head_frame"] == made.facts["head_frame"]
    assert source["ct_check"] == made.facts["ct_check"]
    assert source["head_grid"]["size_voxels"] == [48, 60, 48]
    channels = CtChannelsd("ct")(out)["ct"]
    assert channels.shape == (3, 48, 60, 48)
    low, high = -20.0, 180.0
    assert torch.allclose(channels[1].as_tensor(), ((made.hu[0] - low) / (high - low)).clamp(0, 1))


def test_the_array_steps_make_what_they_are_not_given():
    framed = HeadFrame("none")(image())
    assert np.array_equal(frame_matrix(framed)[:3, :3], np.eye(3))
    hu = HeadGrid(spacing_mm=4.0, size_voxels=[48, 60, 48])(framed)
    assert torch.equal(hu.as_tensor(), flat().hu)
    checked = CtCheck()(image())
    assert checked.meta["medpipe"]["source"]["ct_check"]["slices"] == SHAPE[2]


@pytest.mark.gpu
def test_a_gpu_makes_the_same():
    data, affine, _ = scan()
    made = prepare_volume(data.cuda(), affine, GRID)
    assert made.hu.device.type == made.head.device.type == "cuda"
    assert np.allclose(made.matrix, prepared().matrix, atol=0.05)
    inside = prepared().head > 0
    assert float((made.hu.cpu() - prepared().hu)[inside].abs().median()) <= 1


def test_the_grids():
    paper = GRIDS["paper"]
    assert paper.spacing_mm == (1.18, 1.58, 1.10)
    assert paper.size_voxels == (128, 128, 160)
    for settings in GRIDS.values():
        affine = settings.affine()
        assert axis_codes(affine) == "RAS"
        middle = to_mm(affine, (np.array(settings.size_voxels) - 1) / 2)
        assert np.allclose(middle[:2], 0)
        top = to_mm(affine, np.array(settings.size_voxels) - 0.5)[2]
        assert top == pytest.approx(VERTEX_MM + settings.top_margin_mm)
    extent = np.array(GRIDS["compact"].size_voxels) * GRIDS["compact"].spacing_mm
    assert (extent >= (190, 230, 190)).all()
    own = grid_settings("compact", spacing_mm=[3, 3, 4], size_voxels=64, top_margin_mm=0)
    assert own == GridSettings((3, 3, 4), (64, 64, 64), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid": "large"},
        {"spacing_mm": -1.0},
        {"size_voxels": [10, 10]},
        {"size_voxels": 10.5},
        {"size_voxels": 5000},
        {"top_margin_mm": 200.0},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(UsageError):
        grid_settings(**wrong)


def test_what_cannot_be_prepared():
    with pytest.raises(StepError, match="knows no frame"):
        HeadGrid()(image())
    with pytest.raises(StepError, match="one channel"):
        prepare_volume(torch.zeros(2, 20, 20, 20), np.eye(4))
    far = np.eye(4)
    far[:3, 3] = 5000
    with pytest.raises(StepError, match="outside the image"):
        sample_prepared(scan()[0], scan()[1], far, GRID)
    with pytest.raises(UsageError, match="one key"):
        CtCheckd(["a", "b"], small_out="small")
    with pytest.raises(UsageError, match="unknown preset"):
        CtChannelsd("ct", preset="bone")
