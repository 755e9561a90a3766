"""`medpipe report`: pictures and tables of what a run made."""

from __future__ import annotations

from pathlib import Path

from medpipe.errors import UsageError

__all__ = ["report", "require_run_folder"]


def report(out: Path, /, *, page_size: int = 50) -> int:
    """Build the HTML report of an output folder, also while a run is going on.

    `medpipe run` does this at its end. The pages hold everything they show and
    open from disk without a network.

    Parameters
    ----------
    out : Path
        The output folder of `medpipe run`.
    page_size : int
        Cases on one page of the cohort.
    """
    from medpipe.report.build import build_report

    require_run_folder(out)
    print(build_report(out, page_size=page_size))
    return 0


def require_run_folder(out: Path) -> None:
    """Raise UsageError unless `out` is a folder that a run wrote to."""
    if not any((out / name).is_dir() for name in ("runs", "cases", "store")):
        raise UsageError(
            "there is no run in this folder" if out.is_dir() else "there is no such folder",
            got=str(out),
            hint="give the folder that `medpipe run` wrote to",
        )
