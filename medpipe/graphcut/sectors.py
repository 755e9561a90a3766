"""Parts of the retina that thicknesses are reported for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpipe.errors import UsageError

__all__ = ["Sectors", "etdrs_sectors", "ring_sectors"]

RING = {
    "six": {
        "temporal": (-45.0, 45.0),
        "temporal_superior": (45.0, 85.0),
        "nasal_superior": (85.0, 125.0),
        "nasal": (125.0, 235.0),
        "nasal_inferior": (235.0, 275.0),
        "temporal_inferior": (275.0, 315.0),
    },
    "quadrants": {
        "temporal": (-45.0, 45.0),
        "superior": (45.0, 135.0),
        "nasal": (135.0, 225.0),
        "inferior": (225.0, 315.0),
    },
}


@dataclass(frozen=True)
class Sectors:
    """A division of columns into named parts.

    Parameters
    ----------
    index : Tensor of int64, shape (X, Y)
        Number of the sector of each column, -1 for none.
    names : tuple of str
    """

    index: torch.Tensor
    names: tuple[str, ...]

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the columns of each sector, bool (X, Y)."""
        return {name: self.index == i for i, name in enumerate(self.names)}


def etdrs_sectors(right_mm: torch.Tensor, up_mm: torch.Tensor, laterality: str) -> Sectors:
    """Return the nine sectors of the ETDRS grid around the fovea.

    Circles of 1, 3 and 6 mm in diameter; the two rings are cut along the diagonals
    (ETDRS report 10, Ophthalmology 98 (1991) 786).

    Parameters
    ----------
    right_mm, up_mm : Tensor, shape (X, Y)
        Place of each column from the fovea on the fundus as it is looked at: to the
        right and to the top (superior).
    laterality : {"OD", "OS"}
        Right or left eye: in the right eye the nasal side is on the right.
    """
    if laterality not in ("OD", "OS"):
        raise UsageError("unknown eye", expected="OD | OS", got=repr(laterality)[:20])
    nasal = right_mm if laterality == "OD" else -right_mm
    upright = up_mm.abs() >= nasal.abs()
    quadrant = torch.where(
        upright,
        torch.where(up_mm >= 0, 0, 2),
        torch.where(nasal >= 0, 1, 3),
    )
    radius = torch.hypot(nasal.to(torch.float64), up_mm.to(torch.float64))
    index = torch.full(radius.shape, -1, dtype=torch.int64, device=radius.device)
    index = torch.where(radius <= 3.0, 5 + quadrant, index)
    index = torch.where(radius <= 1.5, 1 + quadrant, index)
    index = torch.where(radius <= 0.5, 0, index)
    sides = ("superior", "nasal", "inferior", "temporal")
    rings = (f"{ring}_{side}" for ring in ("inner", "outer") for side in sides)
    return Sectors(index, ("central", *rings))


def ring_sectors(angle_deg: torch.Tensor, kind: str = "six") -> Sectors:
    """Return the sectors of a scan around the optic disc.

    Parameters
    ----------
    angle_deg : Tensor, shape (X, Y)
        Angle of each column around the disc: 0 temporal, 90 superior, 180 nasal, 270
        inferior, in either eye. A scan in TSNIT order of A columns that begins
        temporally has ``360 * torch.arange(A) / A``.
    kind : {"six", "quadrants"}
        Six sectors of 90, 40, 40, 110, 40 and 40 degrees (Garway-Heath et al.,
        Ophthalmology 107 (2000) 1809) or four of 90 degrees.
    """
    if kind not in RING:
        raise UsageError("unknown sectors", expected=" | ".join(RING), got=repr(kind)[:20])
    turned = torch.remainder(angle_deg.to(torch.float64) + 45.0, 360.0)
    ends = torch.tensor([high + 45.0 for _, high in RING[kind].values()], dtype=torch.float64)
    index = torch.bucketize(turned, ends.to(turned.device), right=True)
    index = index.clamp_max(len(ends) - 1)  # just below 360 rounds to it
    return Sectors(index.masked_fill(~torch.isfinite(turned), -1), tuple(RING[kind]))
