"""Byte damage in one slice: the volume its tags describe, or an InputError, and nothing else.

The oracle reads every file whole with pydicom, knows nothing of grouping or
repairs, and computes each slice's pixels and place from the standard's formula.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_inputs import line, ramp, write_series
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from medpipe.errors import InputError
from medpipe.io.dicom_series import read_dicom_series
from medpipe.types import Volume

EXAMPLES = int(os.environ.get("MEDPIPE_FUZZ_EXAMPLES", "150"))
POSITION_MM = 0.06


def oracle(paths: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(corner positions RAS+ mm, rescaled pixels (rows, cols)) of every slice, by its own tags."""
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            ds = pydicom.dcmread(path)
            iop = np.array([float(v) for v in ds.ImageOrientationPatient])
            origin = np.array([float(v) for v in ds.ImagePositionPatient])
            dr, dc = (float(v) for v in ds.PixelSpacing)
            corners = [
                origin + i * dc * iop[:3] + j * dr * iop[3:]
                for i in (0, ds.Columns - 1)
                for j in (0, ds.Rows - 1)
            ]
            kind = "<i2" if ds.PixelRepresentation else "<u2"
            pixels = np.frombuffer(ds.PixelData, kind)[: ds.Rows * ds.Columns]
            slope, intercept = (
                float(ds.get("RescaleSlope", 1)),
                float(ds.get("RescaleIntercept", 0)),
            )
            values = pixels.reshape(ds.Rows, ds.Columns) * slope + intercept
            out.append((np.array(corners) * (-1, -1, 1), values))
    return out


def agrees(volume, slices) -> bool:
    """Whether each slice of the volume is one of `slices`, in place and value, each used once."""
    left = list(slices)
    cols, rows, count = volume.data.shape[:3]
    if count != len(left):
        return False
    for k in range(count):
        index = np.array([(i, j, k) for i in (0, cols - 1) for j in (0, rows - 1)], float)
        corners = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        for s, (wanted, values) in enumerate(left):
            near = np.abs(corners - wanted).max() < POSITION_MM
            if near and np.allclose(volume.data[..., k].T, values, rtol=1e-6, atol=1e-3):
                del left[s]
                break
        else:
            return False
    return True


@pytest.fixture(scope="module", params=["CT", "MR"])
def clean(request, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp(f"clean{request.param}")
    return write_series(folder, line(6), size=(6, 5), modality=request.param, value=ramp)


def outcome(folder: Path) -> Volume | InputError:
    try:
        return read_dicom_series(folder)
    except InputError as error:
        return error


def check(clean: list[Path], scratch: Path, victim: int, damage) -> str:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(clean[0].parent, scratch)
    path = scratch / clean[victim].name
    path.write_bytes(damage(path.read_bytes()))
    volume = outcome(scratch)
    if isinstance(volume, InputError):
        assert "CANARY" not in str(volume)
        return "refused"
    slices = oracle([scratch / p.name for p in clean])
    assert agrees(volume, slices), "a volume that its own tags contradict"
    return "right"


def damages(size: int):
    """Draw what to do to the file: bytes changed, cut, doubled or removed."""
    # most of the file is preamble and pixels; the header is where reading goes wrong
    where = st.one_of(st.integers(128, size - 80), st.integers(0, size - 1))
    change = st.lists(st.tuples(where, st.integers(0, 255)), min_size=1, max_size=3)
    span = st.tuples(where, st.integers(1, 16))

    def apply(kind, edits, piece):
        at, n = piece

        def damage(raw: bytes) -> bytes:
            out = bytearray(raw)
            if kind == "set":
                for i, value in edits:
                    out[i] = value
            elif kind == "flip":
                for i, value in edits:
                    out[i] ^= 1 << (value % 8)
            elif kind == "cut":
                del out[at:]
            elif kind == "remove":
                del out[at : at + n]
            else:
                out[at:at] = out[at : at + n]
            return bytes(out)

        return damage

    kinds = st.sampled_from(["set", "set", "flip", "flip", "cut", "remove", "double"])
    return st.builds(apply, kinds, change, span)


@settings(
    max_examples=EXAMPLES,
    deadline=5000,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    database=None,
)
@given(data=st.data())
def test_damage_gives_the_described_volume_or_an_input_error(clean, tmp_path_factory, data):
    scratch = tmp_path_factory.getbasetemp() / "fuzzed"
    victim = data.draw(st.integers(0, 5))
    damage = data.draw(damages(clean[victim].stat().st_size))
    check(clean, scratch, victim, damage)


def test_the_oracle_accepts_the_clean_series_and_rejects_a_wrong_one(clean, tmp_path):
    assert check(clean, tmp_path / "a", 0, lambda raw: raw) == "right"
    volume = read_dicom_series(clean[0].parent)
    slices = oracle(clean)
    volume.affine[2, 3] += 0.2
    assert not agrees(volume, slices)
    volume.affine[2, 3] -= 0.2
    volume.data[0, 0, 3] += 1
    assert not agrees(volume, slices)
