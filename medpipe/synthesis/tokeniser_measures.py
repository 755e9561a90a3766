"""How well volumes survive the way to codes and back."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medpipe.synthesis.quantiser import perplexity
from medpipe.synthesis.tokeniser import Tokeniser, split_labels
from medpipe.synthesis.tokeniser_samples import TokeniserSamples
from medpipe.types import Json

__all__ = ["measure_tokeniser", "measure_variety", "warn_of_collapse"]

_NOTICE = logging.getLogger("medpipe.notice")

COLLAPSED = 0.01
"""Share of the tokens that vary below which codes say nothing of volumes."""

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
        volumes that have the label; ``perplexity`` and ``codes_used`` of all codes together;
        what `measure_variety` says, or None where volumes have several grids.
    """
    settings = tokeniser.settings
    data = TokeniserSamples(samples, settings.image_channels, settings.label_classes)
    where = tokeniser.codebook.vectors.device
    was = tokeniser.training
    tokeniser.eval()
    counts = torch.zeros(settings.codes, device=where)
    rows: dict[str, list[float]] = {"psnr_db": [], "mae": []}
    grids: list[Tensor] = []
    dice: list[list[float]] = [[] for _ in range(max(0, settings.label_classes - 1))]
    with torch.no_grad():
        for number in range(len(data)):
            x = data.volume(number)[None].to(where)
            made = tokeniser(x)
            grids.append(made.codes)
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
        **measure_variety(torch.cat(grids) if len({g.shape for g in grids}) == 1 else None),
    }


def measure_variety(codes: Tensor | None) -> dict[str, Json]:
    """Return how much codes tell about which volume they are of.

    The perplexity of all codes together is as large where every volume has the same codes,
    other ones in each place: they then say where they are and nothing of the volume.

    Parameters
    ----------
    codes : Tensor, optional
        int64 (n, h, w, d); None where there are none to compare.

    Returns
    -------
    dict of JSON values
        ``tokens_that_vary``, the share of the places where not all volumes have one code, and
        ``perplexity_of_a_place``, the mean over places of the perplexity of the codes that
        volumes have there: 1 where all have one, n where each has its own. Both are None for
        fewer than two volumes.
    """
    if codes is None or len(codes) < 2:
        return {"tokens_that_vary": None, "perplexity_of_a_place": None}
    places = codes.flatten(1)
    n = len(places)
    ranked = places.sort(0).values
    begins = torch.ones_like(ranked, dtype=torch.bool)
    begins[1:] = ranked[1:] != ranked[:-1]
    runs = begins.cumsum(0) - 1  # which of its codes, in each place
    counts = torch.zeros_like(places, dtype=torch.float64)
    counts.scatter_add_(0, runs, torch.ones_like(counts))
    entropy = torch.special.entr(counts / n).sum(0)
    return {
        "tokens_that_vary": float((runs[-1] > 0).double().mean()),
        "perplexity_of_a_place": float(entropy.exp().mean()),
    }


def warn_of_collapse(facts: Mapping[str, Any]) -> None:
    """Log a notice if what `measure_tokeniser` returned says that volumes share their codes."""
    share = facts.get("tokens_that_vary")
    if share is not None and share < COLLAPSED:
        _NOTICE.warning(
            "the tokeniser has collapsed: %.2g %% of the tokens vary between %d volumes, a prior "
            "of such codes draws one volume; train longer, with a larger unquantised_share or "
            "more weight on labels",
            100 * share, facts["psnr_db"]["n"],
        )  # fmt: skip


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
