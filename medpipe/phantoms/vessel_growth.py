"""How the simulated vessel trees grow: Murray's law, curved branches, room between them.

All lengths are in voxels here. The thickest open tip splits next; of several drawn pairs of
daughters that keep clear of everything else the one that ends in the emptiest place is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medpipe.jit import compiled

__all__ = ["Branch", "Growth", "GrowthPlan", "evenly", "surface_gap"]

Array = NDArray[np.float64]

STEP = 0.5
"""Distance between the nodes of a curve, in voxels."""

BORDER = 2.0
"""Room between a branch and the border of the grid."""

ROUNDS, DRAWS = 5, 16
"""Rounds of draws for a pair of daughters; each round is shorter than the one before."""


@dataclass(frozen=True)
class GrowthPlan:
    """What a tree should be; lengths in voxels.

    Attributes
    ----------
    extent : ndarray, shape (3,)
        Size of the box between the first and the last voxel centres.
    root_radius : float
        At the root.
    leaf_radius : (float, float)
        Least and largest radius at a tip.
    branches : int
        How many are wanted at most.
    margin : float
        Least room between the surfaces of branches that are not mother, daughter or
        sister; negative lets them overlap.
    touches : int
        How many contacts to seek, with a margin below 0.
    inset : float
        Depth of the root below the face of the box that it enters by.
    length : float
        Length of the branches compared with what fills the box.
    """

    extent: Array
    root_radius: float
    leaf_radius: tuple[float, float]
    branches: int
    margin: float
    touches: int = 0
    inset: float = 0.0
    length: float = 1.0

    @property
    def taper(self) -> float:
        """How much a branch narrows, so that tips arrive at their radius."""
        leaves = (self.branches + 1) / 2
        wanted = 1.35 * self.leaf_radius[1] / self.root_radius * np.cbrt(leaves)
        return float(np.clip(wanted ** (1 / (np.log2(leaves) + 1)), 0.8, 0.97))

    @property
    def stretch(self) -> float:
        """Length of the branches compared with those in a box of 256 voxels."""
        return self.length * float(np.clip(np.sqrt(self.extent.min() / 255), 0.3, 2.0))


@dataclass(eq=False)
class Branch:
    """A branch without the node it starts at, which is the last one of its mother.

    Attributes
    ----------
    mother : int
        Number of the branch it leaves, -1 for a trunk, which holds its first node.
    points : ndarray, shape (M, 3)
        In voxels.
    radius : ndarray, shape (M,)
        In voxels.
    daughters : tuple of int
        Numbers of the branches that leave its end.
    """

    mother: int
    points: Array
    radius: Array
    daughters: tuple[int, ...] = ()

    @property
    def heading(self) -> Array:
        """Direction at the tip."""
        return _unit(self.points[-1] - self.points[-2])


@dataclass(eq=False)
class Growth:
    """A tree that grows until it has the branches of its plan or no room is left.

    Parameters
    ----------
    plan : GrowthPlan
        What to grow.
    rng : numpy.random.Generator
        Draws everything.

    Attributes
    ----------
    branches : list
        In the order of growth; the first is the trunk.
    blocked : list of (points, radius)
        Obstacles that all but the trunk keep clear of.
    allowed : callable, optional
        Points (N, 3) → bool (N,): where branches may run, besides inside the box.
    """

    plan: GrowthPlan
    rng: np.random.Generator
    branches: list[Branch] = field(default_factory=list)
    blocked: list[tuple[Array, Array]] = field(default_factory=list)
    allowed: Callable[[Array], NDArray[np.bool_]] | None = None
    start: Array = field(default_factory=lambda: np.zeros(3))
    heading: Array = field(default_factory=lambda: np.zeros(3))
    _touches: int = 0

    def plant(self) -> None:
        """Choose the root on a face of the box and let the trunk grow towards the middle."""
        plan, rng = self.plan, self.rng
        axis, side = int(rng.integers(3)), int(rng.integers(2))
        self.start = plan.extent * (0.5 + rng.uniform(-0.12, 0.12, 3))
        depth = max(plan.inset, plan.root_radius + BORDER)
        self.start[axis] = depth if side == 0 else plan.extent[axis] - depth
        aim = plan.extent * (0.5 + rng.uniform(-0.1, 0.1, 3))
        self.heading = _unit(aim - self.start)
        length = self._length(plan.root_radius)
        path = self._curve(self.start, self.heading, length)
        radius = self._narrowing(plan.root_radius, len(path))
        self.branches.append(Branch(-1, path, radius))

    def grow(self) -> None:
        """Split the thickest tip until the tree is full."""
        open_tips = [n for n, b in enumerate(self.branches) if not b.daughters]
        while open_tips and len(self.branches) + 2 <= self.plan.branches:
            tip = max(open_tips, key=lambda b: (self.branches[b].radius[-1], -b))
            open_tips.remove(tip)
            pair = self._pair(tip)
            if pair is None:
                continue
            first = len(self.branches)
            self.branches += pair
            self.branches[tip].daughters = (first, first + 1)
            open_tips += [first, first + 1]
        self._end_tips()

    def _length(self, radius: float) -> float:
        return float((17 + 4.2 * radius) * self.plan.stretch * self.rng.uniform(0.75, 1.25))

    def _narrowing(self, radius: float, count: int) -> Array:
        taper = min(self.plan.taper * self.rng.uniform(0.96, 1.04), 1.0)
        return np.linspace(radius, max(radius * taper, self.plan.leaf_radius[1]), count)

    def _end_tips(self) -> None:
        """Let branches without daughters narrow to the radius of a tip."""
        for branch in self.branches:
            if not branch.daughters:
                end = min(float(self.rng.uniform(*self.plan.leaf_radius)), branch.radius[0])
                branch.radius = np.linspace(branch.radius[0], end, len(branch.radius))

    def _curve(self, start: Array, heading: Array, length: float) -> Array:
        """Return a curve from `start`, evenly spaced; it bends away and may bend back."""
        t = np.linspace(0, 1, 65)
        path = start + heading * (t * length)[:, None]
        for k, most in ((1, 0.13), (2, 0.05)):
            bend = self._across(heading) * self.rng.uniform(0, most) * length
            path = path + (1 - np.cos(k * np.pi * t))[:, None] * bend
        return evenly(path)

    def _across(self, heading: Array) -> Array:
        """Return a random direction perpendicular to `heading`."""
        while True:
            drawn = self.rng.standard_normal(3)
            drawn -= drawn @ heading * heading
            if np.linalg.norm(drawn) > 1e-3:
                return _unit(drawn)

    def _pair(self, tip: int) -> list[Branch] | None:
        """Return two daughters of a tip that have room, the best of those drawn."""
        mother = self.branches[tip]
        least = self.plan.leaf_radius[1] + 0.02
        share = max(0.22, (least / mother.radius[-1]) ** 3)
        if share > 0.5:
            return None
        others = self._others(tip)
        if self._touches < self.plan.touches:
            touching = self._touching(tip, share, others)
            if touching is not None:
                self._touches += 1
                return touching
        best: list[Branch] | None = None
        best_score, fitting = -np.inf, 0
        for turn in range(ROUNDS * DRAWS):
            if turn % DRAWS == 0 and best is not None:
                break
            pair = self._draw_pair(tip, share, 0.86 ** (turn // DRAWS))
            if self._room(pair, mother, others) is None:
                continue
            score = self._emptiness(pair, others)
            if score > best_score:
                best, best_score = pair, score
            fitting += 1
            if self.plan.touches and fitting == 4:
                break  # those that are to meet seek less room
        return best

    def _touching(self, tip: int, share: float, others: tuple[Array, Array]) -> list[Branch] | None:
        """Return two daughters of which one touches another vessel on its way."""
        mother = self.branches[tip]
        ahead = others[0] - mother.points[-1]
        distance = np.linalg.norm(ahead, axis=1)
        usual = self._length(mother.radius[-1])
        aims = np.flatnonzero((ahead @ mother.heading > 0) & (distance < 2.5 * usual))
        for _ in range(2 * DRAWS if len(aims) else 0):
            aim = ahead[self.rng.choice(aims)]
            reach = float(np.linalg.norm(aim)) / 0.55
            pair = self._draw_pair(tip, share, min(max(reach / usual, 1.0), 3.0), aim)
            pair = self._lean(pair, others)
            gap = self._room(pair, mother, others)
            if gap is not None and gap < -0.1:
                return pair
        return None

    def _draw_pair(
        self, tip: int, share: float, longer: float, aim: Array | None = None
    ) -> list[Branch]:
        """Return two daughters, the lesser one on the side of `aim`."""
        mother = self.branches[tip]
        whole, heading = mother.radius[-1], mother.heading
        flow = self.rng.uniform(share, 0.5)
        radii = whole * np.cbrt(np.array([1 - flow, flow]))
        side = self._across(heading)
        if aim is not None:
            side = _unit(0.3 * side - _unit(aim - aim @ heading * heading))
        out = []
        for radius, other, sign in ((radii[0], radii[1], 1), (radii[1], radii[0], -1)):
            # the angle of least work, C. D. Murray, J Gen Physiol 9:835 (1926)
            cosine = (whole**4 + radius**4 - other**4) / (2 * whole**2 * radius**2)
            angle = np.arccos(np.clip(cosine, -1, 1)) + np.radians(self.rng.normal(0, 5))
            angle = np.clip(angle, np.radians(15), np.radians(75))
            towards = np.cos(angle) * heading + np.sin(angle) * sign * side
            stretch = longer if aim is None or sign < 0 else 1.0
            length = max(self._length(radius) * stretch, _apart(whole) + 3)
            path = self._curve(mother.points[-1], towards, length)[1:]
            out.append(Branch(tip, path, self._narrowing(radius, len(path))))
        return out

    def _lean(self, pair: list[Branch], others: tuple[Array, Array]) -> list[Branch]:
        """Bend the one that passes nearest to another vessel so that both touch."""
        middles = [slice(len(b.points) * 3 // 10, len(b.points) * 3 // 4) for b in pair]
        gaps = [
            _nearest(b.points[m], b.radius[m], *others) for b, m in zip(pair, middles, strict=True)
        ]
        n = int(gaps[1][0] < gaps[0][0])
        (gap, i, j), branch = gaps[n], pair[n]
        i += middles[n].start
        count = len(branch.points)
        place = (i + 1) / count
        overlap = self.rng.uniform(0.2, 0.6)
        low, high = 0.0, gap + overlap
        if not 0 < high < 0.35 * STEP * count:
            return pair
        towards = _unit(others[0][j] - branch.points[i])
        t = np.arange(1, count + 1) / count
        # a bump that is highest at `place` and flat at both ends
        bump = np.sin(np.pi * t ** (np.log(0.5) / np.log(place))) ** 2
        for _ in range(10):
            shift = (low + high) / 2
            path = evenly(branch.points + (shift * bump)[:, None] * towards)
            radius = np.linspace(branch.radius[0], branch.radius[-1], len(path))
            if surface_gap(path, radius, *others, -np.inf) > -overlap:
                low = shift
            else:
                high = shift
        out = list(pair)
        out[n] = Branch(branch.mother, path, radius)
        return out

    def _others(self, tip: int) -> tuple[Array, Array]:
        """Return nodes and radii of all branches but one, and of the obstacles."""
        parts = [(b.points, b.radius) for n, b in enumerate(self.branches) if n != tip]
        parts += self.blocked
        if not parts:
            return np.empty((0, 3)), np.empty(0)
        return np.concatenate([p for p, _ in parts]), np.concatenate([r for _, r in parts])

    def _room(
        self, pair: list[Branch], mother: Branch, others: tuple[Array, Array]
    ) -> float | None:
        """Return the least gap to other branches, None where there is no room."""
        near = max(2.0, self.plan.margin)
        free = int(_apart(mother.radius[-1]) / STEP)
        least = np.inf
        for one, sister in (pair, pair[::-1]):
            rim = (one.radius + BORDER)[:, None]
            if ((one.points < rim) | (one.points > self.plan.extent - rim)).any():
                return None
            if self.allowed is not None and not self.allowed(one.points).all():
                return None
            away = one.points[free:], one.radius[free:]
            if surface_gap(*away, mother.points, mother.radius, near) < near:
                return None
            if surface_gap(*away, sister.points, sister.radius, near) < near:
                return None
            least = min(least, surface_gap(one.points, one.radius, *others, self.plan.margin))
            if least < self.plan.margin:
                return None
        return least

    def _emptiness(self, pair: list[Branch], others: tuple[Array, Array]) -> float:
        """Return how far the two tips are from everything and from each other."""
        ends = [b.points[-1] for b in pair]
        total = 0.5 * float(np.linalg.norm(ends[0] - ends[1]))
        for end in ends:
            away = float(min(end.min(), (self.plan.extent - end).min()))
            if len(others[0]):
                gap = surface_gap(end[None], np.zeros(1), *others, -np.inf)
                away = min(away, gap)
            total += min(away, 60.0)
        return total


def _apart(radius: float) -> float:
    """Return the distance from a junction within which its branches may still overlap."""
    return 2.5 * radius + 4


def evenly(path: Array) -> Array:
    """Return a curve with nodes at equal distances of about `STEP`."""
    arc = np.append(0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1)))
    at = np.linspace(0, arc[-1], int(np.ceil(arc[-1] / STEP)) + 1)
    return np.stack([np.interp(at, arc, path[:, a]) for a in range(3)], 1)


def _nearest(points: Array, radius: Array, q: Array, s: Array) -> tuple[float, int, int]:
    """Return the least gap to the balls `q`, `s`, and the two nodes it lies between."""
    if not len(q):
        return np.inf, 0, 0
    distance, nearest = cKDTree(q).query(points)
    gaps = distance - radius - s[nearest]
    i = int(gaps.argmin())
    return float(gaps[i]), i, int(nearest[i])


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


@compiled
def surface_gap(p, r, q, s, enough):  # type: ignore[no-untyped-def]
    """Return the least distance between the surfaces of two sets of balls.

    Parameters
    ----------
    p, q : ndarray, shapes (M, 3) and (N, 3)
        Centres.
    r, s : ndarray, shapes (M,) and (N,)
        Radii, in the unit of the centres.
    enough : float
        The search ends with the first gap below this.

    Returns
    -------
    float
        Negative where balls overlap; infinite for an empty set.
    """
    least = np.inf
    for i in range(len(p)):
        for j in range(len(q)):
            x, y, z = p[i, 0] - q[j, 0], p[i, 1] - q[j, 1], p[i, 2] - q[j, 2]
            gap = np.sqrt(x * x + y * y + z * z) - r[i] - s[j]
            if gap < least:
                least = gap
                if gap < enough:
                    return least
    return least
