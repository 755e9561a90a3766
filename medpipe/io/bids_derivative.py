"""The outputs of a run, laid out as a BIDS derivative dataset."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medpipe import __version__
from medpipe.errors import InputError, UsageError
from medpipe.io.atomic import atomic_path, write_json_atomic
from medpipe.io.bids import parse_name

__all__ = ["BIDS_VERSION", "DerivativeReport", "export_derivative", "place_file"]

BIDS_VERSION: Final = "1.10.0"

_DATATYPE: Final = {
    **dict.fromkeys(("bold", "sbref", "cbv"), "func"),
    **dict.fromkeys(("dwi",), "dwi"),
    **dict.fromkeys(("pet",), "pet"),
    **dict.fromkeys(("asl", "m0scan"), "perf"),
    **dict.fromkeys(("ct", "CT"), "ct"),
}

_MAPS: Final = frozenset(
    [
        *("T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "PDT2map"),
        *("M0map", "S0map", "MTRmap", "MTVmap", "MTsat", "MWFmap", "UNIT1", "Chimap"),
        *("TB1map", "RB1map"),
    ]
)
"""Suffixes of quantitative maps: a file of that name is one, whatever the case is called."""

_FIELD_MAPS: Final = frozenset(["TB1map", "RB1map"])


@dataclass(frozen=True, slots=True)
class DerivativeReport:
    """What `export_derivative` placed.

    Attributes
    ----------
    cases, files : int
    left_out : int
        Cases of the run that are not finished.
    """

    cases: int
    files: int
    left_out: int


def export_derivative(
    out_run: str | os.PathLike[str],
    bids_out: str | os.PathLike[str],
    *,
    source: str | None = None,
) -> DerivativeReport:
    """Lay out the finished cases of a run as a BIDS derivative dataset.

    Each output becomes ``sub-X/[ses-Y/]<datatype>/sub-X[_ses-Y][_…]_desc-<workflow>_<suffix>``
    and its extension: a hard link where the file system can, else a copy. The
    suffix of a label map is ``dseg``; that of a volume comes from the case id,
    where that is a BIDS name, else from the name of the file, as for tables and
    documents. When two outputs of a case, or the sidecar of one, would have one name,
    the name of the file is added to ``desc``. BIDS takes a file in JSON for a sidecar,
    so a table in JSON has none: its provenance stays in the run.
    Doing it again brings the dataset up to date.

    Parameters
    ----------
    out_run : path
        Output folder of a run, with ``cases/``.
    bids_out : path
        Folder of the derivative dataset; made if absent.
    source : str, optional
        URL or relative path of the source dataset for ``SourceDatasets`` and for
        the links of BIDS in ``Sources``.

    Raises
    ------
    UsageError
        If `bids_out` is another kind of dataset, or two cases have one name.
    InputError
        If `out_run` holds no cases, or they were made by several workflows.
    """
    out_run, bids_out = Path(out_run), Path(bids_out)
    records, left_out = _finished(out_run)
    _check_target(bids_out)
    placed: dict[Path, str] = {}
    files: list[tuple[Path, Path]] = []
    for folder, record in records:
        for target, file in _targets(record):
            if placed.setdefault(target, record["case_id"]) != record["case_id"]:
                raise UsageError(
                    "two cases would have the same BIDS name",
                    where=f"cases {placed[target]} and {record['case_id']}",
                    hint="give case ids of the form sub-<label>_ses-<label>",
                )
            files.append((folder / file, bids_out / target))
    # First, so that a tree that is cut short is not taken for a raw dataset.
    bids_out.mkdir(parents=True, exist_ok=True)
    workflow = records[0][1]["workflow"] if records else {}
    write_json_atomic(bids_out / "dataset_description.json", _description(workflow, source))
    for source_file, target in files:
        _place(source_file, target)
    return DerivativeReport(len(records), len(placed), left_out)


def _finished(out_run: Path) -> tuple[list[tuple[Path, dict[str, Any]]], int]:
    """Return folder and record of every finished case, and the number of the others."""
    folders = sorted(p.parent for p in out_run.glob("cases/*/case.json"))
    if not folders:
        raise InputError("the run has no cases", expected="cases/<case_id>/case.json")
    done, others = [], 0
    for folder in folders:
        record = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        if record["status"] == "done":
            done.append((folder, record))
        else:
            others += 1
    digests = {record["workflow"]["digest"] for _, record in done}
    if len(digests) > 1:
        raise InputError(
            "the cases were made by different workflows or versions of one",
            got=f"{len(digests)}",
            hint="run the workflow again, so that all cases are of one version",
        )
    return done, others


def _check_target(bids_out: Path) -> None:
    """Refuse a folder that is a raw dataset."""
    description = bids_out / "dataset_description.json"
    kind = "derivative"
    if description.exists():
        with contextlib.suppress(ValueError, AttributeError, OSError):
            kind = json.loads(description.read_text(encoding="utf-8")).get("DatasetType", "raw")
    elif any(bids_out.glob("sub-*")):
        kind = "raw"
    if kind != "derivative":
        raise UsageError(
            "the output folder is a raw BIDS dataset",
            expected="a folder of its own",
            hint="write to <dataset>/derivatives/medpipe-<workflow>",
        )


def _targets(record: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield relative target and file of every output of a case."""
    entities, suffix = _naming(record["case_id"])
    desc = _label(record["workflow"]["name"])
    outputs = [(o["file"], o.get("makes", "volume")) for o in record["outputs"]]
    ends = [_end(file, makes, suffix) for file, makes in outputs]
    datatype = _DATATYPE.get(suffix or "", "anat")
    folder = Path(f"sub-{entities['sub']}")
    if "ses" in entities:
        folder /= f"ses-{entities['ses']}"
    head = "_".join(f"{k}-{v}" for k, v in entities.items() if k != "desc")
    for (file, _), end, more in zip(outputs, ends, _told_apart(outputs, ends), strict=True):
        place = "fmap" if end in _FIELD_MAPS else datatype
        yield folder / place / f"{head}_desc-{desc}{more}_{end}{_extension(file)}", file


