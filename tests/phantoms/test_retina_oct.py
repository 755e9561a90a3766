"""The simulated OCT scan keeps its truth: profile, speckle, wrap and shadows."""

import numpy as np
import pytest
from scipy.integrate import quad

from medpipe.errors import UsageError
from medpipe.phantoms.retina_oct import (
    RETINA_BOUNDARIES,
    RETINA_LAYERS,
    oct_profile,
    retina_oct,
)

SMALL = (96, 224, 3)


def test_the_profile_equals_numerical_integration():
    bounds, r, a = np.array([0.021, 0.05, 0.0833]), [0.0, 2.0, 0.5, 1.0], [0.0, 3.0, 0.0, 9.0]

    def depth_of(z):
        layer = int(np.searchsorted(bounds, z, side="right"))
        tops = [0.0, *bounds]
        loss = sum(a[i] * (tops[i + 1] - tops[i]) for i in range(layer))
        return r[layer] * np.exp(-2 * (loss + a[layer] * (z - tops[layer])))

    edges = np.linspace(0, 0.12, 14)
    got = oct_profile(bounds, r, a, edges)
    for i, mean in enumerate(got):
        inside = [b for b in bounds if edges[i] < b < edges[i + 1]]
        want = quad(depth_of, edges[i], edges[i + 1], points=inside or None)[0]
        assert mean == pytest.approx(want / (edges[i + 1] - edges[i]), abs=1e-9)


def test_a_boundary_can_be_read_back_below_one_sample():
    # One step from 0 to R without attenuation: the missing light places the boundary.
    truth = np.linspace(0.031, 0.042, 50)
    edges = np.arange(0, 41) * 0.004
    means = oct_profile(truth[None], [0.0, 2.0], [0.0, 0.0], edges)
    read = edges[-1] - means.sum(1) * 0.004 / 2.0
    np.testing.assert_allclose(read, truth, atol=1e-12)


def test_layers_that_vanish_carry_no_light():
    bounds = np.array([0.01, 0.02, 0.02, 0.03])
    edges = np.linspace(0, 0.05, 11)
    thin = oct_profile(bounds, [0, 1, 99, 1, 0], [0] * 5, edges)
    np.testing.assert_allclose(thin, oct_profile([0.01, 0.03], [0, 1, 0], [0] * 3, edges))


def test_the_ideal_scan_changes_where_the_truth_says():
    p = retina_oct(3, shape=SMALL, vessels=0)
    spacing = 0.00387
    assert p.surfaces_mm.shape == (9, 96, 3)
    assert (np.diff(p.surfaces_mm, axis=0) > 0).all()
    for s, sign in ((0, 1), (8, -1)):  # the ILM brightens, Bruch's membrane darkens
        step = sign * np.diff(p.ideal[..., 1], axis=1)
        near = p.surfaces_mm[s, :, 1] / spacing - 0.5
        window = np.abs(np.arange(step.shape[1]) - near[:, None]) < 8
        found = np.argmax(np.where(window, step, -1), axis=1)
        assert np.abs(found - near).max() < 1.0


def test_speckle_is_multiplicative_with_the_contrast_of_its_looks():
    level = np.linspace(0.2, 0.6, 9)[:, None, None] * np.ones((9, 96, 1))
    p = retina_oct(1, shape=(96, 224, 1), surfaces_mm=level, looks=4, noise=0, vessels=0)
    inside = p.ideal[..., 0] > 2e-3
    ratio = (p.volume.data[..., 0] / np.where(inside, p.ideal[..., 0], 1))[inside]
    assert ratio.mean() == pytest.approx(1, abs=0.03)
    assert ratio.std() == pytest.approx(0.5, abs=0.04)


def test_a_ring_closes_on_itself():
    p = retina_oct(5, kind="ring", shape=(384, 400, 1), spacing_mm=(0.028, 0.00387, 1.0))
    jump = np.abs(p.surfaces_mm[:, 0] - p.surfaces_mm[:, -1])
    inner = np.abs(np.diff(p.surfaces_mm, axis=1)).max((1, 2))
    assert (jump[:, 0] <= 1.01 * inner).all()
    assert p.facts["wraps"]


def test_the_fovea_thins_the_inner_layers():
    p = retina_oct(2, shape=(320, 280, 1), spacing_mm=(0.016, 0.00387, 0.1))
    inner = (p.surfaces_mm[3] - p.surfaces_mm[0])[:, 0]
    assert inner.min() < 0.35 * np.median(inner)
    assert abs(int(np.argmin(inner)) - 160) < 40


def test_vessels_shadow_what_is_below_them_only():
    with_, without = (retina_oct(7, shape=SMALL, vessels=n) for n in (5, 0))
    np.testing.assert_array_equal(with_.surfaces_mm, without.surfaces_mm)
    dark = with_.shadow[:, 0] > 0.3
    assert dark.any()
    above = np.arange(SMALL[1]) * 0.00387 < with_.surfaces_mm[0, :, :1] - 0.01
    np.testing.assert_allclose(
        with_.ideal[..., 0][above],
        without.ideal[..., 0][above],
        rtol=2e-2,
        atol=1e-5 * without.ideal.max(),
    )
    bm = np.round(with_.surfaces_mm[7, :, 0] / 0.00387).astype(int) + 2
    rows = np.nonzero(dark)[0]
    ratio = with_.ideal[rows, bm[rows], 0] / without.ideal[rows, bm[rows], 0]
    np.testing.assert_allclose(ratio, 1 - with_.shadow[rows, 0], rtol=0.02)


def test_equal_seeds_give_equal_scans():
    a, b, c = (retina_oct(s, shape=(40, 200, 2)) for s in (4, 4, 5))
    np.testing.assert_array_equal(a.volume.data, b.volume.data)
    assert (a.volume.data != c.volume.data).any()
    assert a.volume.data.dtype == np.float32
    assert 0 <= a.volume.data.min() <= a.volume.data.max() <= 1


def test_bad_scans_are_refused():
    with pytest.raises(UsageError, match="does not fit into the depth"):
        retina_oct(0, shape=(64, 60, 1))
    crossing = np.linspace(0.6, 0.2, 9)[:, None, None] * np.ones((9, 20, 1))
    with pytest.raises(UsageError, match="cross each other"):
        retina_oct(0, shape=(20, 224, 1), surfaces_mm=crossing)
    with pytest.raises(UsageError, match="boundaries do not fit"):
        retina_oct(0, shape=(20, 224, 1), surfaces_mm=np.zeros((3, 20, 1)))
    with pytest.raises(UsageError, match="unknown kind"):
        retina_oct(0, kind="disc")
    with pytest.raises(UsageError, match="not positive"):
        retina_oct(0, shape=(20, 200, 1), looks=0)


def test_every_boundary_has_a_layer_below_it():
    assert len(RETINA_BOUNDARIES) == len(RETINA_LAYERS) + 1
