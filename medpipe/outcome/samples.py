"""Prepared volumes as samples of a training, and which of them train and which validate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.transforms.transform import Randomizable
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.io.nifti import read_nifti
from medpipe.outcome.augment import Augmentation, contrast_changes, shape_changes
from medpipe.outcome.channels import CT_PRESETS, ct_channels

__all__ = ["PRESETS", "Volumes", "balanced_order", "inner_split", "network_channels"]

PRESETS = (*CT_PRESETS, "pictures")
"""How channels are made: of a CT, or left as they are."""

CACHE_BYTES = 4_000_000_000

Picture: TypeAlias = "str | Path | NDArray[Any] | Tensor"


class Volumes(Dataset[tuple[Tensor, Tensor]], Randomizable):
    """Pairs (channels, target) of prepared volumes, changed at random if asked for.

    Parameters
    ----------
    volumes : sequence of path, array or Tensor
        Prepared volumes: NIfTI files, or arrays (I, J, K) or (C, I, J, K); HU for the
        presets of CT. All of one shape.
    targets : Tensor (n, ...), optional
        Zeros by default.
    preset : {"windows", "paper", "pictures"}
        See `medpipe.outcome.channels.ct_channels`; pictures are taken as they are, bytes
        divided by 255.
    spatial_dims : {3, 2}
    order : sequence of int, optional
        The samples, as places in `volumes`; a place may come twice.
    augmentation : Augmentation, optional
        Random changes; none by default.
    spacing : sequence of float, optional
        Of the voxels, see `medpipe.outcome.augment.RandGrid`.
    size : sequence of int, optional
        Shape that volumes must have; by default that of the first that is read.
    names : sequence of str, optional
        Of the volumes, for messages.
    device : str or torch.device
        Where volumes are changed and channels made; samples stay there.
    cache_bytes : int
        Most memory for volumes that were read from files.
    """

    def __init__(
        self, volumes: Sequence[Picture], targets: Tensor | None = None, *,
        preset: str = "windows", spatial_dims: int = 3, order: Sequence[int] | None = None,
        augmentation: Augmentation | None = None, spacing: Sequence[float] | None = None,
        size: Sequence[int] | None = None, names: Sequence[str] | None = None,
        device: str | torch.device = "cpu", cache_bytes: int = CACHE_BYTES,
    ) -> None:  # fmt: skip
        if preset not in PRESETS:
            raise UsageError("unknown preset", expected=" | ".join(PRESETS), got=repr(preset)[:40])
        self.volumes, self.preset, self.dims = volumes, preset, spatial_dims
        self.targets = torch.zeros(len(volumes)) if targets is None else targets
        self.order = list(range(len(volumes))) if order is None else [int(n) for n in order]
        self.size = None if size is None else tuple(int(s) for s in size)
        self.names, self.device = names, torch.device(device)
        self.changes = None
        if augmentation is not None:
            self.changes = (
                shape_changes(augmentation, spatial_dims, spacing),
                contrast_changes(augmentation),
            )
        self._room = cache_bytes
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.order)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> Volumes:
        """Seed the random changes of the next sample."""
        super().set_random_state(seed, state)
        for part in self.changes or ():
            part.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return channels (C, I, J, K), floating, and the target of a sample."""
        place = self.order[index]
        image = self.image(place).to(self.device)
        if image.dtype == torch.uint8 and self.preset == "pictures":
            image = image.to(torch.float32) / 255
        if self.changes is not None:
            image = _plain(self.changes[0](image))
        inputs = image.to(torch.float32)
        if self.preset != "pictures":
            inputs = ct_channels(inputs, self.preset, spatial_dims=self.dims)
        if self.changes is not None:
            inputs = _plain(self.changes[1](inputs))
        return inputs.to(torch.float32), self.targets[place]

    def image(self, place: int) -> Tensor:
        """Return a volume (C, I, J, K) as it was prepared, on the host.

        Raises
        ------
        InputError
            If it cannot be read, has another shape, or holds values that are no numbers.
        """
        if place in self._kept:
            return self._kept[place]
        where = f"volume {place + 1}" if self.names is None else f"case {self.names[place]}"
        try:
            image = _tensor(self.volumes[place])
        except MedpipeError as error:
            raise error.at(where) from None
        if image.ndim == self.dims:
            image = image[None]
        self._check(image, where)
        nbytes = image.numel() * image.element_size()
        if isinstance(self.volumes[place], str | Path) and nbytes <= self._room:
            self._room -= nbytes
            self._kept[place] = image
        return image

    def _check(self, image: Tensor, where: str) -> None:
        shape = tuple(image.shape[1:])
        if image.ndim != self.dims + 1 or (self.size is not None and shape != self.size):
            expected = self.size or f"{self.dims} axes, and channels before them if there are any"
            raise InputError(
                "the volume is not on the grid of the training",
                where=where,
                expected=str(expected),
                got=f"shape {tuple(image.shape)}",
                hint="prepare all cases with the same settings",
            )
        self.size = shape
        if image.is_floating_point() and not bool(torch.isfinite(image).all()):
            raise InputError("the volume holds values that are no numbers", where=where)


