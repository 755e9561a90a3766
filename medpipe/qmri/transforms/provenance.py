"""What is said about a fit: facts in the metadata, findings for people, fields of sidecars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medpipe.qmri.estimate import Estimate
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.transforms.estimators import DESCRIPTIONS, Method
from medpipe.types import Finding, Severity

__all__ = ["REASONS", "describe_fit", "percent"]

REASONS: Mapping[str, str] = {
    "not_finite": "a measured value is NaN or infinite",
    "no_signal": "all measured values are 0",
    "outside_support": "a value lies outside the range that was searched or trained for",
    "at_bound": "the search ended at the bound of its range",
    "not_converged": "the search did not settle",
    "poor_fit": "the fitted signal is further from the measured one than noise explains",
    "kappa_missing": "the B1 map has no value",
}
"""Name of a flag → what it means, the most serious first."""

NAMES: Mapping[str, str] = {name: name.replace("_", " ") for name in DESCRIPTIONS} | {
    "perk": "PERK"
}

MANY = 0.05
"""Share of flagged voxels from which a finding is a warning."""


def describe_fit(
    protocol: Protocol,
    method: Method,
    estimate: Estimate,
    sigma: float | None,
    sigma_given: bool,
    scaled: bool,
) -> tuple[dict[str, Any], list[Finding]]:
    """Return facts (JSON) and findings of a fit.

    Parameters
    ----------
    sigma : float or None
        Noise in units of the images.
    sigma_given : bool
        Whether it was given and not estimated.
    scaled : bool
        Whether flip angles were scaled by a B1 map.
    """
    voxels = estimate.quality.numel()
    used = method.chosen(voxels)
    text, doi = DESCRIPTIONS[used]
    models = list(dict.fromkeys(a.model for a in protocol.acquisitions))
    references = [doi, *dict.fromkeys(a.signal_model.reference for a in protocol.acquisitions)]
    facts = {
        "relaxometry": {
            "estimator": used,
            "protocol": protocol.to_dict(),
            "measured": list(protocol.labels),
            "ranges": {name: list(pair) for name, pair in method.ranges.items()},
            "noise_sigma": None if sigma is None else float(f"{sigma:.6g}"),
            "flip_angles_scaled": scaled,
            "voxels": voxels,
            "flagged": dict(estimate.counts),
        },
        "sidecar": {
            "EstimationAlgorithm": f"{text}; signal models: {', '.join(models)}",
            "EstimationReference": ", ".join(
                f"https://doi.org/{d}" for d in dict.fromkeys(references)
            ),
        },
    }
    notes = [
        _info("qmri.protocol", f"{NAMES[used]} fit of {', '.join(protocol.labels)}"),
        *_noise_notes(sigma, sigma_given),
        *_scaling_notes(protocol, estimate, voxels, scaled),
        *_quality_notes(estimate, voxels),
    ]
    return facts, notes


def _noise_notes(sigma: float | None, given: bool) -> list[Finding]:
    if sigma is None:
        return [_info("qmri.noise", "the noise could not be estimated from the images")]
    how = "as given" if given else "estimated from the images"
    return [_info("qmri.noise", f"standard deviation of the noise {sigma:.4g}, {how}")]


def _scaling_notes(
    protocol: Protocol, estimate: Estimate, voxels: int, scaled: bool
) -> list[Finding]:
    if "kappa" not in protocol.knowns:
        return []
    if not scaled:
        return [_info("qmri.b1", "flip angles taken as nominal: no B1 map was given")]
    missing = estimate.counts.get("kappa_missing", 0)
    text = f"flip angles scaled by the B1 map in {percent(voxels - missing, voxels)} of the voxels"
    if not missing:
        return [_info("qmri.b1", text)]
    text += f"; in {missing} it has no value (0 or NaN) and they were taken as nominal"
    return [Finding("qmri.b1", _severity(missing, voxels), text)]


def _quality_notes(estimate: Estimate, voxels: int) -> list[Finding]:
    good = int((estimate.quality == 0).sum())
    none = int(next(iter(estimate.values.values())).isnan().sum())
    text = f"{percent(good, voxels)} of the fitted voxels carry no flag"
    notes = [_info("qmri.quality", f"{text}; {none} have no answer")]
    for name, reason in REASONS.items():
        count = estimate.counts.get(name, 0)
        if count and name != "kappa_missing":
            said = f"{count} voxel{'' if count == 1 else 's'} ({percent(count, voxels)}): {reason}"
            notes.append(Finding(f"qmri.{name}", _severity(count, voxels), said))
    return notes


def percent(count: int, total: int) -> str:
    """Return a share; one that is not all or nothing never reads so."""
    share = 100 * count / max(total, 1)
    if 0 < share < 0.1:
        return "under 0.1 %"
    if 99.9 < share < 100:
        return "over 99.9 %"
    return f"{share:.3g} %"


def _severity(count: int, total: int) -> Severity:
    return Severity.WARNING if count > MANY * total else Severity.INFO


def _info(check: str, message: str) -> Finding:
    return Finding(check, Severity.INFO, message)
