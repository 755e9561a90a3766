"""Where the protocol of a set of images comes from: a file, or their headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.qmri.acquisition import same_values, shown
from medpipe.qmri.protocol import Acquisition, Protocol, protocol_from_settings, read_protocol
from medpipe.qmri.signals import MODELS
from medpipe.steps._base import facts_of
from medpipe.types import Finding, Severity

__all__ = ["SUFFIX_MODELS", "ProtocolSource"]

SUFFIX_MODELS: Mapping[str, tuple[str, ...]] = {
    "VFA": ("spgr",),
    "IRT1": ("inversion_recovery", "inversion_recovery_fixed"),
    "MESE": ("spin_echo", "epg_spin_echo", "epg_spin_echo_b1"),
    "MEGRE": ("gradient_echo",),
    "MP2RAGE": ("mp2rage",),
    "DESS": ("dess",),
}
"""BIDS suffix → the signal models of such images, the usual one first."""


@dataclass(frozen=True)
class ProtocolSource:
    """A protocol, its file, a signal model for settings from headers, or suffixes alone."""

    protocol: Protocol | str | None
    model: str | None

    def __post_init__(self) -> None:
        if self.model is not None and self.model not in MODELS:
            raise UsageError("unknown signal model", expected=" | ".join(MODELS))

    def of(self, image: MetaTensor) -> Protocol:
        """Return the protocol of `image`.

        Raises
        ------
        StepError, UsageError, InputError
            If there is none, or a setting is missing or not plausible.
        """
        found = self._find(image)
        if any(a.model == "mp2rage" and a.magnitude for a in found.acquisitions):
            raise StepError(
                "magnitudes of MP2RAGE are alike for two T1",
                expected="signed images",
                hint="put the uniform image (UNIT1) or the phase images beside them and load"
                ' them with part = "signed"; in a protocol file, set magnitude to false',
            )
        return found

    def _find(self, image: MetaTensor) -> Protocol:
        if isinstance(self.protocol, Protocol):
            return self.protocol
        if self.protocol is not None:
            return read_protocol(self.protocol)
        settings = facts_of(image).get("acquisitions")
        if not settings:
            raise StepError(
                "the images carry no settings",
                expected="images loaded by load_weighted, with sidecars or DICOM headers",
                hint="give a protocol file with the parameter protocol",
            )
        if self.model is not None:
            _check_kind(settings, self.model)
            return protocol_from_settings(settings, self.model)
        return _by_suffix(settings)

    def doubts(self, protocol: Protocol, image: MetaTensor) -> list[Finding]:
        """Return a finding for each setting of a given protocol that the headers contradict."""
        settings = facts_of(image).get("acquisitions") or []
        if self.protocol is None or len(settings) != protocol.count:
            return []
        out, first = [], 0
        for number, one in enumerate(protocol.acquisitions, 1):
            own = settings[first : first + one.count]
            first += one.count
            for name, values in one.settings.items():
                found = [s[name] for s in own if isinstance(s.get(name), int | float)]
                if len(found) == len(own) and not same_values(values, _thinned(found, values)):
                    text = (
                        f"acquisition {number} ({one.model}): {name} is {shown(values)} in the"
                        f" protocol file and {shown(found)} in the headers; the file was used"
                    )
                    out.append(Finding("qmri.protocol", Severity.WARNING, text))
        return out


def _thinned(found: list[float], values: tuple[float, ...]) -> list[float]:
    """Return one of the values that the echoes of one excitation have in common."""
    per = len(found) // len(values) if len(values) > 1 else 1
    return found[::per]


def _check_kind(settings: list[Mapping[str, Any]], model: str) -> None:
    """Refuse images whose suffix says that they are of another kind."""
    for number, one in enumerate(settings, 1):
        usual = SUFFIX_MODELS.get(str(one.get("suffix")))
        if usual is not None and model not in usual:
            raise StepError(
                f"the images are no images of {model}",
                where=f"image {number}",
                expected=" or ".join(s for s, m in SUFFIX_MODELS.items() if model in m),
                got=str(one["suffix"]),
                hint="use the workflow of their kind, or set suffix of the step load_weighted",
            )


def _by_suffix(settings: list[Mapping[str, Any]]) -> Protocol:
    """Return the protocol of images that say what they are."""
    for number, one in enumerate(settings, 1):
        if one.get("suffix") not in SUFFIX_MODELS:
            raise StepError(
                "the image does not say what it is",
                where=f"image {number}",
                expected=f"a name that ends with {', '.join(SUFFIX_MODELS)}",
                hint="give a protocol file with the parameter protocol, or a model",
            )
    parts: list[Acquisition] = []
    for suffix, own in groupby(settings, key=lambda one: str(one["suffix"])):
        parts += protocol_from_settings(list(own), SUFFIX_MODELS[suffix][0]).acquisitions
    return Protocol(tuple(parts))
