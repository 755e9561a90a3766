"""NIfTI in and out: `read_nifti` is strict, `write_nifti` verifies what it wrote."""

from __future__ import annotations

from medpipe.io.nifti_read import read_nifti
from medpipe.io.nifti_write import write_nifti

__all__ = ["read_nifti", "write_nifti"]
