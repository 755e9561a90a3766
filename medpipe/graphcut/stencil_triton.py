"""The two operations of the stencil solver as Triton kernels.

They do to the bit what `medpipe.graphcut.stencil_torch` does. A sweep is two
kernels. In the first each node writes what it sends along each slot; only its own
entries change. In the second each node takes in what its neighbours sent it, in the
order of the slots, and is relabelled; labels are read from one buffer and written
to another. No two programs write one entry, and none reads an entry that another
may write, except in the search, where a node may see a label of this level
early: it then looks for the level before and finds it unequal either way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from medpipe.graphcut.stencil_state import FAR, StencilState

__all__ = ["relabel", "sweeps"]

BLOCK = 256

OPTIONS = {"enable_fp_fusion": False}
"""No kernel has floats; without this, Triton 3.9 warns that its default will change."""

LEVELS_A_CHECK = 32
"""Levels of the search between two looks of the host at whether it is over."""


def relabel(state: StencilState, limit: int) -> tuple[int, bool]:
    """Set the labels to the number of residual arcs to the sink.

    Parameters
    ----------
    state : StencilState
        Its labels are overwritten.
    limit : int
        Largest number of levels to go, rounded up to a multiple of 32.

    Returns
    -------
    levels : int
        Number of levels gone.
    complete : bool
        Whether nothing more can be reached.
    """
    state.label.copy_(torch.where(state.room > 0, 1, FAR))
    changed = torch.zeros(1, dtype=torch.int32, device=state.label.device)
    lattice = _lattice(state)
    level = 1
    while level <= limit:
        for step in range(LEVELS_A_CHECK):
            if step == LEVELS_A_CHECK - 1:
                changed.zero_()
            _level_kernel[_grid(state)](
                state.label, state.capacity, changed, level, *lattice, **OPTIONS
            )
            level += 1
        if not bool(changed):
            return level, True
    return level, False


def sweeps(state: StencilState, count: int) -> int:
    """Push and relabel `count` times; return `count`.

    Parameters
    ----------
    state : StencilState
        Changed in place.
    count : int
        Number of sweeps; the host does not wait for any of them.
    """
    sent = torch.empty_like(state.capacity)
    sender = torch.empty_like(state.label)
    label, other = state.label, torch.empty_like(state.label)
    lattice = _lattice(state)
    for _ in range(count):
        _send_kernel[_grid(state)](
            state.excess, state.room, label, state.capacity, sent, sender, *lattice, **OPTIONS
        )
        _take_kernel[_grid(state)](
            state.excess,
            state.room,
            label,
            other,
            state.capacity,
            sent,
            sender,
            *lattice,
            **OPTIONS,
        )
        label, other = other, label
    state.label = label
    return count


def _grid(state: StencilState) -> tuple[int]:
    return (triton.cdiv(state.lattice.nodes, BLOCK),)


def _lattice(state: StencilState) -> tuple[object, ...]:
    """Return the last arguments of every kernel."""
    lattice = state.lattice
    device = state.label.device
    shift = torch.tensor(lattice.shift, dtype=torch.int64, device=device)
    row = torch.tensor(lattice.row, dtype=torch.int64, device=device)
    columns = lattice.table.shape[1]
    tabled = max(lattice.row, default=-1) >= 0
    return (
        *(shift, row, lattice.table, columns, lattice.nodes, lattice.depth, lattice.slots),
        *(tabled, FAR, BLOCK),
    )


@triton.jit
def _end(p, slot, shift, row, table, columns, nodes, depth, TABLED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the nodes where a slot of the nodes `p` ends."""
    step = tl.load(shift + slot)
    end = p + step
    end = tl.where(end < 0, end + nodes, end)
    end = tl.where(end >= nodes, end - nodes, end)
    if TABLED:
        r = tl.load(row + slot)
        column = p // depth
        k = p - column * depth + step
        k = tl.where(k < 0, k + depth, k)
        k = tl.where(k >= depth, k - depth, k)
        there = tl.load(table + tl.maximum(r, 0) * columns + column, mask=p < nodes, other=0)
        end = tl.where(r >= 0, there * depth + k, end)
    return end


