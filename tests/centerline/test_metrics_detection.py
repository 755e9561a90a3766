"""Tree length, branches, centerline Dice and Betti errors of small masks, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.centerline.metrics.tree_detection import (
    betti_errors,
    cl_dice,
    tree_detection_scores,
)
from medpipe.errors import StepError


def airway():
    """A reference of 3 branches of 10, 10 and 5 voxels, 3 wide; the skeleton is its middle."""
    branches = torch.zeros((32, 24, 5), dtype=torch.int32)
    branches[1:11, 10, 2] = 1
    branches[11:21, 10, 2] = 2
    branches[11, 11:16, 2] = 5  # numbers need not be in a row
    mask = torch.zeros_like(branches, dtype=torch.bool)
    for i, j, k in torch.nonzero(branches).tolist():
        mask[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = True
    return mask, branches


def test_the_reference_itself_is_perfect():
    mask, branches = airway()
    found = tree_detection_scores(mask, mask, branches)
    assert (found.tree_length, found.branches_detected, found.dice) == (1, 1, 1)
    assert (found.branches, found.detected) == (3, 3)
    assert (found.precision, found.leakage) == (1, 0)


def test_a_result_that_lacks_parts_by_hand():
    mask, branches = airway()
    result = branches > 0
    result[19:, 10] = False  # 8 of the 10 voxels of branch 2 are left: 80 %
    result[11, 15] = False  # 4 of 5 of branch 5
    result[11, 14] = False  # 3 of 5: 60 %
    found = tree_detection_scores(mask, result, branches)
    assert found.tree_length == pytest.approx(21 / 25)
    assert (found.branches, found.detected) == (3, 2)
    assert found.branches_detected == pytest.approx(2 / 3)
    assert tree_detection_scores(mask, result, branches, share=0.6).detected == 3
    assert tree_detection_scores(mask, result, branches, share=0.81).detected == 1
    # 21 voxels, all inside: Dice 2 · 21 / (21 + volume)
    assert found.precision == 1
    assert found.dice == pytest.approx(42 / (21 + int(mask.sum())))


def test_leakage_by_hand():
    mask, branches = airway()
    result = mask.clone()
    leak = torch.zeros_like(mask)
    leak[5:10, 12:18, :] = True
    result |= leak
    extra, volume = int((leak & ~mask).sum()), int(mask.sum())
    found = tree_detection_scores(mask, result, branches)
    assert extra == 5 * 6 * 5  # the branch reaches to 11
    assert found.leakage == pytest.approx(150 / volume)
    assert found.precision == pytest.approx(volume / (volume + 150))
    assert found.tree_length == 1


def test_only_the_largest_component_counts():
    mask, branches = airway()
    result = branches > 0
    result[11, 10] = result[11, 11] = result[12, 10] = result[10, 10] = result[11, 12] = False
    # what is left: 9 voxels of branch 1, 8 of branch 2, 3 of branch 5
    found = tree_detection_scores(mask, result, branches)
    assert (found.tree_length, found.detected) == (pytest.approx(9 / 25), 1)
    found = tree_detection_scores(mask, result, branches, largest=False)
    assert (found.tree_length, found.detected) == (pytest.approx(20 / 25), 2)


def test_branches_may_number_the_whole_volume():
    mask, branches = airway()
    parsing = torch.where(mask, 1, 0)
    parsing[12:] = torch.where(mask[12:], 2, 0)
    found = tree_detection_scores(mask, mask, parsing, skeleton=branches > 0)
    assert found.branches == 2
    # arrays as well as tensors
    arrays = [x.numpy() for x in (mask, mask, parsing, branches)]
    assert tree_detection_scores(*arrays[:3], skeleton=arrays[3]) == found


def test_an_empty_result_and_an_empty_reference():
    mask, branches = airway()
    nothing = torch.zeros_like(mask)
    found = tree_detection_scores(mask, nothing, branches)
    assert (found.tree_length, found.branches_detected, found.dice, found.leakage) == (0, 0, 0, 0)
    assert np.isnan(found.precision)
    found = tree_detection_scores(nothing, mask, nothing.int())
    assert np.isnan(found.tree_length)
    assert np.isnan(found.branches_detected)


def test_shapes_must_agree():
    mask, branches = airway()
    with pytest.raises(StepError, match="different shapes"):
        tree_detection_scores(mask, mask[1:], branches)
    with pytest.raises(StepError, match="different shapes"):
        tree_detection_scores(mask, mask, branches[1:])
    with pytest.raises(StepError, match="different shapes"):
        cl_dice(mask, mask, result_skeleton=mask[1:])


def test_centerline_dice_by_hand():
    # two bars of 9 x 3 x 3 that overlap over 5: 5 of 9 voxels of each middle line are in the other
    one, two = (torch.zeros((20, 5, 5), dtype=torch.bool) for _ in range(2))
    one[1:10, 1:4, 1:4] = True
    two[5:14, 1:4, 1:4] = True
    lines = [torch.zeros_like(one), torch.zeros_like(two)]
    lines[0][1:10, 2, 2] = True
    lines[1][4:14, 2, 2] = True  # one voxel more: 6 of 10 are in the reference
    found = cl_dice(one, two, reference_skeleton=lines[0], result_skeleton=lines[1])
    assert found.sensitivity == pytest.approx(5 / 9)
    assert found.precision == pytest.approx(6 / 10)
    assert found.cl_dice == pytest.approx(2 * (5 / 9) * 0.6 / (5 / 9 + 0.6))
    # both ways round the same
    back = cl_dice(two, one, reference_skeleton=lines[1], result_skeleton=lines[0])
    assert back.cl_dice == pytest.approx(found.cl_dice)
    assert (back.precision, back.sensitivity) == (found.sensitivity, found.precision)


def test_masks_that_thin_to_nothing_do_not_agree_for_that():
    one, two = (torch.zeros((20, 5, 5), dtype=torch.bool) for _ in range(2))
    one[1:3, 1:3, 1:3] = True
    two[15:17, 1:3, 1:3] = True
    none = torch.zeros_like(one)
    assert cl_dice(one, two, reference_skeleton=none, result_skeleton=none).cl_dice == 0
    assert cl_dice(none, none).cl_dice == 1


def test_centerline_dice_thins_for_itself():
    mask, _ = airway()
    assert cl_dice(mask, mask).cl_dice == 1
    # a bar and its axis: little of the volume in common, but all of the line
    thin = torch.zeros((20, 9, 9), dtype=torch.bool)
    thin[1:18, 4, 4] = True
    thick = torch.zeros_like(thin)
    thick[1:18, 3:6, 3:6] = True
    assert cl_dice(thick, thin).cl_dice == 1
    assert cl_dice(thick, torch.roll(thin, 2, 1)).cl_dice == 0


def test_centerline_dice_of_nothing():
    mask, _ = airway()
    nothing = torch.zeros_like(mask)
    assert cl_dice(nothing, nothing).cl_dice == 1
    assert cl_dice(mask, nothing).cl_dice == 0
    assert cl_dice(nothing, mask).cl_dice == 0


def test_betti_errors_by_hand():
    # the reference: one bar. The result: a ring, a hollow cube and a single voxel
    one = torch.zeros((16, 16, 16), dtype=torch.bool)
    one[2:9, 2, 2] = True
    other = torch.zeros_like(one)
    other[1:6, 1:6, 1] = True
    other[2:5, 2:5, 1] = False
    other[8:13, 8:13, 8:13] = True
    other[9:12, 9:12, 9:12] = False
    other[14, 1, 14] = True
    found = betti_errors(one, other)
    assert (found.components, found.loops, found.cavities) == (2, 1, 1)
    assert betti_errors(other, one) == found
    same = betti_errors(other, other)
    assert (same.components, same.loops, same.cavities) == (0, 0, 0)
