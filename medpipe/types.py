"""Values that travel between the parts of medpipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # the command line reads these types; numpy alone costs it 0.2 s
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Affine", "Finding", "Json", "Severity", "Volume"]

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None
Affine: TypeAlias = "NDArray[np.float64]"
"""(4, 4) float64, voxel index (i, j, k, 1) → RAS+ millimetres."""


class Severity(IntEnum):
    """How much a finding matters; the scale is the one of `logging`."""

    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw in one input.

    Attributes
    ----------
    check : str
        Name of the check, e.g. ``"nifti.affine_finite"``.
    severity : Severity
        ``ERROR`` refuses the input unless `fixed` is true.
    message : str
        One sentence without patient data.
    fix : str or None
        Name of the option that repairs it, as the user would pass it.
    fixed : bool
        Whether that repair was asked for and applied.
    """

    check: str
    severity: Severity
    message: str
    fix: str | None = None
    fixed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form used in sidecars and reports."""
        return asdict(self) | {"severity": self.severity.name.lower()}


@dataclass(slots=True)
class Volume:
    """An image with its place in the world.

    Attributes
    ----------
    data : ndarray, shape (I, J, K) or (I, J, K, T)
        Voxel values after rescaling (HU for CT).
    affine : ndarray, shape (4, 4), float64
        Voxel index to RAS+ millimetres. May hold a shear (tilted gantry).
    source : dict
        JSON facts about the origin that are free of patient data: kind of
        file, modality, acquisition settings, slice positions, repairs.
    findings : list of Finding
        Everything the checks reported, repairs included.
    """

    data: NDArray[Any]
    affine: Affine
    source: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