@triton.jit(do_not_specialize=["level"])
def _level_kernel(  # type: ignore[no-untyped-def]
    label, capacity, changed, level,
    shift, row, table, columns, nodes, depth, slots,
    TABLED: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Label the nodes with a residual arc to a node of `level` with ``level + 1``."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(label + p, mask=p < nodes, other=0)
    open_ = own == FAR
    found = p < 0
    for slot in range(slots):
        end = _end(p, slot, shift, row, table, columns, nodes, depth, TABLED)
        look = open_ & (found == 0)
        near = look & (tl.load(label + end, mask=look, other=FAR) == level)
        free = tl.load(capacity + p + tl.cast(slot, tl.int64) * nodes, mask=near, other=0)
        found = found | (near & (free > 0))
    tl.store(label + p, own * 0 + level + 1, mask=found)
    tl.store(changed + p * 0, own * 0 + 1, mask=found)


@triton.jit
def _send_kernel(  # type: ignore[no-untyped-def]
    excess, room, label, capacity, sent, sender,
    shift, row, table, columns, nodes, depth, slots,
    TABLED: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Send what waits at each node to the sink and along its slots."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < nodes
    held = tl.load(excess + p, mask=inside, other=0)
    here = tl.load(label + p, mask=inside, other=FAR)
    active = (held > 0) & (here < FAR)
    tl.store(sender + p, tl.where(active, here, 0), mask=inside)
    left_room = tl.load(room + p, mask=active, other=0)
    amount = tl.minimum(held, left_room.to(tl.int64))
    tl.store(room + p, left_room - amount.to(tl.int32), mask=active)
    left = held - amount
    for slot in range(slots):
        end = _end(p, slot, shift, row, table, columns, nodes, depth, TABLED)
        lower = active & (tl.load(label + end, mask=active, other=FAR) + 1 == here)
        at = p + tl.cast(slot, tl.int64) * nodes
        own = tl.load(capacity + at, mask=lower, other=0)
        flow = tl.minimum(left, own.to(tl.int64)).to(tl.int32)
        tl.store(sent + at, flow, mask=lower)
        tl.store(capacity + at, own - flow, mask=lower)
        left = tl.where(lower, left - flow.to(tl.int64), left)
    tl.store(excess + p, left, mask=active)


@triton.jit
def _take_kernel(  # type: ignore[no-untyped-def]
    excess, room, label, new_label, capacity, sent, sender,
    shift, row, table, columns, nodes, depth, slots,
    TABLED: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take in what the neighbours sent, then raise the labels of nodes that hold flow."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < nodes
    held = tl.load(excess + p, mask=inside, other=0)
    here = tl.load(label + p, mask=inside, other=FAR)
    for slot in range(slots):
        end = _end(p, slot, shift, row, table, columns, nodes, depth, TABLED)
        from_there = inside & (tl.load(sender + end, mask=inside, other=0) == here + 1)
        flow = tl.load(sent + end + tl.cast(slot ^ 1, tl.int64) * nodes, mask=from_there, other=0)
        at = p + tl.cast(slot, tl.int64) * nodes
        some = from_there & (flow > 0)
        own = tl.load(capacity + at, mask=some, other=0)
        tl.store(capacity + at, own + flow, mask=some)
        held += flow.to(tl.int64)
    tl.store(excess + p, held, mask=inside)
    # the capacities just stored are read again, possibly by another thread
    tl.debug_barrier()
    active = inside & (held > 0) & (here < FAR)
    lowest = tl.where(tl.load(room + p, mask=active, other=0) > 0, 1, FAR)
    for slot in range(slots):
        end = _end(p, slot, shift, row, table, columns, nodes, depth, TABLED)
        free = tl.load(capacity + p + tl.cast(slot, tl.int64) * nodes, mask=active, other=0) > 0
        above = tl.load(label + end, mask=active & free, other=FAR) + 1
        lowest = tl.minimum(lowest, above)
    lowest = tl.minimum(lowest, FAR)
    tl.store(new_label + p, tl.where(active, tl.maximum(here, lowest), here), mask=inside)
