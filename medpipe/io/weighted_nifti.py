"""A NIfTI file or a folder of them, with JSON sidecars → a set of weighted images."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, UsageError
from medpipe.geometry import same_grid
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
from medpipe.io.weighted_sign import no_sign, phase_in_radians, sign_by_phase, sign_by_uniform
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


@dataclass(frozen=True, slots=True)
class _Choice:
    """The files of a set in order, their phase images and the uniform image beside them."""

    kept: list[_Member]
    findings: list[Finding]
    phases: list[_Member] = field(default_factory=list)
    uniform: Path | None = None


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
        choice = _choose(path, options)
    else:
        alone = _member(parse_image_name(path), path.parent)
        choice = _Choice([_named(alone, options)], [])
    members = choice.kept
    kinds = [member.image.suffix for member in members]
    volumes: list[Volume] = []
    acquisitions: list[dict[str, Any]] = []
    suffixes: list[str] = []
    for position, (member, kind) in enumerate(zip(members, kinds, strict=True)):
        try:
            rank, images = kinds[:position].count(kind), kinds.count(kind)
            own, settings = _read(member, rank, images, options)
        except InputError as error:
            raise error.at(image_name(position, len(members))) from None
        volumes += own
        acquisitions += settings
        suffixes += [kind] * len(own)
        held = sum(volume.data.size for volume in volumes) * 4
        if held > options.max_bytes:
            raise InputError("the images need more memory than max_gb allows", hint="raise max_gb")
    check_grids(volumes)
    if options.required:
        require_settings(acquisitions, suffixes)
    source: dict[str, Any] = {"kind": "nifti", "shape": list(volumes[0].data.shape)}
    found = WeightedSet(volumes, acquisitions, source, choice.findings)
    for volume in volumes:
        found.add_findings(volume.findings)
    if options.part == "signed":
        _restore_sign(found, choice, options)
    return found


def _restore_sign(found: WeightedSet, choice: _Choice, options: NiftiOptions) -> None:
    """Make magnitudes signed where phase images or a uniform image allow it."""
    phases: list[NDArray[np.float32]] = []
    if any(volume.data.dtype.kind == "c" for volume in found.volumes):
        phases = [np.angle(volume.data) for volume in found.volumes]
        found.volumes = [replace(v, data=np.abs(v.data)) for v in found.volumes]
    for position, member in enumerate(choice.phases):
        try:
            for volume in _volumes(member.image.path, options):
                check_grids([found.volumes[0], volume])
                phases.append(phase_in_radians(volume, (member.fields or {}).get("Units")))
        except InputError as error:
            where = f"phase of {image_name(position, len(choice.phases))}"
            error.where = None
            raise error.at(where) from None
    if phases and len(phases) == len(found.volumes):
        sign_by_phase(found, phases)
    elif choice.uniform is not None and len(found.volumes) == 2:
        (uniform,) = _volumes(choice.uniform, options)
        if not same_grid(
            found.volumes[0].affine, found.volumes[0].data.shape, uniform.affine, uniform.data.shape
        ):
            raise InputError("the uniform image lies on another grid than the images")
        sign_by_uniform(found, uniform)
    else:
        no_sign(found)


def _volumes(path: Path, options: NiftiOptions) -> list[Volume]:
    """Read one file as the 3-D volumes it holds."""
    whole = read_nifti(path, ndim=(3, 4), fixes=options.fixes, max_bytes=options.max_bytes)
    if whole.data.ndim == 3:
        return [whole]
    return [replace(whole, data=whole.data[..., t]) for t in range(whole.data.shape[3])]


def _read(
    member: _Member, rank: int, images: int, options: NiftiOptions
) -> tuple[list[Volume], list[dict[str, Any]]]:
    """Read one file: its volumes and the settings of each."""
    volumes = _volumes(member.image.path, options)
    part = member.part
    if volumes[0].data.dtype.kind == "c" and options.part != "signed":
        real = options.part == "real"
        text = f"complex values: the {_PART_NAMES['real' if real else 'mag']} part was taken"
        said = [*volumes[0].findings, Finding("weighted.complex", Severity.INFO, text)]
        volumes = [
            replace(v, data=v.data.real if real else np.abs(v.data), findings=said) for v in volumes
        ]
        part = options.part
    elif options.part == "real" and part != "real":
        raise InputError(
            "the image does not say that it is a real part",
            expected="complex values, or part-real in its name",
            hint='set part = "mag" for magnitudes',
        )
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
        for one in image_settings(
            member.fields or {}, member.image.suffix, rank, len(volumes), images
        )
    ]
    return volumes, settings


def _member(image: ImageName, root: Path) -> _Member:
    fields = read_sidecars(image, root)
    return _Member(image, fields, image_part(image, fields))


def _named(member: _Member, options: NiftiOptions) -> _Member:
    """Return a file of another name as the kind that was asked for, if that is one."""
    if member.image.suffix in REQUIRED or len(options.suffix) != 1:
        return member
    return replace(member, image=replace(member.image, suffix=options.suffix[0]))


def _choose(folder: Path, options: NiftiOptions) -> _Choice:
    """Choose the files of a folder that form one set, in the order of their entities."""
    images = [parse_image_name(path) for path in nifti_images(folder)]
    plain = not any(image.entities for image in images)
    wanted = () if plain else options.suffix or _only_suffix(images)
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
    part = "mag" if options.part == "signed" else options.part
    # what does not say its part is a magnitude, or complex, which shows when it is read
    unsaid = part == "mag" or not any(m.part == part for m in members)
    kept = [m for m in members if m.part == part or (m.part is None and unsaid)]
    if not kept:
        raise InputError(
            f"the folder holds no {_PART_NAMES[part]} images", got=f"{len(members)} others"
        )
    phases = [m for m in members if m.part == "phase"]
    findings = []
    if len(kept) < len(members) and options.part != "signed":
        text = f"of {len(members)} images {len(kept)} are {_PART_NAMES[part]} images"
        findings.append(Finding("weighted.part", Severity.INFO, f"{text}; the others were left"))
    if not wanted:
        text = f"the {len(kept)} images were taken in the order of their names"
        findings.append(Finding("weighted.order", Severity.WARNING, text))
        return _Choice([_named(m, options) for m in kept], findings)
    for some in (kept, phases):
        _refuse_several([m.image for m in some])
        some.sort(key=lambda m: (wanted.index(m.image.suffix), _order(m.image)))
    if [_pair(m.image) for m in phases] != [_pair(m.image) for m in kept]:
        phases = []  # some images lack theirs
    return _Choice(kept, findings, phases, _uniform_image(images, kept[0].image))


def _pair(image: ImageName) -> tuple[dict[str, str], str]:
    """Return what the names of magnitude and phase of one image have in common."""
    return {k: v for k, v in image.entities.items() if k != "part"}, image.suffix


def _uniform_image(images: Sequence[ImageName], first: ImageName) -> Path | None:
    """Return the uniform image that belongs to a set of MP2RAGE."""
    own = {key: label for key, label in first.entities.items() if key not in NUMBERED}
    found = [i.path for i in images if i.suffix == "UNIT1" and dict(i.entities) == own]
    return found[0] if first.suffix == "MP2RAGE" and len(found) == 1 else None


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
