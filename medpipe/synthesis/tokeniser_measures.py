"""How well volumes survive the way to codes and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medpipe.synthesis.quantiser import perplexity
from medpipe.synthesis.tokeniser import Tokeniser, split_labels
from medpipe.synthesis.tokeniser_samples import TokeniserSamples
from medpipe.types import Json

__all__ = ["measure_tokeniser"]

LEVEL = 0.95
"""Of the intervals."""


def measure_tokeniser(tokeniser: Tokeniser, samples: Sequence[Any]) -> dict[str, Json]:
    """Return how well volumes survive the way to codes and back.

    Parameters
    ----------
    tokeniser : Tokeniser
        It is asked in evaluation mode, on the device it is on.
    samples : sequence
        Whole volumes, as `train_tokeniser` takes them, of any sizes.

    Returns
    -------
    dict of JSON values
        ``psnr_db`` (of a range of 1) and ``mae``, each as mean, sd, n and the 95 % interval
        of the mean (Student's t); ``dice``, a list of the same for label 1 and above, over the
        volumes that have the label; ``perplexity`` and ``codes_used`` of all codes together.
    """
    settings = tokeniser.settings
    data = TokeniserSamples(samples, settings.image_channels, settings.label_classes)
    where = tokeniser.codebook.vectors.device
    was = tokeniser.training
    tokeniser.eval()
    counts = torch.zeros(settings.codes, device=where)
    rows: dict[str, list[float]] = {"psnr_db": [], "mae": []}
    dice: list[list[float]] = [[] for _ in range(max(0, settings.label_classes - 1))]
    with torch.no_grad():
        for number in range(len(data)):
            x = data.volume(number)[None].to(where)
            made = tokeniser(x)
            counts += torch.bincount(made.codes.flatten(), minlength=settings.codes)
            image, labels = split_labels(made.values, settings.image_channels)
            real, known = split_labels(x, settings.image_channels)
            error = image - real
            rows["psnr_db"].append(-10 * math.log10(max(float(error.square().mean()), 1e-12)))
            rows["mae"].append(float(error.abs().mean()))
            if labels is not None and known is not None:
                _overlap(labels, known, dice)
    tokeniser.train(was)
    return {
        **{name: _summary(values) for name, values in rows.items()},
        "dice": [_summary(scores) for scores in dice],
        "perplexity": float(perplexity(counts)),
        "codes_used": int((counts > 0).sum()),
        "codes": settings.codes,
    }


def _overlap(found: Tensor, known: Tensor, scores: list[list[float]]) -> None:
    """Add the Dice of each label that a volume has."""
    for label, those in enumerate(scores, 1):
        a, b = found == label, known == label
        if bool(b.any()):
            those.append(float(2 * (a & b).sum() / (a.sum() + b.sum())))


def _summary(values: Sequence[float]) -> dict[str, Json]:
    """Return mean, standard deviation, n and the interval of the mean."""
    from scipy.stats import t

    n = len(values)
    out: dict[str, Json] = {"n": n, "mean": None, "sd": None, "low": None, "high": None}
    if n:
        out["mean"] = mean = math.fsum(values) / n
    if n > 1:
        out["sd"] = sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
        half = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * sd / math.sqrt(n)
        out["low"], out["high"] = mean - half, mean + half
    return out
