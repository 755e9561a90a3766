"""`medpipe manifest`: lists of cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from medpipe.cli.output import console, print_json, print_table
from medpipe.errors import UsageError

__all__ = ["app"]

app = App(
    name="manifest",
    help="""Make lists of cases from folders, and look at what a folder holds.

A manifest is a CSV with one row per case: case_id, patient_id, one column per
input of the workflow, and any further columns the study needs.""",
    help_format="markdown",
    default_parameter=Parameter(negative=()),
)


@app.command
def scan(
    folder: Path,
    csv: Path,
    /,
    *,
    kind: Literal["auto", "dicom", "bids", "nifti"] = "auto",
    workflow: str | None = None,
    input_name: str | None = None,
    modality: str | None = None,
    min_slices: int | None = None,
    max_thickness_mm: float | None = None,
    orientation: Literal["axial", "coronal", "sagittal"] | None = None,
    contrast: Annotated[bool | None, Parameter(negative="--no-contrast")] = None,
    most_slices: bool = False,
    pseudonym_key: Path | None = None,
    json: bool = False,
) -> int:
    """Write a manifest of everything below a folder: DICOM tree, BIDS dataset or NIfTI files.

    Ids are made up (p0001_s01); nothing from a DICOM header that could name a
    patient is written. The paths in the manifest are yours: keep it where the
    images are.

    Example: `medpipe manifest scan hospital/ cases.csv --workflow head-ct-prepare --modality CT`

    Parameters
    ----------
    folder : Path
        The folder to scan.
    csv : Path
        The manifest to write.
    kind : {"auto", "dicom", "bids", "nifti"}
        What the folder holds.
    workflow : str, optional
        Take the name of the input column from this workflow. If its input is a set of weighted
        images, a BIDS dataset gives one row per subject and session.
    input_name : str, optional
        Name of the input column (default: image).
    modality : str, optional
        Take series of this modality alone, e.g. CT.
    min_slices : int, optional
        Take series of at least so many slices.
    max_thickness_mm : float, optional
        Take series of slices no thicker than this.
    orientation : {"axial", "coronal", "sagittal"}, optional
        Take series of this orientation alone.
    contrast : bool, optional
        Take series with contrast agent alone, or those without.
    most_slices : bool
        Of each study take the series with the most slices.
    pseudonym_key : Path, optional
        File with a secret; ids then stay the same when the folder is scanned again.
    json : bool
        Print JSON for a program.
    """
    from medpipe.io.manifest_scan import scan_to_manifest

    own, as_images = _input_of(workflow) if workflow else ("image", False)
    input_name = input_name or own
    rules = {
        "modality": modality,
        "min_slices": min_slices,
        "slice_thickness_mm": None if max_thickness_mm is None else [0, max_thickness_mm],
        "orientation": orientation,
        "contrast": contrast,
        "most_slices": most_slices or None,
    }
    chosen = {name: value for name, value in rules.items() if value is not None}
    with _Bar() as bar:
        report = scan_to_manifest(
            folder,
            csv,
            kind=kind,
            input_name=input_name,
            rules=chosen or None,
            progress=bar,
            pseudonym_key=pseudonym_key,
            as_images=as_images,
        )
    if json:
        print_json(
            {
                "kind": report.kind,
                "manifest": str(csv),
                "cases": len(report.cases),
                "left_out": [{"what": what, "why": why} for what, why in report.left_out],
                "findings": [finding.to_dict() for finding in report.findings],
            }
        )
        return 0
    if report.left_out:
        print_table(("left out", "why"), report.left_out)
        print()
    for finding in report.findings:
        print(f"{finding.severity.name.lower()}: {finding.message}")
    if report.linked:
        print(
            f"{report.linked} series shared a folder with others; each got one of its own, of "
            f"links, in {csv.with_suffix('')}_series"
        )
    print(f"{csv}: {len(report.cases)} cases ({report.kind})")
    return 0


@app.command
def series(folder: Path, /, *, json: bool = False) -> int:
    """List the DICOM series below a folder: geometry, tilt, kernel, and what is wrong with them.

    Parameters
    ----------
    folder : Path
        The folder to scan.
    json : bool
        Print JSON for a program.
    """
    from medpipe.io.dicom_select import series_table
    from medpipe.io.dicom_series import scan_series

    with _Bar() as bar:
        found = scan_series(folder, progress=bar)
    if json:
        print_json([one.to_dict() for one in found])
        return 0
    if not found:
        raise UsageError("the folder holds no DICOM series", got=str(folder))
    console().print(series_table(found))
    for one in found:
        for problem in one.problems:
            print(f"{one.label}: {problem}")
    return 0


def _input_of(workflow: str) -> tuple[str, bool]:
    """Return the first input of a workflow and whether it is a set of images."""
    from medpipe.workflow.plan import compile_workflow

    name, spec = next(iter(compile_workflow(workflow).inputs.items()))
    return name, spec.as_images


class _Bar:
    """A bar on stderr while a folder is read; silent where no one watches."""

    def __enter__(self) -> _Bar:
        from rich.progress import Progress

        err = console(stderr=True)
        self._progress = Progress(console=err, transient=True, disable=not err.is_terminal)
        self._progress.start()
        self._task = self._progress.add_task("reading headers", total=None)
        return self

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
