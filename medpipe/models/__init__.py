"""Weights that come with medpipe, each pinned by its digest; read without running anything."""

from __future__ import annotations

from medpipe.models.registry import (
    MODELS,
    PackagedModel,
    load_weights,
    model_card,
    pack_weights,
    unpack_weights,
)

__all__ = [
    "MODELS",
    "PackagedModel",
    "load_weights",
    "model_card",
    "pack_weights",
    "unpack_weights",
]
