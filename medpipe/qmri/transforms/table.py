"""A table of relaxation by region: medians, spread, and how many voxels are to be doubted."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection

from medpipe.errors import StepError
from medpipe.qmri.estimate import count_flags
from medpipe.qmri.transforms.maps import channels_of
from medpipe.steps._base import ArrayStep, DictStep, as_image, check_same_grid, quantiles, read_key
from medpipe.types import Json

__all__ = ["RelaxationTable", "RelaxationTableD", "RelaxationTableDict", "RelaxationTabled"]

QUARTILES = ((25.0, "p25"), (50.0, "median"), (75.0, "p75"))
DIGITS = 6


class RelaxationTable(ArrayStep):
    """Measure relaxation in the region of a fit, or under each label of a label map."""

    def __call__(self, maps: Any, labels: Any = None) -> dict[str, Json]:
        """Return a row ``all`` for the region, and one per label if there are several.

        A row holds ``voxels``, ``voxels_without_flag``, ``voxels_without_answer`` and one
        count per reason of a flag (``voxels_at_bound``); for each quantity median and
        quartiles over the voxels that have an answer, flagged or not (``t1_s_median``),
        and the median standard error. A quantity without a value is null.

        Raises
        ------
        StepError
            If the image was not made by a fit, or the labels lie on another grid or
            are no labels.
        """
        image = as_image(maps)
        found = channels_of(image)
        inside = (found["quality"] >= 0).flatten()
        rows: dict[str, Json] = {}
        flat = {name: one.flatten() for name, one in found.items()}
        if labels is not None:
            marks = _labels(image, labels)
            found_labels = torch.unique(marks[inside & (marks > 0)]).tolist()
            for label in found_labels if len(found_labels) > 1 else ():
                rows[str(int(label))] = _row(flat, inside & (marks == label))
        return {"all": _row(flat, inside), **rows}


def _labels(image: Any, labels: Any) -> torch.Tensor:
    marks = as_image(labels)
    check_same_grid(image, marks, "label map")
    values = marks.as_tensor().to(image.device)
    if marks.shape[0] != 1 or not bool((values == values.round()).all()):
        raise StepError("the label map holds no labels", expected="one channel of whole numbers")
    return values[0].flatten().to(torch.int32)


def _row(flat: Mapping[str, torch.Tensor], where: torch.Tensor) -> dict[str, Json]:
    """Return the measures of the voxels `where`."""
    quality = flat["quality"][where].to(torch.uint8)
    quantities = [n for n in flat if n != "quality" and not n.endswith("_error")]
    answered = ~flat[quantities[0]][where].isnan()
    row: dict[str, Json] = {
        "voxels": quality.numel(),
        "voxels_without_flag": int((quality == 0).sum()),
        "voxels_without_answer": int((~answered).sum()),
        **{f"voxels_{name}": count for name, count in count_flags(quality).items()},
    }
    for name in quantities:
        values = flat[name][where]
        row |= _quartiles(name, values)
        if f"{name}_error" in flat:
            error = _quartiles("error", flat[f"{name}_error"][where])
            row[f"{name}_error_median"] = error["error_median"]
    return row


def _quartiles(name: str, values: torch.Tensor) -> dict[str, Json]:
    finite = values[values.isfinite()].double()
    if not finite.numel():
        return {f"{name}_{short}": None for _, short in QUARTILES}
    found = quantiles(finite, [percent for percent, _ in QUARTILES])
    return {
        f"{name}_{short}": float(f"{value:.{DIGITS}g}")
        for (_, short), value in zip(QUARTILES, found, strict=True)
    }


class RelaxationTabled(DictStep):
    """Measure relaxation in the region of a fit, or under each label of a label map.

    Medians and quartiles in SI units, and counts of flagged voxels by reason.

    Parameters
    ----------
    keys : keys of what fits made, replaced by tables
    labels : str, optional
        Key of a label map on the grid of the maps: one row for each label. A case
        without it: one row.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("labels",)
    optional_reads = ("labels",)
    writes = ()
    files = ()
    makes = "table"
    random = False

    def __init__(
        self, keys: KeysCollection, labels: str | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = labels
        self.step = RelaxationTable()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key replaced by its table."""
        out = dict(data)
        given = self.labels is not None and self.labels in data
        labels = read_key(data, str(self.labels), "label map") if given else None
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], labels)
        return out


RelaxationTableD = RelaxationTableDict = RelaxationTabled
