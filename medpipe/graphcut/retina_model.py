"""The boundaries of the retina, their limits, and the parameters of `retina_surfaces`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from medpipe.errors import UsageError
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.surface_costs import Direction

__all__ = [
    "BOUNDARIES",
    "DOWN",
    "INNER",
    "OUTER",
    "RELATIVE_BRIGHTNESS",
    "RETINA_UM",
    "SHARES",
    "UP",
    "Boundary",
    "RetinaParameters",
    "Scan",
]


class Boundary(NamedTuple):
    """One boundary: its edge with growing depth and its distance to the next one.

    `stiffness` is the cost of a change of height of 1 mm between neighbours, times
    their distance in mm; a column without any edge costs ½. A distance to the next
    boundary outside `usual_um` costs `RetinaParameters.thickness_weight` per mm.
    """

    name: str
    edge: Direction
    min_um: float
    max_um: float
    stiffness: float
    usual_um: tuple[float, float] | None = None


UP: Direction = "dark_to_bright"
DOWN: Direction = "bright_to_dark"

BOUNDARIES = (
    Boundary("ILM", UP, 8, 260, 0.2),
    Boundary("RNFL-GCL", DOWN, 4, 130, 1.0, (25, 90)),
    Boundary("IPL-INL", DOWN, 4, 80, 1.5, (15, 45)),
    Boundary("INL-OPL", UP, 4, 70, 2.5, (10, 40)),
    Boundary("OPL-ONL", DOWN, 30, 180, 3.0),
    Boundary("IS-EZ", UP, 8, 28, 0.2),
    Boundary("EZ-OS", DOWN, 8, 40, 0.2),
    Boundary("OS-RPE", UP, 10, 36, 0.2),
    Boundary("BM", DOWN, 0, 0, 0.2),
)
"""The boundaries from the vitreous to the choroid, with wide limits of adult eyes."""

OUTER = (0, 5, 6, 7, 8)
INNER = (1, 2, 3, 4)
RETINA_UM = (90.0, 550.0)
"""Distance from the ILM to the ellipsoid zone."""

RELATIVE_BRIGHTNESS = (1.0, 0.46, 0.2, 0.3, 0.0)
"""First guess for RNFL, GCL+IPL, INL, OPL and ONL, from ONL = 0 to RNFL = 1."""


SHARES = (0.25, 0.5, 0.62, 0.72)
"""First guess of how far from the ILM to the ellipsoid zone the inner boundaries lie."""


@dataclass(frozen=True)
class RetinaParameters:
    """Lengths and weights of `retina_surfaces`.

    Parameters
    ----------
    exponent : float
        The image is raised to this power: ¼ for the linear intensities that devices
        store, 1 for images already compressed for display. The steepest place of a
        compressed image, where a reader sees the boundary, lies up to 3.5 µm to the
        darker side of the physical step.
    edge_um : float
        Width of the derivative along the columns, about the axial resolution.
    outer_lateral_um, inner_lateral_um : float
        Width of the Gaussian across the columns, against speckle, in the second and
        third cut.
    coarse_lateral_um, coarse_depth_um : float
        Size of the blocks of the first cut.
    reference_um : float
        Width over which Bruch's membrane is smoothed for flattening.
    region_weight : float
        Weight of the brightness of the layers against the edges, per node.
    thickness_weight : float
        Cost per mm by which a layer is thinner or thicker than usual.
    brightness_sd : float
        Spread of the relative brightness of a layer.
    slope : float
        Largest change of height over lateral distance that a surface may make.
    rounds : int
        Cuts of the inner boundaries; the brightness of each layer is measured again
        between them.
    subvoxel : bool
        Move nodes to the vertex of a parabola through the costs, so that a surface
        is not tied to the samples.
    """

    exponent: float = 0.25
    edge_um: float = 3.5
    outer_lateral_um: float = 30.0
    inner_lateral_um: float = 70.0
    coarse_lateral_um: float = 57.0
    coarse_depth_um: float = 7.8
    reference_um: float = 85.0
    region_weight: float = 0.1
    thickness_weight: float = 20.0
    brightness_sd: float = 0.12
    slope: float = 0.5
    rounds: int = 2
    subvoxel: bool = True

    def __post_init__(self) -> None:
        bad = [n for n, v in vars(self).items() if n != "subvoxel" and not v > 0]
        if bad:
            raise UsageError(f"{bad[0]} is not positive", got=f"{getattr(self, bad[0]):g}")


@dataclass(frozen=True)
class Scan:
    """What all stages need: values (X, Y, K), spacing (x, y, depth) in mm, wrap."""

    values: torch.Tensor
    step: tuple[float, float, float]
    wrap: tuple[int, ...]
    parameters: RetinaParameters
    solver: Solver

    def lateral(self, width_um: float) -> tuple[float, float]:
        """Return a width in samples along x and y; below a third of a sample it is 0."""
        a, b = (width_um / 1000 / s for s in self.step[:2])
        return (a if a > 0.3 else 0.0), (b if b > 0.3 else 0.0)