def network_channels(volumes: Volumes) -> int:
    """Return how many channels a network for these samples reads."""
    return 3 if volumes.preset != "pictures" else int(volumes.image(volumes.order[0]).shape[0])


def balanced_order(places: ArrayLike, classes: ArrayLike) -> NDArray[np.int64]:
    """Return places such that every class comes as often as the most frequent one.

    Parameters
    ----------
    places : array-like of int (m,)
    classes : array-like of int (m,)
        Of these places.

    Returns
    -------
    int64 array
        All places of a class come once before one of them comes twice.
    """
    at, found = np.asarray(places, np.int64), np.asarray(classes)
    kinds = [at[found == k] for k in np.unique(found)]
    most = max(map(len, kinds))
    return np.concatenate([np.resize(kind, most) for kind in kinds])


def inner_split(
    classes: ArrayLike, patients: Sequence[str] | None, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return places to train with and places to validate with; no patient is in both.

    Parameters
    ----------
    classes : array-like of int (n,)
        The share is taken of the patients of each class; a patient's class is the greatest
        of his samples.
    patients : sequence of str, optional
        Of the samples; each is a patient of its own by default.
    share : float
        Of the patients that validate; at least one of each class that has two. 0 is none.
    seed : int

    Raises
    ------
    UsageError
        If the share is not between 0 and 1 or nobody is left to train with or to validate.
    """
    found = np.asarray(classes)
    if not 0 <= share < 1:
        raise UsageError("the share that validates is wrong", expected="0 to below 1")
    if patients is not None and len(patients) != len(found):
        raise UsageError("patients and outcomes do not fit", expected="one of each for a sample")
    own = np.arange(len(found)) if patients is None else np.unique(patients, return_inverse=True)[1]
    if share == 0:
        return np.arange(len(found)), np.zeros(0, np.int64)
    of_patient = np.full(own.max(initial=-1) + 1, np.iinfo(np.int64).min)
    np.maximum.at(of_patient, own, found)
    rng = np.random.default_rng([seed, 7])
    chosen: list[NDArray[np.int64]] = []
    for kind in np.unique(of_patient):
        members = rng.permutation(np.flatnonzero(of_patient == kind))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen.append(members[:count])
    held = np.isin(own, np.concatenate(chosen)) if chosen else np.zeros(0, bool)
    if not held.any() or held.all():
        raise UsageError(
            "too few patients to train and validate with", expected="two or more of a class"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def _tensor(volume: Picture) -> Tensor:
    """Return a volume as uint8, int16 or float32."""
    if isinstance(volume, str | Path):
        volume = read_nifti(volume).data
    if not isinstance(volume, Tensor):
        kind = np.asarray(volume).dtype
        plain = kind if kind in (np.uint8, np.int16) else np.float32
        volume = torch.from_numpy(np.array(volume, plain, order="C"))
    image = _plain(volume.detach())
    return image if image.dtype in (torch.uint8, torch.int16) else image.to(torch.float32)


def _plain(image: Any) -> Tensor:
    return image.as_tensor() if hasattr(image, "as_tensor") else image
