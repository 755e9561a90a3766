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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medpipe.errors import StepError
from medpipe.graphcut.message_passing import (
    ColumnLattice,
    PairwiseCost,
    pass_back,
    pass_forth,
)

__all__ = [
    "PairwiseCost",
    "SurfaceBound",
    "limited",
    "min_marginal_interval",
    "surface_bound",
    "surface_energy",
]


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
        forth, labels = pass_forth(lattice, theta, messages)
        bound = pass_back(lattice, theta, messages, marginals)
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
) -> tuple[ColumnLattice, torch.Tensor, tuple[Any, ...]]:
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
    lattice = ColumnLattice(positions, smooth, apart, wrap)
    theta = costs.to(torch.float64).reshape(-1, costs.shape[-1])
    return lattice, theta, (costs, positions, smooth, apart)


def _free(difference: torch.Tensor) -> torch.Tensor:
    """Cost nothing."""
    return torch.zeros_like(difference)
