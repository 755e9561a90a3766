"""medpipe: medical imaging research pipelines, from DICOM to report.

Importing this package imports nothing else. The names below are loaded when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "InputError": "medpipe.errors",
    "MedpipeError": "medpipe.errors",
    "Volume": "medpipe.types",
    "read_dicom_series": "medpipe.io.dicom_series",
    "read_nifti": "medpipe.io.nifti",
    "scan_series": "medpipe.io.dicom_series",
    "write_nifti": "medpipe.io.nifti",
}

if TYPE_CHECKING:
    from medpipe.errors import InputError, MedpipeError
    from medpipe.io.dicom_series import read_dicom_series, scan_series
    from medpipe.io.nifti import read_nifti, write_nifti
    from medpipe.types import Volume

__all__ = [
    "InputError",
    "MedpipeError",
    "Volume",
    "__version__",
    "read_dicom_series",
    "read_nifti",
    "scan_series",
    "write_nifti",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
