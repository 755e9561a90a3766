"""Reading NIfTI strictly: a volume that is right, or an InputError.

The order is: the file itself, its first bytes, the header's structure, the
memory it asks for, its place in the world, and only then the voxels. nibabel
decodes the header; the voxels are read here, because a checked byte count and
a verified gzip checksum are the point.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, ResourceError, UsageError
from medpipe.io import checks
from medpipe.io.checks import DATATYPES, Head
from medpipe.io.detect import nifti_layout
from medpipe.io.nifti_space import find_place
from medpipe.io.nifti_stream import ByteStream, open_regular
from medpipe.types import Finding, Severity, Volume

__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_MAX_RATIO", "read_nifti"]

DEFAULT_MAX_BYTES = 8 << 30
DEFAULT_MAX_RATIO = 200.0
# An empty mask compresses 1000 to 1, so a ratio means nothing for a size that
# every machine can hold.
_RATIO_FREE_BYTES = 512 << 20
_DRAIN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Limits:
    max_bytes: int
    max_ratio: float


def read_nifti(
    path: Path | str,
    *,
    ndim: int | Sequence[int] = 3,
    fixes: Sequence[str] = (),
    assume_orientation: str | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_ratio: float = DEFAULT_MAX_RATIO,
) -> Volume:
    """Read a single-file NIfTI-1 or NIfTI-2 image, gzip-compressed or not.

    Content decides, not the name. Integers stay integers unless the file
    states a scaling, then the result is float32 (complex64 for complex).

    Parameters
    ----------
    path : path
        A regular file or a link to one.
    ndim : int or sequence of int
        How many axes the image may have: 3, 4, or both.
    fixes : sequence of str
        Repairs to apply, by the name of the check: `medpipe.io.checks.REPAIRS`.
    assume_orientation : str, optional
        For files that do not state one: ``"qform"``, ``"sform"`` or axis codes
        such as ``"RAS"``; see `medpipe.io.nifti_space.find_place`.
    max_bytes : int
        Most memory the voxels may take, as stored or as float32, whichever is more.
    max_ratio : float
        Most times a gzip file may grow when decompressed; not applied below
        512 MiB, where an empty mask legitimately grows a thousandfold.

    Returns
    -------
    Volume
        `data` in native byte order, Fortran order; `source` has ``kind``
        (``"nifti"``), ``version``, ``dtype`` (as stored), ``shape``, ``units``,
        ``sform_code``, ``qform_code``, ``affine_from``, ``scaled``.

    Raises
    ------
    InputError
        If the file is not what it claims or a check fails.
    ResourceError
        If the machine cannot give the memory that the limits allow.
    UsageError
        If an argument is wrong.
    """
    allowed = _allowed_ndim(ndim)
    checks.require_known_fixes(fixes)
    with open_regular(path) as (file, status):
        stream = ByteStream(file, status.st_size)
        head, swapped = _read_head(stream)
        found = _check_structure(head, allowed, fixes)
        found += _skip_to_voxels(stream, head, fixes)
        shape = checks.fit_shape(head.shape, allowed) or head.shape
        place = find_place(head, (*shape, 1, 1)[:3], fixes, assume_orientation)
        found += place.findings + checks.settle([checks.check_scl_slope(head)], fixes)
        checks.refuse(found)
        data = _read_voxels(stream, head, _Limits(max_bytes, max_ratio))
        found += _check_end(stream, fixes)
    name_finding = _check_name(path, stream.is_gzip)
    if swapped:
        data.byteswap(inplace=True)
    data, scaled = _scale(data, head)
    found += [] if name_finding is None else [name_finding]
    found += _check_values(data, fixes)
    source = {
        "kind": "nifti",
        "version": head.version,
        "dtype": DATATYPES[head.datatype],
        "shape": list(head.shape),
        "units": place.units,
        "sform_code": head.sform_code,
        "qform_code": head.qform_code,
        "affine_from": place.origin,
        "scaled": scaled,
    }
    return Volume(data.reshape(shape, order="F"), place.affine, source, found)


def _allowed_ndim(ndim: int | Sequence[int]) -> tuple[int, ...]:
    allowed = (ndim,) if isinstance(ndim, int) else tuple(ndim)
    if not allowed or not set(allowed) <= {3, 4}:
        raise UsageError("ndim is wrong", expected="3, 4 or both", got=repr(ndim))
    return allowed


def _read_head(stream: ByteStream) -> tuple[Head, bool]:
    """Read and decode the 348 or 540 header bytes; return them and whether to swap bytes."""
    block = stream.read(348)
    version, order = nifti_layout(block)
    # Imported late: nibabel takes half a second, and detection needs none of it.
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if version == 2:
        block += stream.read(540 - 348)
        if len(block) < 540:
            raise _truncated("the header is incomplete")
    kind = Nifti1Header if version == 1 else Nifti2Header
    nib = kind(block, endianness=order, check=False)
    return Head.of(nib, version), order != Nifti1Header().endianness


def _check_structure(head: Head, allowed: tuple[int, ...], fixes: Sequence[str]) -> list[Finding]:
    """Run the checks without which the rest of the header means nothing."""
    found: list[Finding] = []
    for check in (
        checks.check_dims,
        lambda h: checks.check_ndim(h, allowed),
        checks.check_datatype,
        checks.check_bitpix,
        checks.check_vox_offset,
    ):
        found += checks.settle([check(head)], fixes)
        checks.refuse(found)
    return found


def _skip_to_voxels(stream: ByteStream, head: Head, fixes: Sequence[str]) -> list[Finding]:
    """Read from the header's end to the first voxel and check the extensions there."""
    count = int(head.vox_offset) - (head.header_bytes - 4)
    tail = stream.read(count)
    if len(tail) < count:
        raise _truncated("it ends before its first voxel")
    return checks.settle([checks.check_extension(head, tail)], fixes)


