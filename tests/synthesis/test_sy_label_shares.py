"""Labels of shares against every map there is, and against their sums."""

import itertools

import pytest
import torch

from medpipe.synthesis.label_shares import labels_of_shares


@pytest.mark.parametrize("seed", range(6))
def test_the_map_agrees_best_among_all_with_its_counts(seed):
    torch.manual_seed(seed)
    shares = torch.rand(1, 2, 2, 3, 1).double() * 0.7
    found = labels_of_shares(shares)[0, 0].flatten()
    counts = [round(float(n)) for n in shares[0].sum((1, 2, 3))]
    assert torch.bincount(found, minlength=3)[1:].tolist() == counts
    score = torch.cat([1 - shares[0].sum(0, keepdim=True), shares[0]]).flatten(1)
    place = torch.arange(6)
    best = max(
        float(score[torch.tensor(m), place].sum())
        for m in itertools.product(range(3), repeat=6)
        if [m.count(1), m.count(2)] == counts
    )
    assert float(score[found, place].sum()) == pytest.approx(best)


def test_blurred_labels_keep_the_volume_that_the_likeliest_label_loses():
    torch.manual_seed(0)
    at = torch.stack(torch.meshgrid(*[torch.arange(20.0)] * 3, indexing="ij"))
    middles = 9.5 + 2.5 * torch.randn(30, 3, 1, 1, 1)
    balls = ((at - middles).norm(dim=1) < 4).float()
    shares = balls.mean(0)[None, None] + 1e-4 * torch.rand(1, 1, 20, 20, 20)  # no two alike
    wanted = float(shares.sum())
    assert int((shares > 0.5).sum()) < 0.8 * wanted
    assert abs(int(labels_of_shares(shares).sum()) - wanted) < 1


@pytest.mark.parametrize(("value", "count"), [(-0.2, 0), (1.3, 27)])
def test_sums_below_none_and_above_all_are_none_and_all(value, count):
    found = labels_of_shares(torch.full((1, 1, 3, 3, 3), value) + 0.01 * torch.rand(1, 1, 3, 3, 3))
    assert int(found.sum()) == count
