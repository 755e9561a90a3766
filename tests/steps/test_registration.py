"""Registration: known transforms of a phantom are found again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from scipy.spatial.transform import Rotation

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_from_parts, to_mm
from medpipe.steps.registration import Register, Registerd

LANDMARKS = np.random.default_rng(9).uniform(-28, 28, (40, 3))


def phantom(points):
    """A lopsided head of blobs, defined for any point in mm."""
    rng = np.random.default_rng(0)
    head = 1 / (1 + np.exp((np.linalg.norm(points / (40, 48, 36), axis=-1) - 1) * 15))
    out = 60 * head
    for _ in range(12):
        centre, width = rng.uniform(-32, 32, 3), rng.uniform(5, 12)
        out += rng.uniform(40, 90) * np.exp(-((points - centre) ** 2).sum(-1) / 2 / width**2) * head
    return out


def sampled(directions, spacing, shape, to_phantom=None, shear=0.0):
    affine = affine_from_parts(directions, spacing, (0, 0, 0))
    affine[:3, 2] += shear * affine[:3, 1]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    points = to_mm(affine, np.stack(np.indices(shape), -1))
    values = phantom(points if to_phantom is None else to_mm(to_phantom, points))
    meta = {"medpipe": {"source": {"kind": "test"}, "findings": []}}
    tensor = torch.from_numpy(values.astype(np.float32))[None]
    return MetaTensor(tensor, affine=torch.from_numpy(affine), meta=meta)


FIXED = sampled(np.eye(3), (2, 2, 2), (50, 58, 46))
FLIPPED = np.diag([-1.0, 1, -1])[:, [1, 0, 2]]


def truth(kind, seed):
    rng = np.random.default_rng(seed)
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(rng.uniform(-0.2, 0.2, 3)).as_matrix()
    if kind == "affine":
        out[:3, :3] @= np.eye(3) + rng.uniform(-0.06, 0.06, (3, 3))
    out[:3, 3] = rng.uniform(-8, 8, 3)
    return out


@pytest.mark.parametrize(
    ("kind", "metric", "spacing", "shape", "shear"),
    [
        ("rigid", "mattes", (1.6, 1.5, 4.0), (72, 70, 30), 0.0),
        ("rigid", "correlation", (2.0, 1.8, 3.0), (62, 60, 40), 0.25),
        ("affine", "correlation", (1.6, 1.5, 3.0), (74, 72, 40), 0.0),
    ],
)
def test_a_known_transform_is_found(kind, metric, spacing, shape, shear):
    known = truth(kind, 1)  # moving mm → fixed mm
    moving = sampled(FLIPPED, spacing, shape, known, shear)
    step = Registerd("x", fixed="f", transform=kind, metric=metric, table="t")
    out = step({"x": moving, "f": FIXED})
    table = out["t"]
    assert json.loads(json.dumps(table)) == table
    there = to_mm(table["fixed_to_moving_ras_mm"], LANDMARKS)
    back = to_mm(table["moving_to_fixed_ras_mm"], LANDMARKS)
    for found, want in (
        (there, to_mm(np.linalg.inv(known), LANDMARKS)),
        (back, to_mm(known, LANDMARKS)),
    ):
        error = np.linalg.norm(found - want, axis=1)
        assert error.max() < 0.5
    # the picture follows the matrix, and lies on the fixed grid
    result = out["x"]
    assert result.shape == FIXED.shape
    assert torch.equal(result.affine, FIXED.affine)
    inner = (0, *(slice(10, -10),) * 3)
    assert float((result.as_tensor() - FIXED.as_tensor())[inner].abs().mean()) < 3
    assert result.meta["medpipe"]["registration"] == table
    assert result.meta["medpipe"]["source"] == {"kind": "test"}


def test_the_same_inputs_give_the_same_bits():
    moving = sampled(np.eye(3), (3, 3, 3), (33, 38, 30), truth("rigid", 2))
    fixed = sampled(np.eye(3), (3, 3, 3), (33, 38, 30))
    step = Register(metric="mean_squares")
    once = step(moving, fixed)
    assert not torch.equal(once.as_tensor(), moving.as_tensor())
    assert torch.equal(once.as_tensor(), step(moving, fixed).as_tensor())


def test_errors():
    for bad in ({"transform": "syn"}, {"metric": "ncc"}, {"initial": "no"}, {"seed": -1}):
        with pytest.raises(UsageError):
            Register(**bad)
    with pytest.raises(UsageError, match="one moving image"):
        Registerd(["a", "b"], fixed="f", table="t")
    with pytest.raises(StepError, match="fixed image is absent"):
        Registerd("x", fixed="f")({"x": FIXED})
    tiny = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4, dtype=torch.float64))
    with pytest.raises(StepError, match="too small"):
        Register()(tiny, FIXED)
