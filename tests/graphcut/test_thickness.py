"""Thickness of layers against closed forms, and its table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.sectors import Sectors, etdrs_sectors, ring_sectors
from medpipe.graphcut.thickness import (
    column_thickness_mm,
    nearest_thickness_mm,
    thickness_table,
)


def heights(function, x: int, y: int, hx: float, hy: float) -> torch.Tensor:
    """Points of a height map on columns hx and hy mm apart."""
    i, j = torch.meshgrid(
        torch.arange(x, dtype=torch.float64) * hx,
        torch.arange(y, dtype=torch.float64) * hy,
        indexing="ij",
    )
    return torch.stack([i, j, function(i, j)], dim=-1)


def raised(distance_mm: float) -> torch.Tensor:
    return torch.tensor([0.0, 0.0, distance_mm], dtype=torch.float64)


def sphere(radius: float, n: int, centre=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """Points of a band of a sphere, which closes along the first axis."""
    longitude = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    latitude = torch.linspace(-1.2, 1.2, n, dtype=torch.float64)
    ring = torch.stack(
        [
            torch.cos(longitude)[:, None] * torch.cos(latitude),
            torch.sin(longitude)[:, None] * torch.cos(latitude),
            torch.sin(latitude).expand(n, -1),
        ],
        dim=-1,
    )
    return radius * ring + torch.tensor(centre, dtype=torch.float64)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.4, 0.0), (0.0, -0.7), (0.3, 0.2)])
def test_the_normal_thickness_of_a_tilted_layer_is_the_cosine_of_the_vertical(
    a: float, b: float
) -> None:
    upper = heights(lambda x, y: a * x + b * y, 60, 40, 0.012, 0.05)
    lower = upper + raised(0.1)
    vertical = column_thickness_mm(torch.stack([upper[..., 2], lower[..., 2]]))
    torch.testing.assert_close(vertical, torch.full_like(vertical, 0.1))
    cosine = 1 / math.sqrt(1 + a * a + b * b)
    nearest = nearest_thickness_mm(upper, lower)
    inner = nearest[10:-10, 3:-3]  # away from the rims the foot is on the other surface
    torch.testing.assert_close(inner, torch.full_like(inner, 0.1 * cosine), rtol=1e-9, atol=0)


def test_the_shell_of_a_sphere() -> None:
    inner, outer = sphere(10.0, 120), sphere(12.0, 120)
    nearest = nearest_thickness_mm(inner, outer, wrap=(True, False))
    sagitta = 12 * (1 - math.cos(math.pi / 120))  # how far a facet lies inside the sphere
    away = nearest[:, 5:-5]
    assert float((away - 2).abs().max()) < 1.5 * sagitta
    radial = column_thickness_mm(torch.stack([inner.norm(dim=-1), outer.norm(dim=-1)]))
    torch.testing.assert_close(radial, torch.full_like(radial, 2.0))


def test_a_shell_off_centre_is_thinner_by_nearest_points_than_along_columns() -> None:
    inner, outer = sphere(10.0, 160), sphere(12.0, 160, (0.8, 0.0, 0.0))
    nearest = nearest_thickness_mm(inner, outer, wrap=(True, False))
    to_outer = 12 - (inner - torch.tensor([0.8, 0.0, 0.0], dtype=torch.float64)).norm(dim=-1)
    to_inner = outer.norm(dim=-1) - 10
    expected = (to_outer + to_inner) / 2
    off = (nearest - expected)[:, 12:-12].abs()
    assert float(off.max()) < 0.01


def test_nearest_points_agree_with_brute_force_over_a_fine_surface() -> None:
    def wavy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 0.3 * torch.sin(2 * x) * torch.cos(1.5 * y)

    upper = heights(wavy, 40, 40, 0.1, 0.1)
    lower = upper + raised(0.4)
    fine = heights(lambda x, y: wavy(x, y) + 0.4, 400, 400, 0.01, 0.01).reshape(-1, 3)
    above = heights(wavy, 400, 400, 0.01, 0.01).reshape(-1, 3)
    found = nearest_thickness_mm(upper, lower)
    for i, j in [(10, 10), (17, 25), (28, 12), (20, 20)]:
        down = float((fine - upper[i, j]).norm(dim=1).min())
        up = float((above - lower[i, j]).norm(dim=1).min())
        assert float(found[i, j]) == pytest.approx((down + up) / 2, abs=2e-3)


def test_coarse_columns_do_not_thicken_a_layer() -> None:
    """Nearest vertices alone would be off by the spacing of the B-scans."""
    upper = heights(lambda x, y: 0.5 * y, 50, 12, 0.01, 0.25)
    lower = upper + raised(0.2)
    inner = nearest_thickness_mm(upper, lower)[:, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.2 / math.sqrt(1.25)))


def test_a_single_scan_uses_the_segments_of_its_line() -> None:
    def line(shift: float) -> torch.Tensor:
        return heights(lambda x, y: 0.5 * x + shift, 60, 1, 0.01, 1.0)

    nearest = nearest_thickness_mm(line(0.0), line(0.1))[15:-15]
    torch.testing.assert_close(nearest, torch.full_like(nearest, 0.1 / math.sqrt(1.25)))


def test_a_ring_closes() -> None:
    angle = torch.arange(90, dtype=torch.float64) * (2 * math.pi / 90)
    ring = torch.stack([angle.cos(), angle.sin(), torch.zeros(90)], dim=-1)[None]
    closed = nearest_thickness_mm(2 * ring, 2.5 * ring, wrap=(False, True))
    assert float(closed.std()) < 1e-9
    assert float(closed[0, 0]) == pytest.approx(0.5, abs=2.5 * (1 - math.cos(math.pi / 90)))
    gap = nearest_thickness_mm(2 * ring, 2.5 * ring, valid=torch.arange(90)[None] != 3)
    assert torch.isnan(gap[0, 3])
    assert float(gap[0, 60]) == pytest.approx(float(closed[0, 60]))


def test_columns_that_do_not_lie_on_a_grid_use_their_faces() -> None:
    """A whole shell on nearly even points: closed, without a rim."""
    from scipy.spatial import ConvexHull

    n = 2000
    i = np.arange(n) + 0.5
    polar, turn = np.arccos(1 - 2 * i / n), np.pi * (1 + 5**0.5) * i
    directions = np.stack(
        [np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], axis=1
    )
    faces = torch.from_numpy(ConvexHull(directions).simplices.astype(np.int64))
    unit = torch.from_numpy(directions)
    shell = nearest_thickness_mm(10 * unit, 12 * unit, faces=faces)
    edge = math.sqrt(8 * math.pi / math.sqrt(3) / n)  # of even triangles on the unit sphere
    assert shell.shape == (n,)
    assert float((shell - 2).abs().max()) < 12 * edge**2 / 2
    vertices_alone = nearest_thickness_mm(10 * unit, 12 * unit, faces=faces[:0])
    torch.testing.assert_close(vertices_alone, torch.full((n,), 2.0, dtype=torch.float64))
    moved = nearest_thickness_mm(10 * unit, 12 * unit + raised(1.0), faces=faces)
    expected = (
        12 - (10 * unit - raised(1.0)).norm(dim=1) + (12 * unit + raised(1.0)).norm(dim=1) - 10
    ) / 2
    assert float((moved - expected).abs().max()) < 12 * edge**2 / 2
    outer = 12 * unit
    outer[7] = torch.nan
    hole = nearest_thickness_mm(10 * unit, outer, faces=faces)
    assert torch.isnan(hole).nonzero().tolist() == [[7]]
    table = thickness_table(shell[None], ["wall"], area_mm2=4 * math.pi * 100 / n)
    assert table["wall"]["area_mm2"] == pytest.approx(4 * math.pi * 100)
    with pytest.raises(StepError, match=r"expected \(X, Y, 3\), or \(C, 3\) with faces"):
        nearest_thickness_mm(unit, unit)


def test_missing_columns_stay_missing_and_are_not_a_foot_point() -> None:
    upper = heights(lambda x, y: 0 * x, 8, 8, 0.1, 0.1)
    lower = upper + raised(0.2)
    lower[4, 4] = torch.nan
    nearest = nearest_thickness_mm(upper, lower)
    assert torch.isnan(nearest).sum() == 1
    given = nearest_thickness_mm(upper, lower, valid=torch.ones(8, 8, dtype=torch.bool))
    torch.testing.assert_close(given, nearest, equal_nan=True)
    torch.testing.assert_close(nearest[0, 0], torch.tensor(0.2, dtype=torch.float64))
    nothing = nearest_thickness_mm(upper, torch.full_like(upper, torch.nan))
    assert torch.isnan(nothing).all()


def test_crossing_surfaces_are_named() -> None:
    positions = torch.tensor([0.0, 1.0, 2.0])[:, None, None].repeat(1, 3, 4)
    positions[2, 1, 1] = 0.5
    positions[2, 2, 2] = torch.nan
    with pytest.raises(StepError, match=r"surfaces 1 and 2: two surfaces cross.* got 1 columns"):
        column_thickness_mm(positions)
    with pytest.raises(StepError, match="needs two surfaces"):
        column_thickness_mm(positions[:1])
    with pytest.raises(StepError, match="on different columns"):
        nearest_thickness_mm(torch.zeros(2, 2, 3), torch.zeros(3, 2, 3))
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(StepError, match=r"on different columns; expected \(2, 2\), got \(2, 3\)"):
        nearest_thickness_mm(torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), valid=mask)


def test_the_table_agrees_with_numpy_and_is_json() -> None:
    generator = torch.Generator().manual_seed(0)
    thickness = torch.rand(2, 20, 30, generator=generator, dtype=torch.float64) * 0.05 + 0.02
    thickness[1, :5] = torch.nan
    area = torch.rand(20, 30, generator=generator, dtype=torch.float64)
    table = thickness_table(thickness, ["RNFL", "GCL"], area_mm2=area)
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert list(table) == ["RNFL", "GCL"]
    row = table["GCL"]
    values = thickness[1, 5:].numpy().ravel()
    assert row["columns"] == 450
    assert row["mean_um"] == pytest.approx(1000 * values.mean())
    assert row["sd_um"] == pytest.approx(1000 * values.std(ddof=1))
    for name, percent in (("p5_um", 5), ("median_um", 50), ("p95_um", 95)):
        assert row[name] == pytest.approx(1000 * np.percentile(values, percent))
    assert (row["min_um"], row["max_um"]) == pytest.approx(
        (1000 * values.min(), 1000 * values.max())
    )
    assert row["area_mm2"] == pytest.approx(area[5:].sum())
    assert row["volume_mm3"] == pytest.approx((area[5:].numpy().ravel() * values).sum())
    in_mm = thickness_table(thickness, ["a", "b"], unit="mm", area_mm2=0.5)
    assert in_mm["a"]["mean_mm"] == pytest.approx(float(thickness[0].mean()))
    assert in_mm["a"]["area_mm2"] == pytest.approx(300)


def test_the_volume_of_a_shell_of_parallel_planes() -> None:
    table = thickness_table(torch.full((1, 11, 21), 0.3), ["slab"], area_mm2=0.01 * 0.25)
    assert table["slab"]["volume_mm3"] == pytest.approx(11 * 21 * 0.0025 * 0.3, rel=1e-6)
    assert table["slab"]["sd_um"] == pytest.approx(0, abs=1e-9)


def test_empty_and_single_columns_have_no_statistics() -> None:
    thickness = torch.full((1, 2, 2), torch.nan)
    row = thickness_table(thickness, ["a"], area_mm2=1.0)["a"]
    assert (row["columns"], row["mean_um"], row["p95_um"]) == (0, None, None)
    assert (row["area_mm2"], row["volume_mm3"]) == (0, 0)
    thickness[0, 0, 0] = 0.1
    row = thickness_table(thickness, ["a"])["a"]
    assert (row["columns"], row["sd_um"]) == (1, None)
    assert row["median_um"] == pytest.approx(100)
    assert "area_mm2" not in row


def test_the_etdrs_grid_has_its_areas_and_sides() -> None:
    spacing = 0.02
    axis = torch.arange(-200, 201, dtype=torch.float64) * spacing
    right, up = torch.meshgrid(axis, axis, indexing="ij")
    sectors = etdrs_sectors(right, up, "OD")
    area = {name: float(mask.sum()) * spacing**2 for name, mask in sectors.masks().items()}
    assert area["central"] == pytest.approx(math.pi * 0.25, rel=0.02)
    for side in ("superior", "nasal", "inferior", "temporal"):
        assert area[f"inner_{side}"] == pytest.approx(math.pi * (1.5**2 - 0.5**2) / 4, rel=0.02)
        assert area[f"outer_{side}"] == pytest.approx(math.pi * (3**2 - 1.5**2) / 4, rel=0.02)

    def at(x: float, y: float, eye: str) -> str:
        found = etdrs_sectors(torch.tensor([[x]]), torch.tensor([[y]]), eye)
        return found.names[int(found.index)] if int(found.index) >= 0 else ""

    assert at(1.0, 0.1, "OD") == "inner_nasal"
    assert at(1.0, 0.1, "OS") == "inner_temporal"
    assert at(-2.0, 0.1, "OS") == "outer_nasal"
    assert at(0.1, 2.0, "OD") == at(0.1, 2.0, "OS") == "outer_superior"
    assert at(0.1, -1.0, "OD") == "inner_inferior"
    assert at(3.0, 1.0, "OD") == ""
    with pytest.raises(UsageError, match=r"OD \| OS"):
        etdrs_sectors(right, up, "left")


@pytest.mark.parametrize(
    ("kind", "widths"),
    [("six", [90, 40, 40, 110, 40, 40]), ("quadrants", [90, 90, 90, 90])],
)
def test_ring_sectors_have_their_widths_and_order(kind: str, widths: list[int]) -> None:
    angle = (torch.arange(3600, dtype=torch.float64) / 10)[None] + 0.05
    sectors = ring_sectors(angle, kind)
    assert [int(m.sum()) for m in sectors.masks().values()] == [10 * w for w in widths]
    assert torch.equal(ring_sectors(angle - 360, kind).index, sectors.index)
    order = torch.unique_consecutive(sectors.index[0]).tolist()
    assert order == [*range(len(widths)), 0]  # temporal first and last, superior before nasal
    edge = torch.tensor([[-45.0, torch.nextafter(torch.tensor(-45.0), torch.tensor(-99.0))]])
    assert ring_sectors(edge, kind).index.tolist() == [[0, len(widths) - 1]]
    assert int(ring_sectors(torch.tensor([[torch.nan]]), kind).index) == -1
    with pytest.raises(UsageError, match="unknown sectors"):
        ring_sectors(angle, "eight")


def test_sectors_have_rows_of_their_own() -> None:
    sectors = Sectors(torch.tensor([[0, 0], [1, -1]]), ("left", "right"))
    thickness = torch.tensor([[[0.1, 0.2], [0.3, 0.9]]], dtype=torch.float64)
    table = thickness_table(thickness, ["a"], sectors=sectors, area_mm2=2.0)
    assert list(table) == ["a", "a/left", "a/right"]
    assert table["a/left"]["mean_um"] == pytest.approx(150)
    assert table["a/right"]["columns"] == 1
    assert table["a/left"]["area_mm2"] == 4
    with pytest.raises(StepError, match="on other columns"):
        thickness_table(torch.zeros(1, 3, 3), ["a"], sectors=sectors)
    with pytest.raises(StepError, match="expected 1 different names"):
        thickness_table(thickness, ["a", "b"])
    with pytest.raises(UsageError, match=r"um \| mm"):
        thickness_table(thickness, ["a"], unit="inch")
