"""Links between neighbouring voxels: weak where the image has an edge.

Two metrics. ``"boykov_jolly"`` divides by the distance of the two voxels, as
Boykov and Jolly 2001 (doi 10.1109/ICCV.2001.937505) do; its weight is in
nats · mm per pair of voxels, so the price of a surface depends on the spacing.
``"euclidean"`` weighs each direction by the Cauchy-Crofton formula, as Boykov and
Kolmogorov 2003 (doi 10.1109/ICCV.2003.1238310) do: on a flat image the cut costs
the weight times the area in mm², whatever the spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import SphericalVoronoi

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.voxels import Offset, check_spacing, finite_image, pair

__all__ = [
    "Metric",
    "Neighbours",
    "contrast_links",
    "difference_sigma",
    "direction_weights",
    "neighbour_offsets",
]

Metric = Literal["boykov_jolly", "euclidean"]
Neighbours = Literal[6, 18, 26]

AXES_STEPPED = {6: 1, 18: 2, 26: 3}
AT_MOST = 2**22
"""Differences whose median is taken; of more, every n-th."""
NORMAL_MEDIAN = 0.6744897501960817
"""Median of the absolute value of a standard normal variable."""


def contrast_links(
    image: torch.Tensor,
    spacing_mm: Sequence[float],
    neighbours: Neighbours = 26,
    weight: float = 1.0,
    sigma: float | None = None,
    metric: Metric = "boykov_jolly",
) -> list[tuple[Offset, torch.Tensor]]:
    """Return the weights of the links between neighbouring voxels.

    A pair p, q that the cut separates costs ``weight · a · exp(-(I_p - I_q)² / 2σ²)``
    with a = 1 / distance or the Cauchy-Crofton factor (see `direction_weights`).

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z).
    spacing_mm : sequence of 3 float
        Distance of voxel centres along each axis.
    neighbours : {6, 18, 26}
        Neighbours of a voxel.
    weight : float
        Price of separating two equal voxels at 1 mm, nats, or of 1 mm² of surface.
    sigma : float, optional
        Difference of intensities at which the weight has fallen to 61 %; by
        default `difference_sigma(image)`, inf for no contrast.
    metric : {"boykov_jolly", "euclidean"}
        How distance enters.

    Returns
    -------
    list of (offset, Tensor)
        One entry for each pair of opposite neighbours, weights (X, Y, Z) at the
        first voxel of each pair, 0 where the second lies outside the image.

    Raises
    ------
    StepError
        If the image is not finite.
    UsageError
        If a parameter is out of range.
    """
    x = _volume(image)
    if not 0 <= weight < math.inf:
        raise UsageError("weight is wrong", expected="0 or more", got=f"{weight:g}")
    width = difference_sigma(x) if sigma is None else float(sigma)
    if not width > 0:
        raise UsageError("sigma is wrong", expected="above 0", got=f"{width:g}")
    offsets = neighbour_offsets(neighbours)
    factors = direction_weights(spacing_mm, neighbours, metric)
    links = []
    for offset, factor in zip(offsets, factors, strict=True):
        tail, head = pair(x, offset)
        full = torch.zeros_like(x)
        falloff = torch.exp(-0.5 * ((tail - head) / width) ** 2)
        pair(full, offset)[0].copy_(falloff.mul_(weight * float(factor)))
        links.append((offset, full))
    return links


def difference_sigma(image: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Return a robust standard deviation of the difference of two equal neighbours.

    It is the median of |I_p - I_q| over face neighbours divided by 0.674: white
    noise of standard deviation s gives √2 s, and edges do not count as long as
    they are fewer than half of the pairs. Where more than half of the pairs are
    equal (clipped air, a drawn phantom) the pairs that differ are taken alone.

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z).
    mask : Tensor, optional
        Only pairs with both voxels in this mask count.

    Returns
    -------
    float
        In units of the image, above 0; 1.0 for an image without any difference,
        in which every value gives the same links.
    """
    x = _volume(image)
    parts = []
    for offset in neighbour_offsets(6):
        tail, head = pair(x, offset)
        difference = (tail - head).abs()
        if mask is not None:
            a, b = pair(mask.to(x.device, torch.bool), offset)
            difference = difference[a & b]
        parts.append(difference.reshape(-1))
    values = torch.cat(parts)
    values = values[:: max(1, -(-values.numel() // AT_MOST))]
    for chosen in (values, values[values > 0]):
        middle = float(chosen.median()) if chosen.numel() else 0.0
        if middle > 0:
            return middle / NORMAL_MEDIAN
    return 1.0


def neighbour_offsets(neighbours: Neighbours) -> list[Offset]:
    """Return one offset of each pair of opposite neighbours: 3, 9 or 13 of them."""
    if neighbours not in AXES_STEPPED:
        raise UsageError("neighbours is wrong", expected="6, 18 or 26", got=str(neighbours))
    steps = product((-1, 0, 1), repeat=3)
    reach = AXES_STEPPED[neighbours]
    return [
        (a, b, c) for a, b, c in steps if (a, b, c) > (0, 0, 0) and a * a + b * b + c * c <= reach
    ]


def direction_weights(
    spacing_mm: Sequence[float], neighbours: Neighbours, metric: Metric
) -> NDArray[np.float64]:
    """Return the factor of the links of each of `neighbour_offsets`.

    ``"boykov_jolly"``: 1 / length. ``"euclidean"``: V · ΔΩ / (π · length), where V is
    the volume of a voxel and ΔΩ the solid angle of all directions to which this
    one is the nearest. The mean cost of a plane over all its directions is then
    exactly its area. With 26 neighbours a plane costs from 0.93 to 1.02 of its
    area on cubic voxels, from 0.88 to 1.10 on voxels twice as high as wide.

    Raises
    ------
    UsageError
        If the spacing is not three positive numbers or the metric is unknown.
    """
    if metric not in get_args(Metric):
        raise UsageError("the metric is unknown", expected="boykov_jolly or euclidean")
    edges = np.array(neighbour_offsets(neighbours)) * check_spacing(spacing_mm)
    length = np.linalg.norm(edges, axis=1)
    if metric == "boykov_jolly":
        return 1 / length
    unit = edges / length[:, None]
    angles = SphericalVoronoi(np.concatenate([unit, -unit])).calculate_areas()[: len(unit)]
    return np.prod(spacing_mm) * angles / (np.pi * length)


def _volume(image: torch.Tensor) -> torch.Tensor:
    if image.ndim != 3:
        raise StepError(
            "the image has wrong axes", expected="(X, Y, Z)", got=f"shape {tuple(image.shape)}"
        )
    return finite_image(image)
