"""Orders of tokens: every place once, neighbours beside each other, halves in one piece."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medpipe.errors import UsageError
from medpipe.synthesis.orders import inverse_order, token_order
from medpipe.synthesis.positions import coordinates

BOXES = [
    (7,), (4, 6), (5, 5), (3, 8), (10, 14, 10), (20, 28, 20), (4, 6, 4), (5, 3, 7), (1, 1, 9),
    (2, 1, 5), (9, 2, 3), (16, 16, 16), (6, 7, 9), (13, 11, 17), (1, 1, 1),
]  # fmt: skip


def steps(grid, kind):
    places = coordinates(grid, token_order(grid, kind))
    return (places[1:] - places[:-1]).abs().sum(-1)


@pytest.mark.parametrize("grid", BOXES, ids=str)
@pytest.mark.parametrize("kind", ["raster", "s-curve", "hilbert"])
def test_every_place_comes_once(grid, kind):
    order = token_order(grid, kind)
    assert order.sort().values.tolist() == list(range(math.prod(grid)))
    assert torch.equal(order[inverse_order(order)], torch.arange(len(order)))


@pytest.mark.parametrize("grid", BOXES, ids=str)
@pytest.mark.parametrize("kind", ["s-curve", "hilbert"])
def test_every_step_leads_to_a_neighbour(grid, kind):
    assert (steps(grid, kind) == 1).all()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_the_hilbert_curve_fits_any_box(sizes):
    grid = tuple(sizes)
    assert len(token_order(grid, "hilbert").unique()) == math.prod(grid)
    assert (steps(grid, "hilbert") == 1).all()


def test_raster_is_the_order_of_memory():
    assert token_order((2, 3, 4), "raster").tolist() == list(range(24))


def test_the_s_curve_turns_at_the_end_of_rows_and_planes():
    grid = torch.arange(12).reshape(2, 2, 3)
    rows = [grid[0, 0], grid[0, 1].flip(0), grid[1, 1], grid[1, 0].flip(0)]
    assert torch.equal(token_order((2, 2, 3), "s-curve"), torch.cat(rows))


@pytest.mark.parametrize("block", [4, 2])
def test_the_hilbert_curve_of_a_cube_leaves_no_octant_before_it_is_full(block):
    position = inverse_order(token_order((8, 8, 8), "hilbert")).view(8, 8, 8)
    for corner in itertools.product(range(0, 8, block), repeat=3):
        i, j, k = (slice(c, c + block) for c in corner)
        inside = position[i, j, k]
        assert inside.max() - inside.min() == block**3 - 1


def test_the_hilbert_curve_keeps_near_in_sequence_near_in_space():
    def spread(kind):
        places = coordinates((10, 14, 10), token_order((10, 14, 10), kind)).double()
        return (places[64:] - places[:-64]).norm(dim=-1).mean()

    assert spread("hilbert") < 0.75 * spread("raster")


@pytest.mark.parametrize("grid", [(), (2, 2, 2, 2), (0, 3), (4, -1)])
def test_a_grid_that_cannot_be_is_named(grid):
    with pytest.raises(UsageError, match="grid of tokens is wrong"):
        token_order(grid, "raster")


def test_an_unknown_order_is_named():
    with pytest.raises(UsageError, match=r"unknown order of tokens.*got spiral"):
        token_order((2, 2), "spiral")
