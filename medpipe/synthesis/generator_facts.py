"""What a generator does with real cases: how it keeps them, and how likely it finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpipe.errors import InputError
from medpipe.synthesis.evaluation_sets import SynthesisSet
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.metrics._figures import Floats, to_host
from medpipe.synthesis.routes import TokenRoute
from medpipe.synthesis.tokeniser import join_labels

__all__ = ["likelihoods_of", "reconstructions_of"]


def reconstructions_of(generator: Generator, cases: SynthesisSet) -> Tensor:
    """Return the images (n, I, J, K) of cases after the first network of a generator and back.

    What the network leaves out is put back as in images that are drawn.

    Parameters
    ----------
    generator : Generator
    cases : SynthesisSet
        On its grid; with labels if it draws any.

    Raises
    ------
    InputError
        If the cases do not fit the generator.
    """
    volumes = _volumes(generator, cases)
    out = []
    for seed, x in enumerate(volumes):
        made = generator.route.rebuilt(x)[:1]
        out.append(generator.detailed(made, seed)[0].to(cases.images))
    return torch.stack(out)


def likelihoods_of(
    generator: Generator, cases: SynthesisSet, rows: Sequence[Mapping[str, Any]]
) -> tuple[Floats, Floats] | None:
    """Return how unlikely a prior finds cases with their conditions, and with none.

    Parameters
    ----------
    generator : Generator
    cases : SynthesisSet
    rows : sequence of mapping
        Conditions of each case. Numbers outside the trained range are taken as its end.

    Returns
    -------
    conditional, unconditional : array (n,)
        Negative log likelihood in nats per token; None for latents, which have none.

    Raises
    ------
    InputError
        If the cases do not fit the generator.
    """
    route = generator.route
    if not isinstance(route, TokenRoute):
        return None
    net = route.tokeniser.tokeniser
    where = net.codebook.vectors.device
    with torch.no_grad():
        codes = torch.cat([net.encode(x.to(where)) for x in _volumes(generator, cases).split(1)])
    told = [{name: _within(generator, name, value) for name, value in row.items()} for row in rows]
    conditional, unconditional = route.prior.nll(codes, told)
    return to_host(conditional), to_host(unconditional)


def _volumes(generator: Generator, cases: SynthesisSet) -> Tensor:
    """Return what the first network reads, (n, C, I, J, K)."""
    if tuple(cases.images.shape[1:]) != tuple(generator.shape):
        raise InputError(
            "the cases are not on the grid of the generator",
            expected=str(tuple(generator.shape)), got=str(tuple(cases.images.shape[1:])),
        )  # fmt: skip
    route = generator.route
    images = cases.images[:, None].clamp(0, 1)
    if route.image_channels != 1:
        raise InputError(
            "the generator draws several images at once", expected="one channel",
            got=str(route.image_channels),
        )  # fmt: skip
    if not route.label_classes:
        return images
    if cases.labels is None:
        raise InputError("the generator draws labels: real cases need them too")
    return join_labels(images, cases.labels[:, None], route.label_classes)


def _within(generator: Generator, name: str, value: Any) -> Any:
    """Return a value, or the end of the trained range that is nearest to it."""
    known = {c.name: c for c in generator.conditions.items}.get(name)
    if known is None or known.low is None or known.high is None:
        return value
    return float(np.clip(float(value), known.low, known.high))
