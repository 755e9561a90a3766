"""Levenberg–Marquardt for many small problems at once, M0 by variable projection.

For a voxel with measured values y and signals s(x) of unit M0, the best M0 is
<s, y> / <s, s>, so only the nonlinear latents x are searched. With the slopes S of s the
reduced normal matrix is the Schur complement of the full one,

    H = M0² (S'S - S's s'S / s's),    g = M0 S'r,    r = y - M0 s,

a p × p system per voxel (p = 1 to 3), which is factorised element by element over the
batch. Voxels that have settled leave the batch and others take their place, so that a
few slow voxels do not hold up the rest.

References
----------
Marquardt 1963, doi 10.1137/0111030; Golub and Pereyra 1973, doi 10.1137/0710036.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch

__all__ = ["Settled", "factorise", "minimise", "solve", "unit_variances"]

Model = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
"""``model(x, known)`` → signals (D, n) and slopes (p, D, n) along the coordinates x (p, n)."""

LONGEST_STEP = 1.5
LESS, MORE = 0.1, 8.0
"""Factors of the damping after a step that helped and one that did not."""


@dataclass(eq=False)
class Settled:
    """Where each of n searches ended.

    Parameters
    ----------
    x : Tensor
        (p, n) coordinates.
    m0 : Tensor
        (n,), in units of the signal that was given.
    squares : Tensor
        (n,) sum of squared residuals.
    variances : Tensor
        (p + 1, n) of M0 and of the coordinates for noise of variance 1.
    converged, at_bound : Tensor
        (n,) bool.
    steps : Tensor
        (n,) int16, steps tried.
    """

    x: torch.Tensor
    m0: torch.Tensor
    squares: torch.Tensor
    variances: torch.Tensor
    converged: torch.Tensor
    at_bound: torch.Tensor
    steps: torch.Tensor


@dataclass(eq=False)
class _State:
    """The voxels in the batch; every tensor ends with the axis of voxels."""

    index: torch.Tensor
    x: torch.Tensor
    signal: torch.Tensor
    m0: torch.Tensor
    squares: torch.Tensor
    gradient: torch.Tensor
    normal: torch.Tensor
    mixed: torch.Tensor
    power: torch.Tensor
    damping: torch.Tensor
    steps: torch.Tensor

    def keep(self, which: torch.Tensor) -> _State:
        return _State(*(getattr(self, f.name).index_select(-1, which) for f in fields(self)))

    def join(self, other: _State) -> _State:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return _State(*(torch.cat(pair, -1) for pair in pairs))


def factorise(normal: torch.Tensor) -> torch.Tensor:
    """Return the factors L D of L D L' for packed symmetric matrices.

    Parameters
    ----------
    normal : Tensor
        (p (p + 1) / 2, n), lower triangle by rows.

    Returns
    -------
    Tensor
        Packed alike, pivots on the diagonal. A pivot that is not above rounding is
        raised to it, so a singular matrix gives a huge and finite inverse.
    """
    p = _order(normal)
    rows: list[list[torch.Tensor]] = []
    at = iter(normal.unbind(0))
    tiny = torch.finfo(normal.dtype).eps
    least = torch.finfo(normal.dtype).tiny ** 0.5
    for i in range(p):
        row = [next(at) for _ in range(i + 1)]
        diagonal = row[i]
        for j in range(i):
            for k in range(j):
                row[j] = row[j] - row[k] * rows[j][k] * rows[k][k]
            row[j] = row[j] / rows[j][j]
        pivot = diagonal
        for j in range(i):
            pivot = pivot - row[j] ** 2 * rows[j][j]
        row[i] = torch.maximum(pivot, tiny * diagonal).clamp_min(least)
        rows.append(row)
    return torch.stack([value for row in rows for value in row])


def solve(factors: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return x (p, n) with L D L' x = right (p, n), from `factorise`."""
    p = right.shape[0]
    x = list(right.unbind(0))
    for i, j in itertools.product(range(p), range(p)):
        if j < i:
            x[i] = x[i] - factors[_at(i, j)] * x[j]
    x = [x[i] / factors[_at(i, i)] for i in range(p)]
    for i in reversed(range(p)):
        for j in range(i + 1, p):
            x[i] = x[i] - factors[_at(j, i)] * x[j]
    return torch.stack(x)


