"""Random vessel trees: what the truth says against the mask, and the exact geometry."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from medpipe.errors import UsageError
from medpipe.phantoms.vessel_tree import NOISE_VOXELS, small_tree, vessel_tree

ALL = np.ones((3, 3, 3), bool)
SMALL = {"shape": (128, 128, 128), "root_radius_voxels": 5.0, "branches": 25}
UNIT = 0.5


@pytest.fixture(scope="module")
def clean():
    return vessel_tree(1, **SMALL)


@pytest.fixture(scope="module")
def kissing():
    return vessel_tree(3, **SMALL | {"kind": "kissing", "branches": 41})


def indices(tree):
    return np.rint((tree.points_mm - tree.affine[:3, 3]) / np.diag(tree.affine)[:3]).astype(int)


def gap_between_strangers(tree):
    """Least distance in voxels between surfaces of branches that share no junction."""
    mothers = tree.branch_parents
    least = np.inf
    for a in range(len(mothers)):
        p, r = tree.points_mm[tree.branch == a], tree.radius_mm[tree.branch == a]
        for b in range(a):
            if b == mothers[a] or mothers[b] == mothers[a]:
                continue
            q, s = tree.points_mm[tree.branch == b], tree.radius_mm[tree.branch == b]
            gaps = np.linalg.norm(p[:, None] - q, axis=-1) - r[:, None] - s
            # a junction's node belongs to the mother, so cousins start a step away from it
            least = min(least, float(gaps.min()))
    return least / UNIT


def test_same_seed_same_tree_other_seed_other_tree(clean):
    again, other = vessel_tree(1, **SMALL), vessel_tree(2, **SMALL)
    assert (again.mask == clean.mask).all()
    assert again.points_mm.tobytes() == clean.points_mm.tobytes()
    assert (other.mask != clean.mask).any()


def test_the_tree_is_one_tree(clean):
    assert (clean.parents[1:] < np.arange(1, len(clean.parents))).all()
    assert clean.root == 0
    assert len(clean.roots) == 1
    assert clean.branch.max() + 1 == 25
    assert len(clean.leaves) == 13
    assert len(clean.junctions) == 12
    child = np.flatnonzero(clean.parents >= 0)
    steps = np.linalg.norm(clean.points_mm[child] - clean.points_mm[clean.parents[child]], axis=1)
    assert 0.4 * UNIT < steps.min() <= steps.max() <= 0.5 * UNIT + 1e-9


def test_murray_holds_at_every_split_and_vessels_narrow(clean):
    r = clean.radius_mm
    for node in clean.junctions:
        daughters = np.flatnonzero(clean.parents == node)
        assert len(daughters) == 2
        assert (r[daughters] ** 3).sum() == pytest.approx(r[node] ** 3, rel=1e-12)
    child = np.flatnonzero(clean.parents >= 0)
    assert (r[child] <= r[clean.parents[child]] + 1e-12).all()
    assert r[clean.root] == pytest.approx(5 * UNIT)
    assert (r[clean.leaves] >= 1.15 * UNIT).all()
    assert (r[clean.leaves] <= 1.3 * UNIT).all()


def test_curves_bend_smoothly_and_daughters_leave_at_plausible_angles(clean):
    angles = []
    for b in range(clean.branch.max() + 1):
        path = clean.points_mm[clean.branch == b]
        d = np.diff(path, axis=0)
        d /= np.linalg.norm(d, axis=1)[:, None]
        turn = np.arccos(np.clip((d[1:] * d[:-1]).sum(1), -1, 1)) / (0.5 * UNIT)
        assert turn.max() * clean.radius_mm[clean.branch == b].max() < 1  # no fold
        if (mother := clean.branch_parents[b]) >= 0:
            end = np.diff(clean.points_mm[clean.branch == mother][-2:], axis=0)[0]
            angles.append(np.degrees(np.arccos(end @ d[0] / np.linalg.norm(end))))
    assert 30 < np.median(angles) < 50
    assert 14 < min(angles) < max(angles) < 76


def test_the_mask_is_one_piece_that_holds_its_curve(clean):
    assert ndimage.label(clean.mask, ALL)[1] == 1
    assert clean.mask[tuple(indices(clean).T)].all()
    border = [np.take(clean.mask, end, axis).any() for axis in range(3) for end in (0, -1)]
    assert not any(border)


def test_the_radius_is_the_depth_of_the_mask(clean):
    depth = ndimage.distance_transform_edt(clean.mask)[tuple(indices(clean).T)]
    # at a junction the mask is wider than either tube
    off = np.abs(depth - clean.radius_mm / UNIT)
    assert np.median(off) < 0.5
    assert np.quantile(off, 0.9) < 1


def test_the_mask_has_the_volume_of_its_tubes(clean):
    child = np.flatnonzero(clean.parents >= 0)
    above = clean.parents[child]
    h = np.linalg.norm(clean.points_mm[child] - clean.points_mm[above], axis=1)
    a, b = clean.radius_mm[child], clean.radius_mm[above]
    frusta = (np.pi / 3 * h * (a * a + a * b + b * b)).sum()
    assert clean.mask.sum() * UNIT**3 == pytest.approx(frusta, rel=0.05)


@pytest.mark.parametrize("seed", [1, 4])
def test_vessels_keep_clear_of_strangers(seed):
    tree = vessel_tree(seed, **SMALL)
    assert gap_between_strangers(tree) >= 2


def test_kissing_vessels_overlap_but_not_by_much(kissing):
    assert -0.75 < gap_between_strangers(kissing) < 0
    # voxels of strangers are neighbours: the mask has a loop that the tree has not
    filled = np.pad(kissing.mask, 1)
    assert ndimage.label(filled, ALL)[1] == 1
    assert euler(filled) < 1
    assert euler(np.pad(vessel_tree(3, **SMALL | {"branches": 41}).mask, 1)) == 1


def euler(mask):
    from skimage.measure import euler_number

    return euler_number(mask, 3)


@pytest.mark.parametrize("kind", ["rough", "very-rough"])
def test_the_noise_of_the_surface_has_the_spread_asked_for(clean, kind):
    rough = vessel_tree(1, **SMALL | {"kind": kind})
    assert rough.points_mm.tobytes() == clean.points_mm.tobytes()
    field = clean.distance_mm(3 * UNIT)[0] / UNIT
    # the share inside at a signed distance d is the normal probability of noise < -d; well
    # inside thick vessels nothing else plays a part
    wide = np.linspace(-1.5, 1.5, 13)
    share = [rough.mask[np.abs(field - d) < 0.1].mean() for d in wide]
    # first two moments of the distribution whose survival function this is
    mean = wide[0] + np.trapezoid(share, wide)
    second = 2 * np.trapezoid(wide * np.array(share), wide) + wide[0] ** 2
    assert abs(mean) < 0.12
    assert np.sqrt(second - mean**2) == pytest.approx(NOISE_VOXELS[kind], rel=0.15)


@pytest.mark.parametrize("kind", ["rough", "very-rough"])
def test_rough_vessels_stay_whole_up_to_their_tips(kind):
    rough = vessel_tree(2, **SMALL | {"kind": kind})
    assert ndimage.label(rough.mask, ALL)[1] == 1
    assert rough.mask[tuple(indices(rough).T)].all()


def test_the_kinds_differ_in_roughness():
    sides = []
    for kind in ("clean", "rough", "very-rough"):
        mask = vessel_tree(2, **SMALL | {"kind": kind}).mask
        faces = sum(int((np.diff(mask.astype(np.int8), axis=a) != 0).sum()) for a in range(3))
        sides.append(faces / mask.sum())
    assert sides[0] * 1.02 < sides[1]
    assert sides[1] * 1.05 < sides[2]


def test_gaps_cut_thin_vessels_through(clean):
    cut = vessel_tree(1, **SMALL | {"gaps": 3})
    nodes = cut.facts["gaps"]
    assert len(nodes) == 3
    assert ndimage.label(cut.mask, ALL)[1] == 4
    assert not (cut.mask & ~clean.mask).any()
    assert not cut.mask[tuple(indices(cut)[nodes].T)].any()
    assert (cut.radius_mm[nodes] < 2.5 * UNIT).all()
    lost = np.argwhere(clean.mask & ~cut.mask)
    away = cKDTree(indices(cut)[nodes]).query(lost)[0]
    assert away.max() < 6


def test_the_ostium_touches_the_root_and_nothing_else():
    tree = vessel_tree(1, **SMALL | {"ostium": True})
    assert not (tree.mask & tree.ostium).any()
    contact = np.argwhere(ndimage.binary_dilation(tree.ostium, ALL) & tree.mask)
    at = indices(tree)[tree.root]
    assert len(contact) > 20
    assert np.linalg.norm(contact - at, axis=1).max() < 2 * 5
    assert ndimage.label(tree.mask, ALL)[1] == 1
    assert tree.ostium.sum() > 0.5 * tree.mask.sum()


def test_small_trees_of_every_kind():
    for seed in range(4):
        for kind in ("clean", "rough", "very-rough", "kissing"):
            tree = small_tree(seed, kind=kind)
            assert 3 <= len(tree.leaves) <= (17 if kind == "kissing" else 11)
            assert ndimage.label(tree.mask, ALL)[1] == 1


def test_voxels_that_are_no_cubes():
    tree = vessel_tree(
        2, shape=(128, 128, 48), spacing_mm=(0.4, 0.4, 0.9), root_radius_voxels=4, branches=15
    )
    inside = tree.mask[tuple(indices(tree).T)]
    assert inside.mean() > 0.97
    frame = np.abs(tree.points_mm) + tree.radius_mm[:, None]
    assert (frame < np.array([128 * 0.4, 128 * 0.4, 48 * 0.9]) / 2).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "smooth"},
        {"root_radius_voxels": 1.0},
        {"shape": (24, 24, 24)},
        {"branches": 0},
        {"seed": -1},
        {"spacing_mm": (-1.0, -1.0, 1.0)},
        {"leaf_radius_voxels": (0.1, 1.0)},
        {"root_radius_voxels": float("nan")},
    ],
    ids=lambda w: next(iter(w)),
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        vessel_tree(**{"seed": 0} | SMALL | wrong)
