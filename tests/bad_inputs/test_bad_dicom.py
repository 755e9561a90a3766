"""Every way a DICOM folder can be wrong: refused with a message that says so, in bounded time.

One entry per row of the tables of what readers get wrong. A case is a function
that writes a folder, a fragment of the message, and the options it is read with.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_inputs import (
    AXIAL,
    ball,
    deflate_bomb,
    line,
    nested_sequences,
    ramp,
    truth_error,
    write_dataset,
    write_enhanced,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, generate_uid

from medpipe.errors import InputError, MedpipeError
from medpipe.io import dicom_pixels
from medpipe.io.dicom_series import read_dicom_series, scan_series

ONE = {"series": "1.2.3.4", "study": "1.2.3"}
SECONDS = 5.0


def edited(**tags) -> Callable[[Path], None]:
    """A series of which slice 2 has other tags; None removes one."""

    def build(folder: Path) -> None:
        def edit(ds: Dataset, k: int) -> None:
            if k == 2:
                change(ds, tags)

        write_series(folder, line(6), edit=edit)

    return build


def edited_all(**tags) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        write_series(folder, line(6), edit=lambda ds, k: change(ds, tags))

    return build


def change(ds: Dataset, tags: dict) -> None:
    for keyword, value in tags.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)


def changed_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A series of which the file of slice 2 has other bytes."""

    def build(folder: Path) -> None:
        path = write_series(folder, line(6))[2]
        path.write_bytes(change(path.read_bytes()))

    return build


def replaced(old: bytes, new: bytes) -> Callable[[Path], None]:
    def swap(raw: bytes) -> bytes:
        assert raw.count(old) == 1
        return raw.replace(old, new)

    return changed_bytes(swap)


def spacing_text(text: bytes) -> Callable[[Path], None]:
    assert len(text) == 6
    return replaced(b"DS\x06\x001.5\\2 ", b"DS\x06\x00" + text)


def two_series(folder: Path) -> None:
    write_series(folder / "a", line(6), number=1)
    write_series(folder / "b", line(5), number=2)


def unmarked_localizer(folder: Path) -> None:
    write_series(folder, line(6), **ONE)
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    write_series(folder, [(0, 0, 0)], iop=sagittal, name=lambda k: "loc.dcm", **ONE)


def duplicate_position(folder: Path) -> None:
    write_series(folder, line(6), **ONE)
    more = {"value": lambda p: ramp(p) + 9, "name": lambda k: "x.dcm"}
    write_series(folder, line(6)[3:4], **more, **ONE)


def without(k: int) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        write_series(folder, [o for i, o in enumerate(line(6)) if i != k])

    return build


def uneven(folder: Path) -> None:
    write_series(folder, [(-9, -4, z) for z in (0, 3, 6, 8, 11)])


def four_at_one_position(folder: Path) -> None:
    def strip(ds, k):
        del ds.SliceThickness

    noise = np.random.default_rng(0)
    value = lambda p: noise.uniform(0, 100, (14, 12))  # noqa: E731
    write_series(folder, [(0, 0, 0)] * 4, value=value, edit=strip)


def time_points(folder: Path) -> None:
    for t in (1, 2):
        write_series(
            folder,
            line(4),
            value=lambda p, t=t: ramp(p) + t,
            name=lambda k, t=t: f"{t}{k}.dcm",
            **ONE,
        )


def with_empty_file(folder: Path) -> None:
    write_series(folder, line(6))[5].write_bytes(b"")


def cut(fraction: float) -> Callable[[Path], None]:
    return changed_bytes(lambda raw: raw[: int(len(raw) * fraction)])


def all_cut_before_pixels(folder: Path) -> None:
    for path in write_series(folder, line(6)):
        path.write_bytes(path.read_bytes()[:-348])


def rgb(folder: Path) -> None:
    def edit(ds, k):
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "RGB"
        ds.PlanarConfiguration = 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData = bytes(14 * 12 * 3)

    write_series(folder, line(4), edit=edit)


def mosaics(n: int) -> Callable[[Path], None]:
    """Time points of an echo-planar series: each file holds its slices side by side."""

    def build(folder: Path) -> None:
        def edit(ds, k):
            ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
            ds.InstanceNumber = k + 1

        write_series(folder, line(n, step=(0, 0, 0)), modality="MR", edit=edit)

    return build


def bits_lie(folder: Path) -> None:
    def edit(ds, k):
        ds.BitsStored, ds.HighBit = 9, 8

    write_series(folder, line(4), edit=edit)


