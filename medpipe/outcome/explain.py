"""Where a network looked: Grad-CAM and occlusion of an ensemble, with their checks.

A map is a picture of one model's arithmetic and no evidence of a cause. It comes with what
speaks against it: whether it is empty, how it changes when what was learned is destroyed,
and how it lies to the blood that a reader would look at.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from monai.metrics.regression import compute_ssim_and_cs
from monai.visualize.class_activation_maps import GradCAM
from monai.visualize.visualizer import default_upsampler
from torch import Tensor, nn

from medpipe.errors import UsageError
from medpipe.outcome.network import TARGET_LAYER
from medpipe.types import Json

__all__ = [
    "HEAD_HU",
    "SaliencyMap",
    "blood_overlap",
    "grad_cam",
    "occlusion_map",
    "randomised_weights",
    "spearman",
    "structural_similarity",
]

BLOOD_HU = (45.0, 90.0)
HEAD_HU = -300.0
"""What lies above belongs to the head, where no mask was given."""
BRAIN_HU = 35.0
"""What occlusion puts into a box: grey and white matter together."""
EMPTY = 1e-12
_SSIM_SIGMA = 1.5


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """A map of an ensemble.

    Parameters
    ----------
    values : float32 Tensor (I, J, K), or (I, J) in two dimensions
        0 to 1, the largest value 1; all 0 when no member has a map.
    empty : tuple of int
        Members whose own map is 0 everywhere.
    largest : float
        Largest value before scaling: of a drop of probability by occlusion, or of the mean
        of the members' maps by Grad-CAM.
    """

    values: Tensor
    empty: tuple[int, ...]
    largest: float


class _AsClasses(nn.Module):
    """A network whose two outputs are the log odds against and for the outcome.

    The probability depends on their difference alone. The logit of one class may fall where
    that of the other falls faster: its own Grad-CAM is then empty.
    """

    def __init__(self, network: nn.Module, logit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.logit = network, logit

    def forward(self, x: Tensor) -> Tensor:
        odds = self.logit(self.network(x))
        return torch.stack([-odds, odds], 1)


def grad_cam(
    networks: Sequence[nn.Module],
    channels: Tensor,
    logit: Callable[[Tensor], Tensor],
    *,
    target_layer: str = TARGET_LAYER,
) -> SaliencyMap:
    """Return the Grad-CAM of an ensemble for the outcome (Selvaraju 2017, arXiv 1610.02391).

    Each member's map is scaled to 1 and their mean is scaled again, so that members count
    alike whatever the size of their activations.

    Parameters
    ----------
    networks : sequence of Module
        They stay as they are.
    channels : Tensor (1, C, I, J, K) or (1, C, I, J)
    logit : callable
        From the output of a network (B, outputs) to the log odds of the outcome (B,).
    target_layer : str
        Name of the layer whose activations are weighted by their gradients.

    Raises
    ------
    UsageError
        If a network has no such layer.
    """
    maps = [_cam(network, channels, logit, target_layer) for network in networks]
    size = channels.shape[2:]
    return _combined([default_upsampler(size)(m)[0, 0] for m in maps])


def _cam(
    network: nn.Module, channels: Tensor, logit: Callable[[Tensor], Tensor], target_layer: str
) -> Tensor:
    """Return the map (1, 1, i, j, k) of one network on the grid of its layer."""
    if target_layer not in dict(network.named_modules()):
        raise UsageError(
            "the network has no such layer", expected="the name of a module", got=target_layer[:60]
        )
    # a copy, because hooks stay on the module and hold its activations
    own = _AsClasses(copy.deepcopy(network).eval().requires_grad_(False), logit)
    own.network.get_submodule(target_layer).register_forward_pre_hook(_differentiate_from_here)
    explainer = GradCAM(nn_module=own, target_layers=f"network.{target_layer}")
    with torch.inference_mode(False), torch.enable_grad():
        found = explainer.compute_map(channels.clone(), class_idx=1)
    return torch.nan_to_num(found.detach().float())


def _differentiate_from_here(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cut the graph before a layer: what lies below it is computed once and keeps nothing.

    The gradients that are asked for are those of its output; going back through a whole
    DenseNet-121 would take twice the time and a hundred times the memory.
    """
    return tuple(x.detach().requires_grad_(True) for x in inputs)


