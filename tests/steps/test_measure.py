"""The statistics table against numpy, SimpleITK and closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import to_mm
from medpipe.steps.measure import Statistics, Statisticsd

AFFINE = np.array([[0, -2.5, 0.3, 4], [0.9, 0, 0.2, -7], [0, 0, 1.5, 3], [0, 0, 0, 1.0]])
SHAPE = (11, 9, 8)


def tensor(data, dtype=torch.float32, device="cpu", affine=AFFINE):
    data = torch.as_tensor(np.asarray(data), dtype=dtype, device=device)[None]
    return MetaTensor(data, affine=torch.from_numpy(affine))


@pytest.fixture
def pair():
    rng = np.random.default_rng(5)
    return rng.normal(40, 20, SHAPE).astype(np.float32), rng.integers(0, 4, SHAPE)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_against_numpy(pair, device):
    values, labels = pair
    data = {"x": tensor(values, device=device), "m": tensor(labels, torch.uint8, device)}
    table = Statisticsd("x", mask="m", percentiles=[10, 50])(data)["x"]
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert set(table["labels"]) == {"1", "2", "3"}
    voxel_ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    for name, row in table["labels"].items():
        inside = labels == int(name)
        v = values[inside].astype(float)
        points = to_mm(AFFINE, np.argwhere(inside))
        assert row["voxels"] == inside.sum()
        assert row["nonfinite_voxels"] == 0
        assert row["volume_ml"] == pytest.approx(inside.sum() * voxel_ml)
        want = [v.mean(), v.std(ddof=1), v.min(), v.max(), *np.percentile(v, [10, 50])]
        got = [row[k] for k in ("mean", "sd", "min", "max", "p10", "p50")]
        np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(row["centroid_mm"], points.mean(0), atol=1e-5)
        np.testing.assert_allclose(
            row["bounding_box_mm"], [points.min(0), points.max(0)], atol=1e-5
        )
    assert table["image"]["mean"] == pytest.approx(values.astype(float).mean())
    np.testing.assert_allclose(table["spacing_mm"], np.linalg.norm(AFFINE[:3, :3], axis=0))


def test_against_simpleitk(pair):
    values, labels = pair
    table = Statistics()(tensor(values), tensor(labels, torch.int16))
    peer = sitk.LabelStatisticsImageFilter()
    peer.Execute(sitk.GetImageFromArray(values), sitk.GetImageFromArray(labels.astype(np.uint8)))
    for name, row in table["labels"].items():
        k = int(name)
        want = peer.GetCount(k), peer.GetMean(k), peer.GetSigma(k)
        np.testing.assert_allclose([row["voxels"], row["mean"], row["sd"]], want, rtol=1e-5)


def test_sums_do_not_lose_digits():
    values = np.full((60, 60, 60), 16_777_216.0)
    values[::2] += 2
    row = Statistics()(tensor(values))["image"]
    assert row["mean"] == 16_777_217.0
    assert row["sd"] == pytest.approx(1, rel=1e-4)


def test_what_is_not_finite(pair):
    values, labels = pair
    values[labels == 2] = np.nan
    first = tuple(np.argwhere(labels == 1)[0])
    values[first] = np.inf
    rows = Statistics()(tensor(values), tensor(labels, torch.uint8))["labels"]
    assert rows["2"]["mean"] is None
    assert rows["2"]["p50"] is None
    assert rows["2"]["voxels"] == rows["2"]["nonfinite_voxels"] > 0
    assert rows["1"]["nonfinite_voxels"] == 1
    v = values[labels == 1]
    assert rows["1"]["mean"] == pytest.approx(v[np.isfinite(v)].mean(), rel=1e-5)


def test_one_voxel_and_integers():
    labels = np.zeros(SHAPE)
    labels[3, 2, 1] = 7
    row = Statistics()(tensor(np.arange(labels.size).reshape(SHAPE), torch.int32), tensor(labels))
    row = row["labels"]["7"]
    assert row["sd"] is None
    assert row["mean"] == row["min"] == row["p5"] == 3 * 72 + 2 * 8 + 1
    np.testing.assert_allclose(row["centroid_mm"], to_mm(AFFINE, (3, 2, 1)), atol=1e-6)


def test_errors(pair):
    x = tensor(pair[0])
    for mask, text in (
        (tensor(np.zeros(SHAPE)), "empty"),
        (tensor(np.full(SHAPE, 0.5)), "not labels"),
        (tensor(np.ones(SHAPE), affine=np.eye(4)), "another place"),
    ):
        with pytest.raises(StepError, match=text):
            Statistics()(x, mask)
    with pytest.raises(StepError, match="channel"):
        Statistics(channel=1)(x)
    with pytest.raises(StepError, match="complex"):
        Statistics()(x.as_tensor().to(torch.complex64))
    with pytest.raises(UsageError, match="percentiles"):
        Statistics(percentiles=[101])
