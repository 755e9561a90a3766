"""Figures and their intervals, which live in `medpipe.stats`."""

from __future__ import annotations

from medpipe.stats.interval import Interval, PairedDifference, check_level

__all__ = ["Interval", "PairedDifference", "check_level"]