def _combined(maps: Sequence[Tensor]) -> SaliencyMap:
    """Return the mean of maps that are each scaled to 1, scaled to 1."""
    peaks = [float(m.max()) for m in maps]
    scaled = [m / p for m, p in zip(maps, peaks, strict=True) if p > EMPTY]
    empty = tuple(n for n, p in enumerate(peaks) if not p > EMPTY)
    if not scaled:
        return SaliencyMap(torch.zeros_like(maps[0]), empty, 0.0)
    mean = torch.stack(scaled).sum(0) / len(maps)
    largest = float(mean.max())
    return SaliencyMap(mean / largest, empty, largest)


def occlusion_map(
    probability: Callable[[Tensor], Tensor],
    volume: Tensor,
    within: Tensor,
    *,
    box_voxels: Sequence[int],
    stride_voxels: Sequence[int],
    fill: float = BRAIN_HU,
    batch: int = 4,
) -> SaliencyMap:
    """Return how far the probability falls when a box is filled (Zeiler 2014, arXiv 1311.2901).

    Own code: MONAI's `OcclusionSensitivity` fills all channels with one value, so that bone
    would be as bright as brain, knows no mask, and asks every box of the air around a head.

    Parameters
    ----------
    probability : callable
        From volumes (B, 1, I, J, K) to probabilities (B,).
    volume : Tensor (1, I, J, K)
        HU.
    within : bool Tensor (1, I, J, K)
        Only these voxels are filled, and only boxes that hold some are asked.
    box_voxels, stride_voxels : ints
        Extent of a box along each axis, and the distance from one to the next.
    fill : float
        HU that a box is filled with.
    batch : int
        Boxes asked together.

    Returns
    -------
    SaliencyMap
        Mean drop over the boxes that cover a voxel, where it is above 0, scaled to 1.

    Raises
    ------
    UsageError
        If a box or stride is not at least one voxel, or strides leave gaps.
    """
    box = [min(int(b), n) for b, n in zip(box_voxels, volume.shape[1:], strict=True)]
    if any(b < 1 or not 1 <= s <= b for b, s in zip(box, stride_voxels, strict=True)):
        raise UsageError(
            "boxes of occlusion are wrong", expected="at least one voxel, strides not above boxes"
        )
    total = torch.zeros(volume.shape[1:], device=volume.device)
    count = torch.zeros_like(total)
    with torch.no_grad():
        base = probability(volume[None])[0]
        for places in _batches(_boxes(volume.shape[1:], box, stride_voxels), within, batch):
            copies = volume.expand(len(places), *volume.shape).clone()
            for one, place in zip(copies, places, strict=True):
                one[:, *place] = torch.where(within[:, *place], fill, one[:, *place])
            for place, drop in zip(places, base - probability(copies), strict=True):
                total[place] += drop
                count[place] += 1
    mean = (total / count.clamp(min=1)).clamp(min=0) * within[0]
    largest = float(mean.max())
    if not largest > EMPTY:
        return SaliencyMap(torch.zeros_like(mean), (0,), 0.0)
    return SaliencyMap(mean / largest, (), largest)


def _boxes(
    shape: Sequence[int], box: Sequence[int], stride: Sequence[int]
) -> Iterator[tuple[slice, ...]]:
    """Yield boxes that cover the grid; the last along an axis ends with it."""
    starts = [
        sorted({*range(0, n - b + 1, s), n - b}) for n, b, s in zip(shape, box, stride, strict=True)
    ]
    for corner in product(*starts):
        yield tuple(slice(c, c + b) for c, b in zip(corner, box, strict=True))


def _batches(
    boxes: Iterator[tuple[slice, ...]], within: Tensor, size: int
) -> Iterator[list[tuple[slice, ...]]]:
    """Yield lists of the boxes that hold voxels to fill."""
    kept: list[tuple[slice, ...]] = []
    for place in boxes:
        if bool(within[:, *place].any()):
            kept.append(place)
        if len(kept) == size:
            yield kept
            kept = []
    if kept:
        yield kept


