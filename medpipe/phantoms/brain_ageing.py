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
from scipy import ndimage

from medpipe.phantoms.brain_population_labels import BRAIN, BrainRegion, LabelHead
from medpipe.phantoms.diffeomorphism import NodeGrid, Velocity
from medpipe.phantoms.shapes import Array, F

__all__ = ["GRID", "MOST_GROWTH", "Ageing"]

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
MOST_GROWTH = 2.5
"""Ventricles that are wider than so many times their own stretch the middle of them."""
_SLOPE, _CLOSE, _TRIES = 0.1, 1e-3, 8
"""First guess of the logarithm of growth per time; how near to the wanted one is enough."""


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
            Volume of the brain relative to the head's own, after `shape`.
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
        tissue, fluid = self._tissue, self._fluid
        own_ml, brain_ml = self._own_ml
        moved = shape.follow(fluid, [1.0])[0].mean() if shape is not None else 1.0
        swollen = shape.follow(tissue, [1.0])[0].mean() if shape is not None else 1.0

        def velocity(shrink: float, widen: float) -> Velocity:
            return self.loss.plus(self.ventricles, shrink, widen)

        def grown(points: NDArray[np.float64], shrink: float, widen: float) -> float:
            step = 1.0 / max(3.0, abs(shrink) + abs(widen))  # about 1 mm, a quarter of a cell
            return float(velocity(shrink, widen).follow(points, [1.0], step=step)[0].mean())

        wanted, left = ventricles_ml / (own_ml * moved), brain / swollen
        shrink = widen = 0.0
        for _ in range(2):  # widening presses on the brain: the second round allows for it
            shrink = _met(partial(grown, tissue, widen=widen), left, shrink, falling=True)
            widen = _met(partial(grown, fluid, shrink), wanted, widen, falling=False)
        reached = {
            "brain_ml": grown(tissue, shrink, widen) * brain_ml * swollen,
            "ventricles_ml": grown(fluid, shrink, widen) * own_ml * moved,
        }
        return velocity(shrink, widen), reached

    @cached_property
    def reach_ml(self) -> tuple[float, float]:
        """Least and most volume of the ventricles that the head is deformed to.

        What the widening alone does in its longest time, less a tenth at both ends for what
        a loss of brain and a random shape do as well; most is `MOST_GROWTH` times its own.
        """
        own_ml, _ = self._own_ml
        step = 1.0
        least = float(self.ventricles.follow(self._fluid, [-_LONGEST], step=step)[0].mean())
        most = float(self.ventricles.follow(self._fluid, [_LONGEST], step=step)[0].mean())
        return 1.1 * least * own_ml, min(0.9 * most, MOST_GROWTH) * own_ml

    @cached_property
    def _own_ml(self) -> tuple[float, float]:
        """Volumes of ventricles and brain in the label map."""
        volumes = self.head.volumes_ml()
        return volumes["lateral_ventricle"], sum(volumes[r.name.lower()] for r in BRAIN)

    @cached_property
    def _tissue(self) -> NDArray[np.float64]:
        return self._sample(BRAIN)

    @cached_property
    def _fluid(self) -> NDArray[np.float64]:
        return self._sample((BrainRegion.LATERAL_VENTRICLE,))

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


def _met(grown: Callable[[float], float], wanted: float, start: float, *, falling: bool) -> float:
    """Return the time at which a monotone growth has the wanted value, or the nearest there is.

    The logarithm of the growth is nearly linear in time: the secant method meets it in a few
    steps from the time that was found before.
    """
    sign = -1.0 if falling else 1.0

    def over(time: float) -> float:
        return float(np.log(grown(time) / wanted))

    before, time = start, start
    off = off_before = over(start)
    slope = sign * _SLOPE
    for _ in range(_TRIES):
        if abs(off) < _CLOSE:
            break
        time = float(np.clip(before - off / slope, -_LONGEST, _LONGEST))
        if time == before:  # at the end of what can be reached
            break
        off = over(time)
        if (off - off_before) / (time - before) * sign > 0:
            slope = (off - off_before) / (time - before)
        before, off_before = time, off
    return time
