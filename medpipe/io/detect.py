"""Telling NIfTI from DICOM by content, without importing a reader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from medpipe.errors import InputError
from medpipe.io.nifti_stream import ByteStream, open_regular

__all__ = ["detect_kind", "holds_dicom", "is_dicom_file", "nifti_layout"]

_SIZES = {
    (348).to_bytes(4, "little"): (1, "<"),
    (348).to_bytes(4, "big"): (1, ">"),
    (540).to_bytes(4, "little"): (2, "<"),
    (540).to_bytes(4, "big"): (2, ">"),
}
_NIFTI2_MAGIC = b"n+2\0\r\n\x1a\n"
_OTHERS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"NRRD", "an NRRD image"),
    (b"\x89HDF", "an HDF5 or MINC file"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\x1f\x8b", "a file compressed twice"),
)


def nifti_layout(head: bytes) -> tuple[int, str]:
    """Return NIfTI version (1 or 2) and byte order ("<" or ">") of a file's first bytes.

    Parameters
    ----------
    head : bytes
        The first 348 bytes or more, decompressed.

    Raises
    ------
    InputError
        If they are not the start of a single-file NIfTI image.
    """
    layout = _SIZES.get(head[:4])
    if layout is not None and len(head) >= 348:
        magic = head[344:348] if layout[0] == 1 else head[4:12]
        if magic == (b"n+1\0" if layout[0] == 1 else _NIFTI2_MAGIC):
            return layout
        if magic[:3] in (b"ni1", b"ni2"):
            raise InputError(
                "the file is the header of a .hdr/.img pair",
                expected="a single-file NIfTI image",
                hint="join the pair into one .nii file, e.g. with `fslchfiletype NIFTI_GZ`",
            )
    raise InputError(
        "the file is not a NIfTI image", expected="a NIfTI-1 or NIfTI-2 header", got=_name(head)
    )


def _name(head: bytes) -> str:
    """Describe what the first bytes look like, in medpipe's own words."""
    if not head:
        return "an empty file"
    if head[128:132] == b"DICM":
        return "a DICOM file"
    for magic, name in _OTHERS:
        if head.startswith(magic):
            return name
    if len(head) < 348:
        return f"only {len(head)} bytes"
    if head[:4] in _SIZES:
        return "a header of the right size without the NIfTI mark (ANALYZE, or damaged)"
    return "unknown content"


def detect_kind(path: Path | str) -> Literal["nifti", "dicom"]:
    """Say which reader an input needs: a folder or a DICOM file, or a NIfTI file.

    Only content decides, never the name. At most the first 540 bytes are
    decompressed.

    Raises
    ------
    InputError
        If the path does not exist, is a pipe or device, or holds neither.
    """
    if os.path.isdir(path):
        return "dicom"
    with open_regular(path) as (file, status):
        stream = ByteStream(file, status.st_size)
        head = stream.read(540)
    try:
        nifti_layout(head)
    except InputError as error:
        if head[128:132] == b"DICM" and not stream.is_gzip:
            return "dicom"
        if error.what.endswith("pair"):
            raise
        raise InputError(
            "the input is neither NIfTI nor DICOM",
            expected="a .nii or .nii.gz file, a DICOM file or a folder of DICOM files",
            got=error.got,
            hint="convert it to NIfTI, or give the folder of the original DICOM series",
        ) from None
    return "nifti"


def is_dicom_file(path: Path | str) -> bool:
    """Say whether a file starts like DICOM; what is no regular file or cannot be read does not.

    A named pipe is not opened: it would wait for ever.
    """
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_dicom(folder: Path | str) -> bool:
    """Say whether a folder tree holds a DICOM file; reading stops at the first."""
    return any(
        is_dicom_file(os.path.join(parent, name))
        for parent, _, names in os.walk(folder)
        for name in names
    )