def _told_apart(outputs: list[tuple[str, str]], ends: list[str]) -> list[str]:
    """Return what is added to ``desc`` of each output, so that none takes a name of another."""
    first = [_companion(file, makes) for file, makes in outputs]
    names = [
        _names(more, end, _extension(f))
        for more, (f, _), end in zip(first, outputs, ends, strict=True)
    ]
    taken: set[str] = set()
    added = []
    for place, ((file, _), end) in enumerate(zip(outputs, ends, strict=True)):
        others = set().union(*names[:place], *names[place + 1 :])
        stem = _capital(_stem(file)) if names[place] & others else first[place]
        more, number = stem, 1
        while (mine := _names(more, end, _extension(file))) & taken:
            number += 1
            more = f"{stem}{number}"
        taken |= mine
        added.append(more)
    return added


def _names(more: str, end: str, extension: str) -> set[str]:
    """Return the names that an output and its sidecar take, as far as outputs differ in them."""
    return {f"{more}_{end}{extension}", f"{more}_{end}.json"}


def _end(file: str, makes: str, suffix: str | None) -> str:
    """Return the suffix of an output; a mesh or a table of a T1w is no T1w."""
    if makes == "labels":
        return "dseg"
    kind = file.partition(".")[0].partition("-")[0]
    if makes == "volume" and kind in _MAPS:
        return kind
    return _stem(file) if makes in ("document", "table") else suffix or _stem(file)


def _companion(file: str, makes: str) -> str:
    """Return what a file of a map has in its name besides the suffix: ``Error``."""
    kind, _, more = file.partition(".")[0].partition("-")
    return _capital(_label(more)) if makes == "volume" and kind in _MAPS and more else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _naming(case_id: str) -> tuple[dict[str, str], str | None]:
    """Return entities and suffix that a case id stands for."""
    parsed = parse_name(f"{case_id}_none")
    if parsed:
        return parsed[0], None
    parsed = parse_name(case_id)
    if parsed and not parsed[2]:
        return parsed[0], parsed[1]
    return {"sub": _label(case_id)}, None


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text) or "x"


def _stem(file: str) -> str:
    return _label(file.partition(".")[0])


def _extension(file: str) -> str:
    return "".join(file.partition(".")[1:])


def _place(source: Path, target: Path) -> None:
    """Put an output and its sidecar into the dataset; a table in JSON can have none there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place_file(source, target)
    sidecar = source.with_name(source.name + ".json")
    name = target.name.removesuffix(_extension(target.name)) + ".json"
    if sidecar.exists() and name != target.name:
        place_file(sidecar, target.with_name(name))


def place_file(source: Path, target: Path, *, durable: bool = True) -> None:
    """Make `target` the same file as `source`, or a copy on another file system."""
    with atomic_path(target, durable=durable) as tmp:
        try:
            os.link(os.path.realpath(source), tmp)  # of a link, what it leads to
        except OSError:
            shutil.copyfile(source, tmp)


def _description(workflow: dict[str, Any], source: str | None) -> dict[str, Any]:
    name = workflow.get("name", "")
    version, digest = workflow.get("version", ""), workflow.get("digest", "")
    text = f"workflow {name}, version {version}, digest {digest}"
    return {
        "Name": f"medpipe {name}".strip(),
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medpipe", "Version": __version__, "Description": text}],
        # the sidecars of maps name what they were made from as bids:inputs:<case>/<input>
        **({"SourceDatasets": [{"URL": source}]} if source else {}),
        **({"DatasetLinks": {"inputs": source}} if source else {}),
    }
