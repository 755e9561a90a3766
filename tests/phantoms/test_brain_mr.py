"""The brain MR: signals against the equations, fractions, bias, noise."""

import numpy as np
import pytest

from medpipe.errors import UsageError
from medpipe.phantoms.anatomy import HeadLabel
from medpipe.phantoms.brain_mr import BrainMR, Relaxation, brain_mr, relaxation, signal
from medpipe.phantoms.head_ct import HeadCT

SIZE = {"shape": (60, 72, 56), "spacing_mm": (3.0, 3.0, 3.0)}


@pytest.fixture(scope="module")
def t1():
    return brain_mr(4, **SIZE)


def test_signal_equation_by_hand():
    water = Relaxation(1000.0, 100.0, 0.5)
    assert signal(water, tr_ms=1000, te_ms=100) == pytest.approx(0.5 * (1 - np.e**-1) * np.e**-1)
    null = 1000 * np.log(2)
    assert signal(water, tr_ms=1e6, te_ms=1, ti_ms=null) == pytest.approx(0, abs=1e-9)


def test_contrasts_order_tissues_as_they_should():
    tissue = {n: HeadLabel[n] for n in ("WHITE", "GREY", "CSF")}
    points = None
    for contrast, order in (
        ("t1", ("CSF", "GREY", "WHITE")),
        ("t2", ("WHITE", "GREY", "CSF")),
        ("pd", ("CSF", "WHITE", "GREY")),
        ("flair", ("CSF", "WHITE", "GREY")),
    ):
        mr = BrainMR(4, contrast=contrast, edge_mm=0.01)
        if points is None:
            points = np.random.default_rng(0).uniform(-60, 60, (8000, 3))
            labels = mr.labels(points)
        s = mr.signal(points)
        means = [np.median(s[labels == tissue[name]]) for name in order]
        assert means == sorted(means), contrast
        assert means[order.index("GREY")] == pytest.approx(100, abs=1)


def test_field_strength_changes_t1_and_unknown_choices_are_refused():
    assert relaxation(HeadLabel.WHITE, 1.5).t1_ms < relaxation(HeadLabel.WHITE, 3.0).t1_ms
    with pytest.raises(UsageError):
        relaxation(HeadLabel.WHITE, 7.0)
    with pytest.raises(UsageError):
        BrainMR(1, contrast="dwi")


def test_fractions_are_a_partition_of_the_brain(t1):
    total = sum(t1.fractions.values())
    assert total.max() <= 1 + 1e-4
    assert min(f.min() for f in t1.fractions.values()) >= 0
    deep = np.isin(t1.labels, (HeadLabel.WHITE, HeadLabel.GREY, HeadLabel.THALAMUS))
    assert np.median(total[deep]) == pytest.approx(1, abs=1e-3)
    # A fraction counts as many ml as its labels, up to partial volume at the edges.
    white = np.isin(t1.labels, (HeadLabel.WHITE, HeadLabel.CEREBELLUM_WHITE, HeadLabel.BRAINSTEM))
    assert t1.facts["volumes_ml"]["white"] == pytest.approx(white.sum() * 0.027, rel=0.03)


def test_same_person_as_the_ct(t1):
    points = np.random.default_rng(1).uniform(-60, 60, (5000, 3))
    ct = HeadCT(4, table=False)
    np.testing.assert_array_equal(ct.labels(points), BrainMR(4).labels(points))


def test_bias_and_noise_explain_the_image(t1):
    assert t1.bias.mean(dtype=float) == pytest.approx(1, abs=1e-4)
    assert 0.03 < t1.bias.std() < 0.6
    clean = brain_mr(4, noise=0, **SIZE)
    np.testing.assert_allclose(clean.volume.data, clean.ideal * clean.bias, rtol=1e-5)
    air = t1.ideal == 0
    # Rician noise without signal is Rayleigh: mean sigma * sqrt(pi / 2).
    assert t1.volume.data[air].mean() == pytest.approx(3 * np.sqrt(np.pi / 2), rel=0.02)
    brain = t1.ideal > 60
    assert (t1.volume.data - clean.volume.data)[brain].std() == pytest.approx(3, rel=0.05)


def test_same_seed_same_bytes(t1):
    again = brain_mr(4, **SIZE)
    assert again.volume.data.tobytes() == t1.volume.data.tobytes()
