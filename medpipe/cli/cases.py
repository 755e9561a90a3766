"""From what the user points at to cases: a manifest, one file, one folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medpipe.errors import UsageError
from medpipe.io.bids import bids_sessions
from medpipe.io.case import Case
from medpipe.io.detect import holds_dicom
from medpipe.workflow.compiled import CompiledWorkflow

__all__ = ["find_cases", "require_apart"]

# Spreadsheets and tables of other kinds are read as manifests, to be told what to save them as.
_MANIFESTS = {".csv", ".tsv", ".parquet", ".xlsx", ".xls", ".ods"}
_NIFTI = (".nii", ".nii.gz")


def find_cases(
    source: Path, workflow: CompiledWorkflow, *, case_id: str | None = None
) -> list[Case]:
    """Return the cases that `source` stands for.

    Parameters
    ----------
    source : Path
        A manifest (.csv, .parquet); or one NIfTI or DICOM file; or a folder:
        with DICOM files it is one case, with NIfTI files alone each of them is
        a case, numbered in sorted order. For an input of kind ``images`` a
        folder is one case, a BIDS dataset one case per subject and session; for
        one of kind ``folder`` it is always one.
    workflow : CompiledWorkflow
        Names the inputs.
    case_id : str, optional
        The id for a single case. File names may hold patient names, so they
        are never used.

    Raises
    ------
    UsageError
        If `source` is absent, or the workflow needs a manifest.
    ManifestError
        With every problem of the manifest.
    """
    if not source.exists():
        raise UsageError("no such file or folder", got=str(source))
    if source.is_file() and source.suffix.lower() in _MANIFESTS:
        from medpipe.io.manifest import read_manifest

        optional = [name for name, spec in workflow.inputs.items() if spec.optional]
        return read_manifest(source, inputs=list(workflow.inputs), optional=optional)
    name = _single_input(workflow)
    if workflow.inputs[name].as_images:
        sets = workflow.inputs[name].kind == "images"
        return _image_sets(source, name, case_id) if sets else [_whole(source, name, case_id)]
    if source.is_dir() and (images := _nifti_files(source)) and not holds_dicom(source):
        width = max(4, len(str(len(images))))
        return [
            Case(f"case{number:0{width}d}", {name: str(path)})
            for number, path in enumerate(images, start=1)
        ]
    return [_whole(source, name, case_id)]


def require_apart(out: Path, source: Path, cases: Iterable[Case]) -> None:
    """Raise UsageError if `out` lies in a folder that is read as input.

    Results would change the input while it is read, and be taken for images in
    the next run.
    """
    here = {str(folder) for folder in (out.resolve(), *out.resolve().parents)}
    read = (path for case in cases for path in case.inputs.values())
    if (source.is_dir() and str(source.resolve()) in here) or not here.isdisjoint(read):
        raise UsageError(
            "the output folder lies within a folder of input images",
            got=str(out),
            hint="name a folder beside the images",
        )


def _image_sets(source: Path, name: str, case_id: str | None) -> list[Case]:
    """Return the cases of a workflow whose input is a set of weighted images."""
    if source.is_dir() and any(path.is_dir() for path in source.glob("sub-*")):
        cases, left_out = bids_sessions(source, name)
        if not cases:
            raise UsageError(
                "no subject of the BIDS dataset has a folder of images",
                expected="sub-<label>/[ses-<label>/]anat",
                got=f"{len(left_out)} without",
            )
        return cases
    return [_whole(source, name, case_id)]


def _whole(source: Path, name: str, case_id: str | None) -> Case:
    return Case(case_id or "case0001", {name: str(source.resolve())})


def _single_input(workflow: CompiledWorkflow) -> str:
    required = [name for name, spec in workflow.inputs.items() if not spec.optional]
    if len(required) != 1:
        raise UsageError(
            f"{workflow.name} takes {len(required)} inputs ({', '.join(required)})",
            hint="give a manifest with one column for each: medpipe manifest scan DIR CASES.csv",
        )
    return required[0]


def _nifti_files(folder: Path) -> list[Path]:
    return sorted(
        path.resolve()
        for path in folder.rglob("*")
        if path.name.lower().endswith(_NIFTI) and not path.name.startswith(".") and path.is_file()
    )
