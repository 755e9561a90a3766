"""Vessels in angiographies: trees of known shape with bone, calcium and noise; real images."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch

from medpipe.centerline.vessel_mask import VesselMaskSettings, vessel_mask
from medpipe.errors import StepError, UsageError
from medpipe.phantoms.tubes import centred_affine, tube_distance
from medpipe.phantoms.vessel_images import vessel_cta

SHAPE = (96, 96, 112)


def tree():
    """Return points in mm, radii, and parents: a trunk of 8 mm that forks down to 1 mm."""
    points, radius, parents = [[0.0, 0.0, -40.0]], [8.0], [-1]

    def grow(start, heading, length, r0, r1, depth):
        at = start
        for n in range(1, 9):
            bend = heading + 0.25 * np.array([np.sin(n / 3), np.cos(n / 3), 0]) * (depth > 0)
            points.append(list(np.array(points[at]) + bend / np.linalg.norm(bend) * length / 8))
            radius.append(r0 + (r1 - r0) * n / 8)
            parents.append(at)
            at = len(points) - 1
        if depth < 3:
            across = np.cross(heading, [0.3, 1, 0.2] if depth % 2 else [1, 0.2, 0.1])
            across /= np.linalg.norm(across)
            for side, share in ((1, 0.85), (-1, 0.65)):
                turned = heading + side * 0.9 * across
                grow(at, turned / np.linalg.norm(turned), length * 0.62, r1 * share,
                     max(1.0, r1 * share * 0.75), depth + 1)  # fmt: skip

    grow(0, np.array([0.0, 0.0, 1.0]), 34.0, 8.0, 5.5, 0)
    return np.array(points), np.array(radius), np.array(parents)


def angiography(spacing=(0.9, 0.9, 0.9), blood=350.0, tissue=50.0, noise=25.0, bone=False, seed=0):
    """Return an image, the mask and the signed distance of a tree in noise."""
    points, radius, parents = tree()
    shape = [round(n * 0.9 / s) for n, s in zip(SHAPE, spacing, strict=True)]
    affine = centred_affine(shape, spacing)
    field, _ = tube_distance(points, radius, affine, shape, parents=parents, reach_mm=4)
    share = np.clip(0.5 - field / np.mean(spacing), 0, 1)
    image = tissue + (blood - tissue) * share
    if bone:  # a vertebral column that touches the trunk, and a plaque in its wall
        i, j, _ = np.indices(shape)
        away = np.hypot((i - (shape[0] - 1) / 2) * spacing[0] - 19.5,
                        (j - (shape[1] - 1) / 2) * spacing[1])  # fmt: skip
        image = np.where(away < 11.5, 180.0, image)
        image = np.where((away < 11.5) & (away > 9), 900.0, image)
        image[44:47, 40:42, 30:33] = 1000
    rng = np.random.default_rng(seed)
    image = image + noise * rng.normal(size=image.shape)
    return torch.from_numpy(image.astype(np.float32)), field <= 0, (points, radius, parents, affine)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def length_found(mask, facts):
    """Return the share of the nodes of the tree that lie in the mask, by length."""
    points, _, parents, affine = facts
    voxels = np.rint((points - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
    length = np.linalg.norm(points - points[parents], axis=1) * (parents >= 0)
    return (length * mask[tuple(voxels.T)]).sum() / length.sum()


@pytest.mark.parametrize(
    ("spacing", "least"), [((0.9, 0.9, 0.9), 0.9), ((0.7, 0.7, 1.5), 0.88)], ids=str
)
def test_a_tree_from_8_to_1_mm_is_found_beside_bone(spacing, least):
    image, truth, facts = angiography(spacing, bone=True)
    found = vessel_mask(image, spacing, VesselMaskSettings(pieces=1))
    mask = found.mask.numpy()
    assert dice(mask, truth) > least
    assert length_found(mask, facts) > 0.97
    assert (mask & ~truth & (image.numpy() > 600)).sum() < 30
    assert found.levels.blood == pytest.approx(350, abs=15)
    assert found.levels.tissue == pytest.approx(50, abs=5)
    assert found.levels.noise == pytest.approx(25, rel=0.15)
    assert found.levels.bone == pytest.approx(found.levels.blood + 250, abs=20)


def test_marrow_as_bright_as_blood_is_no_vessel():
    phantom = vessel_cta(2, shape=(112, 112, 112), branches=15)
    found = vessel_mask(torch.from_numpy(phantom.volume.data), (0.5, 0.5, 0.5))
    mask, facts = found.mask.numpy(), phantom.tree
    assert phantom.other.sum() > 1000
    assert (mask & phantom.other).sum() < 0.01 * phantom.other.sum()
    assert dice(mask, facts.mask) > 0.93
    nodes = (facts.points_mm, facts.radius_mm, facts.parents, facts.affine)
    assert length_found(mask, nodes) > 0.97


def test_a_tree_in_mr_of_any_unit_is_found():
    image, truth, facts = angiography(blood=1600, tissue=240, noise=60)
    plain = vessel_mask(image, (0.9,) * 3, VesselMaskSettings("mra"))
    assert dice(plain.mask.numpy(), truth) > 0.9
    assert length_found(plain.mask.numpy(), facts) > 0.95
    assert plain.levels.bone is None
    scaled = vessel_mask(image / 1e4, (0.9,) * 3, VesselMaskSettings("mra"))
    assert dice(scaled.mask.numpy(), plain.mask.numpy()) > 0.999


def test_the_mask_turns_with_the_image():
    image, _, _ = angiography((0.7, 0.9, 1.2))
    plain = vessel_mask(image, (0.7, 0.9, 1.2)).mask
    turned = vessel_mask(image.permute(2, 0, 1).flip(0), (1.2, 0.7, 0.9)).mask
    assert dice(turned.flip(0).permute(1, 2, 0).numpy(), plain.numpy()) > 0.995


def test_seeds_choose_among_vessels_that_do_not_touch():
    one, truth, _ = angiography((1.5,) * 3)
    image = torch.cat([one, one.flip(1)])
    here = np.concatenate([truth, np.zeros_like(truth)])
    seeds = torch.zeros_like(image, dtype=torch.bool)
    seeds[28:30, 28:30, 9:11] = True  # in the trunk
    both = vessel_mask(image, (1.5,) * 3, VesselMaskSettings(pieces=2))
    found = vessel_mask(image, (1.5,) * 3, seeds=seeds)
    assert both.pieces == 2
    assert found.pieces == 1
    assert dice(found.mask.numpy(), here) > 0.9
    assert dice(both.mask.numpy(), np.concatenate([truth, truth[:, ::-1]])) > 0.9


def test_an_organ_that_takes_up_contrast_is_no_vessel():
    image, truth, _ = angiography()
    away = np.linalg.norm((np.indices(image.shape).T - [75, 75, 20]) * 0.9, axis=-1).T
    spleen = (away < 15) & ~truth
    image[torch.from_numpy(spleen)] += 90
    found = vessel_mask(image, (0.9,) * 3).mask.numpy()
    assert found[spleen].mean() < 0.02
    assert dice(found, truth) > 0.95


def test_noise_alone_holds_no_vessel():
    noise = 40 + 25 * torch.randn(48, 48, 48, generator=torch.Generator().manual_seed(1))
    for modality in ("cta", "mra"):
        with pytest.raises(StepError, match=r"no (blood|vessel)"):
            vessel_mask(noise, (1, 1, 1), VesselMaskSettings(modality))


@pytest.mark.parametrize(
    ("image", "modality", "text"),
    [
        (torch.full((16, 16, 16), 50.0), "cta", "nothing is brighter"),
        (torch.zeros(16, 16, 16), "mra", "nothing is brighter"),
        (torch.full((16, 16, 16), 5000.0), "cta", "does not look like a CT"),
        (torch.rand(16, 16, 16) * 60000, "cta", "does not look like a CT"),
        (torch.full((16, 16, 16), torch.nan), "cta", "NaN"),
        (torch.zeros(16, 16), "cta", "volumes"),
    ],
)
def test_what_is_no_angiography_is_refused(image, modality, text):
    with pytest.raises(StepError, match=text):
        vessel_mask(image, (1, 1, 1), VesselMaskSettings(modality))


@pytest.mark.parametrize(
    "options",
    [{"modality": "us"}, {"contrast": 1.5}, {"noise": 0}, {"min_volume_mm3": -1}, {"pieces": -1}],
)
def test_wrong_settings_are_refused(options):
    with pytest.raises(UsageError):
        VesselMaskSettings(**options)


def test_seeds_beside_the_vessel_are_refused():
    image, _, _ = angiography()
    seeds = torch.zeros_like(image, dtype=torch.bool)
    seeds[3:6, 3:6, 3:6] = True
    with pytest.raises(StepError, match="seeds"):
        vessel_mask(image, (0.9,) * 3, seeds=seeds)


@pytest.mark.real_data
def test_the_aorta_of_an_mr_angiography(real_data):
    """The reference is a level set around the bifurcation; the rest of the tree has none."""
    folder = real_data / "vessels"
    image = SimpleITK.ReadImage(str(folder / "vmtk_aorta_ct.mha"))
    levels = SimpleITK.GetArrayFromImage(
        SimpleITK.ReadImage(str(folder / "vmtk_aorta-final-levelset.mha"))
    )
    data = torch.from_numpy(SimpleITK.GetArrayFromImage(image).T.astype(np.float32))
    found = vessel_mask(data, image.GetSpacing(), VesselMaskSettings("mra")).mask.numpy()
    truth = levels.T < 0
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(truth))
    assert dice(found[box], truth[box]) > 0.88


@pytest.mark.real_data
def test_the_blood_of_an_aorta_with_a_stent(real_data):
    """The reference holds clot and stent too; judged is the part of it that is blood."""
    folder = real_data / "aorta_ct"
    file = nib.load(folder / "aorta_ct_cropped.nii.gz")
    image = np.asarray(file.dataobj, np.float32)
    aorta = np.asarray(nib.load(folder / "aorta_aorta.nii.gz").dataobj) > 0
    found = vessel_mask(torch.from_numpy(image), file.header.get_zooms())
    mask = found.mask.numpy()
    blood = aorta & (image > 270) & (image < 700)
    assert mask[blood].mean() > 0.85
    assert mask[aorta & (image < 150)].mean() < 0.1
    # vertebrae are cut off although their fronts touch the aorta
    spine = (slice(50, 68), slice(100, 126), slice(0, 100))
    assert mask[spine][~aorta[spine] & (image[spine] > 200)].mean() < 0.02
