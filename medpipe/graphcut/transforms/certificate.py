"""What a result says about its own optimality, in the metadata that travels with it."""

from __future__ import annotations

from typing import Protocol

from monai.data.meta_tensor import MetaTensor

from medpipe.graphcut.problem import CutResult
from medpipe.steps._base import facts_of, with_facts
from medpipe.types import Finding, Json, Severity

__all__ = ["certificate", "with_certificate"]


class Optimised(Protocol):
    """The result of an exact optimisation."""

    @property
    def energy(self) -> float:
        """Energy of the result, from the real costs."""

    @property
    def bound(self) -> float:
        """No result that keeps the hard constraints has a lower energy."""

    @property
    def step(self) -> float:
        """Cost of one unit of the integer problem."""

    @property
    def proved(self) -> bool:
        """Whether flow and cut are equal and, where it is compared, the energy agrees."""

    @property
    def cut(self) -> CutResult:
        """The minimum cut."""


def certificate(result: Optimised) -> dict[str, Json]:
    """Return the proof of a result as JSON values.

    ``energy`` and ``bound`` are in the units of the costs; ``flow`` and ``cut`` are
    integers of `step` each. ``proved`` is that of the result: flow and cut are equal,
    and for surfaces the energy agrees with the cut.
    """
    cut = result.cut
    return {
        "energy": float(result.energy),
        "bound": float(result.bound),
        "quantisation_step": float(result.step),
        "flow": cut.flow,
        "cut": cut.cut,
        "proved": result.proved,
        "solver": cut.solver,
    }


def with_certificate(image: MetaTensor, name: str, result: Optimised, *notes: str) -> MetaTensor:
    """Return `image` with the proof of `result` in its metadata.

    The proof is kept under ``meta["medpipe"]["source"]["minimum_cut"][name]``; one
    finding says in a sentence whether the result is proved to be optimal, and each
    of `notes` becomes a finding too.
    """
    proof = certificate(result)
    proofs = dict(facts_of(image).get("minimum_cut") or {}) | {name: proof}
    gap = max(float(result.energy) - float(result.bound), 0.0)
    said = "proved optimal" if result.proved else "not proved optimal"
    text = (
        f"{name}: {said}, energy {result.energy:.6g}, at most {gap:.2g} above the lowest possible"
    )
    severity = Severity.INFO if result.proved else Severity.WARNING
    findings = [Finding("graphcut.optimal", severity, text)]
    findings += [Finding("graphcut.note", Severity.WARNING, f"{name}: {note}") for note in notes]
    return with_facts(image, {"minimum_cut": proofs}, findings)