def randomised_weights(
    network: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    *,
    stages: int = 3,
    seed: int = 0,
    inside: Tensor | None = None,
) -> list[dict[str, Json]]:
    """Compare the map of a network with maps after its weights are made random from the top.

    A map that stays as it is does not show what was learned: the cascading randomisation of
    Adebayo et al. 2018 (arXiv 1810.03292).

    Parameters
    ----------
    network : Module
        It stays as it is.
    explain : callable
        From a network to its map, 0 to 1.
    stages : int
        How many times: first the last layer, in the end all layers, evenly between.
    seed : int
        Of the new weights.
    inside : bool Tensor, optional
        In the shape of the maps: ranks are compared there. Air around a head would be most
        of them.

    Returns
    -------
    list of dict
        ``layers`` made random, of ``of`` with weights; ``rank_correlation`` (Spearman) and
        ``ssim`` with the map as it was, None where one of the two is constant; ``empty``
        says that the new one is.
    """
    changed = copy.deepcopy(network)
    layers = [m for m in changed.modules() if hasattr(m, "reset_parameters")]
    before = explain(network)
    there = torch.ones_like(before, dtype=torch.bool) if inside is None else inside
    done = 0
    rows: list[dict[str, Json]] = []
    devices = {p.device for p in changed.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        for stage in range(1, stages + 1):
            share = (stage - 1) / (stages - 1) if stages > 1 else 1.0
            wanted = max(1, round(share * len(layers)))
            for layer in layers[len(layers) - wanted : len(layers) - done]:
                layer.reset_parameters()  # type: ignore[operator]
            done = max(done, wanted)
            after = explain(changed)
            rows.append(
                {
                    "layers": done,
                    "of": len(layers),
                    "rank_correlation": spearman(before[there], after[there]),
                    "ssim": structural_similarity(before, after),
                    "empty": not bool((after > 0).any()),
                }
            )
    return rows


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Return the rank correlation of two images, ties at their mean rank.

    None where one of the two is constant.
    """
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = torch.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / size) if float(size) > 0 else None


def _ranks(image: Tensor) -> Tensor:
    _, place, count = torch.unique(image.flatten(), return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]


def structural_similarity(a: Tensor, b: Tensor) -> float | None:
    """Return the mean structural similarity (SSIM) of two images with values of 0 to 1.

    Gaussian window of sigma 1.5 and 11 voxels, or what fits. None where one is constant.
    """
    if any(float(m.max()) <= float(m.min()) for m in (a, b)):
        return None
    sizes = [min(11, n - 1 + n % 2) for n in a.shape]
    similar, _ = compute_ssim_and_cs(
        a[None, None], b[None, None], a.ndim, sizes, [_SSIM_SIGMA] * a.ndim, data_range=1.0
    )
    return float(similar.mean())


def blood_overlap(
    values: Tensor, hu: Tensor, head: Tensor, *, window_hu: tuple[float, float] = BLOOD_HU
) -> dict[str, Json]:
    """Say how much of a map lies where a CT is as bright as fresh blood.

    Parameters
    ----------
    values : Tensor (I, J, K)
        A map, 0 or more.
    hu, head : Tensors (I, J, K)
        CT, and where the head is.
    window_hu : (low, high)
        Both included. Muscle and skin are in it too, so the ratio is no measure of quality.

    Returns
    -------
    dict
        ``energy_share``: share of the map's sum over the head that lies in the window;
        ``volume_share``: share of the head's voxels that do; ``ratio`` of the two. None
        where there is nothing to divide by.
    """
    inside = head > 0
    blood = inside & (hu >= window_hu[0]) & (hu <= window_hu[1])
    energy = float(values[inside].sum(dtype=torch.float64))
    voxels = int(inside.sum())
    volume = int(blood.sum()) / voxels if voxels else None
    share = float(values[blood].sum(dtype=torch.float64)) / energy if energy > 0 else None
    ratio = share / volume if share is not None and volume else None
    return {"energy_share": share, "volume_share": volume, "ratio": ratio}
