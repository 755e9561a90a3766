"""The two operations of the stencil solver in plain torch.

Only nodes that act are touched: the front of the breadth-first search, and the
nodes that hold flow. `medpipe.graphcut.stencil_triton` does the same to the bit.
"""

from __future__ import annotations

import torch

from medpipe.graphcut.stencil_state import FAR, StencilState

__all__ = ["relabel", "sweeps"]


def relabel(state: StencilState, limit: int) -> tuple[int, bool]:
    """Set the labels to the number of residual arcs to the sink.

    Parameters
    ----------
    state : StencilState
        Its labels are overwritten.
    limit : int
        Largest number of levels to go.

    Returns
    -------
    levels : int
        Number of levels gone.
    complete : bool
        Whether nothing more can be reached.
    """
    lattice, label, capacity = state.lattice, state.label, state.capacity
    label.fill_(FAR)
    front = torch.nonzero(state.room > 0)[:, 0]
    label[front] = 1
    level = 1
    while front.numel() and level <= limit:
        level += 1
        found = []
        for slot in range(lattice.slots):
            tail = lattice.heads(front, slot)
            new = tail[(label[tail] == FAR) & (capacity[slot ^ 1][tail] > 0)]
            label[new] = level
            found.append(new)
        front = torch.cat(found) if found else front[:0]
    return level, not front.numel()


def sweeps(state: StencilState, count: int) -> int:
    """Push and relabel `count` times; return how often there was something to push.

    In one sweep every node that holds flow sends it to the sink and along its slots
    in order to nodes labelled one lower, all nodes at once. Then each node that
    holds flow takes the label one above its lowest residual neighbour.
    """
    active = torch.nonzero(state.active())[:, 0]
    for done in range(count):
        if not active.numel():
            return done
        _push(state, active)
        active = torch.nonzero(state.active())[:, 0]
        _raise(state, active)
        active = active[state.label[active] < FAR]
    return count


def _push(state: StencilState, active: torch.Tensor) -> None:
    lattice, label, capacity = state.lattice, state.label, state.capacity
    here, room = label[active], state.room[active]
    held = state.excess[active]
    amount = torch.minimum(held, room)
    state.room[active] = room - amount.to(torch.int32)
    left = held - amount
    for slot in range(lattice.slots):
        head = lattice.heads(active, slot)
        own = capacity[slot][active]
        amount = torch.where(label[head] + 1 == here, torch.minimum(left, own), 0)
        flow = amount.to(torch.int32)
        # the ends of one slot are all different, so no two writes meet
        capacity[slot][active] = own - flow
        capacity[slot ^ 1][head] += flow
        state.excess[head] += amount
        left = left - amount
    state.excess[active] += left - held


def _raise(state: StencilState, active: torch.Tensor) -> None:
    lattice, label = state.lattice, state.label
    lowest = torch.where(state.room[active] > 0, 1, FAR).to(torch.int32)
    for slot in range(lattice.slots):
        above = label[lattice.heads(active, slot)] + 1
        free = state.capacity[slot][active] > 0
        lowest = torch.where(free, torch.minimum(lowest, above), lowest)
    label[active] = torch.maximum(label[active], lowest.clamp(max=FAR))
