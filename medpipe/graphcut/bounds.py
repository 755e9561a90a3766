"""Lower bounds and min-marginals of surface energies by message passing (TRW-S).

A minimum cut says what the best surfaces are; it does not say how much worse other
surfaces would be. The sequential tree-reweighted algorithm of Kolmogorov (IEEE
PAMI 28(10) 2006, DOI 10.1109/TPAMI.2006.200) covers the columns by monotone chains
and makes the minima of all chains agree, node by node. Their sum is a lower bound
of the energy and never falls. What a column position costs in the chains bounds its
min-marginal, the energy of the best surfaces through that position.

Every function of a difference in position is possible as a pairwise cost. Where it
is convex the bound converges to the minimum energy; a single row of columns is a
chain and exact after one pass.

Columns whose indices have the same sum are independent and are handled at once, so
that one pass takes S + X + Y steps on tensors, on the CPU or a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from medpipe.errors import StepError

__all__ = [
    "PairwiseCost",
    "SurfaceBound",
    "limited",
    "min_marginal_interval",
    "surface_bound",
    "surface_energy",
]

PairwiseCost = Callable[[torch.Tensor], torch.Tensor]
"""Cost of a difference in position (mm), elementwise; +inf forbids it."""

_CHUNK = 2**25  # numbers held at once by one minimisation over pairs of positions


@dataclass(frozen=True)
class SurfaceBound:
    """A lower bound of a surface energy and what it says about every position.

    Parameters
    ----------
    bound : float
        No surfaces have an energy below it (up to rounding of float64).
    history : Tensor
        The bound after each iteration, float64 (I,); it never falls.
    min_marginals : Tensor
        Lower bounds, float64 (S, X, Y, K), of the least energy of surfaces through
        each position; on a single chain they are exact.
    labels : Tensor
        The best surfaces met on the way, int64 (S, X, Y).
    energy : float
        Their energy; inf if none met kept the hard limits.
    """

    bound: float
    history: torch.Tensor
    min_marginals: torch.Tensor
    labels: torch.Tensor
    energy: float

    @property
    def gap(self) -> float:
        """How far the surfaces are from optimal at most."""
        return self.energy - self.bound


@dataclass(frozen=True)
class _Family:
    """Edges of one direction: each node has at most one above it and one below it."""

    axis: int
    wrapped: bool
    above: torch.Tensor  # (N,) node at the other end that comes later, -1 for none
    below: torch.Tensor  # (N,) node at the other end that comes earlier, -1 for none


@dataclass(frozen=True)
class _Step:
    """The nodes of one level and, for each family, which of them have an edge."""

    nodes: torch.Tensor
    up: list[torch.Tensor]  # rows of `nodes` with a node above
    down: list[torch.Tensor]


class _Lattice:
    """Columns as nodes of a graph, in levels that are independent within themselves."""

    def __init__(
        self,
        positions: torch.Tensor,
        smoothness: Sequence[PairwiseCost],
        separation: Sequence[PairwiseCost],
        wrap: tuple[int, ...],
    ) -> None:
        self.shape = tuple(positions.shape)
        self.smoothness, self.separation = smoothness, separation
        self.depth = self.shape[-1]
        self.positions = positions.reshape(-1, self.depth)
        self.families = _families(self.shape, wrap, positions.device)
        self.steps = _steps(self.shape, self.families, positions.device)
        # chains through a node: the larger of its neighbours before and after it
        above = sum((f.above >= 0).to(torch.float64) for f in self.families)
        below = sum((f.below >= 0).to(torch.float64) for f in self.families)
        share = torch.maximum(torch.as_tensor(above), torch.as_tensor(below)).clamp(min=1)
        self.gamma = (1 / share).to(positions.device)
        self.alike = bool((self.positions == self.positions[0]).all())
        self.known: dict[tuple[int, int], torch.Tensor] = {}

    def pair_cost(self, f: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Cost (n, K, K) of the edges of family `f` between nodes `low` and `high`."""
        terms = self.smoothness if self.families[f].axis else self.separation
        surface = low // (self.shape[1] * self.shape[2])
        shape = (low.numel(), self.depth, self.depth)
        if self.alike:
            tables = torch.cat([self._table(f, term, low[:1], high[:1]) for term in terms])
            one = len(terms) == 1 or self._same(terms)
            return tables[:1].expand(shape) if one else tables[surface]
        if self._same(terms):
            return self._costs(f, terms[0], low, high)
        cost = self.positions.new_empty(shape)
        for s, term in enumerate(terms):
            rows = surface == s
            cost[rows] = self._costs(f, term, low[rows], high[rows])
        return cost

    @staticmethod
    def _same(terms: Sequence[PairwiseCost]) -> bool:
        return all(term is terms[0] for term in terms)

    def _table(
        self, f: int, term: PairwiseCost, low: torch.Tensor, high: torch.Tensor
    ) -> torch.Tensor:
        """Cost (1, K, K) of columns that are all alike, computed once."""
        key = (f, id(term))
        if key not in self.known:
            self.known[key] = self._costs(f, term, low, high)
        return self.known[key]

    def _costs(
        self, f: int, term: PairwiseCost, low: torch.Tensor, high: torch.Tensor
    ) -> torch.Tensor:
        a, b = self.positions[low][:, :, None], self.positions[high][:, None, :]
        # differences are next minus this; where a ring closes, the last comes before the first
        return term(a - b if self.families[f].wrapped else b - a).to(torch.float64)

    def message(
        self, f: int, values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, upward: bool
    ) -> torch.Tensor:
        """Minimise values + pair cost over the positions of the sender: (n, K)."""
        rows = max(_CHUNK // self.depth**2, 1)
        parts = []
        for start in range(0, values.shape[0], rows):
            part = slice(start, start + rows)
            cost = self.pair_cost(f, low[part], high[part])
            given = values[part]
            total = cost + (given[:, :, None] if upward else given[:, None, :])
            parts.append(total.amin(1 if upward else 2))
        return torch.cat(parts)


def surface_bound(
    costs: torch.Tensor,
    positions_mm: torch.Tensor,
    smoothness: PairwiseCost | Sequence[PairwiseCost],
    separation: PairwiseCost | Sequence[PairwiseCost] | None = None,
    *,
    wrap: tuple[int, ...] = (),
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> SurfaceBound:
    """Bound the energy of surfaces on columns from below, with min-marginals.

    Parameters
    ----------
    costs : Tensor
        Cost of each surface at each node, (S, X, Y, K); +inf forbids a node.
    positions_mm : Tensor
        Positions of the nodes along the columns, broadcastable to (S, X, Y, K).
    smoothness : callable or sequence of callables
        Cost of the difference (mm) between neighbouring columns, for all surfaces
        or one for each. A hard limit is +inf.
    separation : callable or sequence of callables, optional
        Cost of the difference (mm) from each surface to the next, for all pairs or
        one for each. Without it surfaces do not interact.
    wrap : tuple of int
        Axes of (S, X, Y, K) that close to a ring: 1, 2 or both.
    iterations : int
        Largest number of iterations, each one pass forth and one back.
    tolerance : float
        Stop when the gap, or the rise of the bound in ten iterations, is at most this.

    Returns
    -------
    SurfaceBound
        The bound with its history, min-marginals, and surfaces with their energy.

    Raises
    ------
    StepError
        If shapes do not fit, a cost is NaN or -inf, or no surfaces keep the limits.
    """
    lattice, theta, terms = _prepare(costs, positions_mm, smoothness, separation, wrap)
    messages = [
        torch.zeros(theta.shape[0] + 1, theta.shape[1], dtype=theta.dtype, device=theta.device)
        for _ in lattice.families
    ]  # one row more: what a node without a neighbour receives
    history: list[torch.Tensor] = []
    best, best_energy = theta.argmin(1), torch.inf
    marginals = torch.zeros_like(theta)
    for i in range(max(iterations, 1)):
        forth, labels = _forth(lattice, theta, messages)
        bound = _back(lattice, theta, messages, marginals)
        history.append(bound)
        for found in (labels, marginals.argmin(1)):
            energy = float(surface_energy(found.reshape(costs.shape[:-1]), *terms, wrap=wrap))
            if energy < best_energy:
                best, best_energy = found, energy
        if not bool(torch.isfinite(bound)):
            raise StepError(
                "no surfaces keep the hard limits",
                hint="look for limits or distances that contradict each other",
            )
        risen = float(bound - history[i - 10]) if i >= 10 else torch.inf
        if best_energy - float(bound) <= tolerance or risen <= tolerance:
            break
    least = marginals.amin(1, keepdim=True)
    return SurfaceBound(
        bound=float(history[-1]),
        history=torch.stack(history),
        # valid while the last pass runs: the bound from before that pass
        min_marginals=(marginals - least + forth).reshape(costs.shape),
        labels=best.reshape(costs.shape[:-1]),
        energy=best_energy,
    )


def limited(least_mm: float, most_mm: float, cost: PairwiseCost | None = None) -> PairwiseCost:
    """Return `cost` (default 0) with differences outside two limits forbidden.

    Parameters
    ----------
    least_mm, most_mm : float
        Smallest and largest difference, both allowed: ``limited(-2, 2, prior)`` is a
        largest jump, ``limited(3, 40)`` a separation.
    cost : callable, optional
        Cost of a difference within the limits.
    """

    def term(difference: torch.Tensor) -> torch.Tensor:
        value = torch.zeros_like(difference) if cost is None else cost(difference)
        return torch.where((difference >= least_mm) & (difference <= most_mm), value, torch.inf)

    return term


def surface_energy(
    labels: torch.Tensor,
    costs: torch.Tensor,
    positions_mm: torch.Tensor,
    smoothness: PairwiseCost | Sequence[PairwiseCost],
    separation: PairwiseCost | Sequence[PairwiseCost] | None = None,
    *,
    wrap: tuple[int, ...] = (),
) -> torch.Tensor:
    """Return the energy of surfaces, a float64 scalar; inf where a limit is broken.

    Parameters
    ----------
    labels : Tensor
        Node of each surface in each column, int64 (S, X, Y).
    costs, positions_mm, smoothness, separation, wrap
        As for `surface_bound`.
    """
    size = costs.shape[0]
    index = labels[..., None]
    total = costs.to(torch.float64).gather(-1, index).sum()
    at = positions_mm.to(torch.float64).expand(costs.shape).gather(-1, index)[..., 0]
    for s, term in enumerate(_each(smoothness, size, "smoothness")):
        for axis in (1, 2):
            steps = torch.diff(at[s], dim=axis - 1)
            if axis in wrap and at.shape[axis] > 1:
                ends = at[s].select(axis - 1, 0) - at[s].select(axis - 1, -1)
                total = total + term(ends).sum()
            total = total + term(steps).sum()
    if separation is not None:
        for s, term in enumerate(_each(separation, size - 1, "separation")):
            total = total + term(at[s + 1] - at[s]).sum()
    return total


def min_marginal_interval(
    min_marginals: torch.Tensor,
    positions_mm: torch.Tensor,
    temperature: float,
    *,
    mass: float = 0.95,
) -> torch.Tensor:
    """Return the interval along each column that holds `mass` of exp(-cost / temperature).

    The min-marginals are read as a Gibbs density along the column, linear between the
    nodes, so that closely spaced nodes do not weigh more. The width says how sharply
    the energy decides; it is a probability only where the costs are log-likelihoods.

    Parameters
    ----------
    min_marginals : Tensor
        Energies (S, X, Y, K); a constant in each column does not matter.
    positions_mm : Tensor
        Increasing along K, broadcastable to (S, X, Y, K), K at least 2.
    temperature : float
        Cost that makes a position e times less likely, above 0.
    mass : float
        Share of the density inside, in (0, 1); equal shares are left on both sides.

    Returns
    -------
    Tensor
        Lower and upper end in mm, float64 (2, S, X, Y).

    Raises
    ------
    StepError
        If the temperature or the mass is out of range.
    """
    if not temperature > 0 or not 0 < mass < 1:
        raise StepError(
            "the interval of the min-marginals is not defined",
            expected="temperature > 0 and mass between 0 and 1",
            got=f"temperature {temperature:g}, mass {mass:g}",
        )
    energy = min_marginals.to(torch.float64)
    density = torch.exp(-(energy - energy.amin(-1, keepdim=True)) / temperature)
    at = positions_mm.to(torch.float64).expand(energy.shape).contiguous()
    below = torch.nn.functional.pad(torch.cumulative_trapezoid(density, at, dim=-1), (1, 0))
    ends = torch.tensor([(1 - mass) / 2, (1 + mass) / 2], dtype=torch.float64, device=at.device)
    wanted = below[..., -1:] * ends
    k = torch.searchsorted(below.contiguous(), wanted.contiguous()).clamp(1, at.shape[-1] - 1)
    low, high = below.gather(-1, k - 1), below.gather(-1, k)
    part = (wanted - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    start = at.gather(-1, k - 1)
    return (start + part.clamp(0, 1) * (at.gather(-1, k) - start)).movedim(-1, 0)


def _forth(
    lattice: _Lattice, theta: torch.Tensor, messages: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pass messages upward; return the bound and labels chosen on the way (N,)."""
    bound = theta.new_zeros(())
    labels = torch.zeros(theta.shape[0], dtype=torch.int64, device=theta.device)
    for step in lattice.steps:
        nodes = step.nodes
        belief = theta[nodes]
        choice = theta[nodes]
        for f, family in enumerate(lattice.families):
            belief = belief + messages[f][nodes] + messages[f][family.below[nodes]]
            choice = choice + messages[f][nodes]
            rows = step.down[f]
            if rows.numel():
                high = nodes[rows]
                low = family.below[high]
                cost = lattice.pair_cost(f, low, high)
                picked = labels[low][:, None, None].expand(-1, 1, lattice.depth)
                choice = choice.index_add(0, rows, cost.gather(1, picked)[:, 0])
        labels[nodes] = choice.argmin(1)
        least = belief.amin(1, keepdim=True)
        bound = bound + least.sum()
        belief = lattice.gamma[nodes, None] * (belief - least)
        for f, family in enumerate(lattice.families):
            rows = step.up[f]
            if rows.numel():
                low = nodes[rows]
                sent = _minus(belief[rows], messages[f][low])
                new = lattice.message(f, sent, low, family.above[low], upward=True)
                bound = bound + _store(messages[f], low, new)
    return bound, labels


def _back(
    lattice: _Lattice,
    theta: torch.Tensor,
    messages: list[torch.Tensor],
    marginals: torch.Tensor,
) -> torch.Tensor:
    """Pass messages downward, write the beliefs to `marginals` and return the bound."""
    bound = theta.new_zeros(())
    for step in reversed(lattice.steps):
        nodes = step.nodes
        belief = theta[nodes]
        for f, family in enumerate(lattice.families):
            belief = belief + messages[f][nodes] + messages[f][family.below[nodes]]
        least = belief.amin(1, keepdim=True)
        bound = bound + least.sum()
        belief = belief - least
        marginals[nodes] = belief
        belief = lattice.gamma[nodes, None] * belief
        for f, family in enumerate(lattice.families):
            rows = step.down[f]
            if rows.numel():
                high = nodes[rows]
                low = family.below[high]
                sent = _minus(belief[rows], messages[f][low])
                new = lattice.message(f, sent, low, high, upward=False)
                bound = bound + _store(messages[f], low, new)
    return bound


def _minus(belief: torch.Tensor, message: torch.Tensor) -> torch.Tensor:
    """Subtract; a forbidden position (inf - inf) stays forbidden."""
    return torch.nan_to_num_(belief - message, nan=torch.inf, posinf=torch.inf)


def _store(messages: torch.Tensor, low: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Write messages with minimum 0; return the sum of what was taken off."""
    least = new.amin(1, keepdim=True)
    messages[low] = new - torch.where(torch.isinf(least), 0.0, least)
    return least.sum()


def _families(shape: tuple[int, ...], wrap: tuple[int, ...], device: torch.device) -> list[_Family]:
    index = torch.arange(shape[0] * shape[1] * shape[2], device=device).reshape(shape[:3])
    none = torch.full_like(index, -1)
    families = []
    for axis, n in enumerate(shape[:3]):
        if n == 1:
            continue
        above, below = none.clone(), none.clone()
        above.narrow(axis, 0, n - 1).copy_(index.narrow(axis, 1, n - 1))
        below.narrow(axis, 1, n - 1).copy_(index.narrow(axis, 0, n - 1))
        families.append(_Family(axis, False, above.reshape(-1), below.reshape(-1)))
        if axis in wrap:
            above, below = none.clone(), none.clone()
            above.narrow(axis, 0, 1).copy_(index.narrow(axis, n - 1, 1))
            below.narrow(axis, n - 1, 1).copy_(index.narrow(axis, 0, 1))
            families.append(_Family(axis, True, above.reshape(-1), below.reshape(-1)))
    return families


def _steps(shape: tuple[int, ...], families: list[_Family], device: torch.device) -> list[_Step]:
    ranges = [torch.arange(n, device=device) for n in shape[:3]]
    level = (
        ranges[0][:, None, None] + ranges[1][None, :, None] + ranges[2][None, None, :]
    ).reshape(-1)
    order = torch.argsort(level, stable=True)
    sizes = torch.bincount(level).tolist()
    steps = []
    for nodes in torch.split(order, sizes):
        up = [torch.nonzero(f.above[nodes] >= 0)[:, 0] for f in families]
        down = [torch.nonzero(f.below[nodes] >= 0)[:, 0] for f in families]
        steps.append(_Step(nodes, up, down))
    return steps


def _each(
    terms: PairwiseCost | Sequence[PairwiseCost], count: int, what: str
) -> list[PairwiseCost]:
    if callable(terms):
        return [terms] * count
    if len(terms) != count:
        raise StepError(
            f"the number of {what} terms does not fit the surfaces",
            expected=str(count),
            got=str(len(terms)),
        )
    return list(terms)


def _prepare(
    costs: torch.Tensor,
    positions_mm: torch.Tensor,
    smoothness: PairwiseCost | Sequence[PairwiseCost],
    separation: PairwiseCost | Sequence[PairwiseCost] | None,
    wrap: tuple[int, ...],
) -> tuple[_Lattice, torch.Tensor, tuple]:
    if costs.ndim != 4 or 0 in costs.shape:
        raise StepError(
            "the costs do not lie on columns",
            expected="shape (S, X, Y, K), none of them 0",
            got=str(tuple(costs.shape)),
        )
    if bool(torch.isnan(costs).any()) or bool((costs == -torch.inf).any()):
        raise StepError("the costs hold NaN or -inf", hint="fill these places before")
    if not set(wrap) <= {1, 2}:
        raise StepError("only axes 1 and 2 can close to a ring", got=str(wrap))
    try:
        positions = positions_mm.to(torch.float64).expand(costs.shape)
    except RuntimeError as error:
        raise StepError(
            "the positions do not fit the costs",
            expected=f"broadcastable to {tuple(costs.shape)}",
            got=str(tuple(positions_mm.shape)),
        ) from error
    size = costs.shape[0]
    smooth = _each(smoothness, size, "smoothness")
    apart = _each(_free if separation is None else separation, size - 1, "separation")
    lattice = _Lattice(positions, smooth, apart, wrap)
    theta = costs.to(torch.float64).reshape(-1, costs.shape[-1])
    return lattice, theta, (costs, positions, smooth, apart)


def _free(difference: torch.Tensor) -> torch.Tensor:
    """Cost nothing."""
    return torch.zeros_like(difference)
