"""`medpipe report`: pictures and tables of what a run made."""

from __future__ import annotations

from pathlib import Path

__all__ = ["report"]


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

    print(build_report(out, page_size=page_size))
    return 0
