"""Projections of masks and images: where a voxel lands, for any grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.figures.projection import (
    maximum_projection,
    plane_of_box,
    points_to_px,
    shaded_mask,
)

VIEWS = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
BOX = np.array([[-30.0, 34.0], [-40.0, 28.0], [-25.0, 39.0]])


def affines() -> dict[str, np.ndarray]:
    turn = np.array([[0.0, -0.8, 0.6], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    out = {
        "LPS": np.diag([-1.0, -1.0, 2.0, 1.0]),
        "permuted": np.array([[0, 0, 1.5, 0], [1.0, 0, 0, 0], [0, -1.2, 0, 0], [0, 0, 0, 1]]),
        "oblique": np.eye(4),
    }
    out["oblique"][:3, :3] = turn * [1.0, 1.2, 1.6]
    for affine in out.values():
        affine[:3, 3] = BOX.mean(1) - affine[:3, :3] @ [31.5, 29.5, 19.5]
    return out


def place(affine: np.ndarray, voxel: tuple[int, int, int]) -> np.ndarray:
    return affine[:3, :3] @ voxel + affine[:3, 3]


@pytest.mark.parametrize("view", VIEWS)
def test_right_is_on_the_left_and_superior_is_above(view: str) -> None:
    plane = plane_of_box(view, BOX, 0.5)
    here, there = np.zeros(3), np.zeros(3)
    there[VIEWS[view][0]] = 8.0  # to the right, or to the front in a sagittal view
    there[VIEWS[view][1]] = 3.0  # to the front in an axial view, else up
    (x0, y0), (x1, y1) = points_to_px(plane, np.stack([here, there])).tolist()
    assert (x1 - x0, y1 - y0) == pytest.approx((-16.0, -6.0))


@pytest.mark.parametrize("name", ["LPS", "permuted", "oblique"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", ["mask", "image"])
def test_a_block_of_voxels_lands_where_its_middle_is(name: str, view: str, kind: str) -> None:
    affine = affines()[name]
    image = torch.zeros(64, 60, 40)
    image[40:45, 20:25, 24:29] = 9.0
    plane = plane_of_box(view, BOX, 0.5)
    if kind == "mask":
        shown = shaded_mask(image > 0, affine, plane)
    else:
        shown = maximum_projection(image, affine, plane, BOX, (0.0, 9.0))
    rows, cols = np.nonzero(shown > 100)
    middle = points_to_px(plane, place(affine, (42, 22, 26))[None])[0]
    assert [cols.mean(), rows.mean()] == pytest.approx(middle, abs=1.0)
    # as large as the shadow of the block: to a voxel and a half on each side
    reach = np.abs(affine[:3, :3]).sum(1)[list(VIEWS[view])] * 2.5 / 0.5
    size = np.array([np.ptp(cols), np.ptp(rows)]) + 1
    assert (np.abs(size - 2 * reach) <= 3 * np.abs(affine[:3, :3]).max() / 0.5).all()


def test_the_projection_is_the_largest_value_on_the_way() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((20, 24, 28)).astype(np.float32))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    box = np.array([[-1.0, 39.0], [-1.0, 47.0], [-1.0, 55.0]])
    for view, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        shown = maximum_projection(image, affine, plane_of_box(view, box, 2.0), box, (0.0, 1.0))
        brute = np.round(255 * image.numpy().max(axis)).T[::-1, ::-1]
        assert np.abs(shown.astype(int) - brute).max() <= 1


def test_only_the_box_is_looked_through() -> None:
    image = torch.zeros(30, 30, 30)
    image[2], image[15, 10:20, 10:20] = 5.0, 3.0
    box = np.array([[8.0, 25.0], [5.0, 25.0], [5.0, 25.0]])
    plane = plane_of_box("sagittal", box, 1.0)
    shown = maximum_projection(image, np.eye(4), plane, box, (0.0, 5.0))
    assert shown.max() == round(255 * 3 / 5)


def test_the_nearer_surface_is_seen_and_brighter() -> None:
    mask = torch.zeros(40, 40, 40, dtype=torch.bool)
    mask[5:15, 30:34, 10:30] = True  # in front: y grows to the front
    mask[25:35, 4:8, 10:30] = True
    box = np.array([[0.0, 39.0]] * 3)
    shown = shaded_mask(mask, np.eye(4), plane_of_box("coronal", box, 1.0)).astype(int)
    front, back = shown[20, 29], shown[20, 9]  # patient right (large x) on the left
    assert front > 1.5 * back > 0


def test_an_empty_mask_is_black() -> None:
    box = np.array([[0.0, 9.0]] * 3)
    shown = shaded_mask(
        torch.zeros(9, 9, 9, dtype=torch.bool), np.eye(4), plane_of_box("axial", box, 1)
    )
    assert shown.shape == (9, 9)
    assert not shown.any()
