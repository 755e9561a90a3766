"""Signals of a protocol with their exact slopes, by forward-mode differentiation.

The slopes come from `torch.func.jvp`, one per latent, vectorised over the latents so that
the signal itself is computed once. They are exact for every registered model, an echo
train by extended phase graphs too; no model writes derivatives of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.func import jvp, vmap

from medpipe.qmri.protocol import Protocol

__all__ = ["signal_and_slopes"]


def signal_and_slopes(
    protocol: Protocol,
    latents: Sequence[str],
    values: torch.Tensor,
    scale: torch.Tensor,
    known: Mapping[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the signed signals of unit M0 and their slopes along some latents.

    Parameters
    ----------
    protocol : Protocol
        Gives D signals.
    latents : sequence of str
        The p latents to differentiate by, none of them ``"m0"``.
    values : Tensor
        (p, N), one row per latent, SI units.
    scale : Tensor
        (p, N), what each slope is multiplied by: 1 for a slope per unit, the value itself
        for a slope per relative change.
    known : mapping of str to Tensor
        Known regressors and latents that are held, each (N,) or ().

    Returns
    -------
    signal : Tensor
        (D, N), signed also where magnitudes are measured.
    slopes : Tensor
        (p, D, N).
    """

    def signal(*rows: torch.Tensor) -> torch.Tensor:
        return protocol.signal({**known, **dict(zip(latents, rows, strict=True))}, magnitude=False)

    rows = tuple(values.unbind(0))
    if len(rows) == 1:
        unit, slope = _along(signal, rows, (scale[0],))
        return unit.T.contiguous(), slope.T.contiguous()[None]

    def along(*tangents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _along(signal, rows, tangents)

    one_by_one = torch.eye(len(rows)).to(scale)[:, :, None] * scale
    signal_once: Any = (None, 0)
    unit, slopes = vmap(along, out_dims=signal_once)(*one_by_one.unbind(1))
    return unit.T.contiguous(), slopes.transpose(1, 2).contiguous()


def _along(
    signal: Callable[..., torch.Tensor],
    rows: tuple[torch.Tensor, ...],
    tangents: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the signal and its slope along `tangents`."""
    value, slope, *_ = jvp(signal, rows, tangents)
    return value, slope
