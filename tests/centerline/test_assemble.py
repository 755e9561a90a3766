"""Short branches go, requested ends stay."""

from __future__ import annotations

import numpy as np
import torch

from medpipe.centerline.assemble import prune, step_lengths_mm, without_shortcuts
from medpipe.centerline.endpoints import Growth
from medpipe.centerline.prepare import structures_of


def cross(first, second, asked=()):
    """A line of 20 nodes with two side branches of given lengths at node 5 and 12."""
    mask = torch.zeros(22, 22, 22, dtype=torch.uint8)
    mask[1:21, 5, 5] = 1
    mask[6, 6 : 6 + first, 5] = 1
    mask[13, 6 : 6 + second, 5] = 1
    lumen = structures_of(mask, np.eye(4))[0].lumen
    line = [(1 + n, 5, 5) for n in range(20)]
    sides = [(6, 6 + n, 5) for n in range(first)], [(13, 6 + n, 5) for n in range(second)]
    voxels = lumen.find(np.array([*line, *sides[0], *sides[1]]) - lumen.origin)
    parents = [*range(-1, 19), *([5, *range(20, 19 + first)])]
    parents += [12, *range(20 + first, 19 + first + second)]
    ends = np.array([19, 19 + first, 19 + first + second])
    growth = Growth(voxels, np.array(parents), np.array(asked, np.int64), ends)
    return lumen, growth


def test_branches_below_the_limit_go_and_nodes_are_numbered_anew():
    lumen, growth = cross(3, 8)
    out = prune(lumen, growth, radii=1.0, more_mm=3.0)  # radius 1: below 4 mm
    assert len(out.voxels) == 20 + 8
    assert out.found.tolist() == [19, 27]
    assert (out.parents < np.arange(28)).all()
    step = lumen.voxels[out.voxels[1:]] - lumen.voxels[out.voxels[out.parents[1:]]]
    assert np.abs(step).max() == 1
    np.testing.assert_allclose(step_lengths_mm(lumen, out)[1:], 1)


def test_a_junction_that_lost_its_branch_is_none():
    # the tail beyond node 12 is 7 long, its rival 8: the tail goes, the rival continues the trunk
    lumen, growth = cross(3, 8)
    out = prune(lumen, growth, radii=0.0, more_mm=7.5)
    children = np.bincount(out.parents[1:], minlength=len(out.voxels))
    assert (children <= 1).all()
    assert len(out.voxels) == 13 + 8


def test_requested_ends_and_the_last_branch_stay():
    lumen, growth = cross(3, 8, asked=(22,))
    out = prune(lumen, growth, radii=0.0, more_mm=1000.0)
    assert growth.voxels[22] in out.voxels[out.asked]
    lumen, growth = cross(3, 8)
    out = prune(lumen, growth, radii=0.0, more_mm=1000.0)
    assert len(out.found) == 1


def test_only_slim_branches_go_where_that_is_asked():
    lumen, growth = cross(3, 8)
    assert len(prune(lumen, growth, radii=0.0, more_mm=100.0, slim=0.5).voxels) == 31


def corner(asked):
    """A line of voxels with a node too many at (6, 6), which may be asked for."""
    mask = torch.zeros(12, 12, 12, dtype=torch.uint8)
    line = [(n, 5, 5) for n in range(1, 6)] + [(6, 6, 5), (6, 5, 5), (7, 4, 5), (8, 4, 5)]
    for v in line:
        mask[v] = 1
    lumen = structures_of(mask, np.eye(4))[0].lumen
    voxels = lumen.find(np.array(line) - lumen.origin)
    parents = np.arange(-1, len(line) - 1)
    return lumen, Growth(voxels, parents, np.array(asked, np.int64), np.array([len(line) - 1]))


def test_a_line_takes_the_short_cut_between_neighbouring_voxels():
    lumen, growth = corner([])
    out = without_shortcuts(lumen, growth)
    places = (lumen.voxels[out.voxels] + lumen.origin).tolist()
    assert places == [[n, 5, 5] for n in range(1, 7)] + [[7, 4, 5], [8, 4, 5]]
    assert out.parents.tolist() == [-1, 0, 1, 2, 3, 4, 5, 6]
    assert out.found.tolist() == [7]


def test_a_requested_end_is_not_cut_short():
    lumen, growth = corner([5])
    out = without_shortcuts(lumen, growth)
    assert len(out.voxels) == 9
    assert out.asked.tolist() == [5]
