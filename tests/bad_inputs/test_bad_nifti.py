"""Every broken NIfTI file is refused with a message that helps, fast and without leftovers."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nifti_inputs import (
    AFFINE,
    BROKEN_HEADERS,
    CANARY,
    Broken,
    Nifti,
    bomb,
    broken_files,
    cut_everywhere,
    gradient,
    gz,
)

from medpipe.errors import InputError
from medpipe.io.detect import detect_kind
from medpipe.io.nifti import read_nifti

MAX_SECONDS = 5.0
MAX_GROWTH_KIB = 100 << 10
FILES = broken_files()
HEADERS = [
    pytest.param(broken, version, suffix, id=f"{broken.id}-nifti{version}{suffix}")
    for broken in BROKEN_HEADERS
    for version in (1, 2)
    for suffix in (".nii", ".nii.gz")
    if broken.only in (None, version)
]


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Fail, rather than hang, and fail where files stay open."""

    def ring(*_: object) -> None:
        raise TimeoutError("the reader hangs")

    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before)


def refused(path: Path, says: str, **options: object) -> InputError:
    """Read, expect a refusal in one short line in time, and nothing new in the folder."""
    before = sorted(os.listdir(path.parent))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(InputError) as info:
        read_nifti(path, **options)  # type: ignore[arg-type]
    assert time.monotonic() - start < MAX_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MAX_GROWTH_KIB
    text = str(info.value)
    assert says in text
    assert "\n" not in text
    assert len(text) < 400
    assert str(path.parent) not in text
    assert sorted(os.listdir(path.parent)) == before
    return info.value


@pytest.mark.parametrize(("broken", "version", "suffix"), HEADERS)
def test_broken_header_is_refused(
    broken: Broken, version: int, suffix: str, tmp_path: Path
) -> None:
    path = broken.make(version).write(tmp_path / f"a{suffix}")
    error = refused(path, broken.says)
    if broken.fix is not None:
        assert broken.fix in str(error)
        assert f'fixes=["{broken.fix}"]' in (error.hint or "")


@pytest.mark.parametrize(("broken", "version", "suffix"), [p for p in HEADERS if p.values[0].fix])
def test_its_named_repair_gives_the_right_volume(
    broken: Broken, version: int, suffix: str, tmp_path: Path
) -> None:
    nifti = broken.make(version)
    assert broken.fix is not None
    volume = read_nifti(nifti.write(tmp_path / f"a{suffix}"), fixes=[broken.fix])
    want = nifti.data if broken.data is None else broken.data
    assert volume.data.dtype == want.dtype
    np.testing.assert_array_equal(volume.data, want)
    np.testing.assert_allclose(
        volume.affine, AFFINE if broken.affine is None else broken.affine, atol=1e-5
    )
    assert [f.fixed for f in volume.findings if f.check == broken.fix] == [True]


@pytest.mark.parametrize("name", FILES)
def test_broken_file_is_refused(name: str, tmp_path: Path) -> None:
    make, says = FILES[name]
    refused(make(tmp_path), says)


