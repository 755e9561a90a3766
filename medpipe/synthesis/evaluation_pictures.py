"""Small pictures of an evaluation, as PNG in base64: what a page of it shows."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.figures.drawing import encode_png
from medpipe.synthesis.evaluation_parts import Aligned
from medpipe.synthesis.metrics._figures import Floats, to_host
from medpipe.synthesis.metrics.t_maps import t_map

__all__ = ["pair_pictures", "t_map_pictures"]

T_END = 6.0
"""|t| of the strongest colour."""
SLICES = 7
LEAST_PX = 96
"""Slices are enlarged by whole factors to about so many pixels."""
_COOL, _WARM = (58, 125, 207), (217, 98, 43)


def pair_pictures(aligned: Aligned, to_train: Floats, shown: int) -> list[dict[str, Any]]:
    """Return synthetic cases beside their nearest training cases.

    The cases nearest to a training case come first, for half of them; the others are spread
    over all distances, so that a reader sees the worst and the usual.

    Parameters
    ----------
    to_train : array (n, T)
        Distances of synthetic to training cases.
    shown : int
        Of the synthetic cases at most.

    Returns
    -------
    list of dict of JSON values
        ``distance``, ``rank`` among the distances from 0, and the pictures ``sample`` and
        ``nearest``: middle slices across the three axes.
    """
    nearest = to_train.min(axis=1)
    order = np.argsort(nearest, kind="stable")
    first = order[: (shown + 1) // 2]
    rest = order[len(first) :]
    spread = np.linspace(0, len(rest) - 1, min(shown - len(first), len(rest))).round().astype(int)
    rows = [*first.tolist(), *rest[spread].tolist()]
    known = {int(case): rank for rank, case in enumerate(order)}
    low, high = _window(aligned.test)
    out = []
    for case in rows:
        other = int(to_train[case].argmin())
        images = [_grey(v, low, high) for v in (aligned.made[case], aligned.train[other])]
        out.append(
            {
                "distance": float(nearest[case]),
                "rank": known[case],
                "sample": _png(images[0]),
                "nearest": _png(images[1]),
            }
        )
    return out


def t_map_pictures(
    real: torch.Tensor, made: torch.Tensor, threshold: float, inside: torch.Tensor | None = None
) -> dict[str, Any]:
    """Return axial slices of the t map over the mean of the real cases.

    Blue where synthetic cases are darker, orange where they are brighter, beyond the
    threshold; voxels that were not compared are black.

    Returns
    -------
    dict of JSON values
        ``png``, ``threshold`` and ``end``, the \\|t\\| of the strongest colour.
    """
    t = to_host(t_map(real, made))
    mean = real.to(torch.float64).mean(0)
    low, high = _window(mean[None])
    ground = (to_host(mean) - low) / max(high - low, 1e-12)
    kept = np.ones(t.shape, bool) if inside is None else to_host(inside) > 0
    at = np.linspace(0, t.shape[2] - 1, min(SLICES + 2, t.shape[2])).round().astype(int)
    tiles = [_coloured(ground[..., k], t[..., k], kept[..., k], threshold) for k in at[1:-1]]
    picture = np.concatenate([_enlarged(tile.swapaxes(0, 1)[::-1]) for tile in tiles], axis=1)
    return {"png": _png(picture), "threshold": threshold, "end": T_END}


def _coloured(
    ground: Floats, t: Floats, kept: NDArray[np.bool_], threshold: float
) -> NDArray[np.uint8]:
    rgb = np.repeat((ground.clip(0, 1) * 255)[..., None], 3, axis=2)
    end = max(T_END, threshold * 1.01)
    strength = ((np.abs(np.nan_to_num(t, posinf=end, neginf=-end)) - threshold)
                / (end - threshold)).clip(0, 1)  # fmt: skip
    for colour, there in ((_COOL, t < -threshold), (_WARM, t > threshold)):
        alpha = np.where(there, 0.45 + 0.55 * strength, 0.0)[..., None]
        rgb = rgb * (1 - alpha) + np.array(colour) * alpha
    rgb[~kept] = 0
    return rgb.round().astype(np.uint8)


def _window(images: torch.Tensor) -> tuple[float, float]:
    values = np.percentile(to_host(images.flatten()[:: max(1, images.numel() // 200_000)]), [1, 99])
    return float(values[0]), float(max(values[1], values[0] + 1e-6))


def _grey(volume: torch.Tensor, low: float, high: float) -> NDArray[np.uint8]:
    """Return the middle slices across the axes K, J and I, side by side."""
    values = ((to_host(volume) - low) / (high - low)).clip(0, 1) * 255
    i, j, k = (n // 2 for n in values.shape)
    planes = (values[:, :, k], values[:, j], values[i])
    tall = max(plane.shape[1] for plane in planes)
    tiles = []
    for plane in planes:
        # the second axis upwards, the first to the right
        tile = plane.T[::-1]
        above = (tall - len(tile)) // 2
        tiles.append(np.pad(tile, ((above, tall - len(tile) - above), (0, 1))))
    picture = np.concatenate(tiles, axis=1).round().astype(np.uint8)
    return _enlarged(picture)


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = max(1, round(LEAST_PX / max(picture.shape[0], 1)))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _png(picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    return base64.b64encode(encode_png(Image.fromarray(np.ascontiguousarray(picture)))).decode()
