"""The network that reads a mask and says where its centerline runs and ends.

A 3-D encoder–decoder of MONAI with one convolution per level. Batch normalisation, so that
what a voxel gets depends on its surroundings alone and not on the window it was computed in.
It works in voxels of an isotropic grid; what they measure in mm is not known to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from medpipe.errors import InputError
from medpipe.types import Json

__all__ = ["CHANNELS", "CenterlineNetwork", "network_from", "network_input"]

CHANNELS = (8, 16, 32, 64, 64)
"""Channels from the full resolution down."""

HALF_DEPTH = 4.0
"""Distance to the wall, in voxels, that the input holds as 0.5."""

FEWEST = 0.01
"""What the heat maps say everywhere before training (Lin et al., arXiv 1708.02002)."""


class CenterlineNetwork(nn.Module):
    """Logits of q, of ends and of roots, from a mask and the distance to its wall.

    Parameters
    ----------
    channels : ints
        Of the levels; each but the first halves the resolution.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        self.channels = tuple(int(c) for c in channels)
        strides = (1,) + (2,) * (len(self.channels) - 2)
        act = ("leakyrelu", {"negative_slope": 0.1})
        self.net = UNet(3, 2, 3, self.channels, strides, num_res_units=0, norm="batch", act=act)
        *_, weight, bias = self.net.parameters()  # of the last layer
        with torch.no_grad():
            weight[:, 1:] *= 0.1  # the heat maps begin flat
            bias[1:] = math.log(FEWEST / (1 - FEWEST))
        # half the time on a CPU
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @property
    def multiple(self) -> int:
        """What the extents of an input must be multiples of."""
        return 2 ** (len(self.channels) - 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, 3, I, J, K) of inputs (B, 2, I, J, K)."""
        return self.net(inputs.contiguous(memory_format=torch.channels_last_3d))


def network_input(depth: Tensor) -> Tensor:
    """Return what the network reads, from the distance to the background in voxels.

    Parameters
    ----------
    depth : Tensor (..., I, J, K)
        0 in the background.

    Returns
    -------
    Tensor (..., 2, I, J, K): the mask, and the distance between 0 and 1.
    """
    squeezed = torch.where(depth.isinf(), 1.0, depth / (depth + HALF_DEPTH))
    return torch.stack([(depth > 0).to(squeezed.dtype), squeezed], -4)


def network_from(tensors: dict[str, Tensor], metadata: dict[str, Json]) -> CenterlineNetwork:
    """Return the network of a model file, ready to be asked.

    Raises
    ------
    InputError
        If the tensors are not those of such a network.
    """
    try:
        channels = [int(c) for c in metadata["channels"]]  # type: ignore[union-attr, arg-type]
        network = CenterlineNetwork(channels)
        network.load_state_dict({name: value.float() for name, value in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError):
        raise InputError(
            "the model is not one of centerlines", hint="use a file written by training"
        ) from None
    return network.eval()
