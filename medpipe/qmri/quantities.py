"""What is estimated per voxel: names, units and plausible ranges.

A *latent* is one unknown per voxel, a *known* is one regressor given per voxel
(``kappa``, the flip-angle scaling). All signal models are linear in ``m0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medpipe.qmri.settings import check_range, check_setting

__all__ = ["LATENT_ORDER", "QUANTITIES", "Quantity", "check_quantity", "check_setting"]


@dataclass(frozen=True)
class Quantity:
    """One quantity of a voxel.

    Attributes
    ----------
    name : str
        With its unit: ``"t1_s"``.
    symbol : str
        For figures and tables: ``"T1"``.
    unit : str
        ``"s"``; ``"1"`` for a fraction; ``"arbitrary"`` for M0.
    plausible : (float, float)
        What tissue, liquids and phantoms can have at 0.05 to 14 T.
    bids : str or None
        Suffix of the map in a BIDS derivative.
    description : str
    """

    name: str
    symbol: str
    unit: str
    plausible: tuple[float, float]
    bids: str | None
    description: str


_ALL = (
    Quantity(
        "m0", "M0", "arbitrary", (0.0, float("inf")), "M0map",
        "signal of full magnetisation: proton density, coil and receiver",
    ),
    Quantity("t1_s", "T1", "s", (0.005, 10.0), "T1map", "longitudinal relaxation time"),
    Quantity("t2_s", "T2", "s", (0.0005, 5.0), "T2map", "transverse relaxation time"),
    Quantity(
        "t2star_s", "T2*", "s", (0.0002, 5.0), "T2starmap", "decay time of a free induction"
    ),
    Quantity(
        "inversion_efficiency", "f", "1", (0.0, 1.2), None,
        "1 for a perfect inversion, 0 for none",
    ),
    Quantity("kappa", "kappa", "1", (0.2, 3.0), "TB1map", "flip-angle scaling (B1+)"),
)  # fmt: skip

QUANTITIES: Mapping[str, Quantity] = MappingProxyType({q.name: q for q in _ALL})
"""Name → quantity."""

LATENT_ORDER = tuple(QUANTITIES)
"""Order in which a protocol lists its latents."""


def check_quantity(name: str, value: object, where: str) -> float:
    """Return `value` of the quantity `name` as a float, if it is a plausible number.

    Raises
    ------
    UsageError
        Names the quantity, the range and the likely mistake ("in ms?").
    """
    quantity = QUANTITIES[name]
    return check_range(name, quantity.unit, quantity.plausible, value, where)
