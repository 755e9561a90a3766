"""The networks that read an outcome: DenseNets of MONAI, and weights that others trained."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn

from medpipe.errors import InputError, UsageError

__all__ = [
    "TARGET_LAYER",
    "LoadedEncoder",
    "OutcomeNetwork",
    "OutcomeNetworkSettings",
    "inflate_2d",
    "load_encoder",
    "outcome_network",
    "read_state_dict",
]

TARGET_LAYER = "class_layers.relu"
"""The layer that Grad-CAM looks at."""

LONGEST_FILE = 4_000_000_000

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "densenet121": {"init_features": 64, "growth_rate": 32, "block_config": (6, 12, 24, 16)},
    "small": {"init_features": 16, "growth_rate": 12, "block_config": (3, 3, 3), "bn_size": 2},
    "local": {"init_features": 8, "growth_rate": 8, "block_config": (1,), "bn_size": 2},
}
AVERAGED = 2
"""Voxels along each axis that `local` averages before its first convolution."""
SLOW = 0.02
"""Share of a batch in what `local` knows of means and spreads: of some 50 batches, not of 10,
since the log odds of networks move with them."""


@dataclass(frozen=True)
class OutcomeNetworkSettings:
    """What a network of outcomes is made of.

    Parameters
    ----------
    spatial_dims : {3, 2}
        Volumes or pictures.
    channels : int
        Of the input; three windows of a CT.
    outputs : int
        Classes (a softmax over two for an outcome of 0 or 1), or intervals of time.
    architecture : {"densenet121", "small", "local"}
        DenseNet-121 (Huang et al., arXiv 1608.06993; 11 million weights in 3-D), one of a
        hundredth of its size for CPUs, or one that keeps the resolution, sees 10 voxels at a
        time and counts what it sees anywhere: for cohorts of a few hundred.
    dropout : float
        Share of the new features of each layer that is left out in training.
    """

    spatial_dims: Literal[2, 3] = 3
    channels: int = 3
    outputs: int = 2
    architecture: Literal["densenet121", "small", "local"] = "densenet121"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UsageError("unknown architecture", expected=" | ".join(ARCHITECTURES))
        if self.spatial_dims not in (2, 3):
            raise UsageError("spatial_dims is wrong", expected="2 or 3")
        if self.channels < 1 or self.outputs < 1:
            raise UsageError("channels or outputs is wrong", expected="1 or more")
        if not 0 <= self.dropout < 1:
            raise UsageError("dropout is wrong", expected="0 to below 1")


class OutcomeNetwork(DenseNet):
    """A DenseNet whose encoder can be kept as it is while the head learns.

    Parameters
    ----------
    settings : OutcomeNetworkSettings

    Attributes
    ----------
    encoder, head : torch.nn.Module
        All up to the last normalisation, and what follows: pooling and a linear layer.
    target_layer : str
        Name of the layer for Grad-CAM.
    """

    target_layer = TARGET_LAYER

    def __init__(self, settings: OutcomeNetworkSettings) -> None:
        super().__init__(
            spatial_dims=settings.spatial_dims,
            in_channels=settings.channels,
            out_channels=settings.outputs,
            dropout_prob=settings.dropout,
            **ARCHITECTURES[settings.architecture],
        )
        self.settings = settings
        self._frozen = False
        if self._local:
            self._keep_resolution()

    @property
    def _local(self) -> bool:
        return self.settings.architecture == "local"

    def _keep_resolution(self) -> None:
        """Begin without strides, and bring what is counted anywhere to one scale.

        How much blood there is shows in thin layers that a stem of stride 4 blurs away, and in
        means over the head that differ little between patients: normalised, they are learned
        from a few hundred.
        """
        dims, channels = self.settings.spatial_dims, self.settings.channels
        own = dict(self.get_submodule("features").named_children())
        width = own["conv0"].out_channels
        own["conv0"] = Conv[Conv.CONV, dims](channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(own["conv0"].weight)
        del own["pool0"]
        average = Pool[Pool.AVG, dims](AVERAGED)
        self.add_module("features", nn.Sequential(OrderedDict({"average": average, **own})))
        head = dict(self.get_submodule("class_layers").named_children())
        out = head.pop("out")
        scaled = nn.BatchNorm1d(out.in_features, momentum=SLOW, affine=False)
        self.add_module(
            "class_layers", nn.Sequential(OrderedDict({**head, "norm": scaled, "out": out}))
        )

    @property
    def encoder(self) -> nn.Module:
        """All that makes features."""
        return self.features

    @property
    def head(self) -> nn.Module:
        """All that makes outputs of features."""
        return self.class_layers

    @property
    def least_voxels(self) -> int:
        """Least extent along each axis that an input may have."""
        if self._local:
            return AVERAGED
        halvings = len(ARCHITECTURES[self.settings.architecture]["block_config"]) - 1
        return 4 * (2**halvings - 1) + 1

    def last_voxels(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the extents of the features of an input of this shape; 0 where it is too small."""
        if self._local:
            return tuple(n // AVERAGED for n in shape)
        halvings = len(ARCHITECTURES[self.settings.architecture]["block_config"]) - 1
        return tuple(-(-n // 4) >> halvings for n in shape)

    @property
    def needs_batches(self) -> bool:
        """Whether it cannot learn from one sample at a time."""
        return self._local

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Keep the encoder as it is in training, with the statistics it has; or let it learn."""
        self._frozen = frozen
        for parameter in self.features.parameters():
            parameter.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> OutcomeNetwork:
        """Set training or use; a frozen encoder normalises with the statistics it has."""
        super().train(mode)
        if getattr(self, "_frozen", False):
            self.features.eval()
        return self


def outcome_network(settings: OutcomeNetworkSettings | None = None) -> OutcomeNetwork:
    """Return a network with weights drawn from torch's random numbers.

    Parameters
    ----------
    settings : OutcomeNetworkSettings, optional

    Returns
    -------
    OutcomeNetwork
        Of inputs (B, channels, I, J, K) to logits (B, outputs).
    """
    return OutcomeNetwork(settings or OutcomeNetworkSettings())


@dataclass(frozen=True)
class LoadedEncoder:
    """What of a state dict became weights of an encoder.

    Parameters
    ----------
    matched : tuple of str
        Tensors of the encoder that were set.
    missing : tuple of str
        Those that were not; they stay as they were.
    unused : tuple of str
        Names in the state dict that were not used: a head, or another shape.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing)
        return f"{len(self.matched)} of {total} tensors of the encoder, {len(self.unused)} unused"


def inflate_2d(state_dict_2d: Mapping[str, Tensor], network: nn.Module) -> LoadedEncoder:
    """Set the encoder of `network` from weights of a 2-D DenseNet.

    A kernel is repeated along the last axis (the axial one of RAS volumes) and divided by
    how often: a volume that is constant along it gives the features of the picture (away
    from the padded ends of the axis). See I3D, arXiv 1705.07750. Names of torchvision,
    of its older files, and of MONAI are known.

    Parameters
    ----------
    state_dict_2d : mapping of str to Tensor
    network : torch.nn.Module
        Of two or three axes; its head is left as it is.

    Returns
    -------
    LoadedEncoder

    Raises
    ------
    InputError
        If fewer than half of the tensors of the encoder are there.
    """
    return _set_encoder(dict(state_dict_2d), network, "the state dict")


def load_encoder(network: nn.Module, file: str | Path) -> LoadedEncoder:
    """Set the encoder of `network` from a local file, for example of self-supervised training.

    Parameters
    ----------
    network : torch.nn.Module
        Its head is left as it is.
    file : path
        Safetensors, or a state dict of torch, read with ``weights_only``. Weights of two
        axes are inflated (see `inflate_2d`). What stands before the names of the encoder,
        such as ``module.`` or ``backbone.``, does not matter.

    Returns
    -------
    LoadedEncoder

    Raises
    ------
    UsageError
        If there is no such file.
    InputError
        If it is something else, or fewer than half of the tensors of the encoder are in it.
    """
    path = Path(file)
    return _set_encoder(read_state_dict(path), network, path.name)


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a local safetensors or torch file; nothing in it is run.

    Raises
    ------
    UsageError
        If there is no such file.
    InputError
        If it is too large, damaged or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(file)
    if not path.is_file():
        raise UsageError("there is no such file of weights", expected="a local file")
    state: Any = None
    if path.stat().st_size <= LONGEST_FILE:
        try:
            state = load_file(path)
        except (SafetensorError, OSError, ValueError):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception:  # torch raises whatever its reader does for other files
                state = None
    for inner in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    tensors = state.items() if isinstance(state, dict) else ()
    found = {str(name): value for name, value in tensors if isinstance(value, Tensor)}
    if not found:
        raise InputError(
            "not a file of weights that can be used",
            where=path.name,
            expected="safetensors, or a state dict written by torch.save",
        )
    return found


_LAYER = re.compile(r"(denselayer\d+)\.(norm|conv)\.?([12])\.")
"""Torchvision writes ``denselayer1.norm1`` or ``denselayer1.norm.1``."""

_PART = re.compile(r"(?:^|\.)((?:conv0|norm0|norm5|denseblock\d|transition\d)\.)")


def _set_encoder(given: dict[str, Tensor], network: nn.Module, where: str) -> LoadedEncoder:
    """Copy what fits into ``network.features``."""
    features = network.get_submodule("features").state_dict()
    named: dict[str, str] = {}
    for name in given:
        plain = _LAYER.sub(r"\1.layers.\2\3.", name)
        at = _PART.search(plain)
        if at and plain[at.start(1) :] in features:
            named.setdefault(plain[at.start(1) :], name)
    matched: list[str] = []
    used: set[str] = set()
    with torch.no_grad():
        for own, name in named.items():
            value = _fitted(given[name], features[own])
            if value is not None:
                features[own].copy_(value)
                matched.append(f"features.{own}")
                used.add(name)
    missing = [f"features.{own}" for own in features if f"features.{own}" not in set(matched)]
    if len(matched) < len(missing):
        raise InputError(
            "the weights are of another network",
            where=where,
            expected="an encoder of the same architecture",
            got=f"{len(matched)} of {len(features)} tensors that fit",
        )
    unused = tuple(sorted(name for name in given if name not in used))
    return LoadedEncoder(tuple(matched), tuple(missing), unused)


def _fitted(value: Tensor, like: Tensor) -> Tensor | None:
    """Return `value` in the shape of `like`, or None where it is of something else."""
    if value.ndim == 4 and like.ndim == 5:
        depth = like.shape[-1]
        value = value.unsqueeze(-1).expand(*value.shape, depth) / depth
    if value.ndim >= 4 and value.ndim == like.ndim and value.shape[2:] == like.shape[2:]:
        have, want = value.shape[1], like.shape[1]
        if have != want and have in (1, 3) and value.shape[0] == like.shape[0]:
            # equal channels give what they gave
            value = value.mean(1, keepdim=True).expand(-1, want, *value.shape[2:]) * (have / want)
    if value.shape != like.shape or value.is_floating_point() != like.is_floating_point():
        return None
    if value.is_floating_point() and not math.isfinite(float(value.float().sum())):
        return None
    return value
