"""The frame of the head on simulated heads in known positions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_from_parts
from medpipe.outcome.frame import VERTEX_MM, _Symmetry, face_areas_cm2, find_pose, points_mm
from medpipe.outcome.prepare import small_copy
from medpipe.phantoms.anatomy import Lesion, Subject
from medpipe.phantoms.head_ct import HeadCT, ct_noise
from medpipe.steps.head_ct import HeadMask

SHAPE = (66, 74, 36)
SPACING = np.array([3.4, 3.4, 5.5])
AFFINE = affine_from_parts(np.eye(3), SPACING, (0, 0, -6) - (np.array(SHAPE) - 1) / 2 * SPACING)
CASES = {
    # pitch, roll, yaw of the head in degrees
    1: ((-14.0, 6.0, 18.0), None),
    2: ((9.0, -7.0, -11.0), Lesion("ich", 50.0)),
}


@cache
def head(seed):
    tilt, lesion = CASES[seed]
    subject = replace(Subject.from_seed(seed), tilt_deg=tilt)
    hu = HeadCT(seed, subject=subject, lesion=lesion).sample(AFFINE, SHAPE)[1]
    for k in range(SHAPE[2]):
        hu[:, :, k] += ct_noise(hu[:, :, k], 4.0, (seed, k))
    return torch.from_numpy(hu)[None], subject


def pose_of(data, affine, method="symmetry"):
    image = MetaTensor(data, affine=torch.from_numpy(np.asarray(affine, float)))
    small = small_copy(image)
    mask = HeadMask()(small).as_tensor()[0] > 0
    return find_pose(small, mask, method, (np.asarray(affine, float), data.shape[1:]))


@cache
def pose(seed):
    return pose_of(head(seed)[0], AFFINE)


def true_axes(subject):
    """The axes of the template in the world: its scale leaves their directions."""
    axes = np.linalg.inv(subject.to_template())
    return axes / np.linalg.norm(axes, axis=0)


@pytest.mark.parametrize("seed", CASES)
def test_the_midsagittal_plane_and_the_pitch(seed):
    found, subject = pose(seed), head(seed)[1]
    assert found.aligned
    assert found.level
    assert found.findings == ()
    normal = found.matrix[:3, 0]
    assert np.degrees(np.arccos(normal @ true_axes(subject)[:, 0])) < 1.0
    assert abs(normal @ (np.array(subject.shift_mm) - found.matrix[:3, 3])) < 0.6
    turned = found.rotation_deg
    # the long axis of the skull against the orbits differs from head to head by about 1°
    assert turned["pitch"] == pytest.approx(subject.tilt_deg[0], abs=4.0)
    assert turned["roll"] == pytest.approx(subject.tilt_deg[1], abs=1.2)
    assert turned["yaw"] == pytest.approx(subject.tilt_deg[2], abs=1.2)
    assert found.symmetry > 0.9


@pytest.mark.parametrize("seed", CASES)
def test_the_origin_is_at_the_same_place_of_every_head(seed):
    found, subject = pose(seed), head(seed)[1]
    thalami = np.linalg.solve(found.matrix, [*subject.shift_mm, 1])[:3]
    assert np.abs(thalami - (0, 4, -1)).max() < 6
    assert np.allclose(found.matrix[:3, :3].T @ found.matrix[:3, :3], np.eye(3), atol=1e-9)
    assert np.linalg.det(found.matrix) == pytest.approx(1)


def test_a_turned_scan_turns_the_frame_along():
    """The same voxels at another place: the frame follows, whatever the anatomy."""
    angle = np.radians((7.0, -5.0, 12.0))
    (cx, cy, cz), (sx, sy, sz) = np.cos(angle), np.sin(angle)
    turn = (
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    )
    moved = affine_from_parts(turn, np.ones(3), (11.0, -7.0, 23.0))
    found = pose_of(head(2)[0], moved @ AFFINE)
    expected = moved @ pose(2).matrix
    between = found.matrix[:3, :3].T @ expected[:3, :3]
    assert np.degrees(np.arccos((np.trace(between) - 1) / 2)) < 1.0
    assert np.linalg.norm(found.matrix[:3, 3] - expected[:3, 3]) < 2.0


def test_a_scan_that_cuts_the_brain_keeps_its_pitch():
    data, _ = head(1)
    start = 16
    affine = AFFINE.copy()
    affine[:3, 3] += start * AFFINE[:3, 2]
    found = pose_of(data[..., start:], affine)
    assert found.aligned
    assert not found.level
    assert "pitch" in found.findings[0].message
    assert found.rotation_deg["pitch"] == pytest.approx(0, abs=3)


def test_what_has_no_symmetry_is_not_turned():
    rng = np.random.default_rng(3)
    data = torch.from_numpy(rng.standard_normal((1, 40, 44, 36)).astype(np.float32))
    lumps = torch.nn.functional.avg_pool3d(data[None], 9, 1, 4)[0]
    mask = (lumps > 0.01)[0]
    values = torch.where(mask, 900.0 * (lumps[0] > 0.03) + 20, -1000.0)[None]
    image = MetaTensor(values, affine=torch.diag(torch.tensor([5.0, 5, 5, 1])))
    found = find_pose(image, mask)
    assert not found.aligned
    assert np.array_equal(found.matrix[:3, :3], np.eye(3))
    assert "nothing was turned" in found.findings[0].message


def test_the_place_alone():
    found = pose_of(head(1)[0], AFFINE, "none")
    assert found.rotation_deg == {"pitch": 0, "roll": 0, "yaw": 0}
    assert found.facts()["symmetry"] is None
    skin = head(1)[0][0] > -300
    top = AFFINE[2, 3] + 5.5 * (int(torch.nonzero(skin[18:52, 18:62].any(0).any(0)).max()) + 0.5)
    assert found.matrix[2, 3] + VERTEX_MM == pytest.approx(top, abs=6)
    with pytest.raises(UsageError, match="unknown method"):
        pose_of(head(1)[0], AFFINE, "moments")
    image = MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.eye(4))
    with pytest.raises(StepError, match="mask of the head is empty"):
        find_pose(image, torch.zeros(8, 8, 8, dtype=torch.bool))


def test_the_symmetry_of_a_plane_is_a_correlation_and_is_computed_once(monkeypatch):
    """In the plane x = 0, and one voxel beside it, the mirror image is an array turned around."""
    rng = np.random.default_rng(4)
    values = rng.random((9, 6, 5)).astype(np.float32) + 0.1
    found = _Symmetry(torch.from_numpy(np.stack([values, np.ones_like(values)]))[None], 2.0)
    wanted = np.corrcoef(values.ravel(), values[::-1].ravel())[0, 1]
    # mirrored at x = 1 voxel, voxel 0 lies outside on the other side
    part = values[2:]
    beside = np.corrcoef(part.ravel(), part[::-1].ravel())[0, 1]
    planes = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    assert found.of(planes) == pytest.approx([wanted, beside], abs=1e-5)
    monkeypatch.setattr(_Symmetry, "_correlations", None)
    assert found.of(planes[::-1]) == pytest.approx([beside, wanted], abs=1e-5)


def test_areas_on_the_faces_of_a_scan():
    """A box of 20 × 30 mm that stands on the lower face and touches no other."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    mask = torch.zeros(30, 40, 20, dtype=torch.bool)
    mask[8:18, 10:25, :6] = True
    areas = face_areas_cm2(points_mm(mask, affine), 8.0, affine, mask.shape)
    expected = np.zeros((3, 2))
    expected[2, 0] = 6.0
    assert np.allclose(areas, expected)
    sheared = affine.copy()
    sheared[1, 2] = 0.7
    again = face_areas_cm2(points_mm(mask, sheared), 8.0, sheared, mask.shape)
    assert np.allclose(again, expected)
