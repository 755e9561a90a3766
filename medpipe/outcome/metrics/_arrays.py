"""What every measure asks of its arrays, which lives in `medpipe.stats`."""

from __future__ import annotations

from medpipe.stats.arrays import (
    FloatOrRows,
    Floats,
    binary,
    both_classes,
    column,
    finish,
    group_numbers,
    probabilities,
    ratio,
    weight_rows,
)

__all__ = [
    "FloatOrRows",
    "Floats",
    "binary",
    "both_classes",
    "column",
    "finish",
    "group_numbers",
    "probabilities",
    "ratio",
    "weight_rows",
]
