"""A light scanner for BIDS datasets: names only, no file is opened.

The Brain Imaging Data Structure (https://doi.org/10.1038/sdata.2016.44) puts
what a file is into its name: ``sub-01/ses-a/anat/sub-01_ses-a_run-2_T1w.nii.gz``.
Reading these names is all that a list of cases needs, and takes seconds where
an index of every sidecar takes minutes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from medpipe.errors import InputError, UsageError
from medpipe.io.case import CASE_ID, Case

__all__ = [
    "DATATYPES",
    "BidsFile",
    "bids_cases",
    "bids_sessions",
    "parse_name",
    "query",
    "scan_bids",
]

DATATYPES: Final = frozenset(
    [
        "anat",
        "beh",
        "ct",
        "dwi",
        "eeg",
        "fmap",
        "func",
        "ieeg",
        "meg",
        "micr",
        "motion",
        "mrs",
        "nirs",
        "perf",
        "pet",
    ]
)
"""Names of the folders that hold data. ``ct`` is not in the standard yet, but in use."""

_ENTITY: Final = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)\Z", re.ASCII)
_SUFFIX: Final = re.compile(r"[A-Za-z0-9]+\Z", re.ASCII)
_IMAGES: Final = (".nii.gz", ".nii")


@dataclass(frozen=True, slots=True)
class BidsFile:
    """One file of a dataset, as its name describes it.

    Attributes
    ----------
    path : str
        Absolute.
    entities : dict
        Key → label in the order of the name: ``{"sub": "01", "run": "2"}``.
    suffix : str
        ``"T1w"``, ``"bold"``, …
    extension : str
        With its dot: ``".nii.gz"``.
    datatype : str
        ``"anat"``, ``"func"``, …
    """

    path: str
    entities: Mapping[str, str]
    suffix: str
    extension: str
    datatype: str

    @property
    def stem(self) -> str:
        """The name without extension."""
        return "_".join([*(f"{k}-{v}" for k, v in self.entities.items()), self.suffix])


def parse_name(name: str) -> tuple[dict[str, str], str, str] | None:
    """Return entities, suffix and extension of a file name, or None if it is no BIDS name.

    >>> parse_name("sub-01_run-2_T1w.nii.gz")
    ({'sub': '01', 'run': '2'}, 'T1w', '.nii.gz')
    """
    stem, dot, extension = name.partition(".")
    *parts, suffix = stem.split("_")
    entities: dict[str, str] = {}
    for part in parts:
        match = _ENTITY.match(part)
        if match is None or match[1] in entities:
            return None
        entities[match[1]] = match[2]
    if next(iter(entities), None) != "sub" or not _SUFFIX.match(suffix):
        return None
    return entities, suffix, dot + extension


def scan_bids(root: str | os.PathLike[str]) -> list[BidsFile]:
    """List the files of every subject of a BIDS dataset, sorted by path.

    Parameters
    ----------
    root : path
        The folder with the ``sub-*`` folders. ``derivatives``, ``sourcedata``
        and hidden folders are not entered.

    Raises
    ------
    InputError
        If there is no subject, or if images have names that are not BIDS or
        that name another subject or session than their folder.
    """
    top = os.path.abspath(root)
    files: list[BidsFile] = []
    wrong: Counter[int] = Counter()
    try:
        subjects = _folders(top, "sub-")
    except OSError:
        raise InputError("the BIDS dataset is not a folder that can be read") from None
    for number, subject in enumerate(subjects, start=1):
        for session in ("", *_folders(subject, "ses-")):
            wrong[number] += _scan_session(subject, session, files)
    _refuse_wrong(+wrong)
    if not subjects:
        raise InputError(
            "the folder is not a BIDS dataset",
            expected="folders named sub-<label>",
            got="none",
            hint="give the folder that holds dataset_description.json",
        )
    return files


def bids_sessions(
    root: str | os.PathLike[str],
    input_name: str,
    *,
    datatype: str = "anat",
    participant_label: Collection[str] | None = None,
    session_label: Collection[str] | None = None,
) -> tuple[list[Case], dict[str, str]]:
    """Return one case per subject and session: its folder of images, for a set of them.

    Parameters
    ----------
    root : path
        The folder with the ``sub-*`` folders.
    input_name : str
        The input that gets the folder.
    datatype : str
        Which folder of a session.
    participant_label, session_label : collection of str, optional
        Keep these alone, with or without ``sub-`` and ``ses-``.

    Returns
    -------
    cases : list of Case
        The case id is ``sub-<label>[_ses-<label>]``.
    left_out : dict
        Place in alphabetical order or case id → reason.

    Raises
    ------
    InputError
        If there is no subject.
    UsageError
        If a participant or session that was asked for is not in the dataset.
    """
    try:
        subjects = _folders(os.path.abspath(root), "sub-")
    except OSError:
        raise InputError("the BIDS dataset is not a folder that can be read") from None
    if not subjects:
        raise InputError("the folder is not a BIDS dataset", expected="folders named sub-<label>")
    found: list[tuple[str, ...]] = []
    for subject in subjects:
        sessions = _folders(subject, "ses-")
        found += [(subject, session) for session in sessions] or [(subject,)]
    for part, labels in enumerate((participant_label, session_label)):
        if labels is not None:
            found = _chosen_folders(found, part, labels)
    cases, left_out = [], {}
    for number, folders in enumerate(found, start=1):
        names = [os.path.basename(folder) for folder in folders]
        case_id, folder = "_".join(names), f"{folders[-1]}/{datatype}"
        if not CASE_ID.match(case_id):
            left_out[f"folder {number}"] = "its labels are no case id"
        elif not os.path.isdir(folder):
            left_out[case_id] = f"it has no folder {datatype}"
        else:
            cases.append(Case(case_id, {input_name: folder}, names[0]))
    return cases, left_out


def _chosen_folders(
    found: list[tuple[str, ...]], part: int, labels: Collection[str]
) -> list[tuple[str, ...]]:
    """Keep the subjects (part 0) or sessions (part 1) with one of the labels."""
    prefix = ("sub-", "ses-")[part]
    wanted = {prefix + str(label).removeprefix(prefix) for label in labels}
    names = [os.path.basename((*folders, "")[part]) for folders in found]
    known = set(names)
    if absent := sorted(wanted - known):
        raise UsageError(
            f"{len(absent)} of the {prefix} labels asked for are not in the dataset",
            got=", ".join(label.removeprefix(prefix) for label in absent[:5]),
        )
    return [folders for folders, name in zip(found, names, strict=True) if name in wanted]


def _folders(parent: str, prefix: str) -> list[str]:
    with os.scandir(parent) as entries:
        return sorted(e.path for e in entries if e.name.startswith(prefix) and e.is_dir())


def _scan_session(subject: str, session: str, files: list[BidsFile]) -> int:
    """Add the files of one session; return how many images are named wrongly."""
    expected = {"sub": os.path.basename(subject)[4:]}
    if session:
        expected["ses"] = os.path.basename(session)[4:]
    wrong = 0
    for folder in _folders(session or subject, ""):
        datatype = os.path.basename(folder)
        if datatype not in DATATYPES:
            continue
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith("."))
        for name in names:
            parsed = parse_name(name)
            if parsed is None:
                wrong += name.endswith(_IMAGES)
                continue
            entities, suffix, extension = parsed
            if {k: entities[k] for k in ("sub", "ses") if k in entities} != expected:
                wrong += 1
                continue
            files.append(BidsFile(f"{folder}/{name}", entities, suffix, extension, datatype))
    return wrong


def _refuse_wrong(wrong: Counter[int]) -> None:
    if not wrong:
        return
    first, *more = sorted(wrong)
    others = f" and {len(more)} other subjects" if more else ""
    raise InputError(
        f"{wrong.total()} files have a name that does not fit their folder",
        where=f"subject {first} in alphabetical order{others}",
        expected="sub-<label>[_ses-<label>]_..._<suffix>, with the labels of the folders above",
        hint="rename them, or move them out; a BIDS validator lists them",
    )


def query(
    files: Iterable[BidsFile],
    *,
    suffix: str | Collection[str] | None = None,
    extension: str | Collection[str] | None = None,
    datatype: str | Collection[str] | None = None,
    **entities: str | int | Collection[str | int] | None,
) -> list[BidsFile]:
    """Return the files that have every property asked for.

    Parameters
    ----------
    files : iterable of BidsFile
    suffix, extension, datatype : str or collection of str, optional
    **entities : str, int, collection of them, or None
        Labels by entity, with or without the key in front (``sub="01"`` is
        ``sub="sub-01"``). Numbers match with or without leading zeros; None
        asks for files without the entity.
    """
    plain = {"suffix": suffix, "extension": extension, "datatype": datatype}
    fixed = {k: {v} if isinstance(v, str) else set(v) for k, v in plain.items() if v is not None}
    wanted = {key: _labels(key, value) for key, value in entities.items()}

    def fits(file: BidsFile) -> bool:
        if any(getattr(file, name) not in values for name, values in fixed.items()):
            return False
        for key, labels in wanted.items():
            label = file.entities.get(key)
            if (label is not None) != (labels is not None):
                return False
            if label is not None and labels is not None and _bare(label) not in labels:
                return False
        return True

    return [file for file in files if fits(file)]


def _labels(key: str, value: str | int | Collection[str | int] | None) -> set[str] | None:
    if value is None:
        return None
    values = [value] if isinstance(value, (str, int)) else value
    return {_bare(str(v).removeprefix(f"{key}-")) for v in values}


def _bare(label: str) -> str:
    return str(int(label)) if label.isdigit() else label


def bids_cases(
    files: Iterable[BidsFile],
    inputs: Mapping[str, Mapping[str, str | int | None]],
    *,
    optional: Collection[str] = (),
    participant_label: Collection[str] | None = None,
    session_label: Collection[str] | None = None,
) -> tuple[list[Case], dict[str, str]]:
    """Return one case per subject and session, and why others are none.

    Parameters
    ----------
    files : iterable of BidsFile
    inputs : dict
        Input name → what its image is, as keywords of `query`:
        ``{"t1": {"suffix": "T1w"}}``. Only ``.nii`` and ``.nii.gz`` count.
    optional : collection of str
        Inputs that a case may lack.
    participant_label, session_label : collection of str, optional
        Keep these alone, with or without ``sub-`` and ``ses-``.

    Returns
    -------
    cases : list of Case
        The case id is ``sub-<label>[_ses-<label>]``.
    left_out : dict
        Case id → reason, in medpipe's words.

    Raises
    ------
    UsageError
        If a participant that was asked for is not in the dataset.
    """
    images = query(files, extension=_IMAGES)
    for key, labels in (("sub", participant_label), ("ses", session_label)):
        if labels is not None:
            images = list(_chosen(images, key, labels))
    groups: dict[str, list[BidsFile]] = {}
    for image in images:
        name = "_".join(f"{k}-{image.entities[k]}" for k in ("sub", "ses") if k in image.entities)
        groups.setdefault(name, []).append(image)
    cases, left_out = [], {}
    for name, members in groups.items():
        found = {i: query(members, **rules) for i, rules in inputs.items()}  # type: ignore[arg-type]
        reason = None if CASE_ID.match(name) else "its labels are too long for a case id"
        for key, hits in found.items():
            if len(hits) > 1:
                reason = f"{len(hits)} images fit input '{key}'"
            elif not hits and key not in optional:
                reason = f"no image fits input '{key}'"
        if reason:
            left_out[name] = reason
            continue
        paths = {key: hits[0].path if hits else None for key, hits in found.items()}
        cases.append(Case(name, paths, f"sub-{members[0].entities['sub']}"))
    return cases, left_out


def _chosen(images: list[BidsFile], key: str, labels: Collection[str]) -> Iterator[BidsFile]:
    wanted = {str(label).removeprefix(f"{key}-") for label in labels}
    known = {image.entities.get(key) for image in images}
    absent = sorted(wanted - known)
    if absent:
        raise UsageError(
            f"{len(absent)} of the {key}- labels asked for are not in the dataset",
            got=", ".join(absent[:5]),
        )
    return (image for image in images if image.entities.get(key) in wanted)