def unit_variances(normal: torch.Tensor, mixed: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """Return (p + 1, n) variances of M0 and x for noise of variance 1: diag (J'J)^-1.

    Parameters
    ----------
    normal : Tensor
        (p (p + 1) / 2, n), the reduced normal matrix H.
    mixed : Tensor
        (p, n), M0 S's.
    power : Tensor
        (n,), s's.
    """
    factors = factorise(normal)
    p = mixed.shape[0]
    out = [1 / power + (mixed * solve(factors, mixed)).sum(0) / power**2]
    for i in range(p):
        unit = torch.zeros_like(mixed)
        unit[i] = 1
        out.append(solve(factors, unit)[i])
    return torch.stack(out)


def minimise(
    model: Model,
    signal: torch.Tensor,
    known: Mapping[str, torch.Tensor],
    start: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor],
    *,
    iterations: int,
    tolerance: float,
    damping: float,
    batch: int,
) -> Settled:
    """Return the least squares fit of each voxel, from `start`, inside the bounds.

    Parameters
    ----------
    model : callable
        Signals and slopes of a batch.
    signal : Tensor
        (D, N), finite; of the order of 1 in each voxel.
    known : mapping of str to Tensor
        (N,) each.
    start : Tensor
        (p, N) inside the bounds.
    bounds : (Tensor, Tensor)
        Least and greatest coordinates, (p, 1) each. A step is cut off there, and a
        coordinate at a bound that wants to go on is held.
    iterations : int
        Most steps of a voxel.
    tolerance : float
        A voxel has settled when no coordinate moves by more.
    damping : float
        First damping, as a part of the diagonal of H.
    batch : int
        Voxels at a time: what bounds the memory.
    """
    p, total = start.shape
    done = Settled(
        x=start.clone(),
        m0=signal.new_zeros(total),
        squares=signal.new_zeros(total),
        variances=signal.new_zeros(p + 1, total),
        converged=torch.zeros(total, dtype=torch.bool, device=signal.device),
        at_bound=torch.zeros(total, dtype=torch.bool, device=signal.device),
        steps=torch.zeros(total, dtype=torch.int16, device=signal.device),
    )
    state = _enter(signal, start, 0, min(batch, total), damping)
    entered = state.index.numel()
    while state.index.numel():
        trial, moved = _step(state, bounds)
        state = _try(state, trial, model, {k: v[state.index] for k, v in known.items()})
        settled = (moved <= tolerance) & (state.steps > 0)
        over = settled | (state.steps >= iterations)
        if bool(over.any()):
            _leave(done, state, over.nonzero()[:, 0], settled, bounds)
            state = state.keep((~over).nonzero()[:, 0])
        room = batch - state.index.numel()
        if entered < total and 4 * room >= batch:
            fresh = _enter(signal, start, entered, min(room, total - entered), damping)
            entered += fresh.index.numel()
            state = state.join(fresh)
    return done


def _order(packed: torch.Tensor) -> int:
    return int((2 * packed.shape[0]) ** 0.5)


def _at(i: int, j: int) -> int:
    return i * (i + 1) // 2 + j


def _enter(
    signal: torch.Tensor, start: torch.Tensor, first: int, count: int, damping: float
) -> _State:
    """Return the state of `count` voxels from `first` on that have not been computed yet.

    Their sum of squares is infinite and their gradient 0, so that the first step stays
    where it is and is taken: the start is evaluated with the steps of the others.
    """
    p = start.shape[0]
    rows = slice(first, first + count)
    normal = signal.new_zeros(p * (p + 1) // 2, count)
    for i in range(p):
        normal[_at(i, i)] = 1
    ones = signal.new_ones(count)
    return _State(
        index=torch.arange(first, first + count, device=signal.device),
        x=start[:, rows].clone(),
        signal=signal[:, rows].contiguous(),
        m0=ones,
        squares=ones * torch.inf,
        gradient=signal.new_zeros(p, count),
        normal=normal,
        mixed=signal.new_zeros(p, count),
        power=ones,
        damping=ones * damping / LESS,
        steps=torch.full((count,), -1, dtype=torch.int16, device=signal.device),
    )


def _step(
    state: _State, bounds: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the damped step leads (p, n), and how far it moves (n,)."""
    low, high = bounds
    p = state.x.shape[0]
    held = ((state.x <= low) & (state.gradient < 0)) | ((state.x >= high) & (state.gradient > 0))
    rows = []
    for i in range(p):
        for j in range(i):
            rows.append(state.normal[_at(i, j)].masked_fill(held[i] | held[j], 0))
        rows.append(state.normal[_at(i, i)] * (1 + state.damping))
    move = solve(factorise(torch.stack(rows)), state.gradient.masked_fill(held, 0))
    move = move.nan_to_num().clamp(-LONGEST_STEP, LONGEST_STEP)
    trial = torch.minimum(torch.maximum(state.x + move, low), high)
    return trial, (trial - state.x).abs().amax(0)


def _try(
    state: _State, trial: torch.Tensor, model: Model, known: Mapping[str, torch.Tensor]
) -> _State:
    """Return the state after the trial step, taken where it does not make the fit worse."""
    unit, slopes = model(trial, known)
    power = (unit * unit).sum(0).clamp_min(torch.finfo(unit.dtype).tiny ** 0.5)
    m0 = ((unit * state.signal).sum(0) / power).clamp_min(0)
    residual = torch.addcmul(state.signal, unit, m0, value=-1)
    squares = (residual * residual).sum(0).nan_to_num(torch.inf)
    better = squares <= state.squares
    overlap = (slopes * unit).sum(1)
    gradient = m0 * (slopes * residual).sum(1)
    normal = torch.stack(
        [
            m0**2 * ((slopes[i] * slopes[j]).sum(0) - overlap[i] * overlap[j] / power)
            for i in range(trial.shape[0])
            for j in range(i + 1)
        ]
    )
    return _State(
        index=state.index,
        x=torch.where(better, trial, state.x),
        signal=state.signal,
        m0=torch.where(better, m0, state.m0),
        squares=torch.where(better, squares, state.squares),
        gradient=torch.where(better, gradient.nan_to_num(), state.gradient),
        normal=torch.where(better, normal.nan_to_num(), state.normal),
        mixed=torch.where(better, m0 * overlap, state.mixed),
        power=torch.where(better, power, state.power),
        damping=torch.where(better, state.damping * LESS, (state.damping * MORE).clamp_min(1e-4)),
        steps=state.steps + 1,
    )


def _leave(
    done: Settled,
    state: _State,
    which: torch.Tensor,
    settled: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Write the voxels `which` of the batch to their place in `done`."""
    last = state.keep(which)
    index = last.index
    done.x[:, index] = last.x
    done.m0[index] = last.m0
    done.squares[index] = last.squares
    done.variances[:, index] = unit_variances(last.normal, last.mixed, last.power)
    done.converged[index] = settled[which]
    done.at_bound[index] = ((last.x <= bounds[0]) | (last.x >= bounds[1])).any(0)
    done.steps[index] = last.steps
