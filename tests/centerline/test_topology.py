"""Betti numbers against known shapes, homology by linear algebra, and scikit-image."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import euler_number

from medpipe.centerline.graph import foreground_graph
from medpipe.centerline.topology import betti_numbers, components, loops_per_component
from medpipe.errors import StepError


def betti(mask):
    return betti_numbers(torch.from_numpy(np.asarray(mask, bool)))


def radius_in(shape):
    """Return the coordinates from the middle of an array."""
    return [x - (s - 1) / 2 for x, s in zip(np.indices(shape), shape, strict=True)]


def torus(radius=10, tube=3.5):
    i, j, k = radius_in((31, 31, 11))
    return (np.hypot(i, j) - radius) ** 2 + k**2 < tube**2


def shell(size=15, inner=3.5, outer=6.5):
    r = np.sqrt(sum(x**2 for x in radius_in((size,) * 3)))
    return (r < outer) & (r >= inner)


def two_tori():
    """Two tori side by side that touch in a thick bridge: genus two."""
    return np.concatenate([torus()[:-3], torus()[3:]])


def linked_rings():
    """Two rings, each through the other, that do not touch."""
    one, other = np.zeros((2, 21, 30, 21), bool)
    one[4:17, 2:15, 10] = True
    one[6:15, 4:13, 10] = False
    other[10, 9:22, 4:17] = True
    other[10, 11:20, 6:15] = False
    return one | other


def ring_of_voxels():
    mask = np.zeros((3, 5, 5), bool)
    mask[1, [0, 1, 2, 3, 4, 3, 2, 1], [2, 3, 4, 3, 2, 1, 0, 1]] = True
    return mask


def diagonal():
    mask = np.zeros((4, 4, 4), bool)
    mask[range(4), range(4), range(4)] = True
    return mask


SHAPES = {
    "empty": (np.zeros((4, 5, 6)), (0, 0, 0)),
    "no array": (np.zeros((0, 5, 6)), (0, 0, 0)),
    "full": (np.ones((4, 5, 6)), (1, 0, 0)),
    "voxel": (np.ones((1, 1, 1)), (1, 0, 0)),
    "torus": (torus(), (1, 1, 0)),
    "two tori": (two_tori(), (1, 2, 0)),
    "linked rings": (linked_rings(), (2, 2, 0)),
    "shell": (shell(), (1, 0, 1)),
    "shell in a shell": (shell() | shell(15, 0.5, 1.5), (2, 0, 2)),
    "hollow torus": (torus(10, 4.5) & ~torus(10, 2), (1, 2, 1)),
    "ring of voxels": (ring_of_voxels(), (1, 1, 0)),
    "touching diagonals": (diagonal(), (1, 0, 0)),
    "a cube without edges": (np.pad(np.zeros((1, 1, 1)), 1, constant_values=1), (1, 0, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_their_betti_numbers(name):
    mask, expected = SHAPES[name]
    assert betti(mask) == expected
    assert betti(np.pad(mask, 2)) == expected
    assert betti(np.transpose(mask, (2, 0, 1))) == expected


def test_a_torus_that_is_cut_is_a_tube():
    mask = torus()
    mask[15, 15:] = False
    assert betti(mask) == (1, 0, 0)
    # a single voxel across the cut closes it again, by its corners
    mask[15, 25, 5] = True
    assert betti(mask) == (1, 1, 0)


def homology(mask):
    """Return the Betti numbers of the union of closed cubes by ranks over GF(2)."""
    cells = set()
    for voxel in np.argwhere(mask):
        for d in product((-1, 0, 1), repeat=3):
            cells.add(tuple(2 * int(x) + 1 + y for x, y in zip(voxel, d, strict=True)))
    by_dimension = [[c for c in cells if sum(x % 2 for x in c) == d] for d in range(4)]
    numbers = [{c: n for n, c in enumerate(group)} for group in by_dimension]
    ranks = [0]
    for d in range(1, 4):
        rows = []
        for cell in by_dimension[d]:
            row = 0
            for axis, side in product(range(3), (-1, 1)):
                if cell[axis] % 2:
                    face = (*cell[:axis], cell[axis] + side, *cell[axis + 1 :])
                    row ^= 1 << numbers[d - 1][face]
            rows.append(row)
        ranks.append(rank(rows))
    ranks.append(0)
    return tuple(len(by_dimension[d]) - ranks[d] - ranks[d + 1] for d in range(3))


def rank(rows):
    """Return the rank of a matrix over GF(2) whose rows are integers."""
    leading = {}
    for row in rows:
        while row and row.bit_length() in leading:
            row ^= leading[row.bit_length()]
        if row:
            leading[row.bit_length()] = row
    return len(leading)


@given(
    shape=st.sampled_from([(3, 3, 4), (1, 5, 5), (4, 4, 4)]),
    density=st.floats(0.05, 0.98),
    seed=st.integers(0, 10**6),
)
def test_small_masks_have_the_homology_of_their_cubes(shape, density, seed):
    mask = np.random.default_rng(seed).random(shape) < density
    assert betti(mask) == homology(mask)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_random_volumes_agree_with_scikit_image_and_scipy(density):
    mask = np.random.default_rng(2).random((20, 24, 28)) < density
    around = np.pad(mask, 1)
    pieces = ndimage.label(mask, np.ones((3, 3, 3)))[1]
    cavities = ndimage.label(~around)[1] - 1
    euler = euler_number(around, connectivity=3)
    assert betti(mask) == (pieces, pieces + cavities - euler, cavities)


def test_components_are_numbered_by_their_lowest_voxel():
    mask = np.random.default_rng(1).random((20, 20, 20)) < 0.04
    graph = foreground_graph(torch.from_numpy(mask), np.eye(4))
    component = components(graph)
    assert component.dtype == torch.int32
    seen = component.numpy()
    names, first = np.unique(seen, return_index=True)
    assert names.tolist() == list(range(names.size))
    assert (np.diff(first) > 0).all()
    want = ndimage.label(mask, np.ones((3, 3, 3)))[0][mask]
    assert np.unique(np.stack([seen, want]), axis=1).shape[1] == names.size == want.max()


def test_each_component_has_its_own_loops():
    """Among nested shells a cavity counts for the shell around it, not for what is in it."""
    mask = np.zeros((31, 31, 60), bool)
    mask[:, :, :11] = torus()
    mask[8:23, 8:23, 14:29] = shell()
    mask[15, 15, 21] = True  # a voxel within the shell
    mask[5:10, 5:10, 50] = True
    mask[7, 7, 50] = False
    mask[26:29, 26:29, 40:43] = True  # a second cavity, in another component
    mask[27, 27, 41] = False
    graph = foreground_graph(torch.from_numpy(mask), np.eye(4))
    component = components(graph)
    found = loops_per_component(graph, component)
    expected = {(5, 5, 50): 1, (15, 15, 21): 0, (15, 15, 15): 0, (15, 5, 5): 1, (26, 26, 40): 0}
    assert len(found) == len(expected)
    for voxel, loops in expected.items():
        n = int((graph.voxels == torch.tensor(voxel)).all(1).nonzero())
        assert found[int(component[n])] == loops


def test_structures_that_touch_count_each_by_itself():
    labels = np.ones((3, 3, 1), np.int16)
    labels[1, 1] = 0
    labels[0, :] = 2  # a ring of two structures: none of them has a loop
    graph = foreground_graph(torch.from_numpy(labels), np.eye(4))
    assert loops_per_component(graph, components(graph)) == [0, 0]
    labels[1, 1] = 3  # a core fills the hole but not the loop of what is around it
    labels[0, :] = 1
    graph = foreground_graph(torch.from_numpy(labels), np.eye(4))
    assert loops_per_component(graph, components(graph)) == [1, 0]
    solid = np.ones((5, 5, 5), np.int16)
    solid[2, 2, 2] = 2  # a cavity of the first, filled by the second
    graph = foreground_graph(torch.from_numpy(solid), np.eye(4))
    assert loops_per_component(graph, components(graph)) == [0, 0]


def test_a_mask_without_three_axes_is_refused():
    with pytest.raises(StepError, match="label map"):
        betti_numbers(torch.ones(3, 3, dtype=torch.bool))


@pytest.mark.gpu
def test_a_mask_on_the_device_has_the_same_numbers():
    mask = torch.from_numpy(np.random.default_rng(5).random((30, 30, 30)) < 0.3)
    assert betti_numbers(mask.cuda()) == betti_numbers(mask)
    graph = foreground_graph(mask.cuda(), np.eye(4))
    assert components(graph).is_cuda


@pytest.mark.real_data
def test_an_airway_has_eighteen_loops(airway):
    mask = airway[0]
    assert betti(mask[ndimage.find_objects(mask)[0]] > 0) == (1, 18, 0)
