"""Peaks of heat maps, against maps made by hand."""

from __future__ import annotations

import pytest
import torch

from medpipe.centerline.decode import classify_candidates, decode_points, peaks, support
from medpipe.centerline.targets import heat_map
from medpipe.errors import StepError

SHAPE = (30, 24, 20)


def bumps(points, heights=None, sigma=2.0):
    heat = torch.zeros(SHAPE)
    for n, point in enumerate(points):
        one = heat_map(torch.tensor([point], dtype=torch.float32), torch.tensor([sigma]), SHAPE)
        heat = torch.maximum(heat, one * (1.0 if heights is None else heights[n]))
    return heat


def test_peaks_are_found_in_the_order_of_their_height():
    points = [(5, 5, 5), (20, 18, 10), (28, 3, 19)]
    found, heights = peaks(bumps(points, [0.5, 0.9, 0.4]))
    assert found.tolist() == [list(points[n]) for n in (1, 0, 2)]
    assert heights.tolist() == pytest.approx([0.9, 0.5, 0.4])
    assert len(peaks(bumps(points, [0.5, 0.9, 0.4]), 0.45)[0]) == 2
    assert peaks(torch.zeros(SHAPE))[0].shape == (0, 3)


def test_one_peak_per_window_and_per_plateau():
    close = bumps([(10, 10, 10), (12, 10, 10)], [0.9, 0.8], sigma=0.8)
    assert peaks(close)[0].tolist() == [[10, 10, 10]]
    flat = torch.zeros(SHAPE)
    flat[8:10, 8:10, 8:10] = 0.7
    assert peaks(flat)[0].tolist() == [[8, 8, 8]]


def test_peaks_move_to_the_mask_and_merge_within_a_vessel():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[2:28, 9:14, 9:14] = True
    radius = mask * 3.0
    # the second lies beside the mask, the third is as near as a radius to the first
    heat = bumps([(4, 11, 11), (25, 15, 11), (9, 11, 11)], [0.9, 0.8, 0.6], sigma=1.0)
    found, heights = decode_points(heat, mask, radius)
    assert found.tolist() == [[4, 11, 11], [25, 13, 11]]
    assert heights.tolist() == pytest.approx([0.9, 0.8])
    thin = decode_points(heat, mask, mask * 1.0)[0]
    assert len(thin) == 3
    away = bumps([(4, 11, 11)])
    alone = torch.zeros(SHAPE, dtype=torch.bool)
    alone[29, 23, 19] = True
    assert len(decode_points(away, alone, alone * 1.0)[0]) == 0
    assert len(decode_points(away, torch.zeros_like(mask), radius)[0]) == 0


def test_candidates_stay_where_the_map_supports_them():
    heat = bumps([(5, 5, 5), (20, 12, 10)], [0.9, 0.5], sigma=0.5)
    candidates = torch.tensor([[5, 5, 7], [5, 5, 8], [20, 12, 14], [20, 12, 15], [0, 0, 0]])
    radius = torch.tensor([1.0, 1.0, 4.0, 4.0, 30.0])
    assert support(candidates, heat, radius).tolist() == pytest.approx(
        [0.9, float(heat[5, 5, 6]), 0.5, float(heat[20, 12, 11]), 0.9], abs=1e-6
    )
    keep = classify_candidates(candidates, heat, radius)
    assert keep.tolist() == [True, False, True, False, True]
    assert classify_candidates(candidates, heat, radius, threshold=0.6).tolist() == [
        True, False, False, False, True,
    ]  # fmt: skip
    assert classify_candidates(candidates[:0], heat, 1.0).shape == (0,)


def test_a_map_with_a_channel_is_refused():
    with pytest.raises(StepError, match="wrong axes"):
        peaks(torch.zeros(1, 4, 4, 4))
