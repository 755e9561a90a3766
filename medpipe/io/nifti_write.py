"""Writing NIfTI so that what lies on the disk has been read back and compared.

The bytes are deterministic: no time, no file name, no free text, one gzip level.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import MedpipeError, StoreError, UsageError
from medpipe.geometry import affine_problem
from medpipe.io.atomic import atomic_path
from medpipe.io.checks import DATATYPES
from medpipe.io.nifti_read import read_nifti
from medpipe.io.nifti_space import same_place
from medpipe.types import Affine, Volume

__all__ = ["write_nifti"]

# Level 1 is what nibabel uses; 6 takes five times as long for a CT and saves a tenth.
_GZIP_LEVEL = 1
_BLOCK = 1 << 20
_XFORM_ALIGNED = 2  # true of a scanner's space and of any other that was registered to
_MAX_DIM_1 = 32767
_NAMES = tuple(DATATYPES.values())
_STORED_AS = {"bool": "uint8", "float16": "float32"}


def write_nifti(path: Path | str, volume: Volume, *, dtype: str | None = None) -> Volume:
    """Write a volume to a .nii or .nii.gz file, verify it, and return it as re-read.

    sform and qform both hold the affine with code 2 ("aligned"); a sheared
    affine cannot be a qform, so the qform code is then 0. Lengths are in mm.
    NIfTI-2 is written where an axis is longer than 32767 voxels.

    Parameters
    ----------
    path : path
        Ends in ``.nii`` or ``.nii.gz``; the folder must exist.
    volume : Volume
        Finite voxels, shape (I, J, K) or (I, J, K, T), and a usable affine.
    dtype : str, optional
        Type to store: one of uint8 … int64, float32, float64, complex64,
        complex128. Default: the volume's own (bool as uint8, float16 as float32).

    Returns
    -------
    Volume
        Data and affine as a reader of the file gets them (the affine rounded to
        float32); `source` and `findings` are those of the volume given, because
        they tell where it came from.

    Raises
    ------
    StoreError
        If the values do not fit the type, if something is not finite, if the
        disk is full, or if the file does not read back equal.
    UsageError
        If the name or the type is not one that can be written.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UsageError(
            "the file name does not end in .nii or .nii.gz", hint="add .nii.gz to the name"
        )
    _check_writable(volume)
    data = _as_dtype(np.asarray(volume.data), dtype)
    header, affine = _header(data, volume.affine)
    reread: list[Volume] = []

    def verify(tmp: Path) -> None:
        reread.append(_verified(tmp, data, affine))

    with atomic_path(path, verify=verify) as tmp, open(tmp, "xb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                _write_stream(packed, header, data)
        else:
            _write_stream(file, header, data)
    return Volume(reread[0].data, reread[0].affine, dict(volume.source), list(volume.findings))


def _check_writable(volume: Volume) -> None:
    problem = affine_problem(volume.affine)
    if problem is not None:
        raise StoreError("the volume has no usable place in the world", got=problem)
    shape = np.shape(volume.data)
    if len(shape) not in (3, 4) or 0 in shape:
        raise StoreError(
            "the volume has no usable shape", expected="(I, J, K) or (I, J, K, T)", got=str(shape)
        )


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = array.reshape(-1, order="F")
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def _as_dtype(data: NDArray[Any], dtype: str | None) -> NDArray[Any]:
    """Return the values in the type to store, in Fortran order, or refuse to change them."""
    name = dtype or _STORED_AS.get(data.dtype.name, data.dtype.newbyteorder("=").name)
    if name not in _NAMES:
        raise UsageError(
            "the voxels cannot be stored as this type",
            expected=", ".join(_NAMES),
            got=repr(name),
            hint="set dtype to one of them",
        )
    target = np.dtype(name)
    flat = data.reshape(-1, order="F")
    if flat.dtype != target or target.kind in "fc":
        for block in _blocks(flat):
            _require_fit(block, target)
    return flat.astype(target, copy=False).reshape(data.shape, order="F")


def _require_fit(block: NDArray[Any], target: np.dtype[Any]) -> None:
    """Refuse NaN, values out of range, and values that a whole number cannot hold."""
    if block.dtype.kind in "fc" and not np.isfinite(block).all():
        raise StoreError(
            "the volume holds NaN or infinite voxels",
            hint="replace them in a step before saving; where they come from is the question",
        )
    if block.dtype.kind == "c" and target.kind != "c":
        raise _misfit(target, "complex numbers", "save as complex64, or take the magnitude first")
    if target.kind in "iu":
        info = np.iinfo(target)
        if block.dtype.kind == "f" and not np.array_equal(block, np.rint(block)):
            hint = "save as float32, or round in a step before saving"
            raise _misfit(target, "values that are not whole numbers", hint)
        low, high = block.min().item(), block.max().item()
        if low < info.min or high > info.max:
            raise _misfit(target, f"values from {low:g} to {high:g}", "save as a wider type")
        return
    with np.errstate(over="ignore", invalid="ignore"):
        stored = block.astype(target)
        exact = block.dtype.kind not in "iu" or np.array_equal(stored.astype(block.dtype), block)
    if not np.isfinite(stored).all():
        raise _misfit(target, "values beyond its range", "save as float64")
    if not exact:
        raise _misfit(target, "integers it cannot hold exactly", "save as an integer type")


def _misfit(target: np.dtype[Any], got: str, hint: str) -> StoreError:
    return StoreError(f"the voxels do not fit {target.name}", got=got, hint=hint)


def _header(data: NDArray[Any], affine: Affine) -> tuple[bytes, Affine]:
    """Return the header bytes up to the first voxel and the affine as they hold it."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    kind = Nifti1Header if max(data.shape) <= _MAX_DIM_1 else Nifti2Header
    header = kind(endianness="<")
    header["datatype"] = next(c for c, name in DATATYPES.items() if name == data.dtype.name)
    header["bitpix"] = data.dtype.itemsize * 8
    header.set_data_shape(data.shape)
    header.set_xyzt_units(xyz="mm")
    header["scl_slope"], header["scl_inter"] = 1, 0
    first = 352 if kind is Nifti1Header else 544
    header["vox_offset"] = first
    header["magic"] = b"n+1" if kind is Nifti1Header else b"n+2"
    header.set_qform(affine, code=_XFORM_ALIGNED)  # also sets pixdim
    header.set_sform(affine, code=_XFORM_ALIGNED)
    stored = header.get_sform()
    if not _is_close(header.get_qform(), stored, data.shape[:3]):
        header["qform_code"] = 0  # it cannot hold a shear
    return header.binaryblock + b"\0\0\0\0", stored


def _is_close(a: Affine, b: Affine, shape: tuple[int, ...]) -> bool:
    return bool(np.isfinite(a).all()) and same_place(a, b, shape)


def _write_stream(file: BinaryIO | gzip.GzipFile, header: bytes, data: NDArray[Any]) -> None:
    file.write(header)
    for block in _blocks(data):
        little = block.astype(block.dtype.newbyteorder("<"), copy=False)
        file.write(np.ascontiguousarray(little).view(np.uint8).data)


def _verified(tmp: Path, data: NDArray[Any], affine: Affine) -> Volume:
    """Read the temporary file as any later reader will, and compare everything."""
    try:
        read = read_nifti(tmp, ndim=data.ndim, max_bytes=1 << 62, max_ratio=math.inf)
    except MedpipeError as error:
        raise StoreError(
            "a written file could not be read back", got=error.what, hint="check the disk"
        ) from error
    equal = read.data.dtype == data.dtype and read.data.shape == data.shape
    if not (equal and np.array_equal(read.affine, affine)):
        raise StoreError("a written file reads back with another header", hint="check the disk")
    if not all(
        np.array_equal(a, b) for a, b in zip(_blocks(read.data), _blocks(data), strict=True)
    ):
        raise StoreError("a written file reads back with other voxels", hint="check the disk")
    return read