@pytest.mark.parametrize("name", ["fifo", "link_to_device", "dangling_link", "png", "gz_twice"])
def test_broken_file_has_no_kind(name: str, tmp_path: Path) -> None:
    path = FILES[name][0](tmp_path)
    with pytest.raises(InputError):
        detect_kind(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_cut_anywhere(version: int, suffix: str, tmp_path: Path) -> None:
    content = Nifti(version=version).bytes()
    content = gz(content) if suffix == ".nii.gz" else content
    for n, part in enumerate(cut_everywhere(content, 7)):
        path = tmp_path / f"{n}{suffix}"
        path.write_bytes(part)
        with pytest.raises(InputError):
            read_nifti(path)


def test_cut_at_every_kilobyte_of_a_larger_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(-1000, 1000, (40, 30, 20)).astype(np.int16)
    nifti = Nifti(dim=(3, 40, 30, 20, 1, 1, 1, 1), data=data)
    for suffix, content in ((".nii", nifti.bytes()), (".nii.gz", gz(nifti.bytes()))):
        for n, part in enumerate(cut_everywhere(content, 1024)):
            path = tmp_path / f"{n}{suffix}"
            path.write_bytes(part)
            with pytest.raises(InputError):
                read_nifti(path)


@pytest.mark.parametrize(
    ("codes", "want"),
    [
        ("qform", AFFINE),
        ("sform", AFFINE),
        ("RAS", [[0.75, 0, 0, -1.5], [0, 0.5, 0, -0.75], [0, 0, 2, -2], [0, 0, 0, 1]]),
        ("LPS", [[-0.75, 0, 0, 1.5], [0, -0.5, 0, 0.75], [0, 0, 2, -2], [0, 0, 0, 1]]),
        ("SAL", [[0, 0, -2, 2], [0, 0.5, 0, -0.75], [0.75, 0, 0, -1.5], [0, 0, 0, 1]]),
    ],
)
def test_unknown_orientation_is_refused_unless_assumed(
    codes: str, want: np.ndarray, tmp_path: Path
) -> None:
    path = Nifti(qform_code=0, sform_code=0).write(tmp_path / "a.nii")
    error = refused(path, "both form codes are 0")
    assert "assume_orientation" in (error.hint or "")
    volume = read_nifti(path, assume_orientation=codes)
    np.testing.assert_allclose(volume.affine, want, atol=1e-6)
    assert volume.source["affine_from"] == f"assumed {codes}"
    assert [f.fixed for f in volume.findings] == [True]


def test_assumed_axes_need_a_spacing_that_can_be(tmp_path: Path) -> None:
    step = (1, 1e-9, 1, 1, 0, 0, 0, 0)
    path = Nifti(qform_code=0, sform_code=0, pixdim=step).write(tmp_path / "a.nii")
    refused(path, "outside 0.001..1000", assume_orientation="RAS")


def test_assumed_orientation_does_not_override_the_file(tmp_path: Path) -> None:
    volume = read_nifti(Nifti().write(tmp_path / "a.nii"), assume_orientation="LPS")
    np.testing.assert_array_equal(volume.affine, AFFINE)


def test_trailing_bytes_may_be_ignored_by_name(tmp_path: Path) -> None:
    for name, content in (
        ("a.nii", Nifti().bytes() + b"behind"),
        ("a.nii.gz", gz(Nifti().bytes() + b"behind")),
    ):
        (tmp_path / name).write_bytes(content)
        volume = read_nifti(tmp_path / name, fixes=["nifti.trailing_bytes"])
        np.testing.assert_array_equal(volume.data, gradient())


def test_a_repair_of_something_else_does_not_help(tmp_path: Path) -> None:
    path = Nifti(bitpix=8).write(tmp_path / "a.nii")
    refused(path, "nifti.bitpix", fixes=["nifti.zero_pixdim"])


def test_all_errors_of_a_header_are_named(tmp_path: Path) -> None:
    path = Nifti(slope=np.nan, inter=5, pixdim=(1, -1, 0, 1, 0, 0, 0, 0)).write(tmp_path / "a.nii")
    text = str(refused(path, "nifti.zero_pixdim"))
    assert "nifti.negative_pixdim" in text
    assert "nifti.scl_slope" in text


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Nifti().write(tmp_path / "a.nii")

    def forbidden(*_: object) -> int:  # root may read everything, so modes prove nothing
        raise PermissionError(errno.EACCES, "refused", str(path))

    monkeypatch.setattr(os, "open", forbidden)
    refused(path, "Permission denied")


def test_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Nifti().write(tmp_path / "a.nii")
    from medpipe.io import nifti_read

    real = nifti_read._read_voxels

    def slow(*args: object) -> np.ndarray:
        data = real(*args)  # type: ignore[arg-type]
        path.write_bytes(Nifti().bytes() + b"more")
        return data

    monkeypatch.setattr(nifti_read, "_read_voxels", slow)
    with pytest.raises(InputError):
        read_nifti(path)
    os.utime(path, (1, 1))
    path.write_bytes(Nifti().bytes())
    os.utime(path, (1, 1))

    def touched(*args: object) -> np.ndarray:
        data = real(*args)  # type: ignore[arg-type]
        os.utime(path, (2, 2))
        return data

    monkeypatch.setattr(nifti_read, "_read_voxels", touched)
    refused(path, "changed while it was read")


CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
from medpipe.errors import MedpipeError
from medpipe.io.nifti import read_nifti
import nibabel.nifti1, nibabel.nifti2
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_nifti(sys.argv[1])
    said = None
except MedpipeError as error:
    said = [type(error).__name__, str(error)]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([said, grown]))
