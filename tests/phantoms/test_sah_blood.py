"""Layers and levels of blood against closed forms."""

import numpy as np
import pytest

from medpipe.phantoms.sah_blood import (
    cistern_mm,
    clot_thickness_mm,
    layer_mm,
    paint_parenchyma,
    paint_subarachnoid,
    paint_ventricles,
    spread_mm,
)
from medpipe.phantoms.shapes import lattice

CUBE = (2.0, 2.0, 2.0)


def slab(thickness_mm, spacing=2.0, n=41, offset=0.37):
    """Share of each voxel within a slab across x, exact."""
    x = (np.arange(n) - n // 2) * spacing + offset
    high = np.minimum(x + spacing / 2, thickness_mm / 2)
    low = np.maximum(x - spacing / 2, -thickness_mm / 2)
    share = np.clip((high - low) / spacing, 0, 1).astype(np.float32)
    return np.broadcast_to(share[:, None, None], (n, n, n)).copy()


@pytest.mark.parametrize("thickness_mm", [0.3, 1.0, 2.5, 5.0])
def test_the_thickness_of_a_slab_is_found(thickness_mm):
    middle = layer_mm(slab(thickness_mm), CUBE)[20, 20, 20]
    assert middle == pytest.approx(thickness_mm, rel=0.12)
    assert clot_thickness_mm(slab(thickness_mm), CUBE) == pytest.approx(thickness_mm, rel=0.12)
    assert clot_thickness_mm(np.zeros((9, 9, 9), np.float32), CUBE) == 0


@pytest.mark.parametrize(("wanted_mm", "space_mm"), [(0.6, 6.0), (0.6, 1.2), (4.0, 12.0)])
def test_a_layer_is_painted_as_thick_as_asked_for(wanted_mm, space_mm):
    fluid = slab(space_mm)
    order = np.zeros_like(fluid)
    everything = paint_subarachnoid(order, fluid, 40.0, wanted_mm, CUBE)
    ml = float((everything * fluid).sum()) * 8 / 1000
    assert ml == pytest.approx(40.0, rel=0.01) or wanted_mm < 1
    thin = clot_thickness_mm(everything * fluid, CUBE)
    assert thin <= wanted_mm * 1.1 + (wanted_mm > 1) * 99
    assert (thin > 1) == (wanted_mm > 1)


def test_volume_and_order_of_the_spread():
    rng = np.random.default_rng(0)
    fluid = rng.random((40, 40, 40)).astype(np.float32) * 0.5
    order = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], fluid.shape)
    share = paint_subarachnoid(order, fluid, 20.0, 9.0, CUBE)
    assert float((share * fluid).sum()) * 8 / 1000 == pytest.approx(20.0, rel=1e-3)
    reach = share.max(axis=(1, 2))
    assert reach[0] > 0
    assert (reach[30:] == 0).all()
    assert not paint_subarachnoid(order, fluid, 0.0, 9.0, CUBE).any()


def test_blood_in_the_ventricles_has_a_level():
    fluid = np.ones((20, 30, 20), np.float32)
    height = np.broadcast_to(np.arange(30, dtype=np.float32)[None, :, None] * 2, fluid.shape)
    share = paint_ventricles(height, fluid, 32.0, 0.008)
    assert float(share.sum()) * 0.008 == pytest.approx(32.0, rel=1e-4)
    assert (share[:, :9] == 1).all()  # 10 of 30 layers hold 32 ml
    assert (share[:, 11:] == 0).all()


def test_a_haematoma_has_its_volume_beside_its_artery():
    axis = np.arange(-80, 80, 2.0, dtype=np.float32)
    q = tuple(np.meshgrid(axis, axis, axis, indexing="ij"))
    brain = np.ones_like(q[0])
    share, oedema = paint_parenchyma(q, brain, 20.0, 0.008, "mca", -1.0, lattice(5, 30.0))
    assert float(share.sum()) * 0.008 == pytest.approx(20.0, rel=1e-3)
    centre = [float((a * share).sum() / share.sum()) for a in q]
    np.testing.assert_allclose(centre, (-42, 2, -4), atol=4)
    assert oedema[share > 0.99].max() < 0.02
    assert oedema.max() > 0.5


def test_the_spread_starts_at_the_artery_and_takes_the_cisterns_first():
    flat = lattice(5, 30.0)
    flat = type(flat)(np.zeros_like(flat.values), flat.step_mm)

    def order(point, side=1.0):
        q = tuple(np.array([v], np.float32) for v in point)
        return float(spread_mm(q, "mca", side, flat)[0])

    assert order((30, 14, -15)) < 2
    assert order((30, 14, -15)) < order((-30, 14, -15))
    assert order((-30, 14, -15), side=-1.0) < 2
    assert order((0, 10, -21)) < order((60, 14, -5))  # a cistern before a nearer sulcus
    inside = tuple(np.array([v], np.float32) for v in (0, 10, -21))
    assert float(cistern_mm(inside)[0]) < -3
