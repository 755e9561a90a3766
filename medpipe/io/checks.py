"""The checks a NIfTI file must pass, as small functions with a severity and a named repair.

Each check looks at one thing and returns a `Finding` or None. An ERROR refuses
the file unless its repair was asked for by name, ``fixes=["nifti.zero_pixdim"]``;
the finding is then kept with ``fixed=True``. `REPAIRS` lists every repair.
What the checks of orientation need is in `medpipe.io.nifti_space`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, UsageError
from medpipe.types import Finding, Severity

__all__ = [
    "DATATYPES",
    "REPAIRS",
    "Head",
    "check_bitpix",
    "check_constant",
    "check_datatype",
    "check_dims",
    "check_extension",
    "check_ndim",
    "check_scl_slope",
    "check_vox_offset",
    "check_voxels_finite",
    "refuse",
    "require_known_fixes",
    "settle",
]

REPAIRS: dict[str, str] = {
    "nifti.affine_finite": "the other of sform and qform is used",
    "nifti.affine_singular": "the other of sform and qform is used",
    "nifti.affine_spacing": "the other of sform and qform is used",
    "nifti.bitpix": "the size that belongs to the data type is used",
    "nifti.extension": "the extensions are skipped",
    "nifti.ndim": "axes of length one are dropped or added at the end",
    "nifti.negative_pixdim": "the absolute value is used",
    "nifti.pixdim_finite": "the spacing of the sform is used, 1 mm without one",
    "nifti.qform_quaternion": "the sform is used",
    "nifti.scl_slope": "slope and intercept are ignored",
    "nifti.sform_qform_disagree": "the sform is used",
    "nifti.trailing_bytes": "what follows the voxels is ignored",
    "nifti.units": "millimetres are assumed",
    "nifti.voxels_finite": "NaN and infinite voxels become 0",
    "nifti.xform_code": "the code is taken as 0, unknown",
    "nifti.zero_pixdim": "the spacing of the sform is used, 1 mm without one",
}
"""Name of each repair → what it does to the volume."""

DATATYPES: dict[int, str] = {
    2: "uint8",
    4: "int16",
    8: "int32",
    16: "float32",
    32: "complex64",
    64: "float64",
    256: "int8",
    512: "uint16",
    768: "uint32",
    1024: "int64",
    1280: "uint64",
    1792: "complex128",
}
"""NIfTI data type code → numpy name, for every type a volume may have."""

_REFUSED_DATATYPES = {
    0: "an unknown type",
    1: "one bit per voxel",
    128: "RGB colour",
    1536: "128-bit floating point",
    2048: "256-bit complex",
    2304: "RGBA colour",
}
MAX_HEADER_BYTES = 64 << 20
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """The header fields that decide about the volume, in native Python numbers.

    `nib` is the nibabel header they come from. Free texts are never read.
    """

    nib: Any
    version: int
    dim: tuple[int, ...]
    pixdim: tuple[float, ...]
    datatype: int
    bitpix: int
    vox_offset: float
    scl_slope: float
    scl_inter: float
    xyzt_units: int
    qform_code: int
    sform_code: int

    @classmethod
    def of(cls, nib: Any, version: int) -> Head:
        """Read the fields out of a nibabel NIfTI-1 or NIfTI-2 header."""
        return cls(
            nib=nib,
            version=version,
            dim=tuple(int(d) for d in nib["dim"]),
            pixdim=tuple(float(p) for p in nib["pixdim"]),
            datatype=int(nib["datatype"]),
            bitpix=int(nib["bitpix"]),
            vox_offset=float(nib["vox_offset"]),
            scl_slope=float(nib["scl_slope"]),
            scl_inter=float(nib["scl_inter"]),
            xyzt_units=int(nib["xyzt_units"]),
            qform_code=int(nib["qform_code"]),
            sform_code=int(nib["sform_code"]),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes, valid once `check_dims` has passed."""
        return self.dim[1 : 1 + self.dim[0]]

    @property
    def header_bytes(self) -> int:
        """Where extensions start: behind the header and its four extender bytes."""
        return 352 if self.version == 1 else 544


def require_known_fixes(fixes: Sequence[str]) -> None:
    """Raise UsageError for a repair that does not exist, with the nearest name that does."""
    if isinstance(fixes, str):
        raise UsageError(
            "fixes must be a list of names", got=repr(fixes), hint=f"write fixes=[{fixes!r}]"
        )
    for fix in fixes:
        if fix not in REPAIRS:
            near = difflib.get_close_matches(str(fix), REPAIRS, n=1, cutoff=0.4)
            raise UsageError(
                "there is no such repair",
                got=repr(fix),
                hint=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(REPAIRS)}",
            )


def settle(findings: Iterable[Finding | None], fixes: Sequence[str]) -> list[Finding]:
    """Drop the empty results and mark as fixed what `fixes` names and a repair exists for."""
    found = [f for f in findings if f is not None]
    return [replace(f, fixed=True) if f.fix is not None and f.fix in fixes else f for f in found]


def refuse(findings: Sequence[Finding]) -> None:
    """Raise InputError for the first ERROR that is not fixed, naming the repair it has."""
    errors = [f for f in findings if f.severity >= Severity.ERROR and not f.fixed]
    if not errors:
        return
    first = errors[0]
    others = sorted({f.check for f in errors[1:]} - {first.check})
    what = first.message.rstrip(".") + f" ({first.check}" + (", also " if others else "")
    if first.fix == "assume_orientation":
        hint = 'assume_orientation="qform", or axis codes such as "RAS" if you know them'
    elif first.fix is not None:
        hint = f'fixes=["{first.fix}"], then {REPAIRS[first.fix]}'
    else:
        hint = "there is no safe repair; export or convert the image again from its source"
    raise InputError(what + ", ".join(others) + ")", hint=hint)


