"""Examples from a folder are what their phantoms are, on any grid; what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medpipe.centerline.cubes import cubic_index, cubic_mask
from medpipe.centerline.example_files import read_examples
from medpipe.centerline.examples import TreePatches, tree_sample
from medpipe.errors import MedpipeError, StepError
from medpipe.phantoms.tubes import centred_affine, tube
from medpipe.phantoms.vessel_folder import write_vessel_folder
from medpipe.phantoms.vessel_tree import vessel_tree

SHAPE, SPACING = (40, 36, 60), (1.0, 0.5, 0.5)
CURVE = np.stack([np.zeros(41), np.zeros(41), np.linspace(-10, 10, 41)], 1)
RADIUS_MM = 3.0


def swc(points: np.ndarray, radius: float = RADIUS_MM) -> str:
    rows = [
        f"{n} 0 {x} {y} {z} {radius} {n - 1 if n > 1 else -1}"
        for n, (x, y, z) in enumerate(points, 1)
    ]
    return "# a curve\n" + "\n".join(rows) + "\n"


def save(path: Path, mask: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask, affine), path)


def bar(folder: Path, name: str = "bar", flips: tuple[int, ...] = ()) -> np.ndarray:
    """Write a straight tube of 1 x 0.5 x 0.5 mm voxels and its curve; return its mask."""
    mask = tube(CURVE, RADIUS_MM, SHAPE, SPACING).astype(np.uint8)
    affine = centred_affine(SHAPE, SPACING)
    for axis in flips:
        mask = np.flip(mask, axis)
        affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        affine[:3, axis] *= -1
    save(folder / f"{name}.nii.gz", mask, affine)
    (folder / f"{name}.swc").write_text(swc(CURVE))
    return mask


def test_a_folder_of_phantoms_gives_what_the_phantoms_are(tmp_path: Path) -> None:
    write_vessel_folder(tmp_path, walls="kissing", cases=2, seed=5, size=64)
    for number, sample in enumerate(read_examples(tmp_path)):
        tree = vessel_tree(
            5 + number, kind="kissing", root_radius_voxels=2.5, shape=(64,) * 3,
            spacing_mm=(0.5,) * 3,
        )  # fmt: skip
        truth = tree_sample(tree)
        cut = truth.voxels.min(0) - sample.voxels.min(0)
        assert np.array_equal(sample.voxels + cut, truth.voxels)
        assert np.array_equal(sample.tips + cut, truth.tips)
        assert np.array_equal(sample.roots + cut, truth.roots)
        assert np.array_equal(sample.depth, truth.depth)
        assert np.abs(sample.q - truth.q).max() < 1e-4
        assert np.abs(sample.tip_radius - truth.tip_radius).max() < 1e-4


def test_thick_voxels_become_cubes_and_curves_follow(tmp_path: Path) -> None:
    mask = bar(tmp_path)
    (sample,) = read_examples(tmp_path)
    # the radius is 6 cubes; each voxel of the mask is two of them
    assert len(sample.voxels) == pytest.approx(2 * mask.sum(), rel=0.05)
    middle = np.abs(sample.voxels[:, 2] - sample.voxels[:, 2].mean()) < 10
    across = sample.voxels[middle, :2] - sample.voxels[middle, :2].mean(0)
    far = np.linalg.norm(across, axis=1)
    assert sample.depth[middle].max() == pytest.approx(6.0, abs=1.0)
    assert sample.q[middle][far < 1].max() < 0.2
    assert np.corrcoef(far, sample.q[middle])[0, 1] > 0.98
    assert sample.tip_radius.tolist() == [pytest.approx(6.0)]
    # the curve's ends are 20 mm, 40 cubes, apart; the tip has the higher z
    assert sample.tips[0, 2] - sample.roots[0, 2] == pytest.approx(40, abs=1)


@pytest.mark.parametrize("flips", [(0,), (0, 1), (2,)])
def test_the_orientation_of_a_mask_does_not_matter(tmp_path: Path, flips: tuple[int, ...]) -> None:
    bar(tmp_path / "a")
    bar(tmp_path / "b", flips=flips)
    plain, flipped = read_examples(tmp_path)
    assert len(plain.voxels) == len(flipped.voxels)
    assert np.allclose(np.sort(plain.q), np.sort(flipped.q), atol=1e-5)
    ends = [(s.tips[0] - s.roots[0])[2] for s in (plain, flipped)]
    assert ends[0] == (-ends[1] if 2 in flips else ends[1])


def test_points_follow_their_mask_to_cubes() -> None:
    """The middle of a block stays its middle, whatever the spacing."""
    import torch

    mask = torch.zeros(12, 20, 20, dtype=torch.bool)
    mask[3:7, 5:11, 8:12] = True
    cubes = cubic_mask(mask, (2.0, 1.0, 1.25))
    assert cubes.shape == (24, 20, 25)
    moved = cubic_index([[4.5, 7.5, 9.5]], mask.shape, cubes.shape)
    middle = np.asarray(cubes.nonzero(), float).mean(0)
    assert np.abs(moved[0] - middle).max() < 0.5
    assert cubic_mask(mask, (1.0, 1.01, 1.0)) is mask
    with pytest.raises(StepError, match="too long"):
        cubic_mask(mask, (500.0, 1.0, 1.0))


def test_both_layouts_and_both_endings_are_found_in_the_order_of_names(tmp_path: Path) -> None:
    bar(tmp_path / "deep" / "er", "b")
    bar(tmp_path / "a", "mask")
    (tmp_path / "a" / "mask.swc").rename(tmp_path / "a" / "centerline.swc")
    image = nib.load(tmp_path / "a" / "mask.nii.gz")
    save(tmp_path / "c.nii", np.asarray(image.dataobj), image.affine)
    (tmp_path / "c.swc").write_text(swc(CURVE, 2.0))
    radii = [float(s.tip_radius[0]) for s in read_examples(tmp_path)]
    assert radii == pytest.approx([6.0, 4.0, 6.0])  # a/…, c, deep/er/b


def test_given_trees_come_after_generated_ones(tmp_path: Path) -> None:
    bar(tmp_path)
    (sample,) = read_examples(tmp_path)
    both = TreePatches(2, size=32, shape=(96, 96, 96), samples=[sample])
    assert len(both) == 3 * both.per_tree
    assert both.sample(2) is sample
    assert both.sample(1).shape == (96, 96, 96)
    alone = TreePatches(0, size=32, samples=[sample])
    alone.set_random_state(seed=0)
    inputs, targets = alone[0]
    assert float(inputs[0].sum()) > 100
    assert float(targets[1].max()) == 1


def rewrite(folder: Path, what: str) -> None:
    """Spoil the second example."""
    mask, curve = folder / "patient.nii.gz", folder / "patient.swc"
    image = nib.load(mask)
    data, affine = np.asarray(image.dataobj), image.affine
    if what == "radius":
        curve.write_text(swc(CURVE, 0.0))
    elif what == "elsewhere":
        curve.write_text(swc(CURVE + np.array([400, 0, 0])))
    elif what == "beside":
        curve.write_text(swc(CURVE + np.array([8, 5, 0])))
    elif what == "one node":
        curve.write_text(swc(CURVE[20:21]))
    elif what == "text":
        curve.write_text("x,y,z\n1,2,3\n")
    elif what == "empty":
        save(mask, data * 0, affine)
    elif what == "inverted":
        save(mask, data * 0 + 1, affine)
    elif what == "probability":
        save(mask, data * np.float32(0.3), affine)
    elif what == "no nifti":
        mask.write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("radius", "a radius is not above 0"),
        ("elsewhere", "does not lie in the volume"),
        ("beside", "does not run in its mask"),
        ("one node", "no end"),
        ("text", "another number of columns"),
        ("empty", "the mask is empty"),
        ("inverted", "fills its volume"),
        ("probability", "use threshold first"),
        ("no nifti", ""),
    ],
)
def test_a_bad_example_is_named_by_its_number_alone(
    tmp_path: Path, what: str, message: str
) -> None:
    bar(tmp_path, "anna")
    bar(tmp_path, "patient")
    rewrite(tmp_path, what)
    with pytest.raises(MedpipeError) as caught:
        read_examples(tmp_path)
    said = str(caught.value)
    assert "example 2 of 2" in said
    assert message in said
    assert "\n" not in said
    assert "patient" not in said
    assert tmp_path.name not in said


def test_a_folder_without_pairs_and_curves_without_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedpipeError, match="no example"):
        read_examples(tmp_path)
    with pytest.raises(MedpipeError, match="no folder"):
        read_examples(tmp_path / "absent")
    bar(tmp_path, "one")
    (tmp_path / "patient.swc").write_text(swc(CURVE))
    with pytest.raises(MedpipeError, match="1 of 2 curves have no mask") as caught:
        read_examples(tmp_path)
    assert "patient" not in str(caught.value)