def _truncated(got: str) -> InputError:
    return InputError(
        "the file is truncated", got=got, hint="copy or export the file again from its source"
    )


def _check_budget(stream: ByteStream, head: Head, nbytes: int, limits: _Limits) -> None:
    """Refuse what the header asks for before any of it is allocated or decompressed."""
    count = nbytes // np.dtype(DATATYPES[head.datatype]).itemsize
    needed = max(nbytes, count * 4)
    grid = " × ".join(str(d) for d in head.shape)
    if needed > limits.max_bytes:
        raise InputError(
            f"the header claims {grid} voxels",
            expected=f"at most {limits.max_bytes / 2**30:.3g} GiB of voxels",
            got=f"{needed / 2**30:.3g} GiB",
            hint="raise the limit if the image is really that large, else the header is damaged",
        )
    if stream.is_gzip:
        if nbytes > _RATIO_FREE_BYTES and nbytes > limits.max_ratio * stream.size:
            raise InputError(
                f"the file would grow {nbytes / stream.size:.0f} times when decompressed",
                expected=f"at most {limits.max_ratio:g} times",
                hint="if you trust the file, decompress it with gunzip and give the .nii file",
            )
        return
    left = stream.size - int(head.vox_offset)
    if left < nbytes:
        raise _truncated(f"{max(left, 0)} of {nbytes} bytes of voxels")


def _read_voxels(stream: ByteStream, head: Head, limits: _Limits) -> NDArray[Any]:
    """Return the voxels as stored, one axis, after checking that there are as many as claimed."""
    dtype = np.dtype(DATATYPES[head.datatype])
    count = 1
    for length in head.shape:  # Python integers do not overflow
        count *= length
    nbytes = count * dtype.itemsize
    _check_budget(stream, head, nbytes, limits)
    with _memory(nbytes):
        data = np.empty(count, dtype)
    got = stream.readinto(data.view(np.uint8).data)
    if got < nbytes:
        raise _truncated(f"{got} of {nbytes} bytes of voxels")
    return data


@contextlib.contextmanager
def _memory(nbytes: int) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise ResourceError(
            "there is not enough memory for the image",
            expected=f"{nbytes / 2**30:.3g} GiB",
            hint="give the case more memory or run fewer cases at once",
        ) from None


def _check_end(stream: ByteStream, fixes: Sequence[str]) -> list[Finding]:
    """The file ends with its last voxel, and its gzip checksum is right."""
    if stream.at_end():
        return []
    message = "the file goes on after its last voxel, so its header or its voxels are damaged"
    found = checks.settle([checks.error("nifti.trailing_bytes", message)], fixes)
    checks.refuse(found)
    if stream.is_gzip:  # read on for the checksum, but not through a bomb
        stream.read(_DRAIN_BYTES)
        if not stream.at_end():
            raise InputError(
                "the file goes on for more than 64 MiB after its last voxel",
                hint="there is no safe repair; export or convert the image again from its source",
            )
    return found


def _check_name(path: Path | str, is_gzip: bool) -> Finding | None:
    """The name agrees with the content about compression; other readers go by the name."""
    if str(path).lower().endswith(".gz") == is_gzip:
        return None
    is_a = "gzip-compressed" if is_gzip else "not compressed"
    message = f"the file is {is_a}, its name says otherwise; it was read by its content"
    return Finding("nifti.name", Severity.WARNING, message)


def _scale(data: NDArray[Any], head: Head) -> tuple[NDArray[Any], bool]:
    """Apply slope and intercept where the file states usable ones that change anything."""
    slope, inter = head.scl_slope, head.scl_inter
    usable = slope != 0 and np.isfinite(slope) and np.isfinite(inter)
    if not usable or (slope, inter) == (1.0, 0.0):
        return data, False
    out = np.empty(data.size, np.complex64 if data.dtype.kind == "c" else np.float32)
    block = 1 << 20
    # Block by block in double precision: exact to float32 without a double-precision copy.
    with np.errstate(all="ignore"), _memory(out.nbytes):
        for start in range(0, data.size, block):
            wide = data[start : start + block] * np.float64(slope)
            wide += inter
            out[start : start + block] = wide
    return out, True


def _check_values(data: NDArray[Any], fixes: Sequence[str]) -> list[Finding]:
    """Check the voxels, after scaling, and replace NaN by 0 where that was asked for."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        found = checks.settle([checks.check_voxels_finite(data)], fixes)
        checks.refuse(found)
        if found:
            data[~np.isfinite(data)] = 0
        constant = checks.check_constant(data)
    return found if constant is None else [*found, constant]
