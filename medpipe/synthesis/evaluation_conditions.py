"""What was requested of synthetic cases against what is measured in them, with ceilings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.evaluation_sets import EvaluationSettings, Measured, SynthesisSet
from medpipe.synthesis.metrics._figures import Floats, column
from medpipe.synthesis.metrics.agreement import agreement_table
from medpipe.synthesis.metrics.regions import label_volumes

__all__ = ["check_conditions", "conditions_of"]

FEWEST = 4
PER_MM3 = {"mm³": 1.0, "ml": 1e-3}
"""Units of volumes."""


def check_conditions(
    requested: Mapping[str, ArrayLike], measures: Mapping[str, Measured], made: int, test: int,
    settings: EvaluationSettings,
) -> None:  # fmt: skip
    """Check what can be checked of conditions before anything is measured.

    Parameters
    ----------
    made, test : int
        Synthetic and held-out cases.

    Raises
    ------
    UsageError
        If a condition is no region and has no measurement.
    InputError
        If its values do not fit the cases, or all are the same.
    """
    for name, values in requested.items():
        x = column(values, f"condition {name}", made, least=FEWEST)
        if x.min() == x.max():
            raise InputError(
                f"condition {name}: all requests are the same, there is no agreement to measure"
            )
        how = _how(name, measures, settings)
        if how.truth is not None:
            column(how.truth, f"true {name}", test)
        for key, n in (("synthetic", made), ("real", test)):
            if how.values is not None and key in how.values:
                column(how.values[key], f"measured {name}", n)


def conditions_of(
    requested: Mapping[str, ArrayLike], made: SynthesisSet, seen: torch.Tensor,
    test: SynthesisSet, seen_test: torch.Tensor, settings: EvaluationSettings, *,
    measures: Mapping[str, Measured], reconstruction: torch.Tensor | None,
    segment: Callable[[torch.Tensor], torch.Tensor],
) -> list[dict[str, Any]]:  # fmt: skip
    """Compare what was requested with what an independent measurement finds, with ceilings.

    A condition with the name of a region is its volume in mm³, measured by the segmenter;
    `Measured` says how any other is measured.

    Parameters
    ----------
    seen, seen_test : Tensor, shape (n, I, J, K)
        What the segmenter finds in the synthetic and in the held-out images.

    Returns
    -------
    list of dict of JSON values
        ``name``, ``unit``, ``rows`` (`agreement_table`) and ``points`` of each.

    Raises
    ------
    UsageError, InputError
        As `check_conditions`.
    """
    rebuilt = None if reconstruction is None else segment(reconstruction)
    out = []
    for name, values in requested.items():
        x = column(values, f"condition {name}", len(made), least=FEWEST)
        how = _how(name, measures, settings)
        sets = {"synthetic": (made.images, seen), "real": (test.images, seen_test)}
        if reconstruction is not None and rebuilt is not None:
            sets["reconstruction"] = (reconstruction, rebuilt)
        found = {k: _measured(name, how, k, *v, settings) for k, v in sets.items()}
        truth = _truth(name, how, test, settings)
        ceilings: dict[str, tuple[ArrayLike, ArrayLike]] = {}
        if truth is not None and np.ptp(truth) > 0:
            for key, row in (("real", "measurement"), ("reconstruction", "reconstruction")):
                y = found.get(key)
                if y is not None:
                    ceilings[row] = (truth, y)
        y = found["synthetic"]
        if y is None:
            raise InputError(f"condition {name} was not measured in the synthetic cases")
        table = agreement_table((x, y), ceilings, **settings.resampled())
        out.append(
            {
                "name": name,
                "unit": how.unit,
                "rows": {k: v.to_dict() for k, v in table.items()},
                "points": {
                    k: {"requested": _listed(a), "measured": _listed(b)}
                    for k, (a, b) in {"synthetic": (x, y), **ceilings}.items()
                },
            }
        )
    return out


def _how(name: str, measures: Mapping[str, Measured], settings: EvaluationSettings) -> Measured:
    """Return how a condition is measured."""
    how = measures.get(name) or (
        Measured(region=name, unit="mm³") if name in settings.regions else None
    )
    if how is None or (how.region is not None and how.region not in settings.regions):
        raise UsageError(
            f"condition {name} cannot be measured",
            expected=f"a region ({', '.join(settings.regions)}) or a measurement of it",
        )
    if how.region is not None and how.unit not in PER_MM3:
        raise UsageError(
            f"the unit of condition {name} is none of volumes", expected=", ".join(PER_MM3),
            got=how.unit or "none",
        )  # fmt: skip
    return how


def _measured(
    name: str, how: Measured, which: str, images: torch.Tensor, labels: torch.Tensor,
    settings: EvaluationSettings,
) -> Floats | None:  # fmt: skip
    """Return what is measured in the cases of a set, None where that is not known."""
    if how.region is not None:
        return _volumes(how, labels, settings)
    values = how.measure(images) if how.measure is not None else (how.values or {}).get(which)
    return None if values is None else column(values, f"measured {name}", len(images))


def _truth(
    name: str, how: Measured, test: SynthesisSet, settings: EvaluationSettings
) -> Floats | None:
    """Return what the held-out real cases have, where it is known."""
    if how.truth is not None:
        return column(how.truth, f"true {name}", len(test))
    if how.region is None or test.labels is None:
        return None
    return _volumes(how, test.labels, settings)


def _volumes(how: Measured, labels: torch.Tensor, settings: EvaluationSettings) -> Floats:
    region = str(how.region)
    found = label_volumes(labels, settings.spacing_mm, {region: settings.regions[region]})
    return found[region] * PER_MM3[how.unit]


def _listed(values: ArrayLike) -> list[float]:
    return [float(v) for v in np.asarray(values, np.float64)]
