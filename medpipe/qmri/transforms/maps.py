"""One map and the quality of all, out of what a fit makes."""

from __future__ import annotations

from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.qmri.estimate import Flag
from medpipe.qmri.quantities import QUANTITIES
from medpipe.qmri.transforms.provenance import REASONS
from medpipe.steps._base import ArrayStep, DictStep, as_image, facts_of, rewrap, with_facts

__all__ = [
    "QUALITY_NAMES",
    "QualityMap",
    "QualityMapD",
    "QualityMapDict",
    "QualityMapd",
    "RelaxationMap",
    "RelaxationMapD",
    "RelaxationMapDict",
    "RelaxationMapd",
    "channels_of",
]

QUALITY_NAMES = ("good", *reversed(list(REASONS)))
"""Names of the labels 1, 2, … of a map of quality: the higher, the more serious."""


def channels_of(image: MetaTensor) -> dict[str, torch.Tensor]:
    """Return the maps of a fit by their names.

    Raises
    ------
    StepError
        If the image was not made by a fit.
    """
    names = facts_of(image).get("maps")
    if not isinstance(names, list) or len(names) != image.shape[0]:
        raise StepError(
            "the image holds no maps of relaxation", expected="what fit_relaxation makes"
        )
    return dict(zip(names, image.as_tensor(), strict=True))


class RelaxationMap(ArrayStep):
    """Take one map out of what a fit made, with its unit for sidecar and picture.

    Parameters
    ----------
    quantity : str
        ``"t1_s"``, ``"t2_s"``, ``"t2star_s"``, ``"m0"``, …; with ``_error`` its standard
        error.
    """

    def __init__(self, quantity: str) -> None:
        self.quantity = quantity

    def __call__(self, maps: Any) -> MetaTensor:
        """Return the map (1, I, J, K), float32 in SI units, 0 where there is no value.

        Files of medpipe hold no NaN: voxels outside the region that was fitted and those
        without an answer are 0, which no quantity is. `QualityMap` tells them apart.

        Raises
        ------
        StepError
            If the fit made no such map.
        """
        image = as_image(maps)
        found = channels_of(image)
        if self.quantity not in found or self.quantity == "quality":
            raise StepError(
                "the fit made no such map",
                expected=" | ".join(n for n in found if n != "quality"),
                got=self.quantity[:40],
            )
        quantity = QUANTITIES[self.quantity.removesuffix("_error")]
        error = " standard error" if self.quantity.endswith("_error") else ""
        out = rewrap(image, found[self.quantity][None].nan_to_num(0.0, 0.0, 0.0))
        facts = facts_of(out)
        facts["sidecar"] = {
            **facts.get("sidecar", {}),
            "Description": f"{quantity.symbol}{error}: {quantity.description}; 0 is no value",
            "Units": quantity.unit,
        }
        if quantity.unit == "s":
            name = quantity.symbol + error
            facts["display"] = {"name": name, "unit": "ms", "factor": 1000.0}
        del facts["maps"]
        out.meta["medpipe"]["source"] = facts
        return out


class RelaxationMapd(DictStep):
    """Take one map out of what a fit made, with its unit for sidecar and picture.

    Parameters
    ----------
    keys : keys of what fits made
    quantity : str
        t1_s, t2_s, t2star_s, m0, inversion_efficiency, or with _error the standard error.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self, keys: KeysCollection, quantity: str, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = RelaxationMap(quantity)


class QualityMap(ArrayStep):
    """Say for each voxel whether a fit can be trusted, or the most serious reason why not.

    1 good, 2 B1 missing, 3 poor fit, 4 not converged, 5 at a bound, 6 outside the
    support, 7 no signal, 8 not finite; 0 was not fitted.
    """

    def __call__(self, maps: Any) -> MetaTensor:
        """Return a label map (1, I, J, K), uint8.

        Raises
        ------
        StepError
            If the image was not made by a fit.
        """
        image = as_image(maps)
        bits = channels_of(image)["quality"]
        out = (bits >= 0).to(torch.uint8)
        flags = bits.clamp_min(0).to(torch.uint8)
        for label, name in enumerate(QUALITY_NAMES[1:], 2):
            out[(flags & Flag[name.upper()].value) != 0] = label
        made = rewrap(image, out[None])
        facts = facts_of(made)
        del facts["maps"]
        facts.pop("sidecar", None)
        made.meta["medpipe"]["source"] = facts
        names = {str(n): name.replace("_", " ") for n, name in enumerate(QUALITY_NAMES, 1)}
        # in pictures good voxels stay as they are, and all others stand out
        return with_facts(made, {"labels": names, "display": {"unmarked": [1]}})


class QualityMapd(DictStep):
    """Say for each voxel whether a fit can be trusted, or the most serious reason why not.

    1 good, 2 B1 missing, 3 poor fit, 4 not converged, 5 at a bound, 6 outside the
    support, 7 no signal, 8 not finite; 0 was not fitted.

    Parameters
    ----------
    keys : keys of what fits made, replaced by label maps
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = QualityMap()


RelaxationMapD = RelaxationMapDict = RelaxationMapd
QualityMapD = QualityMapDict = QualityMapd