"""


@pytest.mark.parametrize(
    ("claimed", "contained", "says", "max_mib"),
    [
        (2 << 30, 2 << 30, "times when decompressed", 16),  # honest about its size
        (20 << 30, 1 << 24, "at most 8 GiB", 16),
        (1 << 20, 2 << 30, "goes on after its last voxel", 32),  # the rest is behind the voxels
        (500 << 20, 1 << 24, "truncated", 64),  # claims more than it has
    ],
)
def test_gzip_bomb(claimed: int, contained: int, says: str, max_mib: int, tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.nii.gz", claimed=claimed, contained=contained)
    assert path.stat().st_size < 10e6
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said, grown_kib = json.loads(done.stdout)
    assert said[0] == "InputError"
    assert says in said[1]
    assert grown_kib < max_mib * 1024
    assert time.monotonic() - start < 30
    assert os.listdir(tmp_path) == ["a.nii.gz"]


def test_memory_that_the_machine_lacks_is_a_resource_error(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    side = 12000
    head = Nifti(dim=(3, side, side, 40, 1, 1, 1, 1), datatype=2, bitpix=8).header()
    with open(path, "wb") as f:  # sparse: takes no room on the disk
        f.write(head)
        f.truncate(352 + side * side * 40)
    child = CHILD.replace("read_nifti(sys.argv[1])", "read_nifti(sys.argv[1], max_bytes=1 << 60)")
    done = subprocess.run(
        [sys.executable, "-c", child, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0][0] == "ResourceError"


def test_an_empty_mask_is_not_a_bomb(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.nii.gz", claimed=1 << 26, contained=1 << 26)
    assert path.stat().st_size * 500 < 1 << 26
    assert [f.check for f in read_nifti(path).findings] == ["nifti.constant"]


def test_no_text_of_the_header_gets_out(tmp_path: Path) -> None:
    extension = (32).to_bytes(4, "little") + b"\x06\0\0\0" + CANARY.ljust(24)
    planted = Nifti(text=CANARY, extender=b"\x01\0\0\0", extensions=extension)
    folder = tmp_path / "ZZCANARY"
    folder.mkdir()
    volume = read_nifti(planted.write(folder / "ZZCANARY.nii"))
    seen = json.dumps([volume.source, [f.to_dict() for f in volume.findings]])
    for broken in BROKEN_HEADERS:
        fields = {"text": CANARY, "extender": b"\x01\0\0\0", "extensions": extension}
        nifti = Broken(broken.id, {**fields, **broken.fields}, "").make(broken.only or 1)
        with pytest.raises(InputError) as info:
            read_nifti(nifti.write(folder / "ZZCANARY.nii"))
        seen += json.dumps(info.value.to_dict())
    for name, (make, _) in FILES.items():
        case = folder / name
        case.mkdir()
        with pytest.raises(InputError) as info:
            read_nifti(make(case))
        seen += json.dumps(info.value.to_dict())
    assert "CANARY" not in seen
