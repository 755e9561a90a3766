"""Ventricles that widen and a brain that shrinks, by a stated number of millilitres.

Both are velocities made from a label map: one leaves the ventricles along the gradient of
their smoothed mask, one leads from the brain's surface inwards and is still at the skull.
How much a region grows follows from points that are carried along with their volume, so
that a wanted volume is met without painting an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from medpipe.phantoms.brain_population_labels import BRAIN, BrainRegion, LabelHead
from medpipe.phantoms.diffeomorphism import NodeGrid, Velocity
from medpipe.phantoms.shapes import Array, F

__all__ = ["GRID", "Ageing"]

GRID = NodeGrid((-104.0, -120.0, -108.0), 4.0, (53, 61, 55))
"""The lattice on which heads are deformed: the brain and some centimetres around it."""

_FINE_MM = 2.0
_VENTRICLE_MM = 6.0
"""Spread of the ventricles' mask: how far its walls reach into the white matter."""
_SURFACE_MM = 4.0
_SKULL_MM = 10.0
"""Depth below the inner table at which tissue moves freely."""
_LONGEST = 12.0
"""Most time a velocity is followed; its highest speed is 1 mm."""
_SAMPLE = 2000
"""Points of a region that stand for it."""


@dataclass(frozen=True, eq=False)
class Ageing:
    """The two velocities of one head and what they do to its volumes.

    Attributes
    ----------
    head : LabelHead
    """

    head: LabelHead

    @cached_property
    def ventricles(self) -> Velocity:
        """Widening of the lateral ventricles, at most 1 mm per unit of time."""
        mask = self._mask((BrainRegion.LATERAL_VENTRICLE,))
        return self._along(mask, _VENTRICLE_MM, -1.0)

    @cached_property
    def loss(self) -> Velocity:
        """Withdrawal of the brain's surface from the skull, at most 1 mm per unit of time."""
        mask = self._mask((*BRAIN, BrainRegion.LATERAL_VENTRICLE))
        return self._along(mask, _SURFACE_MM, 1.0)

    def solve(
        self, brain: float, ventricles_ml: float, shape: Velocity | None = None
    ) -> tuple[Velocity, dict[str, float]]:
        """Return the velocity whose flow gives the brain and the ventricles their volumes.

        Parameters
        ----------
        brain : float
            Volume of the brain relative to the head's own.
        ventricles_ml : float
            Volume of the lateral ventricles after `shape`, which moves what has aged.
        shape : Velocity, optional
            A further deformation, which changes volumes too.

        Returns
        -------
        velocity : Velocity
            To be followed forwards for a unit of time.
        reached : dict
            ``brain_ml`` and ``ventricles_ml`` after `shape`, as they follow from the
            Jacobian. Not what was wanted where the head cannot be deformed that far.
        """
        tissue, fluid = self._sample(BRAIN), self._sample((BrainRegion.LATERAL_VENTRICLE,))
        volumes = self.head.volumes_ml()
        own_ml = volumes["lateral_ventricle"]
        brain_ml = sum(volumes[region.name.lower()] for region in BRAIN)
        moved = shape.follow(fluid, [1.0])[0].mean() if shape is not None else 1.0
        swollen = shape.follow(tissue, [1.0])[0].mean() if shape is not None else 1.0

        def velocity(shrink: float, widen: float) -> Velocity:
            return Velocity(F(shrink) * self.loss.field + F(widen) * self.ventricles.field, GRID)

        def grown(points: NDArray[np.float64], shrink: float, widen: float) -> float:
            step = 1.0 / max(3.0, abs(shrink) + abs(widen))  # about 1 mm, a quarter of a cell
            return float(velocity(shrink, widen).follow(points, [1.0], step=step)[0].mean())

        wanted = ventricles_ml / (own_ml * moved)
        shrink = widen = 0.0
        for _ in range(2):  # widening presses on the brain: the second round allows for it
            shrink = _met(partial(grown, tissue, widen=widen), brain, falling=True)
            widen = _met(partial(grown, fluid, shrink), wanted, falling=False)
        reached = {
            "brain_ml": grown(tissue, shrink, widen) * brain_ml * swollen,
            "ventricles_ml": grown(fluid, shrink, widen) * own_ml * moved,
        }
        return velocity(shrink, widen), reached

    def _sample(self, regions: tuple[BrainRegion, ...]) -> NDArray[np.float64]:
        points = self.head.points(regions)
        return points[:: max(1, len(points) // _SAMPLE)]

    @cached_property
    def _fine(self) -> NodeGrid:
        times = round(GRID.step_mm / _FINE_MM)
        i, j, k = ((n - 1) * times + 1 for n in GRID.nodes)
        return NodeGrid(GRID.low_mm, _FINE_MM, (i, j, k))

    @cached_property
    def _classes(self) -> NDArray[np.uint8]:
        return np.stack([self.head.at(plane) for plane in self._fine.points_mm])

    def _mask(self, regions: tuple[BrainRegion, ...]) -> NDArray[np.bool_]:
        return np.isin(self.head.regions, regions)[self._classes]

    @cached_property
    def _free(self) -> Array:
        """How freely tissue moves: 0 at the skull, 1 some way below it."""
        outside = (BrainRegion.BACKGROUND, BrainRegion.OUTSIDE)
        inside = ~self._mask(outside)
        depth = ndimage.distance_transform_edt(inside) * _FINE_MM
        u = np.clip(depth / _SKULL_MM, 0, 1)
        return (u * u * (3 - 2 * u)).astype(F)

    def _along(self, mask: NDArray[np.bool_], spread_mm: float, sign: float) -> Velocity:
        """Return a velocity along the gradient of a smoothed mask."""
        smooth = ndimage.gaussian_filter(mask.astype(F), spread_mm / _FINE_MM)
        field = np.stack(np.gradient(smooth)) * self._free
        # What lies between two nodes of the lattice must not be left out.
        field = np.stack([ndimage.gaussian_filter(f, GRID.step_mm / 2 / _FINE_MM) for f in field])
        times = round(GRID.step_mm / _FINE_MM)
        coarse = field[:, ::times, ::times, ::times].astype(F)
        fastest = float(np.sqrt((coarse**2).sum(0)).max())
        return Velocity(coarse * F(sign / fastest) if fastest else coarse, GRID)


def _met(grown: Callable[[float], float], wanted: float, *, falling: bool) -> float:
    """Return the time at which a monotone growth has the wanted value, or the nearest there is."""
    sign = -1.0 if falling else 1.0

    def over(time: float) -> float:
        return grown(sign * time) - wanted

    low, high = -_LONGEST, _LONGEST
    first, last = over(low), over(high)
    if first * last > 0:
        return sign * (low if abs(first) < abs(last) else high)
    return sign * float(optimize.brentq(over, low, high, xtol=1e-2))
