"""Latents of a set of volumes, with what is known of each: what a denoiser is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from medpipe.errors import InputError, UsageError
from medpipe.models import load_weights, pack_weights
from medpipe.synthesis.autoencoder import LatentAutoencoder

__all__ = ["Latents", "encode_latents"]

MODEL = "latents"


@dataclass(frozen=True, eq=False)
class Latents:
    """Means and standard deviations of latents; the noise is drawn when they are used.

    Parameters
    ----------
    mean, sigma : Tensor (N, C, h, w, d)
    values : Tensor (N, conditions)
        See `medpipe.synthesis.conditions`.
    present : bool Tensor (N, conditions)
        Which of the values are known.
    autoencoder : str
        `LatentAutoencoder.digest` of what made them.
    """

    mean: Tensor
    sigma: Tensor
    values: Tensor
    present: Tensor
    autoencoder: str = ""

    def __post_init__(self) -> None:
        n = len(self.mean)
        if self.mean.ndim != 5 or self.mean.shape != self.sigma.shape:
            raise UsageError("the latents have the wrong shape", expected="(N, C, h, w, d), twice")
        if self.values.shape != self.present.shape or self.values.shape[:1] != (n,):
            raise UsageError(
                "the conditions are not those of the latents", expected=f"({n}, conditions)",
                got=str(tuple(self.values.shape)),
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.mean)

    def part(self, which: Sequence[int]) -> Latents:
        """Return some of the latents."""
        some = list(which)
        a, b, c, d = (each[some] for each in (self.mean, self.sigma, self.values, self.present))
        return Latents(a, b, c, d, self.autoencoder)

    def to_bytes(self) -> bytes:
        """Return all of it as the content of a safetensors file."""
        names = ("mean", "sigma", "values", "present")
        tensors = {name: getattr(self, name) for name in names}
        return pack_weights(tensors, {"model": MODEL, "autoencoder": self.autoencoder})

    @classmethod
    def read(cls, path: str | Path) -> Latents:
        """Return the latents of a file that holds what `to_bytes` made.

        Raises
        ------
        UsageError
            If there is no such file.
        InputError
            If it holds something else.
        """
        tensors, metadata = load_weights(path)
        try:
            if metadata["model"] != MODEL:
                raise ValueError
            return cls(**tensors, autoencoder=str(metadata["autoencoder"]))
        except (KeyError, TypeError, ValueError, UsageError):
            raise InputError("the file holds no latents") from None


@torch.no_grad()
def encode_latents(
    autoencoder: LatentAutoencoder,
    samples: Dataset[Any] | Sequence[Tensor],
    values: Tensor | None = None,
    present: Tensor | None = None,
    *,
    slabs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Latents:
    """Encode volumes of one shape.

    Parameters
    ----------
    autoencoder : LatentAutoencoder
        Its scale has been measured.
    samples : dataset or sequence of Tensor (C, I, J, K)
    values, present : Tensor (N, conditions), optional
        By default there are no conditions; `present` is True everywhere by default.
    slabs : int, optional
        See `LatentAutoencoder.encode`.
    progress : callable, optional
        Told how many volumes are encoded, and of how many.

    Returns
    -------
    Latents
        On the device of the autoencoder.
    """
    count = len(cast(Sequence[Any], samples))
    means, sigmas = [], []
    autoencoder.eval()
    for n in range(count):
        mean, sigma = autoencoder.encode(samples[n][None].to(autoencoder.scale), slabs=slabs)
        means.append(mean)
        sigmas.append(sigma)
        if progress is not None:
            progress(n + 1, count)
    if len({m.shape for m in means}) != 1:
        raise UsageError("the volumes do not have one shape", expected="one or more, of one shape")
    where = means[0].device
    values = torch.zeros(count, 0, device=where) if values is None else values.to(where)
    known = torch.ones_like(values, dtype=torch.bool) if present is None else present.to(where)
    return Latents(torch.cat(means), torch.cat(sigmas), values, known, autoencoder.digest())
