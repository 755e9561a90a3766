"""Node positions of columns that start at a centre."""

from __future__ import annotations

import math

import torch

from medpipe.errors import UsageError

__all__ = ["radial_nodes"]


def radial_nodes(
    inner_mm: float, outer_mm: float, node_mm: float, device: torch.device | str
) -> torch.Tensor:
    """Return radii from `inner_mm` to at most `outer_mm`, `node_mm` apart, float64 (K,)."""
    usable = all(math.isfinite(v) for v in (inner_mm, outer_mm, node_mm))
    if not usable or node_mm <= 0 or inner_mm < 0 or outer_mm - inner_mm < node_mm * (1 - 1e-9):
        raise UsageError(
            "the radii of the columns are wrong",
            expected="0 <= inner_mm, node_mm > 0, inner_mm + node_mm <= outer_mm",
            got=f"{inner_mm:g} to {outer_mm:g} by {node_mm:g}",
        )
    count = math.floor((outer_mm - inner_mm) / node_mm + 1e-9) + 1
    return inner_mm + torch.arange(count, dtype=torch.float64, device=device) * node_mm