def nested(folder: Path) -> None:
    nested_sequences(write_series(folder, line(6))[2], 2000)


def unclosed_sequence(raw: bytes) -> bytes:
    at = raw.index(struct.pack("<HH2sH", 0x0028, 0x0002, b"US", 2))
    opening = struct.pack("<HH2sHI", 0x0020, 0x9FFF, b"SQ", 0, 0xFFFFFFFF)
    return raw[:at] + opening + raw[at:]


def huge_length(raw: bytes) -> bytes:
    at = raw.index(struct.pack("<HH2sH", 0x7FE0, 0x0010, b"OW", 0)) + 8
    return raw[:at] + struct.pack("<I", 0xFFFFFFF0) + raw[at + 4 :]


def compressed(stream: Callable[[int], bytes], syntax: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        def edit(ds, k):
            ds.PixelData = encapsulate([stream(k)])
            ds["PixelData"].VR = "OB"
            ds["PixelData"].is_undefined_length = True

        write_series(folder, line(4), syntax=syntax, edit=edit)

    return build


def j2k_header(rows: int, cols: int, end: bytes = b"\xff\xd9") -> bytes:
    """A JPEG 2000 code stream that declares a size and holds nothing."""
    siz = (
        struct.pack(">HHIIIIIIIIH", 41, 0, cols, rows, 0, 0, cols, rows, 0, 0, 1) + b"\x0f\x01\x01"
    )
    return b"\xff\x4f\xff\x51" + siz + b"\0" * 40 + end


def jpeg_header(rows: int, cols: int, end: bytes = b"\xff\xd9") -> bytes:
    sof = struct.pack(">BBHBHHBBBB", 0xFF, 0xC3, 11, 16, rows, cols, 1, 1, 0x11, 0)
    return b"\xff\xd8" + sof + b"\0" * 40 + end


def bare_object(sop_class: str, modality: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = ONE["study"], generate_uid()
    ds.Modality, ds.SeriesNumber = modality, 99
    return ds


def only_reports(folder: Path) -> None:
    sr = bare_object("1.2.840.10008.5.1.4.1.1.88.22", "SR")
    write_dataset(folder / "sr.dcm", sr)


def enhanced_frame_count(folder: Path) -> None:
    frames = [{"origin": o, "iop": AXIAL} for o in line(4)]

    def edit(ds):
        del ds.PerFrameFunctionalGroupsSequence[3]

    write_enhanced(folder / "e.dcm", frames, edit=edit)


def enhanced_without_positions(folder: Path) -> None:
    frames = [{"origin": o, "iop": AXIAL} for o in line(4)]

    def edit(ds):
        ds.ImagePositionPatient = [0, 0, 0]
        for item in ds.PerFrameFunctionalGroupsSequence:
            del item.PlanePositionSequence

    write_enhanced(folder / "e.dcm", frames, edit=edit)


def multi_frame_capture(folder: Path) -> None:
    def edit(ds, k):
        ds.NumberOfFrames = 2
        ds.PixelData = ds.PixelData * 2

    write_series(folder, line(4), edit=edit)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing_middle_slice": (without(3), "1 slice is missing, the first after slice 3 at 6.00 mm"),
    "conflicting_duplicate": (duplicate_position, "2 different images at one position"),
    "two_series": (two_series, "2 series could be meant"),
    "unmarked_localizer": (unmarked_localizer, "parts that are no single volume"),
    "non_uniform": (uneven, "the distance between slices varies: 3 × 3.00, 1 × 2.00 mm"),
    "four_at_one_position": (four_at_one_position, "all 4 images lie at one position"),
    "time_points": (time_points, "2 different images at each of the 4 positions"),
    "no_position": (edited(ImagePositionPatient=None), "ImagePositionPatient is missing"),
    "no_position_at_all": (edited_all(ImagePositionPatient=None), "have no ImagePositionPatient"),
    "no_orientation": (edited(ImageOrientationPatient=None), "ImageOrientationPatient is missing"),
    "no_orientation_at_all": (
        edited_all(ImageOrientationPatient=None),
        "have no ImageOrientationPatient",
    ),
    "no_spacing": (edited_all(PixelSpacing=None), "have no PixelSpacing"),
    "empty_position": (edited(ImagePositionPatient=""), "ImagePositionPatient is missing"),
    "two_numbers_position": (edited(ImagePositionPatient=["1", "2"]), "holds 2 numbers, not 3"),
    "zero_spacing": (
        edited_all(PixelSpacing=["0", "0"]),
        "PixelSpacing is not a possible distance",
    ),
    "negative_spacing": (edited_all(PixelSpacing=["-1", "1"]), "PixelSpacing is not a possible"),
    "nan_spacing": (spacing_text(b"1.5\\NN"), "PixelSpacing is not a number"),
    "word_nan_spacing": (spacing_text(b"nan\\1 "), "PixelSpacing is not a finite number"),
    "non_unit_orientation": (
        edited_all(ImageOrientationPatient=["1.1", "0", "0", "0", "1", "0"]),
        "does not hold unit vectors",
    ),
    "zero_orientation": (
        edited_all(ImageOrientationPatient=["0"] * 6),
        "does not hold unit vectors",
    ),
    "slanted_orientation": (
        edited_all(ImageOrientationPatient=["1", "0", "0", "0.6", "0.8", "0"]),
        "not at right angles",
    ),
    "other_frame_of_reference": (
        edited(FrameOfReferenceUID="1.2.3.77"),
        "parts that are no single volume",
    ),
    "other_size": (
        edited(Rows=12, PixelData=bytes(12 * 12 * 2)),
        "parts that are no single volume",
    ),
    "other_spacing": (edited(PixelSpacing=["1.4", "2"]), "parts that are no single volume"),
    "other_series": (edited(SeriesInstanceUID="1.2.3.77"), "2 series could be meant"),
    "empty_slice": (with_empty_file, "1 file beside it cannot be read: it is empty"),
    "not_dicom_slice": (changed_bytes(lambda raw: b"x" * len(raw)), "it is not DICOM"),
    "truncated_in_pixels": (cut(0.9), "a slice cannot be read: its pixel data is"),
    "truncated_in_header": (cut(0.5), "1 file beside it cannot be read"),
    "truncated_in_meta": (cut(0.1), "1 file beside it cannot be read"),
    "pixel_data_gone": (all_cut_before_pixels, "cannot be read: its pixel data is"),
    "no_pixel_data": (edited(PixelData=None), "its pixel data is missing or cut off"),
    "pixel_data_short": (edited(PixelData=bytes(100)), "is truncated: 100 of 336 bytes"),
    "pixel_data_long": (
        edited(PixelData=bytes(400)),
        "has 400 bytes where Rows × Columns need",
    ),
    "rows_lie": (edited_all(Rows=60000, Columns=60000), "would take"),
    "rows_lie_within_budget": (edited_all(Rows=4000, Columns=4000), "too small for Rows × Columns"),
    "zero_rows": (edited(Rows=0), "cannot be used: Rows or Columns is zero"),
    "pixel_representation_of_value": (
        replaced(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00Ow"),
        "pixel data cannot be interpreted",
    ),
    "pixel_data_as_text": (
        replaced(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00UT"),
        "pixel data cannot be interpreted",
    ),
    "no_image_tags": (
        edited(Rows=None, Columns=None, BitsAllocated=None),
        "cannot be used: Rows is missing",
    ),
    "no_rows": (edited(Rows=None), "cannot be used: Rows is missing"),
    "rgb": (rgb, "the slices are colour images"),
    "siemens_mosaic": (mosaics(3), "it is a mosaic that shows all slices side by side"),
    "one_siemens_mosaic": (mosaics(1), "it is a mosaic that shows all slices side by side"),
    "palette": (edited_all(PhotometricInterpretation="PALETTE COLOR"), "colour images"),
    "bits_stored_lie": (bits_lie, "need more than the 9 bits of BitsStored"),
    "bits_stored_beyond": (edited_all(BitsStored=17, HighBit=16), "larger than BitsAllocated"),
    "high_bit_lie": (edited_all(HighBit=11), "HighBit and BitsStored disagree"),
    "representation_differs": (edited(PixelRepresentation=1), "PixelRepresentation differs"),
    "bits_allocated_32": (edited_all(BitsAllocated=32), "BitsAllocated is not supported"),
    "zero_slope": (edited(RescaleSlope="0"), "RescaleSlope is zero"),
    "no_slope": (edited(RescaleSlope=None), "RescaleSlope or RescaleIntercept is missing"),
    "ct_without_rescale": (
        edited_all(RescaleSlope=None, RescaleIntercept=None),
        "RescaleSlope or RescaleIntercept is missing",
    ),
    "photometric_differs": (
        edited(PhotometricInterpretation="MONOCHROME1"),
        "PhotometricInterpretation differs",
    ),
    "unknown_syntax": (
        changed_bytes(lambda raw: raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.1\0")),
        "transfer syntax is missing or not one medpipe reads",
    ),
    "nested_sequences": (nested, "nested too deeply"),
    "unclosed_sequence": (changed_bytes(unclosed_sequence), "it cannot be parsed as DICOM"),
    "j2k_of_another_size": (
        compressed(lambda k: j2k_header(60000, 60000), JPEG2000Lossless),
        "another size than Rows × Columns",
    ),
    "jpeg_of_another_size": (
        compressed(lambda k: jpeg_header(60000, 60000), JPEGLosslessSV1),
        "another size than Rows × Columns",
    ),
    "j2k_cut_off": (
        compressed(lambda k: j2k_header(14, 12, b""), JPEG2000Lossless),
        "the compressed image is cut off",
    ),
    "jpeg_cut_off": (
        compressed(lambda k: jpeg_header(14, 12, b""), JPEGLosslessSV1),
        "the compressed image is cut off",
    ),
    "j2k_garbage": (
        compressed(lambda k: j2k_header(14, 12), JPEG2000Lossless),
        "the compressed image cannot be decoded",
    ),
    "jpeg_garbage": (
        compressed(lambda k: jpeg_header(14, 12), JPEGLosslessSV1),
        "the compressed image cannot be decoded",
    ),
    "not_encapsulated": (
        compressed(lambda k: b"\0\0", "1.2.840.10008.1.2.5"),
        "the compressed image cannot be decoded",
    ),
    "only_reports": (only_reports, "there is no DICOM image series"),
    "enhanced_frame_count": (enhanced_frame_count, "per-frame functional groups disagree"),
    "enhanced_without_positions": (enhanced_without_positions, "have no ImagePositionPatient"),
    "multi_frame_capture": (multi_frame_capture, "multi-frame"),
    "empty_folder": (lambda folder: folder.mkdir(exist_ok=True), "there is no DICOM image series"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(tmp_path, name):
    build, fragment = CASES[name]
    folder = tmp_path / "ZZCANARY folder"
    build(folder)
    before = sorted(p.name for p in folder.rglob("*"))
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_dicom_series(folder)
    assert time.monotonic() - started < SECONDS
    text = str(caught.value)
    assert fragment in text
    assert "\n" not in text
    for private in ("CANARY", "1.2.3", str(tmp_path), ".dcm", "19010203"):
        assert private not in text
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_dicom_series(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "tags",
    [
        {"SpecificCharacterSet": "ISO_IR 9999"},
        {"SeriesDescription": ""},
        {"SliceThickness": ""},
        {"PatientID": "../../x"},
        {"InstanceNumber": ""},
    ],
)
def test_odd_but_harmless(tmp_path, tags):
    """What does not bear on the volume does not stop it."""
    edited(**tags)(tmp_path)
    assert truth_error(read_dicom_series(tmp_path), ramp).max() <= 0.501


def test_a_declared_length_beyond_the_file_with_whole_pixels(tmp_path):
    changed_bytes(huge_length)(tmp_path)
    assert truth_error(read_dicom_series(tmp_path), ramp).max() <= 0.501


def test_objects_that_are_no_volume_are_set_aside_and_listed(tmp_path):
    write_series(tmp_path, line(6), value=ball, **ONE)
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)

    def localizer(ds, k):
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(tmp_path, [(0, 0, 0)], iop=sagittal, name=lambda k: "l.dcm", edit=localizer, **ONE)
    for name, (uid, modality) in {
        "sr": ("88.22", "SR"),
        "dose": ("88.67", "SR"),
        "pr": ("11.1", "PR"),
        "seg": ("66.4", "SEG"),
        "sc": ("7", "OT"),
        "rt": ("481.3", "RTSTRUCT"),
    }.items():
        ds = bare_object(f"1.2.840.10008.5.1.4.1.1.{uid}", modality)
        write_dataset(tmp_path / f"{name}.dcm", ds)
    (tmp_path / "readme.txt").write_text("notes")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"../../etc/passwd")
    volume = read_dicom_series(tmp_path)
    assert truth_error(volume, ball).max() <= 0.501
    messages = {f.check: f.message for f in volume.findings}
    assert "1 × localizer" in messages["dicom.set_aside"]
    assert "2 × structured report" in messages["dicom.set_aside"]
    assert messages["dicom.not_dicom"] == "2 files in the folder are not DICOM images"


def test_a_slice_marked_as_something_else_is_missed_by_name(tmp_path):
    """A capture on the very grid of the stack is a mislabelled slice, not an extra object."""

    def edit(ds, k):
        if k == 5:
            ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"

    write_series(tmp_path, line(6), edit=edit)
    with pytest.raises(InputError, match="1 more slices on the same grid are marked as secondary"):
        read_dicom_series(tmp_path)


def test_most_slices_does_not_hide_a_stray_slice(tmp_path):
    edited(FrameOfReferenceUID="1.2.3.77")(tmp_path)
    with pytest.raises(InputError, match="its slices differ in frame of reference"):
        read_dicom_series(tmp_path, select={"most_slices": True})


def test_fifo_and_links(tmp_path):
    folder, outside = tmp_path / "in", tmp_path / "out"
    paths = write_series(folder, line(6), value=ball)
    outside.mkdir()
    moved = outside / "far.dcm"
    paths[5].rename(moved)
    paths[5].symlink_to(moved)
    with pytest.raises(InputError, match="a link that leads out of the folder"):
        read_dicom_series(folder)
    assert read_dicom_series(folder, follow_symlinks=True).data.shape[2] == 6
    paths[5].unlink()
    os.mkfifo(paths[5])
    with pytest.raises(InputError, match="not a regular file"):
        read_dicom_series(folder)
    paths[5].unlink()
    paths[5].symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="cannot be read"):
        read_dicom_series(folder)
    paths[5].unlink()
    (folder / "loop").symlink_to(folder)
    assert read_dicom_series(folder, follow_symlinks=True).data.shape[2] == 5


def test_no_decoder(tmp_path, monkeypatch):
    class NoPlugins:
        available_plugins = ()

    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda uid: NoPlugins())
    compressed(lambda k: j2k_header(14, 12), JPEG2000Lossless)(tmp_path)
    with pytest.raises(InputError, match=r"no decoder for JPEG 2000 Lossless.*medpipe\[dicom\]"):
        read_dicom_series(tmp_path)


def test_a_file_that_changes_between_scan_and_read(tmp_path):
    paths = write_series(tmp_path / "a", line(4))
    other = write_series(tmp_path / "b", line(4), size=(12, 14))
    (series,) = scan_series(tmp_path / "a")
    paths[1].write_bytes(other[1].read_bytes())
    from medpipe.io.dicom_series import assemble_series

    with pytest.raises(InputError, match=r"slice 2 of 4 at 3\.00 mm.*changed while it was read"):
        assemble_series(series)


CHILD = """
import json, resource, sys, time
from medpipe.errors import MedpipeError
from medpipe.io.dicom_series import read_dicom_series
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.monotonic()
try:
    read_dicom_series(sys.argv[1], **json.loads(sys.argv[2]))
    text = "read"
except MedpipeError as error:
    text = str(error)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"text": text, "mb": (peak - base) / 1024, "s": time.monotonic() - start}))
"""


def in_child(folder: Path, **options) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_a_deflate_bomb_stays_small(tmp_path):
    """1 GB of zeros in 1 MB: inflated only as far as the declared size allows."""
    bomb = deflate_bomb(tmp_path / "bomb.dcm", 1 << 30)
    assert bomb.stat().st_size < 2 << 20
    got = in_child(tmp_path)
    assert "truncated or larger than its header declares" in got["text"]
    assert got["mb"] < 100
    assert got["s"] < 5


def test_a_size_lie_takes_no_memory(tmp_path):
    edited_all(Rows=4000, Columns=4000)(tmp_path)
    got = in_child(tmp_path)
    assert "too small for Rows × Columns" in got["text"]
    assert got["mb"] < 60


def test_nested_sequences_stay_small(tmp_path):
    nested_sequences(write_series(tmp_path, line(4))[0], 50_000)
    got = in_child(tmp_path)
    assert "nested too deeply" in got["text"]
    assert got["mb"] < 200
    assert got["s"] < 10


def test_memory_of_a_real_size_is_near_the_volume(tmp_path):
    """512 × 512 × 24 int16 is 12.6 MB; decoding one more slice at a time is all it may add."""
    write_series(
        tmp_path,
        line(24),
        size=(512, 512),
        spacing=(0.1, 0.1),
        bits=12,
        value=lambda p: 40 + p[..., 0],
    )
    got = in_child(tmp_path)
    assert got["text"] == "read"
    assert got["mb"] < 3 * 12.6


def test_every_error_is_ours():
    assert issubclass(InputError, MedpipeError)
