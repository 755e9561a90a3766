"""Tubes on grids: closed forms, and the union of many balls."""

import numpy as np
import pytest
from scipy import ndimage

from medpipe.errors import UsageError
from medpipe.geometry import to_mm
from medpipe.phantoms import tube_shapes as shapes
from medpipe.phantoms.tubes import centred_affine, tube, tube_distance

ALL = np.ones((3, 3, 3), bool)


def balls(points, radius, affine, shape):
    """Signed distance to the union of balls, one ball after another."""
    grid = to_mm(affine, np.moveaxis(np.indices(shape), 0, -1))
    out = np.full(shape, np.inf)
    for centre, r in zip(points, radius, strict=True):
        out = np.minimum(out, np.linalg.norm(grid - centre, axis=-1) - r)
    return out


def test_a_cone_is_the_union_of_the_balls_along_it():
    shape, spacing = (30, 26, 22), (0.7, 0.9, 1.1)
    affine = centred_affine(shape, spacing)
    ends, radius = np.array([[-5.0, 1.0, -4.0], [5.0, -2.0, 3.0]]), np.array([4.5, 1.0])
    t = np.linspace(0, 1, 2001)[:, None]
    truth = balls(ends[0] + t * (ends[1] - ends[0]), radius[0] + t[:, 0] * -3.5, affine, shape)
    field, owner = tube_distance(ends, radius, affine, shape, reach_mm=2.0, owners=True)
    near = truth <= 1.99
    np.testing.assert_allclose(field[near], truth[near], atol=2e-3)
    assert np.isinf(field[truth > 2.01]).all()
    assert (owner[near] == 1).all()
    assert (owner[np.isinf(field)] == -1).all()


@pytest.mark.parametrize("radii", [(5.0, 1.0), (1.0, 5.0)])
def test_a_ball_inside_another_adds_nothing(radii):
    points = np.array([[0.0, 0, 0], [2.0, 0, 0]])
    mask = tube(points, radii, (20, 20, 20))
    affine = centred_affine((20, 20, 20), (1, 1, 1))
    big = points[int(np.argmax(radii))]
    assert (mask == (balls([big], [5.0], affine, (20, 20, 20)) <= 0)).all()


def test_volume_of_a_straight_tube():
    tree = shapes.straight_tube(40, 5, direction=(1, 2, 3), size=110, spacing_mm=(0.5,) * 3)
    truth = np.pi * 25 * 40 + 4 / 3 * np.pi * 125
    assert tree.mask.sum() * 0.125 == pytest.approx(truth, rel=0.003)
    assert tree.length_mm == pytest.approx(40)


def test_volume_and_loop_of_a_ring():
    tree = shapes.ring(18, 4, size=112, spacing_mm=(0.5,) * 3)
    assert tree.mask.sum() / 8 == pytest.approx(2 * np.pi**2 * 18 * 16, rel=0.01)
    assert tree.length_mm == pytest.approx(2 * np.pi * 18, rel=1e-3)
    assert len(tree.leaves) == 0
    middle = tree.mask[:, :, 56]
    assert ndimage.label(~middle)[1] == 2  # the hole and the outside
    owner = tree.distance_mm(1.0, owners=True)[1]
    assert owner.max() == len(tree.parents) - 1


def test_length_of_a_helix():
    tree = shapes.helix(16, 20, 2, 3)
    assert tree.length_mm == pytest.approx(2 * np.hypot(2 * np.pi * 16, 20), rel=1e-3)
    assert tree.mask.sum() == pytest.approx(
        np.pi * 9 * tree.length_mm + 4 / 3 * np.pi * 27, rel=0.02
    )


@pytest.mark.parametrize(
    ("tree", "leaves", "roots", "components"),
    [
        (shapes.y_shape(), 2, 1, 1),
        (shapes.trifurcation(), 3, 1, 1),
        (shapes.two_trees(), 2, 2, 2),
        (shapes.straight_tube(), 1, 1, 1),
        (shapes.diagonal_line(20), 1, 1, 1),
    ],
    ids=["y", "trifurcation", "two", "straight", "diagonal"],
)
def test_the_simple_trees_have_the_ends_and_pieces_they_should(tree, leaves, roots, components):
    assert (len(tree.leaves), len(tree.roots)) == (leaves, roots)
    assert ndimage.label(tree.mask, ALL)[1] == components
    index = np.rint((tree.points_mm - tree.affine[:3, 3]) / np.diag(tree.affine)[:3]).astype(int)
    assert tree.mask[tuple(index.T)].all()
    for node in tree.junctions:
        daughters = np.flatnonzero(tree.parents == node)
        assert (tree.radius_mm[daughters] ** 3).sum() == pytest.approx(tree.radius_mm[node] ** 3)


def test_the_diagonal_is_one_voxel_thin():
    tree = shapes.diagonal_line(20)
    assert tree.mask.sum() == 20
    assert ndimage.label(tree.mask)[1] == 20  # no two share a face


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="no points"):
        tube(np.zeros((0, 3)), 1, (8, 8, 8))
    with pytest.raises(UsageError, match="parents"):
        tube(np.zeros((3, 3)), 1, (8, 8, 8), parents=[-1, 0])
    turned = np.eye(4)[[1, 0, 2, 3]]
    with pytest.raises(UsageError, match="axes of the world"):
        tube_distance(np.zeros((1, 3)), 1, turned, (8, 8, 8), reach_mm=0)
    with pytest.raises(UsageError, match="after"):
        shapes.tree_of([(np.zeros((2, 3)), 1, 0)], (8, 8, 8))
