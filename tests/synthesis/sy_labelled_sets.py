"""Volumes with two labelled regions of known sizes."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from medpipe.synthesis.evaluation_sets import SynthesisSet

REGIONS = {"shell": 1, "core": 2}


def eggs(n, seed, shape=(24, 22, 20), offset=0.0, noise=0.01, texture=0.1, sizes=None):
    """Ellipsoids with a core, both of varying size: images and labels (n, I, J, K).

    They are `offset` voxels off the middle along each axis. `texture` is the standard
    deviation of a smooth field of each, which only darkens the background; `sizes` (n, 2) are
    factors of the radii of shell and core, drawn if not given.
    """
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(s) - (s - 1) / 2 for s in shape), indexing="ij")
    images, labels = np.zeros((n, *shape), np.float32), np.zeros((n, *shape), np.uint8)
    drawn = rng.normal(1, 0.1, (n, 2)).clip(0.75, 1.25) if sizes is None else np.asarray(sizes)
    for case in range(n):
        outer = np.array([7, 6, 5]) * drawn[case, 0]
        inner = np.array([3, 3, 2.5]) * drawn[case, 1]
        off = rng.uniform(-0.7, 0.7, 3)
        r1 = sum(((x - offset) / r) ** 2 for x, r in zip(axes, outer, strict=True))
        r2 = sum(((x - offset - o) / r) ** 2 for x, o, r in zip(axes, off, inner, strict=True))
        labels[case][r1 <= 1] = 1
        labels[case][(r2 <= 1) & (r1 <= 1)] = 2
        field = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        field = (texture * field / field.std()).clip(-0.16, 0.16)
        images[case] = np.array([0.1, 0.5, 0.9])[labels[case]] + np.where(
            labels[case] > 0, field, -abs(field)
        )
        images[case] += rng.normal(0, noise, shape)
    return torch.from_numpy(images), torch.from_numpy(labels)


def egg_set(n, seed, **how):
    """Return them as a set."""
    return SynthesisSet(*eggs(n, seed, **how))


def by_intensity(images):
    """Segment eggs by thresholds: exact, and trained with nothing."""
    return (images > 0.3).long() + (images > 0.7).long()


def moments(images):
    """Features that need no network: intensities in eight blocks, mean and spread."""
    n, i, j, k = images.shape
    blocks = images[:, : i // 2 * 2, : j // 2 * 2, : k // 2 * 2]
    blocks = blocks.reshape(n, 2, i // 2, 2, j // 2, 2, k // 2)
    return torch.cat([blocks.mean((2, 4, 6)).flatten(1), blocks.std((2, 4, 6)).flatten(1)], 1)
