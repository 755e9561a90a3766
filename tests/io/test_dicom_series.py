"""Volumes from synthetic series, voxel by voxel against the function that made them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_inputs import (
    AXIAL,
    ball,
    line,
    plane_points,
    ramp,
    tilted,
    truth_error,
    write_enhanced,
    write_series,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from medpipe.errors import InputError, UsageError
from medpipe.geometry import axis_codes, is_sheared, spacing_mm
from medpipe.io.dicom_series import (
    assemble_series,
    read_dicom_series,
    scan_series,
    select_series,
)

ROUNDING = 0.5 + 1e-4


def checks(volume) -> set[str]:
    return {f.check for f in volume.findings}


def test_a_uniform_series_is_where_its_tags_say(tmp_path):
    write_series(tmp_path, line(6), value=ball)
    volume = read_dicom_series(tmp_path)
    assert volume.data.shape == (12, 14, 6)
    assert volume.data.dtype == np.int32
    assert truth_error(volume, ball).max() <= ROUNDING
    np.testing.assert_allclose(spacing_mm(volume.affine), (2.0, 1.5, 3.0), atol=1e-9)
    assert axis_codes(volume.affine) == "LPS"


@pytest.mark.parametrize("step", [(0, 0, 3.0), (0, 0, -3.0)])
def test_both_slice_directions_give_the_same_volume(tmp_path, step):
    start = (-9, -4, 2) if step[2] > 0 else (-9, -4, 17)
    write_series(tmp_path, line(6, step, start), value=ball)
    volume = read_dicom_series(tmp_path)
    assert truth_error(volume, ball).max() <= ROUNDING
    np.testing.assert_allclose(volume.affine[:3, 3], (9, 4, 2))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, "1.2.840.10008.1.2.1.99"]
)
def test_uncompressed_transfer_syntaxes(tmp_path, syntax):
    write_series(tmp_path, line(4), value=ball, syntax=syntax)
    assert truth_error(read_dicom_series(tmp_path), ball).max() <= ROUNDING


def test_rle(tmp_path):
    def compress(ds, k):
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless, generate_instance_uid=False)
        del ds.file_meta

    write_series(tmp_path, line(4), value=ball, syntax=RLELossless, edit=compress)
    volume = read_dicom_series(tmp_path)
    assert truth_error(volume, ball).max() <= ROUNDING
    assert volume.source["transfer_syntax"] == "RLE Lossless"


@pytest.mark.parametrize(
    ("dtype", "bits", "rescale", "expected"),
    [
        ("uint16", 12, (1, -1024), np.int16),
        ("uint16", 16, (1, -1024), np.int32),
        ("int16", 16, (1, 0), np.int16),
        ("int16", 12, (1, 0), np.int16),
        ("uint16", 16, (0.5, -500), np.float32),
        ("uint8", 8, (2, -200), np.float32),
    ],
)
def test_the_dtype_holds_every_possible_value(tmp_path, dtype, bits, rescale, expected):
    write_series(
        tmp_path,
        line(3),
        value=ramp,
        dtype=dtype,
        bits=bits,
        rescale=lambda k: rescale,
        size=(8, 8),
    )
    volume = read_dicom_series(tmp_path)
    assert volume.data.dtype == expected
    assert truth_error(volume, ramp).max() <= rescale[0] / 2 + 1e-3


def test_signed_values_that_were_not_sign_extended(tmp_path):
    def mask(ds, k):
        ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") & 0x0FFF).tobytes()

    write_series(
        tmp_path,
        line(3),
        dtype="int16",
        bits=12,
        rescale=lambda k: (1, 0),
        edit=mask,
        size=(24, 20),
    )
    volume = read_dicom_series(tmp_path)
    assert volume.data.min() < 0
    assert truth_error(volume, ramp).max() <= ROUNDING


def test_rescale_may_differ_per_slice(tmp_path):
    write_series(tmp_path, line(5), rescale=lambda k: (0.5 + 0.1 * k, -900.0 - 10 * k))
    volume = read_dicom_series(tmp_path)
    assert truth_error(volume, ramp).max() <= 0.5 * 0.9 + 1e-3
    assert "dicom.rescale_varies" in checks(volume)
    assert volume.source["rescale"] == {"slope": [0.5, 0.9], "intercept": [-940, -900]}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_names_and_instance_numbers_change_nothing(tmp_path_factory, data):
    names = data.draw(st.permutations(range(6)))
    numbers = data.draw(st.lists(st.integers(-5, 9), min_size=6, max_size=6))
    folder = tmp_path_factory.mktemp("permuted")

    def renumber(ds, k):
        ds.InstanceNumber = numbers[k]

    write_series(
        folder, line(6), value=ball, name=lambda k: f"{names[k]}.dcm", edit=renumber, series="1.2.3"
    )
    volume = read_dicom_series(folder)
    assert volume.data.shape == (12, 14, 6)
    assert truth_error(volume, ball).max() <= ROUNDING


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    lean=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    backwards=st.booleans(),
    step=st.floats(0.4, 6),
)
def test_oblique_and_leaning_stacks_are_exact(tmp_path_factory, angles, lean, backwards, step):
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    row, col, normal = turn.T
    direction = (-1 if backwards else 1) * step * (normal + lean[0] * row + lean[1] * col)
    folder = tmp_path_factory.mktemp("oblique")
    write_series(folder, line(5, direction), iop=(*row, *col), rescale=lambda k: (0.1, -2000.0))
    volume = read_dicom_series(folder)
    # tags hold ten digits, so positions are exact to far below a micrometre
    assert truth_error(volume, ramp).max() <= 0.05 + 1e-2
    lean_deg = np.degrees(np.arctan(np.hypot(*lean)))
    assert volume.source["tilt_deg"] == pytest.approx(lean_deg, abs=0.02)
    if lean_deg > 0.2 and 4 * step * np.hypot(*lean) > 0.06:
        assert "dicom.gantry_tilt" in checks(volume)
        assert is_sheared(volume.affine)


class TestGantryTilt:
    def series(self, folder: Path, **options) -> None:
        write_series(
            folder,
            line(9),
            iop=tilted(20),
            rescale=lambda k: (0.05, -1500.0),
            size=(24, 16),
            **options,
        )

    def test_keep_is_an_exact_shear(self, tmp_path):
        self.series(tmp_path)
        volume = read_dicom_series(tmp_path)
        assert truth_error(volume, ramp).max() <= 0.03
        assert volume.source["tilt_deg"] == pytest.approx(20, abs=1e-3)
        assert is_sheared(volume.affine)
        assert volume.source["repairs"] == []

    @pytest.mark.parametrize("grid", ["patient", "slices"])
    def test_resample_is_one_exact_linear_interpolation(self, tmp_path, grid):
        self.series(tmp_path)
        volume = read_dicom_series(tmp_path, gantry_tilt="resample", resample_grid=grid)
        assert not is_sheared(volume.affine)
        inside = volume.data != -1024
        assert 0.3 < inside.mean() < 0.95
        assert truth_error(volume, ramp)[inside].max() <= 0.06
        assert volume.source["repairs"][0]["option"] == "gantry_tilt"
        assert covered(volume, inside)

    def test_refuse(self, tmp_path):
        self.series(tmp_path)
        with pytest.raises(InputError, match=r"tilted by 20\.00°.*gantry_tilt=\"resample\""):
            read_dicom_series(tmp_path, gantry_tilt="refuse")

    def test_a_wrong_tilt_tag_is_not_believed(self, tmp_path):
        def lie(ds, k):
            ds.GantryDetectorTilt = "0"

        self.series(tmp_path, edit=lie)
        assert read_dicom_series(tmp_path).source["tilt_deg"] == pytest.approx(20, abs=1e-3)


def covered(volume, inside) -> bool:
    """Whether every grid point well inside the slab of slices got a value."""
    index = np.stack(np.indices(volume.data.shape), -1)
    ras = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    lps = ras * (-1, -1, 1) - np.array(volume.source["slice_origins_ras_mm"][0]) * (-1, -1, 1)
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    depth = lps @ (0, s, c)
    # the origin of the plane through the point moves along z only
    x, y = lps[..., 0], (lps - (depth / c)[..., None] * (0, 0, 1)) @ (0, c, -s)
    within = (depth > 0.01) & (depth < 8 * 3 * c - 0.01)
    within &= (x > 0.01) & (x < 29.99) & (y > 1.2) & (y < 34.4 - 1.2)
    assert within.any()
    return bool(inside[within].all())


class TestVariableStep:
    at = (0, 2, 4, 4.7, 7.9, 11.1, 14.3)

    def write(self, folder: Path, iop=AXIAL, value=ramp) -> None:
        origins = [(-9, -4, 2 + z) for z in self.at]
        write_series(
            folder, origins, iop=iop, value=value, rescale=lambda k: (0.05, -1500.0), size=(20, 16)
        )

    def test_refused_by_default_with_the_steps(self, tmp_path):
        self.write(tmp_path)
        with pytest.raises(InputError) as caught:
            read_dicom_series(tmp_path)
        text = str(caught.value)
        assert "series 3 (CT, 7 slices, " in text
        assert "3 × 3.20, 2 × 2.00, 1 × 0.70 mm" in text
        assert 'variable_step="resample"' in text

    @pytest.mark.parametrize("grid", ["patient", "slices"])
    @pytest.mark.parametrize("iop", [AXIAL, tilted(15), tilted(-15)])
    @pytest.mark.parametrize("tilt", ["keep", "resample"])
    def test_resampled_values_are_exact_for_a_ramp(self, tmp_path, grid, iop, tilt):
        self.write(tmp_path, iop)
        volume = read_dicom_series(
            tmp_path, variable_step="resample", resample_grid=grid, gantry_tilt=tilt
        )
        inside = volume.data != -1024
        assert inside.mean() > 0.5
        assert truth_error(volume, ramp)[inside].max() <= 0.06
        positions = np.array(volume.source["slice_positions_mm"])
        normal = 1 if iop == AXIAL else np.cos(np.radians(15))
        np.testing.assert_allclose(positions, np.array(self.at) * normal, atol=1e-3)
        np.testing.assert_allclose(
            volume.source["slice_origins_ras_mm"], [(9, 4, 2 + z) for z in self.at], atol=1e-5
        )
        assert is_sheared(volume.affine) == (grid == "slices" and tilt == "keep" and iop != AXIAL)

    def test_spacing_is_the_one_asked_for(self, tmp_path):
        self.write(tmp_path)
        volume = read_dicom_series(
            tmp_path, variable_step="resample", resample_spacing_mm=(1.0, 0.5, 2.0)
        )
        np.testing.assert_allclose(spacing_mm(volume.affine), (1.0, 0.5, 2.0))
        assert volume.source["repairs"] == [
            {"option": "variable_step", "value": "resample", "check": "dicom.variable_step"}
        ]
        assert axis_codes(volume.affine) == "RAS"

    def test_an_ellipsoid_away_from_its_surface(self, tmp_path):
        self.write(tmp_path, tilted(10), ball)
        volume = read_dicom_series(tmp_path, variable_step="resample")
        index = np.stack(np.indices(volume.data.shape), -1)
        ras = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        radius = np.sqrt((((ras - (8, -6, 9)) / (9, 7, 6)) ** 2).sum(-1))
        clear = (volume.data != -1024) & ((radius < 0.4) | (radius > 1.7))
        assert (radius[clear] < 0.4).any()
        assert truth_error(volume, ball)[clear].max() <= 0.06

    def test_every_measured_slice_comes_back(self, tmp_path):
        """On a grid that hits the slices, their own pixels return: nothing is smoothed."""
        write_series(tmp_path, [(-9, -4, z) for z in (0, 1, 2.5, 4, 8)], value=ball)
        volume = read_dicom_series(
            tmp_path,
            variable_step="resample",
            resample_grid="slices",
            resample_spacing_mm=(2, 1.5, 0.5),
        )
        assert volume.data.shape[2] == 17
        assert truth_error(volume, ball)[:, :, [0, 2, 5, 8, 16]].max() <= ROUNDING


class TestMissingSlices:
    def write(self, folder: Path, gone, n=8, **options) -> None:
        origins = [o for k, o in enumerate(line(n)) if k not in gone]
        write_series(folder, origins, rescale=lambda k: (0.05, -1500.0), **options)

    def test_refused_naming_the_slice(self, tmp_path):
        self.write(tmp_path, {3})
        with pytest.raises(InputError) as caught:
            read_dicom_series(tmp_path)
        assert "1 slice is missing, the first after slice 3 at 6.00 mm" in str(caught.value)
        assert 'missing_slices="interpolate"' in str(caught.value)

    @pytest.mark.parametrize("gone", [{3}, {1, 2}, {2, 5}, {1, 3, 4}])
    @pytest.mark.parametrize("iop", [AXIAL, tilted(12)])
    def test_interpolated(self, tmp_path, gone, iop):
        self.write(tmp_path, gone, iop=iop)
        volume = read_dicom_series(tmp_path, missing_slices="interpolate")
        assert volume.data.shape[2] == 8
        assert truth_error(volume, ramp).max() <= 0.06
        assert volume.source["repairs"][0]["option"] == "missing_slices"
        assert len(volume.source["slice_positions_mm"]) == 8 - len(gone)

    def test_measured_slices_keep_their_values(self, tmp_path):
        self.write(tmp_path, {4}, value=ball)
        volume = read_dicom_series(tmp_path, missing_slices="interpolate")
        keep = [0, 1, 2, 3, 5, 6, 7]
        assert truth_error(volume, ball)[:, :, keep].max() <= 0.03

    def test_one_interpolation_with_tilt_removed(self, tmp_path):
        self.write(tmp_path, {4}, iop=tilted(12))
        volume = read_dicom_series(
            tmp_path, missing_slices="interpolate", gantry_tilt="resample", resample_grid="slices"
        )
        inside = volume.data != -1024
        assert truth_error(volume, ramp)[inside].max() <= 0.06
        assert [r["option"] for r in volume.source["repairs"]] == ["missing_slices", "gantry_tilt"]

    def test_more_holes_than_slices_are_never_interpolated(self, tmp_path):
        self.write(tmp_path, set(range(2, 11)), n=12)
        with pytest.raises(InputError, match="more holes than slices"):
            read_dicom_series(tmp_path, missing_slices="interpolate")

    def test_announced_images(self, tmp_path):
        def announce(ds, k):
            ds.ImagesInAcquisition = 8
            ds.AcquisitionNumber = 1

        self.write(tmp_path, {7}, edit=announce)
        volume = read_dicom_series(tmp_path)
        assert any("announces 8 images, 7 are there" in f.message for f in volume.findings)


class TestRepeatedPositions:
    def test_exact_copies_are_dropped(self, tmp_path):
        paths = write_series(tmp_path, line(5), value=ball)
        (tmp_path / "copy.dcm").write_bytes(paths[2].read_bytes())
        volume = read_dicom_series(tmp_path)
        assert volume.data.shape[2] == 5
        assert truth_error(volume, ball).max() <= ROUNDING
        assert any(f.message == "1 exact copy of slices dropped" for f in volume.findings)

    def test_a_whole_copied_series(self, tmp_path):
        for path in write_series(tmp_path / "a", line(5), value=ball):
            (tmp_path / "b").mkdir(exist_ok=True)
            (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
        assert read_dicom_series(tmp_path).data.shape[2] == 5

    def test_conflicting_images_are_refused(self, tmp_path):
        same = {"series": "1.2.3", "study": "1.2"}
        write_series(tmp_path, line(5), **same)
        write_series(
            tmp_path, line(5)[2:3], value=lambda p: ramp(p) + 5, name=lambda k: "x.dcm", **same
        )
        with pytest.raises(InputError, match=r"slice 3 of 5 at 6\.00 mm.*2 different images"):
            read_dicom_series(tmp_path)

    def times(self, folder: Path, tag: str | None, values) -> None:
        for t, value in enumerate(values):

            def edit(ds, k, value=value, t=t):
                ds.InstanceNumber = 100 - 10 * t + k
                if tag:
                    setattr(ds, tag, value)

            write_series(
                folder,
                line(5),
                value=lambda p, t=t: ramp(p) + 50 * t,
                name=lambda k, t=t: f"{9 - t}{k}.dcm",
                edit=edit,
                series="1.2.3",
                study="1.2",
                modality="MR",
            )

    def test_time_points_are_refused_by_default(self, tmp_path):
        self.times(tmp_path, "TemporalPositionIdentifier", [1, 2, 3])
        with pytest.raises(InputError, match=r"3 different images at each of the 5 positions"):
            read_dicom_series(tmp_path)

    @pytest.mark.parametrize(
        ("tag", "values"),
        [
            ("TemporalPositionIdentifier", [1, 2, 3]),
            ("AcquisitionTime", ["101500.5", "101501.5", "101502"]),
            ("EchoTime", ["3.1", "6.2", "12.4"]),
            ("AcquisitionNumber", [1, 2, 3]),
        ],
    )
    def test_stacked_in_order(self, tmp_path, tag, values):
        self.times(tmp_path, tag, values)
        volume = read_dicom_series(tmp_path, time_points="stack")
        assert volume.data.shape == (12, 14, 5, 3)
        for t in range(3):
            part = type(volume)(volume.data[..., t], volume.affine)
            assert truth_error(part, lambda p, t=t: ramp(p) + 50 * t).max() <= ROUNDING
        assert volume.source["time_points_ordered_by"] == tag

    def test_instance_number_is_the_last_resort(self, tmp_path):
        self.times(tmp_path, None, [0, 0])
        volume = read_dicom_series(tmp_path, time_points="stack")
        assert volume.source["time_points_ordered_by"] == "InstanceNumber"
        later = type(volume)(volume.data[..., 0], volume.affine)
        assert truth_error(later, lambda p: ramp(p) + 50).max() <= ROUNDING

    def test_a_missing_time_point_is_refused(self, tmp_path):
        self.times(tmp_path, "TemporalPositionIdentifier", [1, 2])
        (tmp_path / "82.dcm").unlink()
        with pytest.raises(InputError, match="different images at one position"):
            read_dicom_series(tmp_path, time_points="stack")

    def test_slices_shifted_in_plane_are_refused(self, tmp_path):
        origins = line(5)
        origins[2] = (origins[2][0] + 1.0, *origins[2][1:])
        write_series(tmp_path, origins)
        with pytest.raises(InputError, match=r"do not lie on one line"):
            read_dicom_series(tmp_path)


class TestEnhanced:
    def frames(self, n=6, iop=AXIAL, **more):
        return [{"origin": o, "iop": iop, **more} for o in line(n)]

    @pytest.mark.parametrize("shared", [("spacing",), ()])
    @pytest.mark.parametrize("modality", ["MR", "CT"])
    def test_a_stack_in_any_order(self, tmp_path, shared, modality):
        frames = self.frames()
        order = [3, 0, 5, 1, 4, 2]
        write_enhanced(
            tmp_path / "e.dcm",
            [frames[i] for i in order],
            value=ball,
            shared=shared,
            modality=modality,
        )
        volume = read_dicom_series(tmp_path)
        assert volume.data.shape == (12, 14, 6)
        assert truth_error(volume, ball).max() <= 0.06

    def test_rescale_per_frame(self, tmp_path):
        frames = [
            f | {"slope": 0.05 + 0.01 * k, "intercept": k} for k, f in enumerate(self.frames())
        ]
        write_enhanced(tmp_path / "e.dcm", frames)
        assert truth_error(read_dicom_series(tmp_path), ramp).max() <= 0.06

    def test_mixed_stacks_are_apart(self, tmp_path):
        coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
        frames = self.frames(stack="1") + [
            {"origin": (-9, 3 * k, 8), "iop": coronal, "stack": "2"} for k in range(4)
        ]
        write_enhanced(tmp_path / "e.dcm", frames[::-1])
        series = scan_series(tmp_path)
        assert sorted(s.n_slices for s in series) == [4, 6]
        for one, n in (("axial", 6), ("coronal", 4)):
            volume = assemble_series(select_series(series, {"orientation": one}))
            assert volume.data.shape[2] == n
            assert truth_error(volume, ramp).max() <= 0.06
        with pytest.raises(InputError, match="parts that are no single volume"):
            read_dicom_series(tmp_path)

    def test_time(self, tmp_path):
        def value(p, time):
            return ramp(p) + 30 * time

        frames = [f | {"time": t} for t in (2, 1, 3) for f in self.frames(4)]
        write_enhanced(tmp_path / "e.dcm", frames, value=value)
        with pytest.raises(InputError, match="time points"):
            read_dicom_series(tmp_path)
        volume = read_dicom_series(tmp_path, time_points="stack")
        assert volume.data.shape == (12, 14, 4, 3)
        for t in range(3):
            part = type(volume)(volume.data[..., t], volume.affine)
            assert truth_error(part, lambda p, t=t: ramp(p) + 30 * (t + 1)).max() <= 0.06

    def test_a_missing_frame_is_refused(self, tmp_path):
        frames = self.frames()
        del frames[2]
        write_enhanced(tmp_path / "e.dcm", frames)
        with pytest.raises(InputError, match="1 slice is missing"):
            read_dicom_series(tmp_path)


class TestValues:
    def test_padding_of_a_ct_is_air(self, tmp_path):
        def pad(ds, k):
            pixels = np.frombuffer(ds.PixelData, "<i2").reshape(14, 12).copy()
            pixels[:3] = -1500
            ds.PixelData = pixels.tobytes()
            ds.add_new("PixelPaddingValue", "SS", -1500)

        write_series(tmp_path, line(4), dtype="int16", rescale=lambda k: (1, 0), edit=pad)
        volume = read_dicom_series(tmp_path)
        assert (volume.data[:, :3] == -1024).all()
        assert truth_error(volume, ramp)[:, 3:].max() <= ROUNDING
        assert any(f.message == "144 padding pixels set to -1024 HU" for f in volume.findings)

    @pytest.mark.parametrize(("value", "severity"), [(40, "WARNING"), (-1500, "INFO")])
    def test_padding_with_a_value_of_tissue_is_a_warning(self, tmp_path, value, severity):
        def pad(ds, k):
            pixels = np.frombuffer(ds.PixelData, "<i2").reshape(14, 12).copy()
            pixels[:3] = value
            ds.PixelData = pixels.tobytes()
            ds.add_new("PixelPaddingValue", "SS", value)

        write_series(tmp_path, line(4), dtype="int16", rescale=lambda k: (1, 0), edit=pad)
        volume = read_dicom_series(tmp_path)
        found = [f.severity.name for f in volume.findings if f.check == "dicom.padding"]
        assert found == [severity]

    def test_a_padding_range(self, tmp_path):
        def pad(ds, k):
            pixels = np.frombuffer(ds.PixelData, "<i2").reshape(14, 12).copy()
            pixels[0], pixels[1] = -2000, -1990
            ds.PixelData = pixels.tobytes()
            ds.add_new("PixelPaddingValue", "SS", -2000)
            ds.add_new("PixelPaddingRangeLimit", "SS", -1980)

        write_series(tmp_path, line(4), dtype="int16", rescale=lambda k: (1, 0), edit=pad)
        volume = read_dicom_series(tmp_path)
        assert (volume.data[:, :2] == -1024).all()
        assert truth_error(volume, ramp)[:, 2:].max() <= ROUNDING

    @pytest.mark.parametrize(("modality", "inverted"), [("MR", True), ("CT", False)])
    def test_monochrome1(self, tmp_path, modality, inverted):
        def mark(ds, k):
            ds.PhotometricInterpretation = "MONOCHROME1"

        write_series(
            tmp_path, line(4), bits=12, rescale=lambda k: (1, -1000), modality=modality, edit=mark
        )
        volume = read_dicom_series(tmp_path)
        truth = (lambda p: 4095 - 2000 - ramp(p)) if inverted else ramp
        assert truth_error(volume, truth).max() <= ROUNDING
        assert ("dicom.monochrome1" in checks(volume)) is inverted

    @pytest.mark.parametrize("air", [True, False])
    def test_hounsfield_sanity(self, tmp_path, air):
        write_series(tmp_path, line(4), value=lambda p: ramp(p) * 0 + (-1000 if air else 200))
        assert ("dicom.hu_air" in checks(read_dicom_series(tmp_path))) is not air


class TestSingleSlice:
    def test_thickness_gives_its_extent_with_a_warning(self, tmp_path):
        write_series(tmp_path, line(1), value=ball)
        volume = read_dicom_series(tmp_path)
        assert volume.data.shape == (12, 14, 1)
        np.testing.assert_allclose(spacing_mm(volume.affine), (2, 1.5, 3))
        assert truth_error(volume, ball).max() <= ROUNDING
        assert "dicom.single_slice" in checks(volume)

    def test_without_a_thickness_it_is_refused(self, tmp_path):
        def strip(ds, k):
            del ds.SliceThickness

        write_series(tmp_path, line(1), edit=strip)
        with pytest.raises(InputError, match="only one slice position"):
            read_dicom_series(tmp_path)

    def test_two_slices_are_a_volume(self, tmp_path):
        write_series(tmp_path, line(2), value=ball)
        assert truth_error(read_dicom_series(tmp_path), ball).max() <= ROUNDING


def test_the_source_holds_facts_and_no_patient(tmp_path):
    def details(ds, k):
        ds.ConvolutionKernel = "STD+"
        ds.KVP = "120"
        ds.ContrastBolusAgent = "ZZCANARY AGENT"
        ds.StationName = "ZZCANARY"

    write_series(tmp_path, line(4), edit=details)
    seen = []
    volume = read_dicom_series(tmp_path, progress=lambda done, of: seen.append((done, of)))
    text = json.dumps([volume.source, [f.to_dict() for f in volume.findings]])
    assert "CANARY" not in text
    assert str(tmp_path) not in text
    assert volume.source["kernel"] == "STD+"
    assert volume.source["kvp"] == 120
    assert volume.source["contrast"] is True
    assert volume.source["step_mm"] == {"min": 3.0, "median": 3.0, "max": 3.0}
    assert seen == [(k, 4) for k in (1, 2, 3, 4)] * 2


def test_options_are_checked(tmp_path):
    write_series(tmp_path, line(4))
    with pytest.raises(UsageError, match=r"variable_step.*refuse or resample"):
        read_dicom_series(tmp_path, variable_step="guess")
    with pytest.raises(UsageError, match="resample_spacing_mm"):
        read_dicom_series(tmp_path, resample_spacing_mm=0)
    # one option for a whole cohort: it is about repairs, and an even series needs none
    plain = read_dicom_series(tmp_path)
    same = read_dicom_series(tmp_path, resample_spacing_mm=1.0)
    np.testing.assert_array_equal(same.data, plain.data)
    np.testing.assert_array_equal(same.affine, plain.affine)
    with pytest.raises(InputError, match=r"expected at most 1e-09 GB"):
        read_dicom_series(tmp_path, max_gb=1e-9)


def test_scanner_acquisition_tags_do_not_split_a_volume(tmp_path):
    def change(ds, k):
        ds.AcquisitionNumber = 1 + k // 3
        ds.SliceThickness = "3" if k < 3 else "5"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] + (["ADD"] if k < 3 else [])
        ds.ImageOrientationPatient = ["1", f"{2e-5 * k:.6f}", "0", "0", "1", "0"]

    write_series(tmp_path, line(6), edit=change)
    volume = read_dicom_series(tmp_path)
    assert volume.data.shape[2] == 6
    assert volume.source["slice_thickness_mm"] == [3, 5]


def test_plane_points_is_the_standards_formula():
    got = plane_points((1, 2, 3), (0, 1, 0, 0, 0, -1), (4, 5), 2, 2)
    np.testing.assert_allclose(got[1, 1], (-1, -(2 + 5), 3 - 4))


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "EchoTime"])
def test_two_stacks_between_each_other_are_not_one_in_silence(tmp_path, keyword):
    def write(folder, starts):
        for rank, start in enumerate(starts):

            def tag(ds, k, rank=rank):
                setattr(ds, keyword, rank + 1)

            write_series(
                folder,
                line(4, start=(-9, -4, start)),
                name=lambda k, rank=rank: f"{rank}{k}.dcm",
                edit=tag,
                series="1.2.3.4",
                study="1.2.3",
            )

    write(tmp_path / "mixed", (2.0, 3.5))
    write(tmp_path / "table", (2.0, 14.0))  # one after the other, as a table moves
    found = {
        name: [f.check for f in read_dicom_series(tmp_path / name).findings]
        for name in ("mixed", "table")
    }
    assert "dicom.mixed_stacks" in found["mixed"]
    assert "dicom.mixed_stacks" not in found["table"]


@pytest.mark.parametrize(("slope", "noted"), [(1.25, True), (1.0, False)])
def test_a_scale_of_its_own_is_noted_for_mr(tmp_path, slope, noted):
    write_series(tmp_path, line(4), modality="MR", rescale=lambda k: (slope, -1000.0))
    found = [f.check for f in read_dicom_series(tmp_path).findings]
    assert ("dicom.mr_scale" in found) == noted
