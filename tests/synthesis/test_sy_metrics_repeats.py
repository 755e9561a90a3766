"""The distance to the nearest other of a set, against every subset that there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.metrics import repeats_of_distances, rms_distances


def points(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 3))


def brute(distances, k):
    """Return the median over cases of the mean, over all sets of k others, of the nearest."""
    n = len(distances)
    return np.median(
        [
            np.mean([distances[i, list(s)].min() for s in combinations(set(range(n)) - {i}, k)])
            for i in range(n)
        ]
    )


@pytest.mark.parametrize(("n", "m"), [(7, 5), (5, 7), (6, 6)])
def test_both_sets_are_looked_at_with_as_many_cases(n, m):
    made, real = (rms_distances(p, p) for p in (points(n, 0), points(m, 1)))
    found = repeats_of_distances(made, real, resamples=50)
    k = min(n, m) - 1
    assert found.nearest.figure.value == pytest.approx(brute(made, k))
    assert found.nearest.floor.value == pytest.approx(brute(real, k))
    assert found.ratio.value == pytest.approx(brute(made, k) / brute(real, k))


def test_a_set_of_another_size_is_as_far_apart():
    made, real = (rms_distances(p, p) for p in (points(400, 0), points(100, 1)))
    found = repeats_of_distances(made, real)
    assert found.ratio.low < 1 < found.ratio.high
    # without the same number of others the larger one would look crowded
    assert np.median(np.sort(made, axis=1)[:, 1]) < 0.75 * found.nearest.figure.value


def test_cases_that_are_there_twice_have_no_distance():
    twice = np.repeat(points(20, 0), 2, axis=0)
    real = points(40, 1)
    found = repeats_of_distances(rms_distances(twice, twice), rms_distances(real, real))
    assert found.nearest.figure.value == 0
    assert found.ratio.high == 0
    record = found.to_dict()
    assert set(record) == {"figure", "floor", "ratio"}
    assert record["ratio"]["value"] == 0


def test_sets_that_tell_nothing():
    one, some = np.zeros((1, 1)), rms_distances(points(5, 0), points(5, 0))
    with pytest.raises(InputError, match="too few cases to repeat any"):
        repeats_of_distances(one, some)
    with pytest.raises(InputError, match="real cases are there twice"):
        repeats_of_distances(some, np.zeros((4, 4)))
    with pytest.raises(UsageError, match="level"):
        repeats_of_distances(some, some, level=2)
