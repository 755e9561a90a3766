"""A NIfTI file or a folder of them, with JSON sidecars → a set of weighted images."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medpipe.errors import InputError, UsageError
from medpipe.io.bids_sidecar import (
    NUMBERED,
    REQUIRED,
    ImageName,
    image_part,
    image_settings,
    parse_image_name,
    read_sidecars,
)
from medpipe.io.nifti import read_nifti
from medpipe.io.weighted_set import WeightedSet, check_grids, image_name, require_settings
from medpipe.types import Finding, Severity, Volume

__all__ = ["NiftiOptions", "nifti_images", "read_weighted_nifti"]

_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class NiftiOptions:
    """What to take of a folder and how strict to be; see `medpipe.io.weighted.LoadWeighted`."""

    suffix: tuple[str, ...] = ()
    entities: Mapping[str, str] | None = None
    part: str = "mag"
    required: bool = True
    fixes: tuple[str, ...] = ()
    max_bytes: int = 8 << 30


@dataclass(frozen=True, slots=True)
class _Member:
    """One file of a set and what its sidecars say."""

    image: ImageName
    fields: Mapping[str, Any] | None
    part: str | None


def nifti_images(folder: Path) -> list[Path]:
    """Return the NIfTI files below a folder in natural order; hidden ones are left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: _natural(path.relative_to(folder).as_posix()))


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Return a key that puts 2 before 10."""
    return [
        (0, int(part)) if part.isdigit() else (1, part)
        for part in re.split(r"([0-9]+)", text)
        if part
    ]


def read_weighted_nifti(path: Path, options: NiftiOptions) -> WeightedSet:
    """Read a 4-D file with its sidecar, or a folder of files named after BIDS.

    Raises
    ------
    InputError
        If the files are no one set, lie on several grids, or lack settings.
    """
    if path.is_dir():
        members, findings = _choose(path, options)
    else:
        members, findings = [_member(parse_image_name(path), path.parent)], []
    volumes: list[Volume] = []
    acquisitions: list[dict[str, Any]] = []
    suffixes: list[str] = []
    for position, member in enumerate(members):
        rank = sum(m.image.suffix == member.image.suffix for m in members[:position])
        images = sum(m.image.suffix == member.image.suffix for m in members)
        try:
            own, settings = _read(member, rank, images, options)
        except InputError as error:
            raise error.at(image_name(position, len(members))) from None
        volumes += own
        acquisitions += settings
        suffixes += [member.image.suffix] * len(own)
        held = sum(volume.data.size for volume in volumes) * 4
        if held > options.max_bytes:
            raise InputError("the images need more memory than max_gb allows", hint="raise max_gb")
    check_grids(volumes)
    if options.required:
        require_settings(acquisitions, suffixes)
    source: dict[str, Any] = {"kind": "nifti", "shape": list(volumes[0].data.shape)}
    found = WeightedSet(volumes, acquisitions, source, findings)
    for volume in volumes:
        found.add_findings(volume.findings)
    return found


def _read(
    member: _Member, rank: int, images: int, options: NiftiOptions
) -> tuple[list[Volume], list[dict[str, Any]]]:
    """Read one file: its volumes and the settings of each."""
    whole = read_nifti(
        member.image.path, ndim=(3, 4), fixes=options.fixes, max_bytes=options.max_bytes
    )
    part = member.part
    if whole.data.dtype.kind == "c":
        text = "complex values: the magnitude was taken"
        if options.part == "real":
            whole, text = replace(whole, data=whole.data.real), "complex values: the real part"
        else:
            whole = replace(whole, data=np.abs(whole.data))
        whole.findings.append(Finding("weighted.complex", Severity.INFO, text))
        part = options.part
    count = whole.data.shape[3] if whole.data.ndim == 4 else 1
    if member.fields is None and options.required:
        raise InputError(
            "the image has no JSON sidecar",
            expected="a .json file of the same name beside it",
            hint='give a protocol file and set settings = "optional", or write the sidecar',
        )
    named = member.image.suffix in REQUIRED
    settings: list[dict[str, Any]] = [
        {
            **one,
            **({"suffix": member.image.suffix} if named else {}),
            **({"complex_part": "real" if part == "real" else "magnitude"} if part else {}),
        }
        for one in image_settings(member.fields or {}, member.image.suffix, rank, count, images)
    ]
    if whole.data.ndim == 3:
        return [whole], settings
    return [replace(whole, data=whole.data[..., t]) for t in range(count)], settings


def _member(image: ImageName, root: Path) -> _Member:
    fields = read_sidecars(image, root)
    return _Member(image, fields, image_part(image, fields))


def _choose(folder: Path, options: NiftiOptions) -> tuple[list[_Member], list[Finding]]:
    """Choose the files of a folder that form one set, in the order of their entities."""
    images = [parse_image_name(path) for path in nifti_images(folder)]
    wanted = options.suffix or _only_suffix(images)
    findings = []
    chosen = [image for image in images if not wanted or image.suffix in wanted]
    for key, label in (options.entities or {}).items():
        label = str(label).removeprefix(f"{key}-")
        chosen = [image for image in chosen if image.entities.get(key) == label]
    if not chosen:
        raise InputError(
            "the folder holds no image of the set",
            expected=" or ".join(wanted) if wanted else "NIfTI files",
            got=f"{len(images)} NIfTI files of other names",
        )
    members = [_member(image, folder) for image in chosen]
    kept = [m for m in members if (m.part or "mag") == options.part]
    if not kept:
        raise InputError(
            f"the folder holds no {_PART_NAMES[options.part]} images", got=f"{len(members)} others"
        )
    if len(kept) < len(members):
        text = f"of {len(members)} images {len(kept)} are {_PART_NAMES[options.part]} images"
        findings.append(Finding("weighted.part", Severity.INFO, f"{text}; the others were left"))
    if not wanted:
        text = f"the {len(kept)} images were taken in the order of their names"
        findings.append(Finding("weighted.order", Severity.WARNING, text))
    else:
        _refuse_several([m.image for m in kept])
        kept.sort(key=lambda m: (wanted.index(m.image.suffix), _order(m.image)))
    return kept, findings


_PART_NAMES = {"mag": "magnitude", "real": "real"}


def _order(image: ImageName) -> list[tuple[str, list[tuple[int, int | str]]]]:
    return sorted((key, _natural(image.entities[key])) for key in NUMBERED & image.entities.keys())


def _only_suffix(images: Sequence[ImageName]) -> tuple[str, ...]:
    """Return the one suffix of weighted images in a folder; none if no name says it."""
    known = [suffix for suffix in REQUIRED if any(i.suffix == suffix for i in images)]
    if len(known) > 1:
        raise InputError(
            "the folder holds several kinds of weighted images",
            got=", ".join(known),
            hint=f'say which by the parameter suffix of the step, e.g. "{known[0]}"',
        )
    return tuple(known)


def _refuse_several(images: Collection[ImageName]) -> None:
    """Refuse images that differ in what does not tell images of one set apart."""
    for suffix in {image.suffix for image in images}:
        own = [image.entities for image in images if image.suffix == suffix]
        keys = {key for entities in own for key in entities} - NUMBERED
        several = sorted(key for key in keys if len({e.get(key) for e in own}) > 1)
        if several:
            people = {"sub", "ses"} & set(several)
            raise InputError(
                f"the {suffix} images of the folder belong to several sets",
                expected="one",
                got=f"names that differ in {', '.join(several)}",
                hint="give the folder of one session"
                if people
                else f'choose by the parameter entities = {{ {several[0]} = "…" }}',
            )
        numbers = [tuple(sorted(e.items())) for e in own]
        if len(set(numbers)) < len(numbers):
            raise InputError(f"two {suffix} images of the folder have one name")


def parse_suffix(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the suffixes asked for.

    Raises
    ------
    UsageError
        If one is no suffix.
    """
    names = [value] if isinstance(value, str) else list(value or ())
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9]+", name):
            raise UsageError("suffix is no suffix of BIDS", expected="such as VFA", got=repr(name))
    return tuple(dict.fromkeys(names))
