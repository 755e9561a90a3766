"""`medpipe doctor`: is this machine ready, is this run folder sound?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

from medpipe.cli.output import print_json, print_table
from medpipe.report.text import bytes_text

__all__ = ["doctor"]

_REQUIRED = ("torch", "monai", "nibabel", "pydicom", "SimpleITK", "scikit-image", "networkx")
_OPTIONAL = {
    "python-gdcm": ("gdcm", "compressed DICOM", "dicom"),
    "highdicom": ("highdicom", "DICOM SEG and SR output", "dicom"),
    "distributed": ("distributed", "the dask executor", "dask"),
    "pyarrow": ("pyarrow", "Parquet manifests", "parquet"),
}
_FLOORS = {"monai": (1, 6), "pydicom": (3, 0, 2), "torch": (2, 6)}


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    state: str  # "ok", "note" or "bad"
    detail: str
    hint: str = ""


def _version_tuple(text: str) -> tuple[int, ...]:
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _packages() -> list[_Check]:
    checks = []
    for name in _REQUIRED:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            checks.append(_Check(name, "bad", "not installed", "pip install -c constraints.txt ."))
            continue
        floor = _FLOORS.get(name)
        if floor and _version_tuple(version) < floor:
            wanted = ".".join(map(str, floor))
            checks.append(
                _Check(name, "bad", f"{version} has known security faults", f"need ≥ {wanted}")
            )
        else:
            checks.append(_Check(name, "ok", version))
    for name, (module, purpose, extra) in _OPTIONAL.items():
        if util.find_spec(module) is None:
            checks.append(
                _Check(
                    name, "note", f"absent; needed for {purpose}", f"pip install medpipe[{extra}]"
                )
            )
        else:
            checks.append(_Check(name, "ok", f"{metadata.version(name)} ({purpose})"))
    if util.find_spec("itk") is not None:
        checks.append(
            _Check(
                "itk",
                "note",
                "installed: MONAI's own LoadImage then reads DICOM folders through it",
                "medpipe does not use it; pip uninstall itk if nothing else does",
            )
        )
    return checks


def _machine() -> list[_Check]:
    checks = [
        _Check("python", "ok" if sys.version_info >= (3, 11) else "bad", platform.python_version()),
        _Check("cores", "ok", str(os.cpu_count())),
    ]
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        checks.append(
            _Check(
                "memory",
                "ok" if memory > 8e9 else "note",
                bytes_text(memory),
                "" if memory > 8e9 else "a thin-slice head CT takes about 4 GB per worker",
            )
        )
    except (ValueError, OSError):  # not every system says
        pass
    return checks


def _gpu() -> list[_Check]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return [_Check("GPU", "note", "none visible; every workflow runs on the CPU")]
    checks = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        detail = (
            f"{torch.cuda.get_device_name(index)}, {bytes_text(free)} of {bytes_text(total)} free"
        )
        checks.append(_Check(f"GPU {index}", "ok", detail))
    return checks


def _folder(out: Path) -> list[_Check]:
    from medpipe.cli.report import require_run_folder
    from medpipe.engine.store import Store

    require_run_folder(out)
    usage = shutil.disk_usage(out)
    checks = [
        _Check(
            "disk",
            "ok" if usage.free > 10e9 else "note",
            f"{bytes_text(usage.free)} free where {out} lies",
        )
    ]
    store = Store(out)
    sound = damaged = 0
    for key, problem in store.verify():
        if problem is None:
            sound += 1
        else:
            damaged += 1
            checks.append(
                _Check(f"object {key[:12]}", "bad", problem, "delete this object and run again")
            )
    checks.append(
        _Check("store", "bad" if damaged else "ok", f"{sound} objects sound, {damaged} damaged")
    )
    return checks


def doctor(out: Path | None = None, /, *, json: bool = False) -> int:
    """Check packages, memory and GPUs; with a run folder, re-hash every stored result.

    Exit code 0 if all is well, 3 if something is bad.

    Parameters
    ----------
    out : Path, optional
        Output folder of earlier runs whose store is verified.
    json : bool
        Print JSON for a program.
    """
    checks = _machine() + _packages() + _gpu()
    if out is not None:
        checks += _folder(out)
    if json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(
            ("", "what", "found", "next"), [(c.state, c.name, c.detail, c.hint) for c in checks]
        )
    return 3 if any(c.state == "bad" for c in checks) else 0