def error(check: str, message: str, *, fixable: bool = True) -> Finding:
    """Make an ERROR whose repair, if any, has the name of the check."""
    return Finding(check, Severity.ERROR, message, check if fixable else None)


def check_dims(head: Head) -> Finding | None:
    """1 to 7 axes, each at least one voxel long."""
    n = head.dim[0]
    if not 1 <= n <= 7:
        return error("nifti.dims", f"the header claims {n} axes, NIfTI has 1 to 7", fixable=False)
    if min(head.shape) < 1:
        text = " × ".join(str(d) for d in head.shape)
        return error("nifti.dims", f"the header claims a grid of {text} voxels", fixable=False)
    return None


def check_ndim(head: Head, allowed: Sequence[int]) -> Finding | None:
    """As many axes as the caller takes; a last axis of length one is not dropped silently."""
    if len(head.shape) in allowed:
        return None
    text = " × ".join(str(d) for d in head.shape)
    want = " or ".join(str(n) for n in allowed)
    message = f"the image has {len(head.shape)} axes ({text}), expected {want}"
    return error("nifti.ndim", message, fixable=fit_shape(head.shape, allowed) is not None)


def fit_shape(shape: tuple[int, ...], allowed: Sequence[int]) -> tuple[int, ...] | None:
    """Return `shape` with axes of length one dropped or added at its end to fit, else None."""
    if len(shape) in allowed:
        return shape
    core = shape
    while len(core) > 1 and core[-1] == 1:
        core = core[:-1]
    fitting = [n for n in sorted(allowed) if n >= len(core)]
    return core + (1,) * (fitting[0] - len(core)) if fitting else None


def check_datatype(head: Head) -> Finding | None:
    """Integers, floats and complex numbers; no colour, no platform-dependent types."""
    if head.datatype in DATATYPES:
        return None
    name = _REFUSED_DATATYPES.get(head.datatype, f"the undefined code {head.datatype}")
    message = f"the voxels have a data type that medpipe does not take: {name}"
    return error("nifti.datatype", message, fixable=False)


def check_bitpix(head: Head) -> Finding | None:
    """The number of bits belongs to the data type."""
    want = np.dtype(DATATYPES[head.datatype]).itemsize * 8
    if head.bitpix == want:
        return None
    name = DATATYPES[head.datatype]
    return error("nifti.bitpix", f"the header claims {head.bitpix} bits for {name} voxels")


def check_vox_offset(head: Head) -> Finding | None:
    """The voxels start behind the header, at a whole byte, not megabytes away."""
    at, first = head.vox_offset, head.header_bytes
    if math.isfinite(at) and at == int(at) and first <= at <= MAX_HEADER_BYTES:
        return None
    message = f"the voxels are said to start at byte {at:g}, not at {first} or soon after"
    return error("nifti.vox_offset", message, fixable=False)


def check_extension(head: Head, tail: bytes) -> Finding | None:
    """The header extensions chain up to the voxels.

    Parameters
    ----------
    head : Head
    tail : bytes
        From the extender flag (four bytes before `head.header_bytes`) to the voxels.

    Notes
    -----
    Extensions may hold anything about a patient: their content is never read.
    """
    if len(tail) < 4 or tail[0] == 0:
        return None
    order: Literal["big", "little"] = "big" if head.nib.endianness == ">" else "little"
    position, count = 4, 0
    while position + 8 <= len(tail):
        size = int.from_bytes(tail[position : position + 4], order, signed=True)
        if size == 0 and not any(tail[position:]):
            break  # padding behind the last extension
        if size < 16 or position + size > len(tail):
            return error(
                "nifti.extension", f"header extension {count + 1} claims a size of {size} bytes"
            )
        position += size
        count += 1
    message = f"{count} header extension(s) were skipped unread"
    return Finding("nifti.extension", Severity.INFO, message)


def check_scl_slope(head: Head) -> Finding | None:
    """Slope and intercept are usable, or both say that there is no scaling."""
    slope, inter = head.scl_slope, head.scl_inter
    if slope != 0 and math.isfinite(slope) and math.isfinite(inter):
        return None
    # Writers that store unscaled voxels leave 0/0, NaN/NaN or NaN/0 here.
    if (slope == 0 or math.isnan(slope)) and (inter == 0 or math.isnan(inter)):
        return None
    message = f"the intensity scaling is undefined: slope {slope:g}, intercept {inter:g}"
    return error("nifti.scl_slope", message)


def _blocks(data: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = data.reshape(-1, order="A")
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def check_voxels_finite(data: NDArray[Any]) -> Finding | None:
    """No voxel is NaN or infinite."""
    if data.dtype.kind not in "fc":
        return None
    bad = data.size - sum(int(np.isfinite(block).sum()) for block in _blocks(data))
    if not bad:
        return None
    percent = f"{100 * bad / data.size:.3g} %" if bad < data.size else "all"
    message = f"{percent} of the voxels ({bad}) are NaN or infinite"
    return error("nifti.voxels_finite", message, fixable=bad < data.size)


def check_constant(data: NDArray[Any]) -> Finding | None:
    """Not every voxel has the same value."""
    value = data.flat[0]
    if any((block != value).any() for block in _blocks(data)):
        return None
    return Finding("nifti.constant", Severity.WARNING, "every voxel has the same value")
