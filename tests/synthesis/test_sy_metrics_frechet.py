"""The Fréchet distance against closed forms and the matrix root."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from sy_metric_sets import clouds

from medpipe.errors import InputError
from medpipe.synthesis.metrics import frechet_of_moments
from medpipe.synthesis.metrics.frechet import _in_their_span, _moments, frechet


def covariance(d, seed):
    root = np.random.default_rng(seed).normal(size=(d, 2 * d))
    return root @ root.T / d


def test_the_closed_form_of_independent_features():
    a, b = np.array([0.5, 1.0, 2.0]), np.array([1.0, 0.2, 3.0])
    expected = (np.array([1, -2, 0.5]) ** 2).sum() + ((a - b) ** 2).sum()
    found = frechet_of_moments([1, 0, 0.5], np.diag(a**2), [0, 2, 0], np.diag(b**2))
    assert found == pytest.approx(expected, rel=1e-12)


def test_it_agrees_with_the_matrix_root():
    a, b = covariance(8, 0), covariance(8, 1)
    root = linalg.sqrtm(a @ b).real
    expected = np.trace(a + b - 2 * root)
    assert frechet_of_moments(np.zeros(8), a, np.zeros(8), b) == pytest.approx(expected, rel=1e-9)
    assert frechet_of_moments(np.zeros(8), a, np.zeros(8), a) == pytest.approx(0, abs=1e-9)


def test_singular_covariances():
    # two planes at a right angle share one line
    a, b = np.diag([4.0, 1.0, 0.0]), np.diag([1.0, 0.0, 9.0])
    expected = 4 + 1 + 1 + 9 - 2 * 2
    assert frechet_of_moments(np.zeros(3), a, np.zeros(3), b) == pytest.approx(expected)


def test_more_features_than_cases_lose_nothing():
    x, y = clouds(12, 0, d=50), clouds(12, 1, 0.3, d=50)
    direct = frechet_of_moments(*_moments(x), *_moments(y))
    span = _in_their_span(torch.from_numpy(np.concatenate([x, y])))
    assert span.shape == (24, 24)
    short = frechet_of_moments(*_moments(span[:12]), *_moments(span[12:]))
    assert short == pytest.approx(direct, rel=1e-7)


def test_alike_sets_are_at_their_floor_and_shifted_ones_above():
    real = clouds(80, 0, d=24)
    alike = frechet(real, clouds(80, 1, d=24), splits=30)
    # the value is all bias of 40 cases, and the floor has the same
    assert alike.floor.value > 5
    assert alike.figure.value == pytest.approx(alike.floor.value, rel=0.15)
    shifted = frechet(real, clouds(80, 2, 0.7, d=24), splits=30)
    assert shifted.figure.low > alike.floor.high
    assert shifted.figure.value - alike.floor.value == pytest.approx(24 * 0.49, rel=0.25)


def test_moments_that_do_not_fit():
    with pytest.raises(InputError, match="do not fit"):
        frechet_of_moments([0.0], np.eye(2), [0.0], np.eye(1))
