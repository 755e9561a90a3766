"""Maps of t against scipy, permutations against all of them, and a shifted population."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from skimage.filters import threshold_otsu
from sy_metric_sets import blobs

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.metrics import realign, t_map, t_map_share
from medpipe.synthesis.metrics._matching import Matcher
from medpipe.synthesis.metrics.t_maps import _centred, _rows, _shares, _threshold


def noise(n, seed, shape=(4, 5, 6)):
    return torch.from_numpy(np.random.default_rng(seed).normal(100, 1, (n, *shape)))


def test_the_map_is_that_of_scipy():
    a, b = noise(7, 0), noise(9, 1) * 1.01
    expected = stats.ttest_ind(b.numpy(), a.numpy(), equal_var=False).statistic
    assert t_map(a, b).numpy() == pytest.approx(expected, rel=1e-9)


def test_the_map_in_blocks_and_where_nothing_varies(monkeypatch):
    a, b = noise(6, 0), noise(6, 1)
    a[:, 0, 0, 0] = b[:, 0, 0, 0] = 3
    a[:, 1, 1, 1], b[:, 1, 1, 1] = 1, 2
    whole = t_map(a, b)
    assert whole[0, 0, 0] == 0
    assert whole[1, 1, 1] == torch.inf
    share = t_map_share(a, b, splits=3, permutations=20)
    assert share.voxels == 119
    monkeypatch.setattr("medpipe.synthesis.metrics.t_maps.HELD", 300)
    assert t_map(a, b).numpy() == pytest.approx(whole.numpy(), rel=1e-9)
    pieces = t_map_share(a, b, splits=3, permutations=20)
    assert (pieces.all_cases, pieces.p) == pytest.approx((share.all_cases, share.p))
    assert pieces.share.figure.value == pytest.approx(share.share.figure.value)


def test_shares_are_those_of_the_maps():
    a, b = noise(8, 0), noise(8, 1) + 0.7
    both = torch.cat([a, b])
    groups = [np.array([[0, 1, 4, 9, 12]]), np.array([[2, 3, 5, 15, 14]])]
    found, voxels = _shares(a, b, _rows(groups[:1], 16), _rows(groups[1:], 16), 1.5, None)
    expected = t_map(both[groups[0][0]], both[groups[1][0]]).abs() > 1.5
    assert voxels == 120
    assert found[0] == pytest.approx(float(expected.double().mean()))
    inside = torch.zeros(4, 5, 6, dtype=torch.bool)
    inside[1:, :2] = True
    masked, count = _shares(a, b, _rows(groups[:1], 16), _rows(groups[1:], 16), 1.5, inside)
    assert count == 36
    assert masked[0] == pytest.approx(float(expected[inside].double().mean()))


def test_the_probability_is_that_of_all_permutations():
    a, b = noise(5, 3), noise(5, 4)
    a[:4] -= 0.6
    rows = [np.array([c]) for c in itertools.combinations(range(10), 5)]
    rest = [np.array([[i for i in range(10) if i not in c[0]]]) for c in rows]
    every, _ = _shares(a, b, _rows(rows, 10), _rows(rest, 10), 2.0, None)
    found = t_map_share(a, b, threshold=2.0, splits=5, permutations=1500)
    exact = (every >= every[0]).mean()
    assert 0.02 < exact < 0.9
    assert found.all_cases == pytest.approx(every[0])
    assert found.p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1500))


def share_after(real, synthetic, **options):
    found = realign(real, synthetic, alignment="centre")
    return t_map_share(found.real, found.synthetic, mask=found.inside, **options)


def test_a_shifted_population_differs_before_and_not_after():
    options = {"splits": 20, "permutations": 99, "threshold": 2.5}
    real, other = blobs(24, 0), blobs(24, 1)
    assert t_map_share(real, other, **options).p > 0.05
    shifted = torch.roll(other, 2, 2)
    before = t_map_share(real, shifted, **options)
    assert before.p == 0.01
    assert before.share.figure.low > before.share.floor.high
    after = share_after(real, shifted, **options)
    assert after.p > 0.05
    assert after.share.figure.value <= after.share.floor.high
    assert after.all_cases < before.all_cases / 5
    # shifts of up to 2 voxels to all sides blur what is compared
    anywhere = blobs(24, 1, shift=2.0)
    assert t_map_share(real, anywhere, **options).p == 0.01
    assert share_after(real, anywhere, **options).p > 0.05


def test_rigid_realignment_undoes_turns_and_shifts():
    from medpipe.steps._sampling import sample_grid

    shape = (32, 36, 32)
    real = blobs(1, 0, shape, noise=0.0, radii=(4, 12, 7))
    angle, middle = np.deg2rad(10), np.array([15.5, 17.5, 15.5])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = middle - turn[:3, :3] @ middle + [1.5, -1.0, 0.5]
    moved = torch.stack(
        [sample_grid(v[None], np.eye(4), turn, shape, "linear", 0.0, False)[0] for v in real]
    )
    centred = realign(real, moved, alignment="centre")
    turned = realign(real, moved, alignment="rigid")
    gap = [float((f[0] - f[1]).square().mean()) for f in ((real, moved), centred, turned)]
    assert gap[1] < gap[0], gap
    assert gap[2] < gap[1] / 2, gap


def test_the_same_moved_volume_comes_back_to_its_place():
    volume = blobs(1, 0)
    moved = torch.roll(volume, (2, -1, 1), (1, 2, 3))
    a, b, inside = realign(volume, moved, spacing_mm=(1.0, 2.0, 0.5), alignment="centre")
    assert (a - b)[0, inside].abs().max() < 0.02
    assert (volume - moved)[0, inside].abs().max() > 0.3
    # the volume moves back by 2, 1 and 1 voxels, and its counterpart by parts of one
    assert inside.sum() >= 17 * 22 * 18
    assert not inside[-1].any()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: t_map(noise(3, 0), noise(3, 0)[:, 1:]), InputError, "one shape"),
        (lambda: t_map_share(noise(3, 0), noise(9, 0)), InputError, "4 or more"),
        (lambda: t_map_share(noise(5, 0) * 0, noise(5, 0) * 0), InputError, "no voxel differs"),
        (
            lambda: t_map_share(noise(5, 0), noise(5, 0), mask=torch.ones(2, 2, 2)),
            InputError,
            "another grid",
        ),
        (lambda: t_map_share(noise(5, 0), noise(5, 0), threshold=0), UsageError, "threshold"),
        (lambda: t_map_share(noise(5, 0), noise(5, 0), permutations=5), UsageError, "permutat"),
        (lambda: realign(noise(5, 0), noise(5, 0), alignment="affine"), UsageError, "alignment"),
        (lambda: realign(noise(5, 0), noise(5, 0), spacing_mm=(1, 1)), UsageError, "spacing"),
    ],
)
def test_what_cannot_be_compared(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_the_threshold_of_the_centre_is_that_of_otsu():
    values = torch.cat(
        [
            torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 0.1,
            torch.randn(900, generator=torch.Generator().manual_seed(1)) * 0.1 + 1,
        ]
    )
    found = float(_threshold(values.view(10, 30, 13)))
    assert found == pytest.approx(threshold_otsu(values.numpy(), nbins=256), abs=0.03)


def test_a_background_with_texture_does_not_hold_the_centre_back():
    rng = np.random.default_rng(0)
    volume = -np.abs(rng.normal(0, 0.2, (20, 20, 20)))
    volume[10:15, 9:14, 8:13] = 1.0
    place = _centred(torch.from_numpy(volume), np.eye(4))
    assert place[:3, 3] == pytest.approx([-2.5, -1.5, -0.5], abs=0.02)


def filled(n, moves, seed=0):
    """Volumes that tissue fills to the edges: one pattern, each with its own part, moved."""
    rng = np.random.default_rng(seed)
    shape = (16, 20, 18)
    wide = ndimage.gaussian_filter(rng.normal(size=[s + 8 for s in shape]), 1.5)
    out = []
    for move in moves:
        own = ndimage.gaussian_filter(rng.normal(size=wide.shape), 1.5)
        both = (wide + 0.4 * own) / wide.std()
        box = tuple(slice(4 - m, 4 - m + s) for m, s in zip(move, shape, strict=True))
        out.append(both[box])
    return torch.from_numpy(np.stack(out[:n]))


def test_correlations_are_those_of_the_overlap():
    fixed, volume = filled(2, [(0, 0, 0), (1, -2, 0)])
    found = Matcher(fixed).correlations(volume)
    assert found.shape == (9, 11, 9)
    a, b = fixed.numpy(), volume.numpy()
    # moved by +2, -3 and 0 voxels
    truth = np.corrcoef(a[2:, :-3].ravel(), b[:-2, 3:].ravel())[0, 1]
    assert float(found[4 + 2, 5 - 3, 4]) == pytest.approx(truth, abs=1e-9)
    assert float(found[4, 5, 4]) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert np.array_equal(Matcher(fixed).away(torch.ones(16, 20, 18)), np.zeros(3))


def test_volumes_that_fill_the_grid_are_moved_back():
    moves = [(2, -3, 1), (-1, 2, -2), (0, 0, 0), (3, 1, -3)]
    real = filled(6, [(0, 0, 0)] * 6)
    moved = filled(4, moves)
    matcher = Matcher(real.mean(dim=0))
    for volume, move in zip(moved, moves, strict=True):
        assert matcher.away(volume) == pytest.approx([-m for m in move], abs=0.25)

    def apart(alignment):
        done = realign(real, moved, alignment=alignment)
        gap = done.real.mean(dim=0) - done.synthetic.mean(dim=0)
        return float(gap[done.inside].square().mean().sqrt() / real.std())

    assert apart("shift") < 0.4
    # a centre of mass says nothing of what has no edge
    assert apart("centre") > 0.6
