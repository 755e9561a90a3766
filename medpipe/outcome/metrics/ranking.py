"""How well a score ranks cases, which lives in `medpipe.stats`."""

from __future__ import annotations

from medpipe.stats.ranking import ONE_CLASS, auroc, average_precision, delong, delong_test

__all__ = ["ONE_CLASS", "auroc", "average_precision", "delong", "delong_test"]
