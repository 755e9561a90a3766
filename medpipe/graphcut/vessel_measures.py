"""What a cardiologist measures on the contours of an intravascular ultrasound pullback.

Definitions of the expert consensus (Mintz et al. 2001, J Am Coll Cardiol 37:1478,
doi 10.1016/S0735-1097(01)01175-5): diameters and wall thickness lie on lines through
the centre of the lumen, not through the catheter.
"""

from __future__ import annotations

import math

import torch

from medpipe.errors import StepError
from medpipe.types import Json

__all__ = ["areas_mm2", "frame_table", "summary_table"]

LINES = 360
"""Rays from the centre of the lumen on which diameters and thickness are measured."""


def areas_mm2(contours_mm: torch.Tensor) -> torch.Tensor:
    """Return the area within closed polygons (..., P, 2) in mm."""
    x, y = contours_mm.unbind(-1)
    return 0.5 * (x * y.roll(-1, -1) - y * x.roll(-1, -1)).sum(-1).abs()


def centroids_mm(contours_mm: torch.Tensor) -> torch.Tensor:
    """Return the centre of gravity (..., 2) of closed polygons (..., P, 2) in mm."""
    after = contours_mm.roll(-1, -2)
    cross = contours_mm[..., 0] * after[..., 1] - contours_mm[..., 1] * after[..., 0]
    total = ((contours_mm + after) * cross[..., None]).sum(-2)
    return total / (3 * cross.sum(-1)[..., None])


def _reach(contour_mm: torch.Tensor, center_mm: torch.Tensor) -> torch.Tensor:
    """Return how far a contour (P, 2) reaches on each ray from a point within, (LINES,)."""
    turn = torch.arange(LINES, dtype=contour_mm.dtype, device=contour_mm.device)
    turn = turn * (2 * math.pi / LINES)
    ray = torch.stack([turn.cos(), turn.sin()], -1)[:, None]
    start = contour_mm - center_mm
    edge = start.roll(-1, 0) - start
    # start + s edge = t ray
    across = ray[..., 0] * edge[:, 1] - ray[..., 1] * edge[:, 0]
    t = (start[:, 0] * edge[:, 1] - start[:, 1] * edge[:, 0]) / across
    s = (start[:, 0] * ray[..., 1] - start[:, 1] * ray[..., 0]) / across
    hit = (t >= 0) & (s > -1e-9) & (s < 1 + 1e-9)
    return torch.where(hit, t, -torch.inf).amax(1)


def frame_table(contours_mm: torch.Tensor, step_mm: float) -> dict[str, dict[str, Json]]:
    """Return the measures of every frame.

    Parameters
    ----------
    contours_mm : Tensor, float64 (2, frames, P, 2)
        Lumen and external elastic membrane (EEM) as closed polygons in the plane.
    step_mm : float
        Distance of neighbouring frames.

    Returns
    -------
    dict
        Number of the frame, from 1, with leading zeros → ``position_mm`` along the pullback,
        ``lumen_area_mm2``, ``vessel_area_mm2`` (within the EEM), ``wall_area_mm2``
        (plaque plus media), ``plaque_burden_percent`` (wall over vessel area), shortest
        and longest diameters of lumen and vessel through the centre of the lumen,
        and mean, least and greatest wall thickness in µm on rays from there.

    Raises
    ------
    StepError
        If the contours have another shape, are not finite, or the lumen leaves the EEM.
    """
    if contours_mm.ndim != 4 or contours_mm.shape[0] != 2 or contours_mm.shape[-1] != 2:
        raise StepError(
            "the contours have the wrong shape",
            expected="(2, frames, points, 2)",
            got=str(tuple(contours_mm.shape)),
        )
    if not bool(torch.isfinite(contours_mm).all()):
        raise StepError("a contour is not finite")
    contours_mm = contours_mm.to(torch.float64)
    areas = areas_mm2(contours_mm)
    centers = centroids_mm(contours_mm[0])
    rows: dict[str, dict[str, Json]] = {}
    digits = len(str(areas.shape[1]))  # so that names sort as numbers do
    for n, (lumen_mm2, vessel_mm2) in enumerate(areas.T.tolist()):
        lumen, vessel = (_reach(c[n], centers[n]) for c in contours_mm)
        wall = vessel - lumen
        if not bool((wall >= -1e-6).all()) or not bool(torch.isfinite(wall).all()):
            raise StepError("the lumen leaves the vessel", where=f"frame {n + 1}")
        across = [r + r.roll(LINES // 2) for r in (lumen, vessel)]
        rows[f"{n + 1:0{digits}d}"] = {
            "position_mm": n * step_mm,
            "lumen_area_mm2": lumen_mm2,
            "vessel_area_mm2": vessel_mm2,
            "wall_area_mm2": vessel_mm2 - lumen_mm2,
            "plaque_burden_percent": 100 * (1 - lumen_mm2 / vessel_mm2),
            "lumen_diameter_min_mm": float(across[0].min()),
            "lumen_diameter_max_mm": float(across[0].max()),
            "vessel_diameter_min_mm": float(across[1].min()),
            "vessel_diameter_max_mm": float(across[1].max()),
            "wall_mean_um": 1000 * float(wall.mean()),
            "wall_min_um": 1000 * float(wall.min()),
            "wall_max_um": 1000 * float(wall.max()),
        }
    return rows


def summary_table(frames: dict[str, dict[str, Json]], step_mm: float) -> dict[str, Json]:
    """Return the measures of a pullback from those of its frames (`frame_table`).

    ``minimal_lumen_area_mm2`` with its frame and the plaque burden there, the greatest
    plaque burden and wall thickness with their frames, volumes (each frame stands for
    `step_mm` of the vessel) and ``percent_atheroma_volume`` (wall over vessel volume).
    """
    names = list(frames)
    column = {
        name: torch.tensor([float(str(row[name])) for row in frames.values()], dtype=torch.float64)
        for name in frames[names[0]]
    }
    narrow = int(column["lumen_area_mm2"].argmin())
    worst = int(column["plaque_burden_percent"].argmax())
    thick = int(column["wall_max_um"].argmax())
    lumen, vessel = (float(column[f"{n}_area_mm2"].sum()) * step_mm for n in ("lumen", "vessel"))
    return {
        "frames": len(names),
        "frame_step_mm": step_mm,
        "minimal_lumen_area_mm2": float(column["lumen_area_mm2"][narrow]),
        "minimal_lumen_area_frame": int(names[narrow]),
        "plaque_burden_there_percent": float(column["plaque_burden_percent"][narrow]),
        "minimal_lumen_diameter_mm": float(column["lumen_diameter_min_mm"].min()),
        "greatest_plaque_burden_percent": float(column["plaque_burden_percent"][worst]),
        "greatest_plaque_burden_frame": int(names[worst]),
        "wall_mean_um": float(column["wall_mean_um"].mean()),
        "wall_max_um": float(column["wall_max_um"][thick]),
        "wall_max_frame": int(names[thick]),
        "lumen_area_mean_mm2": float(column["lumen_area_mm2"].mean()),
        "vessel_area_mean_mm2": float(column["vessel_area_mm2"].mean()),
        "lumen_volume_mm3": lumen,
        "vessel_volume_mm3": vessel,
        "percent_atheroma_volume": 100 * (1 - lumen / vessel),
    }
