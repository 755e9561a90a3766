"""What can be chosen when a centerline is extracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np

from medpipe.errors import UsageError
from medpipe.types import Json

__all__ = [
    "ROOT_AXES",
    "CostRule",
    "EndpointRule",
    "ExtractionSettings",
    "LoopRule",
    "Point",
    "RootRule",
]

RootRule = Literal[
    "auto", "widest", "superior", "inferior", "left", "right", "anterior", "posterior"
]
EndpointRule = Literal["geodesic", "given", "learned"]
LoopRule = Literal["cut", "keep"]
CostRule = Literal["depth", "learned"]
Point = tuple[float, float, float]

ROOT_AXES: dict[str, tuple[float, float, float]] = {
    "right": (1.0, 0.0, 0.0),
    "left": (-1.0, 0.0, 0.0),
    "anterior": (0.0, 1.0, 0.0),
    "posterior": (0.0, -1.0, 0.0),
    "superior": (0.0, 0.0, 1.0),
    "inferior": (0.0, 0.0, -1.0),
}
"""Directions of the patient in RAS+ mm."""

_NUMBERS = {
    "ball_scale": (0.0, 100.0),
    "ball_voxels": (0.0, 1000.0),
    "prune_radii": (0.0, 100.0),
    "prune_voxels": (0.0, 1000.0),
    "smoothing_rounds": (0, 10_000),
    "snap_mm": (0.0, 1000.0),
    "min_component_voxels": (1, 10**9),
}


@dataclass(frozen=True)
class ExtractionSettings:
    """Choices of `medpipe.centerline.extract.extract_centerline`.

    "Voxels" in a length are cube roots of the volume of a voxel, in mm.

    Parameters
    ----------
    root : str
        Where the root of each component lies that has no other: "auto" and "widest" take
        the end of the terminal branch with the largest radius; a direction of the
        patient takes the end farthest that way, of the ends at least half as wide as the
        widest one. "auto" looks at the ostium and at a learned root map first.
    root_points_mm : points (x, y, z), optional
        Roots in RAS+ mm, one per component at most.
    endpoints : {"geodesic", "given", "learned"}
        Where branches end: at the farthest voxels that no branch covers yet, at the
        given points only, or at those of the farthest voxels that the learned endpoint
        map supports.
    endpoint_points_mm : points (x, y, z), optional
        Ends in RAS+ mm that are always reached and never pruned.
    cost : {"depth", "learned"}
        What makes the middle of a vessel cheap: the distance to the background, or the
        learned distance to the centerline.
    ball_scale, ball_voxels : float
        A branch covers balls of `ball_scale` times the distance to the background plus
        `ball_voxels` around it.
    prune_radii, prune_voxels : float
        A branch that ends without another goes if it is shorter than `prune_radii` times
        the radius where it leaves plus `prune_voxels`. 0 and 0 keep all.
    loops : {"cut", "keep"}
        "keep" adds an edge that closes each loop of the mask.
    smoothing_rounds : int
        Rounds of Laplacian smoothing of the positions, 0 for none.
    snap_mm : float
        A point farther than this from the mask is an error.
    min_component_voxels : int
        Components with fewer voxels are left out; the largest of each structure and
        those with a given point stay.

    Raises
    ------
    UsageError
        If a value is out of range or a point is no triple of numbers.
    """

    root: RootRule = "auto"
    root_points_mm: tuple[Point, ...] = ()
    endpoints: EndpointRule = "geodesic"
    endpoint_points_mm: tuple[Point, ...] = ()
    cost: CostRule = "depth"
    ball_scale: float = 1.5
    ball_voxels: float = 3.1
    prune_radii: float = 1.2
    prune_voxels: float = 2.0
    loops: LoopRule = "cut"
    smoothing_rounds: int = 20
    snap_mm: float = 5.0
    min_component_voxels: int = 27

    def __post_init__(self) -> None:
        for name, choices in (
            ("root", RootRule), ("endpoints", EndpointRule), ("cost", CostRule),
            ("loops", LoopRule),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(choices):
                raise UsageError(
                    f"{name} is wrong",
                    expected=" | ".join(get_args(choices)),
                    got=str(getattr(self, name))[:20],
                )
        for name, (low, high) in _NUMBERS.items():
            value = getattr(self, name)
            whole = isinstance(low, int)
            fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not fits or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                raise UsageError(
                    f"{name} is wrong",
                    expected=f"{kind} in {low:g}..{high:g}",
                    got=str(value)[:20],
                )
        for name in ("root_points_mm", "endpoint_points_mm"):
            object.__setattr__(self, name, _points(name, getattr(self, name)))
        if self.endpoints == "given" and not self.endpoint_points_mm:
            raise UsageError(
                "endpoints = given needs points",
                expected="endpoint_points_mm",
                hint="give the points, or leave endpoints at geodesic",
            )

    def facts(self) -> dict[str, Json]:
        """Return the settings as JSON; of the points only how many there are."""
        record = asdict(self)
        for name in ("root_points_mm", "endpoint_points_mm"):
            record[name.replace("_points_mm", "_points")] = len(record.pop(name))
        return record


def _points(name: str, values: Sequence[Sequence[float]]) -> tuple[Point, ...]:
    """Return points as tuples of floats."""
    out: list[Point] = []
    for number, value in enumerate(values, start=1):
        try:
            x, y, z = (float(v) for v in value)
        except (TypeError, ValueError):
            x = y = z = np.nan
        if not np.isfinite([x, y, z]).all():
            raise UsageError(
                f"point {number} of {name} is wrong", expected="three finite numbers, x y z in mm"
            )
        out.append((x, y, z))
    return tuple(out)
