"""Exact minimum cuts on the GPU: synchronous push-relabel on the implicit lattice.

Push-relabel (Goldberg, Tarjan, J. ACM 35(4) 1988, DOI 10.1145/48014.61051), first
phase only: flow is pushed until none that waits can reach the sink. All nodes act
at once, without atomics, so that a result is the same on every run. Labels are set
anew by a breadth-first search from the sink every few sweeps.

Work grows with the longest way flow has to go. Where it is very long (a maze one
voxel wide, a single long scan), the search is broken off and what is left of the
capacities goes to the solver on the CPU, which goes on from there.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from medpipe.errors import StepError
from medpipe.graphcut.problem import CutProblem
from medpipe.graphcut.stencil_state import FAR, LARGEST, StencilState, stencil_state

__all__ = ["residual_state", "solve_stencil"]

STEPS_CUDA = 20_000
"""Sweeps and search levels on a GPU, about as long as the hand-over takes."""

STEPS_HOST = 2_000
"""The same for torch on the CPU."""

Relabel = Callable[[StencilState, int], tuple[int, bool]]
Sweeps = Callable[[StencilState, int], int]


def solve_stencil(
    problem: CutProblem,
    *,
    period: int = 32,
    max_rounds: int = 100_000,
    hand_over: bool = True,
) -> tuple[torch.Tensor, int, dict[str, Any]]:
    """Solve on the device of the problem.

    Problems of one lattice can be stacked along a leading axis with offset 0: each
    part gets its own cut, and the flow is that of all.

    Parameters
    ----------
    problem : CutProblem
        The problem.
    period : int
        Sweeps between two searches from the sink.
    max_rounds : int
        Largest number of searches.
    hand_over : bool
        Finish on the CPU what takes too many steps or rounds here.

    Returns
    -------
    source_side : Tensor
        Bool, the largest source side among the minimum cuts.
    flow : int
        Value of the maximum flow.
    stats : dict
        ``kernel`` ("torch" or "triton"), ``arcs_per_node``, ``rounds``, ``sweeps``,
        ``levels`` of all searches and ``handed_over``, the number of nodes that held
        flow when the CPU took over (0 if it did not).

    Raises
    ------
    StepError
        If `max_rounds` are not enough and nothing may be handed over.
    """
    # kernels start on the current device, which need not be that of the problem
    with torch.cuda.device_of(problem.source):
        state = stencil_state(problem)
        waiting, complete, stats = _flow(state, period, max_rounds, hand_over)
    if not waiting:
        return (state.label >= FAR).reshape(problem.shape), state.flow(), stats
    if not hand_over:
        raise StepError(
            "the cut is not finished", got=f"{max_rounds} rounds", hint="let the CPU finish it"
        )
    if not complete:
        # nobody is known to be cut off from the sink
        state.label.fill_(1)
    stats["handed_over"] = int(state.active().sum())
    side, flow = _finish(state)
    return side.reshape(problem.shape).to(problem.device), flow, stats


def _flow(
    state: StencilState, period: int, max_rounds: int, hand_over: bool
) -> tuple[int, bool, dict[str, Any]]:
    """Push what can be pushed; return how many nodes wait, whether the labels hold, counts."""
    device = state.excess.device
    kernel, relabel, sweeps = _kernels(device)
    steps = STEPS_HOST if device.type == "cpu" else STEPS_CUDA
    budget = steps if hand_over else 2**62
    rounds, swept, levels = 0, 0, 0
    while True:
        gone, complete = relabel(state, budget - swept - levels)
        rounds, levels = rounds + 1, levels + gone
        waiting = int(state.active().sum()) if complete else 1
        if not waiting or rounds >= max_rounds or swept + levels >= budget:
            break
        swept += sweeps(state, period)
    stats = {"kernel": kernel, "arcs_per_node": state.lattice.slots, "rounds": rounds}
    return waiting, complete, stats | {"sweeps": swept, "levels": levels, "handed_over": 0}


def residual_state(state: StencilState) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what another solver needs to go on.

    Returns
    -------
    imbalance : Tensor
        int64 (N,): flow that waits at a node, below 0 what its arc to the sink can
        still take. Flow that cannot reach the sink is left out.
    residuals : Tensor
        Residual capacities, int32 (N, 2F).
    """
    held = torch.where(state.label < FAR, state.excess, 0)
    slots = state.lattice.slots
    return held - state.room, state.capacity[:slots].t().contiguous()


def _finish(state: StencilState) -> tuple[torch.Tensor, int]:
    """Return the source side (N,) on the host and the flow, found on the CPU."""
    from medpipe.graphcut.pseudoflow import run_pseudoflow, sink_side
    from medpipe.graphcut.residual import Residual

    imbalance, residuals = residual_state(state)
    held = imbalance + state.room
    straight = int(torch.minimum(held, state.room).sum())
    lattice = state.lattice
    rest = Residual(
        capacity=_host(residuals),
        excess=_host(imbalance),
        base=state.flow() + straight,
        shift=np.array(lattice.shift, np.int64),
        row=np.array(lattice.row, np.int32),
        table=_host(lattice.table.to(torch.int32)),
        depth=lattice.depth,
        infinite=LARGEST,
    )
    run_pseudoflow(rest)
    return torch.from_numpy(~sink_side(rest)), rest.flow()


def _host(values: torch.Tensor) -> np.ndarray:
    return values.cpu().numpy()


def _kernels(device: torch.device) -> tuple[str, Relabel, Sweeps]:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if (device.type == "cuda" or interpreted) and _triton_works(device):
        from medpipe.graphcut import stencil_triton

        return "triton", stencil_triton.relabel, stencil_triton.sweeps
    from medpipe.graphcut import stencil_torch

    return "torch", stencil_torch.relabel, stencil_torch.sweeps


@functools.cache
def _triton_works(device: torch.device) -> bool:
    """Return whether kernels can be built: that takes Triton, a C compiler and headers."""
    if importlib.util.find_spec("triton") is None:
        return False
    from medpipe.graphcut import stencil_triton

    one = torch.ones(2, dtype=torch.int32, device=device)
    state = stencil_state(CutProblem(one, one, []))
    try:
        stencil_triton.relabel(state, 1)
        stencil_triton.sweeps(state, 1)
    except Exception:
        # each missing part raises an error of its own kind; plain torch needs none of them
        return False
    return True
