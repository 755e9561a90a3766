"""Orientation, resampling, cropping and padding against closed forms in world mm."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from scipy.spatial.transform import Rotation

from medpipe.errors import StepError, UsageError
from medpipe.geometry import (
    LPS_TO_RAS,
    affine_from_parts,
    axis_codes,
    is_sheared,
    spacing_mm,
    to_mm,
)
from medpipe.steps.spatial import (
    CropForeground,
    CropForegroundd,
    CropOrPad,
    CropOrPadd,
    Orient,
    Orientd,
    Resample,
    Resampled,
)

RAMP = np.array([0.7, -0.4, 1.1])
SHAPE = (14, 11, 9)
CODES = [
    "".join(p[i][b] for i, b in enumerate(bits))
    for p in permutations(("LR", "PA", "IS"))
    for bits in product((0, 1), repeat=3)
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def image(affine, data, dtype=torch.float32, device="cpu"):
    meta = {"medpipe": {"source": {"kind": "test"}, "findings": []}}
    tensor = torch.as_tensor(np.asarray(data), dtype=dtype, device=device)[None]
    return MetaTensor(tensor, affine=torch.from_numpy(np.array(affine)), meta=meta)


def affine_of(img):
    return np.array(img.affine.tolist())


def world(affine, shape):
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return to_mm(affine, index)


def ramp(affine, shape=SHAPE, device="cpu"):
    return image(affine, world(affine, shape) @ RAMP + 5, torch.float64, device)


def affine_of_code(code, spacing=(0.9, 1.3, 2.5), turn=(0.0, 0.0, 0.0), shear=0.0):
    columns = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    directions = np.zeros((3, 3))
    for axis, letter in enumerate(code):
        directions[columns[letter], axis] = 1 if letter in "RAS" else -1
    directions = Rotation.from_rotvec(turn).as_matrix() @ directions
    affine = affine_from_parts(directions, spacing, (-21.3, 8.7, 40.1))
    affine[:3, 2] += shear * affine[:3, 1]
    return affine


def inside_centres(points, affine, shape, margin=1e-6):
    index = np.linalg.solve(affine[:3, :3], (points - affine[:3, 3]).reshape(-1, 3).T).T
    ok = (index >= -margin) & (index <= np.array(shape) - 1 + margin)
    return ok.all(1).reshape(points.shape[:-1])


def assert_is_ramp(out, affine, shape, atol=1e-6):
    target = affine_of(out)
    points = world(target, out.shape[1:])
    ok = inside_centres(points, affine, shape)
    assert ok.sum() > 50
    got = out.as_tensor().cpu().numpy()[0]
    np.testing.assert_allclose(got[ok], (points @ RAMP + 5)[ok], atol=atol)
    assert out.meta["medpipe"] == {"source": {"kind": "test"}, "findings": []}


class TestOrient:
    @pytest.mark.parametrize("code", CODES)
    def test_all_48_orientations(self, code):
        assert len(set(CODES)) == 48
        start = affine_of_code("LPS", turn=(0.1, -0.2, 0.15), shear=0.2)
        out = Orient(code)(ramp(start))
        assert axis_codes(affine_of(out)) == code
        np.testing.assert_allclose(
            out.as_tensor()[0].numpy(), world(affine_of(out), out.shape[1:]) @ RAMP + 5
        )

    @pytest.mark.parametrize("code", CODES)
    def test_agrees_with_nibabel(self, code):
        x = ramp(affine_of_code(code))
        peer = nib.as_closest_canonical(nib.Nifti1Image(x[0].numpy(), affine_of(x)))
        out = Orient("RAS")(x)
        np.testing.assert_array_equal(out[0].numpy(), peer.get_fdata())
        np.testing.assert_allclose(affine_of(out), peer.affine, atol=1e-9)

    @given(st.sampled_from(CODES), st.sampled_from(CODES))
    @settings(max_examples=25, deadline=None)
    def test_there_and_back_is_the_identity(self, a, b):
        x = ramp(affine_of_code(a))
        back = Orient(a)(Orient(b)(x))
        assert torch.equal(back.as_tensor(), x.as_tensor())
        np.testing.assert_allclose(affine_of(back), affine_of(x), atol=1e-9)

    @pytest.mark.parametrize("bad", ["", "RA", "RAR", "ras", "XYZ"])
    def test_bad_codes(self, bad):
        with pytest.raises(UsageError, match="axcodes"):
            Orient(bad)


class TestResample:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("shear", [0.0, 0.33])
    @pytest.mark.parametrize("code", ["RAS", "LPS", "PIR", "ASL"])
    @pytest.mark.parametrize("mode", ["linear", "cubic"])
    def test_a_ramp_is_reproduced_in_world_mm(self, mode, code, shear, device):
        affine = affine_of_code(code, turn=(0.2, 0.1, -0.3), shear=shear)
        out = Resample([1.1, 0.8, 1.7], mode, anti_alias=False)(ramp(affine, device=device))
        target = affine_of(out)
        np.testing.assert_allclose(spacing_mm(target), (1.1, 0.8, 1.7))
        assert not is_sheared(target)
        assert np.linalg.det(target[:3, :3]) * np.linalg.det(affine[:3, :3]) > 0
        assert out.device.type == device
        if mode == "linear":
            assert_is_ramp(out, affine, SHAPE)
        else:  # the edge is repeated, so a cubic is exact one voxel further in
            inner = affine_of(out), out.as_tensor()
            points = world(inner[0], out.shape[1:])
            index = np.linalg.solve(
                affine, np.c_[points.reshape(-1, 3), np.ones(points[..., 0].size)].T
            )
            ok = ((index[:3].T >= 1) & (np.array(SHAPE) - 2 >= index[:3].T)).all(1)
            assert ok.sum() > 20
            got = inner[1].cpu().numpy().ravel()[ok]
            np.testing.assert_allclose(got, (points @ RAMP + 5).ravel()[ok], atol=1e-6)

    def test_a_tilted_gantry_keeps_its_slice_planes(self):
        affine = affine_of_code("LPS", spacing=(0.5, 0.5, 4.0), shear=2.5)
        target = affine_of(Resample(1.0)(ramp(affine)))
        np.testing.assert_allclose(target[:3, :2], affine[:3, :2] / 0.5, atol=1e-12)
        kept = affine_of(Resample(1.0, deshear=False)(ramp(affine)))
        np.testing.assert_allclose(kept[:3, :3], affine[:3, :3] / spacing_mm(affine), atol=1e-12)

    @pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
    @pytest.mark.parametrize("shear", [0.0, 0.2])
    def test_own_grid_is_the_identity(self, mode, shear):
        rng = np.random.default_rng(0)
        x = image(affine_of_code("PSR", turn=(0.3, 0, 0.1), shear=shear), rng.normal(size=SHAPE))
        out = Resample(mode=mode)(x, x)
        assert torch.equal(out.as_tensor(), x.as_tensor())
        again = Resample([0.9, 1.3, 2.5], mode, deshear=False)(image(affine_of_code("PSR"), x[0]))
        np.testing.assert_allclose(again.as_tensor(), x.as_tensor(), atol=1e-6)
        np.testing.assert_allclose(affine_of(again), affine_of_code("PSR"), atol=1e-9)

    @pytest.mark.parametrize(
        ("mode", "peer"), [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor)]
    )
    @pytest.mark.parametrize("code", ["RAS", "ASL", "IRP"])
    def test_agrees_with_simpleitk_on_an_oblique_grid(self, mode, peer, code):
        rng = np.random.default_rng(1)
        x = image(affine_of_code(code, turn=(0.4, -0.2, 0.3)), rng.normal(size=SHAPE))
        like = image(affine_of_code("RPI", (1, 1, 1.5), (0, 0.3, 0.1)), np.zeros((17, 19, 15)))
        a, b = (affine_of(i) for i in (x, like))
        centre = [np.append((np.array(i.shape[1:]) - 1) / 2, 1) for i in (x, like)]
        like.affine[:3, 3] += torch.from_numpy((a @ centre[0] - b @ centre[1])[:3])
        filt = sitk.ResampleImageFilter()
        filt.SetInterpolator(peer)
        filt.SetDefaultPixelValue(-7)
        filt.SetReferenceImage(to_sitk(like))
        want = sitk.GetArrayFromImage(filt.Execute(to_sitk(x))).T
        got = Resample(mode=mode, fill=-7, anti_alias=False)(x, like)[0].numpy()
        differ = ~np.isclose(got, want, atol=1e-4)
        # ties of nearest and of the rim of the field of view are broken either way
        assert differ.mean() < 0.005
        assert (want != -7).mean() > 0.1

    def test_anti_aliasing(self):
        checker = np.indices((33, 33, 33)).sum(0) % 2
        x = image(np.eye(4), checker)
        smooth = Resample(3.0)(x)[0, 2:-2, 2:-2, 2:-2]
        rough = Resample(3.0, anti_alias=False)(x)[0, 2:-2, 2:-2, 2:-2]
        assert float((smooth - 0.5).abs().max()) < 0.05
        assert float((rough - 0.5).abs().max()) > 0.4
        # away from the border a smoothed ramp is the same ramp, and a mean stays
        affine = affine_of_code("RAS", (1, 1, 1))
        out = Resample(2.0)(ramp(affine, (40, 36, 32)))
        points = world(affine_of(out), out.shape[1:]) @ RAMP + 5
        core = (slice(3, -3),) * 3
        np.testing.assert_allclose(out[0].numpy()[core], points[core], atol=1e-6)

    @given(st.sampled_from([0.5, 1.0, 1.5, 2.0]), st.integers(0, 5))
    @settings(max_examples=12, deadline=None)
    def test_volumes_do_not_depend_on_spacing(self, spacing, seed):
        centre = np.random.default_rng(seed).uniform(-3, 3, 3)
        affine = affine_from_parts(np.eye(3), (1, 1, 1), (-20, -20, -20))
        ball = np.linalg.norm(world(affine, (41, 41, 41)) - centre, axis=-1) <= 14
        out = Resample(spacing, "nearest")(image(affine, ball, torch.uint8))
        assert out.dtype == torch.uint8
        volume = float(out.sum()) * spacing**3
        assert volume == pytest.approx(4 / 3 * np.pi * 14**3, rel=0.03)
        # the field of view is covered and both have one centre
        middle = to_mm(affine_of(out), (np.array(out.shape[1:]) - 1) / 2)
        np.testing.assert_allclose(middle, (0, 0, 0), atol=1e-9)
        assert (np.array(out.shape[1:]) * spacing >= 41 - 1e-6).all()

    def test_outside_takes_the_fill(self):
        x = image(np.eye(4), np.full((5, 5, 5), 3.0))
        x[0, 0, 0, 0] = -1000
        far = np.eye(4)
        far[0, 3] = -3
        like = image(far, np.zeros((12, 5, 5)))
        assert float(Resample()(x, like)[0, 0, 2, 2]) == -1000
        assert float(Resample(fill=7)(x, like)[0, 11, 2, 2]) == 7
        assert float(Resample(fill=7)(x, like)[0, 4, 2, 2]) == 3

    def test_half_a_voxel_beyond_the_centres_is_still_inside(self):
        x = image(np.diag([2.0, 2, 2, 1]), np.random.default_rng(0).normal(size=(4, 4, 4)))
        out = Resample(1.0, fill=99)(x)
        assert out.shape == (1, 8, 8, 8)
        assert not (out == 99).any()

    def test_nan_stays_where_it_is(self):
        x = image(np.eye(4), np.zeros((9, 9, 9)))
        x[0, 4, 4, 4] = float("nan")
        bad = torch.isnan(Resample(0.5)(x)[0])
        assert 0 < int(bad.sum()) <= 4**3

    def test_complex_and_integers(self):
        z = MetaTensor(torch.randn(1, 6, 6, 6, dtype=torch.complex64), affine=torch.eye(4))
        out = Resample(0.7)(z)
        np.testing.assert_allclose(
            out.as_tensor().imag, Resample(0.7)(MetaTensor(z.as_tensor().imag)).as_tensor()
        )
        k = image(np.eye(4), np.arange(216).reshape(6, 6, 6), torch.int16)
        assert Resample(2.0)(k).dtype == torch.float32
        assert Resample(2.0, "nearest")(k).dtype == torch.int16

    def test_one_slice(self):
        out = Resample([1, 1, 5])(image(np.diag([2.0, 2, 5, 1]), np.ones((6, 6, 1))))
        assert out.shape == (1, 12, 12, 1)
        assert bool((out == 1).all())

    def test_wrong_parameters(self):
        for bad in (0, -1, float("nan"), [1, 2], "x"):
            with pytest.raises(UsageError, match="spacing_mm"):
                Resample(bad)
        with pytest.raises(UsageError, match="mode"):
            Resample(1, "bilinear")
        with pytest.raises(UsageError, match="one target"):
            Resampled("x", 1.0, like="y")
        with pytest.raises(StepError, match="too large"):
            Resample(0.001)(image(np.eye(4), np.zeros((9, 9, 9))))
        with pytest.raises(StepError, match="axes"):
            Resample(1)(torch.zeros(5, 5))


def to_sitk(img):
    affine = LPS_TO_RAS @ affine_of(img)
    out = sitk.GetImageFromArray(np.ascontiguousarray(img[0].numpy().T))
    out.SetSpacing(spacing_mm(affine).tolist())
    out.SetOrigin(affine[:3, 3].tolist())
    out.SetDirection((affine[:3, :3] / spacing_mm(affine)).ravel().tolist())
    return out


class TestCropAndPad:
    @pytest.mark.parametrize("code", ["RAS", "LIP"])
    def test_foreground_stays_where_it_is_in_the_world(self, code):
        affine = affine_of_code(code, shear=0.2)
        mask = np.zeros(SHAPE)
        mask[4:9, 3:5, 2:6] = 1
        out = CropForegroundd(["x", "m"], mask="m", margin_mm=1.3)(
            {"x": ramp(affine), "m": image(affine, mask, torch.uint8)}
        )
        assert_is_ramp(out["x"], affine, SHAPE)
        assert float(out["m"].sum()) == mask.sum()
        assert out["x"].shape == out["m"].shape
        assert out["x"].shape[1] == 5 + 2 * 2  # 1.3 mm at 0.9 mm: two voxels
        assert CropForeground()(out["m"]).shape == (1, 5, 2, 4)

    @pytest.mark.parametrize("size", [[20, 5, 9], [3, 30, 12], [14, 11, 9]])
    def test_crop_or_pad(self, size):
        affine = affine_of_code("PIR")
        out = CropOrPad(size, fill=-5.0)(ramp(affine))
        assert list(out.shape[1:]) == size
        assert_is_ramp(out, affine, SHAPE)
        middle = np.linalg.solve(
            affine, np.append(to_mm(affine_of(out), (np.array(size) - 1) / 2), 1)
        )
        assert np.abs(middle[:3] - (np.array(SHAPE) - 1) / 2).max() <= 0.5 + 1e-9
        if size[0] == 20:
            assert float(out[0, 0, 2, 4]) == -5

    def test_size_in_mm_around_a_mask(self):
        affine = affine_of_code("RAS")
        mask = np.zeros(SHAPE)
        mask[2, 3, 4] = 1
        data = {"x": ramp(affine), "m": image(affine, mask)}
        out = CropOrPadd("x", size_mm=[2.7, 3.9, 7.5], center="m")(data)["x"]
        assert out.shape == (1, 3, 3, 3)
        np.testing.assert_allclose(to_mm(affine_of(out), (1, 1, 1)), to_mm(affine, (2, 3, 4)))

    def test_errors(self):
        x = image(np.eye(4), np.ones(SHAPE))
        moved = np.eye(4)
        moved[0, 3] = 1
        for mask, text in (
            (image(np.eye(4), np.zeros(SHAPE)), "empty"),
            (image(moved, np.ones(SHAPE)), "not on the grid"),
            (image(np.eye(4), np.ones((3, 3, 3))), "not on the grid"),
        ):
            with pytest.raises(StepError, match=text) as caught:
                CropForegroundd("x", mask="m")({"x": x, "m": mask})
            assert "\n" not in str(caught.value)
        with pytest.raises(StepError, match="mask is absent"):
            CropForegroundd("x", mask="m")({"x": x})
        with pytest.raises(UsageError, match="one size"):
            CropOrPad()
        with pytest.raises(UsageError, match="whole"):
            CropOrPad(2.5)


def test_missing_keys():
    x = image(np.eye(4), np.ones(SHAPE))
    for step in (Orientd, lambda k, **o: Resampled(k, 2.0, **o)):
        out = step(["x", "y"], allow_missing_keys=True)({"x": x})
        assert set(out) == {"x"}
        with pytest.raises(KeyError):
            step(["x", "y"])({"x": x})


@pytest.mark.parametrize("fill", [-1024.0, 0.5])
def test_a_mask_refuses_a_fill_that_it_cannot_hold(fill):
    mask = MetaTensor(torch.ones((1, 4, 5, 6), dtype=torch.uint8))
    for step in (CropOrPad(8, fill=fill), Resample(0.5, mode="nearest", fill=fill)):
        with pytest.raises(StepError, match=r"cannot hold the value outside it.*0\.\.255"):
            step(mask)
    assert Resample(0.5, fill=fill)(mask).dtype == torch.float32  # interpolated, so no integer
