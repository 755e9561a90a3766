"""Sets of volumes and features whose distributions are known."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage


def blobs(n, seed, shape=(20, 24, 20), shift=0.0, texture=0.0, noise=0.01, radii=(6, 8, 5)):
    """Bright ellipsoids of varying size with a darker core off the middle, (n, I, J, K).

    `texture` is the standard deviation of a smooth field of each of its own.
    """
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(s) - (s - 1) / 2 for s in shape), indexing="ij")
    out = np.empty((n, *shape), np.float32)
    for case in range(n):
        at = rng.uniform(-shift, shift, 3)
        size = np.array(radii) * rng.normal(1, 0.06, 3)
        inside = sum(((x - a) / r) ** 2 for x, a, r in zip(axes, at, size, strict=True))
        core = sum((x - a - o) ** 2 for x, a, o in zip(axes, at, (1, 2, 0), strict=True))
        body = 1 / (1 + np.exp((np.sqrt(inside) - 1) * 8))
        if texture:
            field = ndimage.gaussian_filter(rng.normal(size=shape), 2)
            body = body * (1 + texture * field / field.std())
        out[case] = body - 0.5 * np.exp(-core / 8) + rng.normal(0, noise, shape)
    return torch.from_numpy(out)


def clouds(n, seed, mean=0.0, sd=1.0, d=6):
    """Independent normal features (n, d)."""
    return np.random.default_rng(seed).normal(mean, sd, (n, d))
