"""Images of trees: HU and signal where the exact tubes say, noise as asked for."""

import numpy as np
import pytest
from scipy import ndimage

from medpipe.errors import UsageError
from medpipe.phantoms.airway_ct import airway_ct
from medpipe.phantoms.vessel_images import vessel_cta, vessel_mra

ALL = np.ones((3, 3, 3), bool)
SMALL = {"shape": (112, 112, 112), "root_radius_voxels": 5.0, "branches": 15}
CHEST = {"shape": (128, 96, 112), "spacing_mm": (2.5, 2.5, 2.5), "branches": 31, "vessels": 9}


@pytest.fixture(scope="module")
def cta():
    return vessel_cta(2, **SMALL, noise_hu=0)


@pytest.fixture(scope="module")
def chest():
    return airway_ct(1, **CHEST, noise_hu=0)


def test_contrast_fills_the_lumen_and_fades_towards_the_tips(cta):
    hu, tree = cta.volume.data, cta.tree
    field, owner = tree.distance_mm(2.0, owners=True)
    deep = (field < -0.6) & (hu < 500)  # inside, calcium apart
    arc = np.zeros(len(tree.parents))
    for n in range(1, len(arc)):
        up = tree.parents[n]
        arc[n] = arc[up] + np.linalg.norm(tree.points_mm[n] - tree.points_mm[up])
    expected = 350 * (1 - 0.3 * arc / arc.max())
    assert np.median(np.abs(hu[deep] - expected[owner[deep]])) < 0.5
    tips = np.rint((tree.points_mm[tree.leaves] - tree.affine[:3, 3]) / 0.5).astype(int)
    assert (hu[tuple(tips.T)] > 180).all()


def test_a_voxel_at_the_wall_holds_what_it_averages(cta):
    fine = vessel_cta(2, **SMALL, noise_hu=0, calcifications=0, bones=0)
    field = fine.tree.distance_mm(2.0)[0]
    at_wall = np.abs(field) < 0.02
    assert fine.volume.data[at_wall].mean() == pytest.approx((40 + 300) / 2, abs=25)


def test_bone_is_bright_and_keeps_clear_of_the_vessels(cta):
    bone, vessels = cta.other, cta.tree.mask
    assert ndimage.label(bone, ALL)[1] == 3
    assert not (ndimage.binary_dilation(bone, ALL, 3) & vessels).any()
    shell = bone & ~ndimage.binary_erosion(bone, iterations=2)
    assert cta.volume.data[shell].mean() > 500
    core = ndimage.binary_erosion(bone, iterations=6)
    assert cta.volume.data[core].mean() == pytest.approx(260, abs=5)


def test_calcium_lies_in_walls(cta):
    dense = (cta.volume.data > 600) & ~cta.other
    assert dense.any()
    field = cta.tree.distance_mm(4.0)[0]
    assert np.isfinite(field[dense & ~ndimage.binary_dilation(cta.other, ALL, 2)]).all()


def test_noise_of_the_ct_has_the_standard_deviation_asked_for(cta):
    noisy = vessel_cta(2, **SMALL, noise_hu=25)
    assert (noisy.volume.data - cta.volume.data).std() == pytest.approx(25, rel=0.02)


def test_the_mr_is_bright_in_vessels_and_rician_elsewhere():
    ideal = vessel_mra(3, **SMALL, noise=0, bias=0)
    inside = ideal.tree.distance_mm(1.0)[0] < -0.4
    assert ideal.volume.data[inside].min() > 180
    assert ideal.volume.data[inside].max() <= 321
    far = np.isinf(ideal.tree.distance_mm(3.0)[0])
    assert ideal.volume.data[far].mean() == pytest.approx(100, abs=4)
    noisy = vessel_mra(3, **SMALL, noise=40, bias=0).volume.data
    # the second moment of a Rician variable: A² + 2σ²
    assert (noisy[far] ** 2).mean() == pytest.approx(
        (ideal.volume.data[far] ** 2).mean() + 2 * 40**2, rel=0.01
    )
    biased = vessel_mra(3, **SMALL, noise=0, bias=0.2).volume.data / ideal.volume.data
    assert 0.05 < np.log(biased).std() < 0.4


def test_airways_are_one_tree_from_the_top_through_both_lungs(chest):
    tree = chest.tree
    assert ndimage.label(tree.mask, ALL)[1] == 1
    assert tree.points_mm[tree.root][2] == pytest.approx(2.5 * 111 / 2)
    assert tree.mask[:, :, -1].sum() == pytest.approx(np.pi * (8 / 2.5) ** 2, rel=0.2)
    tips = tree.points_mm[tree.leaves]
    assert len(tips) >= 8
    assert (tips[:, 0] < -40).sum() >= 3
    assert (tips[:, 0] > 40).sum() >= 3
    r = tree.radius_mm
    for node in tree.junctions:
        assert (r[tree.parents == node] ** 3).sum() == pytest.approx(r[node] ** 3)


def test_hu_of_the_chest(chest):
    hu, tree = chest.volume.data, chest.tree
    field = tree.distance_mm(8.0)[0]
    assert np.median(hu[field < -2.5]) == -1000
    assert hu.min() >= -1024
    lung = (hu < -700) & (hu > -950) & np.isinf(field)
    assert np.median(hu[lung]) == pytest.approx(-850, abs=10)
    assert 4.0e6 < lung.sum() * 2.5**3 < 4.84e6  # mm³; two ellipsoids less the heart
    assert np.median(hu[ndimage.binary_erosion(chest.other)]) > -100
    assert not (chest.other & tree.mask).any()


def test_a_region_that_grows_from_the_trachea_leaks_at_the_tips_alone(chest):
    hu, tree = chest.volume.data, chest.tree
    _, owner = tree.distance_mm(5.0, owners=True)
    root = (*np.argwhere(tree.mask[:, :, -1]).mean(0).astype(int), -1)

    def grown(allowed):
        pieces = ndimage.label(allowed)[0]
        return pieces == pieces[root]

    loose = hu < -800
    assert grown(loose).sum() > 10 * tree.mask.sum()
    at_tips = np.zeros(len(tree.parents) + 1, bool)  # the last entry is of what has no owner
    for leaf in tree.leaves:
        nodes = np.flatnonzero(tree.branch == tree.branch[leaf])
        at_tips[nodes[len(nodes) // 3 :]] = True
    sealed = grown(loose & ~at_tips[owner])
    assert sealed.sum() < 1.5 * tree.mask.sum()
    # a voxel half in the wall is too bright to grow into
    assert sealed[tree.mask & ~at_tips[owner]].mean() > 0.7


def test_the_same_seed_gives_the_same_chest(chest):
    again = airway_ct(1, **CHEST, noise_hu=0)
    assert again.volume.data.tobytes() == chest.volume.data.tobytes()
    noisy = airway_ct(1, **CHEST, noise_hu=30).volume.data
    body = chest.volume.data > -900
    assert (noisy - chest.volume.data)[body].std() == pytest.approx(30, rel=0.05)


def test_what_no_image_can_show_is_refused():
    with pytest.raises(UsageError, match="smooth walls"):
        vessel_cta(0, kind="rough")
    with pytest.raises(UsageError, match="too small"):
        airway_ct(0, shape=(32, 32, 32))
