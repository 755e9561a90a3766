"""`LoadWeighted`: the weighted images of one examination, with the settings of each."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends

from medpipe.errors import InputError, UsageError
from medpipe.io.checks import require_known_fixes
from medpipe.io.detect import detect_kind, holds_dicom
from medpipe.io.transforms import metatensor_from_volume
from medpipe.io.weighted_nifti import (
    NiftiOptions,
    nifti_images,
    parse_suffix,
    read_weighted_nifti,
)
from medpipe.io.weighted_set import WeightedSet
from medpipe.io.weighted_sign import no_sign

__all__ = ["LoadWeighted", "LoadWeightedD", "LoadWeightedDict", "LoadWeightedd"]

Part = Literal["mag", "real", "signed"]
Settings = Literal["required", "optional"]


class LoadWeighted(Transform):
    """Read a set of weighted images: a 4-D NIfTI, a folder of NIfTI files, or DICOM series.

    Sidecars give the settings of NIfTI files, headers those of DICOM images. In
    a folder the names of BIDS say which files form the set and in which order.

    Parameters
    ----------
    suffix : str or list of str, optional
        Suffixes of the images to take, in this order: ``"VFA"``, ``"IRT1"``,
        ``"MESE"``, ``"MEGRE"``, ``"MP2RAGE"``, ``"DESS"`` or another one. By
        default the one of these that the folder holds; without any, all files
        in the order of their names. For DICOM it says what the images are.
    entities : dict, optional
        Entities that the names must have, e.g. ``{"acq": "spgr", "run": "1"}``.
    select : dict, optional
        Which series of a DICOM folder to take: `medpipe.io.dicom_select.SeriesRules`.
    part : {"mag", "real", "signed"}
        Which part to take where magnitude and phase, or real and imaginary, are there.
        ``"signed"`` gives magnitudes of an inversion recovery their sign by the
        phase images or, for MP2RAGE, by the uniform image (``UNIT1``) beside them;
        where there is neither they stay magnitudes, with a warning. Of DICOM images
        it takes the magnitude.
    settings : {"required", "optional"}
        Whether every image must come with its settings. ``"optional"`` is for
        images whose settings are in a protocol file.
    fixes : list of str
        Repairs of NIfTI files; see `medpipe.io.nifti.read_nifti`.
    max_gb : float
        Most memory of the images as float32.

    Raises
    ------
    UsageError
        If a parameter has no such value.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's convention

    def __init__(
        self,
        suffix: str | list[str] | None = None,
        entities: dict[str, str] | None = None,
        select: dict[str, Any] | None = None,
        part: Part = "mag",
        settings: Settings = "required",
        fixes: list[str] | tuple[str, ...] = (),
        max_gb: float = 8.0,
    ) -> None:
        if part not in ("mag", "real", "signed"):
            raise UsageError(
                "part has no such value", expected="mag, real or signed", got=repr(part)
            )
        if settings not in ("required", "optional"):
            raise UsageError(
                "settings has no such value", expected="required or optional", got=repr(settings)
            )
        if not max_gb > 0:
            raise UsageError("max_gb is wrong", expected="a positive number", got=repr(max_gb))
        require_known_fixes(fixes)
        self.suffix = parse_suffix(suffix)
        self.entities = dict(entities) if entities else None
        self.select = select
        self.part = part
        self.required = settings == "required"
        self.fixes = tuple(fixes)
        self.max_gb = max_gb

    def __call__(self, path: str | Path) -> MetaTensor:
        """Return the images at `path`, shape (D, I, J, K), float32.

        ``meta["medpipe"]["source"]["acquisitions"]`` holds D dicts of settings in
        SI units; see `medpipe.io.weighted_set.WeightedSet`.

        Raises
        ------
        InputError
            If they are no one set of images with settings on one grid.
        """
        return _stacked(self._read(Path(path).absolute()))

    def _read(self, path: Path) -> WeightedSet:
        if path.is_dir() and nifti_images(path):
            if holds_dicom(path):
                raise InputError(
                    "the folder holds both NIfTI and DICOM files",
                    expected="one kind",
                    hint="move one of them out",
                )
        elif path.is_dir() or detect_kind(path) == "dicom":
            # pydicom only where needed
            from medpipe.io.weighted_dicom import DicomSetOptions, read_weighted_dicom

            found = read_weighted_dicom(
                path,
                DicomSetOptions(
                    self.select,
                    "real" if self.part == "real" else "mag",
                    self.suffix,
                    self.required,
                    self.max_gb,
                ),
            )
            if self.part == "signed":
                no_sign(found)
            return found
        return read_weighted_nifti(
            path,
            NiftiOptions(
                self.suffix,
                self.entities,
                self.part,
                self.required,
                self.fixes,
                int(self.max_gb * 2**30),
            ),
        )


def _stacked(found: WeightedSet) -> MetaTensor:
    """Put the images of a set into the channels of one MetaTensor."""
    first = metatensor_from_volume(found.volumes[0])
    shape = (len(found.volumes), *first.shape[1:])
    out = torch.empty(shape, dtype=torch.float32)
    findings = list(found.findings)
    for channel, volume in enumerate(found.volumes):
        image = first if channel == 0 else metatensor_from_volume(volume)
        out[channel] = image.as_tensor()[0]
        volume.data = volume.data[:0]  # it is in the stack now
        found.add_findings(volume.findings)
    meta = {name: value for name, value in first.meta.items() if name != "affine"}
    meta["medpipe"] = {
        "source": {
            **found.source,
            "images": len(found.volumes),
            "acquisitions": found.acquisitions,
        },
        "findings": [finding.to_dict() for finding in findings],
    }
    return MetaTensor(out, affine=first.affine, meta=meta)


class LoadWeightedd(MapTransform):
    """Dictionary form of `LoadWeighted`: ``data[key]`` is a path and becomes a MetaTensor.

    Parameters
    ----------
    keys : str or sequence of str
    suffix, entities, select, part, settings, fixes, max_gb
        See `LoadWeighted`.
    allow_missing_keys : bool
    """

    version = "1"
    makes = "volume"
    backend = LoadWeighted.backend

    def __init__(
        self,
        keys: KeysCollection,
        suffix: str | list[str] | None = None,
        entities: dict[str, str] | None = None,
        select: dict[str, Any] | None = None,
        part: Part = "mag",
        settings: Settings = "required",
        fixes: list[str] | tuple[str, ...] = (),
        max_gb: float = 8.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadWeighted(
            suffix=suffix,
            entities=entities,
            select=select,
            part=part,
            settings=settings,
            fixes=fixes,
            max_gb=max_gb,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with the paths under `keys` replaced by images."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.load(out[key])
        return out


LoadWeightedD = LoadWeightedDict = LoadWeightedd
