"""What draws volumes: a tokeniser with its prior, or an autoencoder with its denoiser.

A generator is one safetensors file, or a packaged model by its name: both networks, the
conditions, the grid of the volumes in mm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.models import load_weights, pack_weights, unpack_weights
from medpipe.seeds import derive_seed
from medpipe.synthesis.baseline_route import BaselineRoute
from medpipe.synthesis.conditions import Condition, Conditions
from medpipe.synthesis.correcting import corrected
from medpipe.synthesis.detail import FineDetail
from medpipe.synthesis.label_reading import LabelReading
from medpipe.synthesis.model_file import packed_parts, part_of, plain_json
from medpipe.synthesis.quantile_mapping import QuantileMapping
from medpipe.synthesis.routes import (
    CORRECTIONS,
    DrawSettings,
    LatentRoute,
    TokenRoute,
    route_from,
)
from medpipe.synthesis.segmenter import SegmenterModel
from medpipe.synthesis.tokeniser import split_labels
from medpipe.types import Affine, Json

__all__ = ["DrawnVolume", "Generator"]

KIND = "generator"
CORRECTED = 0.8
"""Share of what is lacking that one correction asks for: less than all, or it swings."""
_Parts = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class DrawnVolume:
    """A volume that was drawn.

    Parameters
    ----------
    image : MetaTensor
        float32 (C, I, J, K), with the affine of the generator.
    labels : MetaTensor, optional
        uint8 (1, I, J, K).
    seed : int
    """

    image: MetaTensor
    labels: MetaTensor | None
    seed: int


@dataclass(frozen=True, eq=False)
class Generator:
    """Draws volumes of patients that do not exist.

    Parameters
    ----------
    route : TokenRoute, LatentRoute or BaselineRoute
        The networks, or a baseline.
    affine : ndarray (4, 4)
        Voxel index to RAS+ mm.
    shape : tuple of int
        (I, J, K) of the volumes.
    facts : dict of JSON values
        What is known of the model and its training.
    detail : FineDetail, optional
        What is put back into images that the networks leave out.
    reading : LabelReading, optional
        What says how well labels fit the conditions.
    labeller : SegmenterModel, optional
        What labels the images that are drawn; without it labels are drawn with them.
    mapping : QuantileMapping, optional
        What gives the intensities of each place the distribution that real ones have.

    Raises
    ------
    UsageError
        If the networks do not belong together, or do not make volumes of that shape.
    """

    route: TokenRoute | LatentRoute | BaselineRoute
    affine: Affine
    shape: tuple[int, int, int]
    facts: dict[str, Json] = field(default_factory=dict)
    detail: FineDetail | None = None
    reading: LabelReading | None = None
    labeller: SegmenterModel | None = None
    mapping: QuantileMapping | None = None

    def __post_init__(self) -> None:
        self.route.check(self.shape)

    @property
    def conditions(self) -> Conditions:
        """What can be asked for."""
        return self.route.conditions

    @cached_property
    def digest(self) -> str:
        """sha256 of the file that `to_bytes` makes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to(self, device: str | torch.device) -> Generator:
        """Move the networks to a device; return the generator."""
        for network in self.route.networks:
            network.to(device)
        if self.labeller is not None:
            self.labeller.network.to(device)
        return self

    def missing(self, row: Mapping[str, Any]) -> list[Condition]:
        """Return the conditions that a row does not say, augmentations apart."""
        return [
            c for c in self.conditions.items if c.neutral is None and row.get(c.name) in (None, "")
        ]

    def stream(
        self,
        rows: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        settings: DrawSettings | None = None,
        *,
        progress: Callable[[Any], None] | None = None,
    ) -> Iterator[DrawnVolume]:
        """Draw a volume for each row of conditions and its seed, one after the other.

        Parameters
        ----------
        rows : sequence of mapping
            Conditions by name; what is left out is unknown, augmentations are neutral.
        seeds : sequence of int
            One for each: it alone, and the row, decide what is drawn.
        settings : DrawSettings, optional
            Temperature, guidance and the like.
        progress : callable, optional
            See `sample_codes`, or `sample_latents`.

        Raises
        ------
        UsageError
            If a condition is unknown to the model or outside its range (its name and range
            are said), there is not one seed for each row, or a setting cannot be.
        ResourceError
            If memory does not suffice.
        """
        if not rows or len(rows) != len(seeds):
            raise UsageError(
                "there is not one seed for each row of conditions",
                expected=f"{max(len(rows), 1)} of both", got=f"{len(rows)} and {len(seeds)}",
            )  # fmt: skip
        settings = settings or DrawSettings()
        if settings.candidates > 1 and self.reading is None:
            raise UsageError(
                "the generator cannot tell which candidate fits what is asked",
                expected="one that draws labels and knows a number of each patient",
                hint="draw one candidate",
            )
        number = self._corrections
        if settings.corrections and not number:
            raise UsageError(
                "the generator cannot correct what it draws",
                expected="latents whose places are known, labels, and numbers they show",
                hint="draw without corrections",
            )
        if settings.corrections is None:
            settings = replace(settings, corrections=number)
        every = range(settings.candidates)
        values, present = self.conditions.encode([row for row in rows for _ in every])
        tries = [derive_seed(s, "candidate", str(k)) if k else int(s) for s in seeds for k in every]
        route = self.route
        how = (values, present, tries, self.shape, settings, progress)
        seeded = (int(s) for s in seeds for _ in every)
        if isinstance(route, LatentRoute) and settings.corrections:
            asked = (row for row in rows for _ in every)
            found = zip(route.latents(*how), asked, seeded, strict=True)
            tried = self._along_slopes if self.labeller is None else self._by_gradient
            made = (self._nearest(tried(route, *each, settings), each[1]) for each in found)
        else:
            drawn = zip(route.draw(*how), seeded, strict=True)
            made = (self._finished(*each, settings) for each in drawn)
        matrix = torch.as_tensor(self.affine, dtype=torch.float64)
        for row, seed in zip(rows, seeds, strict=True):
            # as they are made, one at a time: only the best is kept
            image, labels = self._nearest(islice(made, settings.candidates), row)
            yield DrawnVolume(
                MetaTensor(image.float().clone(), affine=matrix),
                None if labels is None else MetaTensor(labels, affine=matrix),
                int(seed),
            )

    @property
    def _corrections(self) -> int:
        """How often a latent is moved by default; 0 where that cannot be."""
        if self.reading is None or not isinstance(self.route, LatentRoute):
            return 0
        can = self.labeller is not None or self.route.slopes is not None
        return CORRECTIONS if can else 0

    def _finished(self, volume: Tensor, seed: int, settings: DrawSettings) -> _Parts:
        """Return image and labels of a volume."""
        labels = split_labels(volume, self.route.image_channels)[1]
        image = self._image(volume, seed, settings)
        if self.labeller is not None:
            labels = self.labeller.labels(image[None].clamp(0, 1)).to(torch.uint8)
        return image, labels

    def _image(self, volume: Tensor, seed: int, settings: DrawSettings) -> Tensor:
        """Return the image of a volume, detail put back and intensities mapped."""
        image = self.detailed(volume[: self.route.image_channels], seed, settings.detail)
        if self.mapping is None or settings.detail == 0:
            return image
        return self.mapping.applied_to(image)

    def _nearest(self, parts: Iterator[_Parts], row: Mapping[str, Any]) -> _Parts:
        """Return the one whose labels are nearest to what is asked; the first of one."""
        reading = self.reading
        if reading is None:  # there is but one
            return next(parts)
        return min(parts, key=lambda part: reading.distance(cast(Tensor, part[1]), row))

    def _by_gradient(
        self, route: LatentRoute, latent: Tensor, row: Mapping[str, Any], seed: int,
        settings: DrawSettings,
    ) -> Iterator[_Parts]:  # fmt: skip
        """Yield image and labels of a latent, as drawn and as `corrected` moves it."""
        labeller, reading = cast(SegmenterModel, self.labeller), cast(LabelReading, self.reading)
        yield self._finished(route.decoded(latent, self.shape), seed, settings)

        def image_of(moved: Tensor) -> Tensor:
            volume = route.autoencoder.decode(moved[None], self.shape)[0]
            return self._image(volume, seed, settings).clamp(0, 1)

        steps = settings.corrections or 0
        how = (image_of, labeller.network, reading, row, steps)
        moved = corrected(latent, route.spread, *how)
        if moved is not latent:  # something was asked that labels show
            yield self._finished(route.decoded(moved, self.shape), seed, settings)

    def _along_slopes(
        self, route: LatentRoute, latent: Tensor, row: Mapping[str, Any], seed: int,
        settings: DrawSettings,
    ) -> Iterator[_Parts]:  # fmt: skip
        """Yield image and labels of a latent, as drawn and moved towards what is asked.

        Each time the conditions that labels show are read, and the latent goes the way that
        patients differ by what is lacking: the slopes of the regression on conditions. Some
        latents go astray: the last try need not be the best.
        """
        slopes, reading = cast(Tensor, route.slopes), cast(LabelReading, self.reading)
        columns = self.conditions.first_columns
        parts = self._finished(route.decoded(latent, self.shape), seed, settings)
        yield parts
        for _ in range(settings.corrections or 0):
            lacking = reading.lacking(cast(Tensor, parts[1]), row)
            if not lacking:  # nothing was asked that labels show
                break
            for name, lack in lacking.items():
                # encoded conditions are even from -1 to 1: their spread is known
                change = CORRECTED * lack / math.sqrt(3)
                latent = latent + change * slopes[columns[name]]
            parts = self._finished(route.decoded(latent, self.shape), seed, settings)
            yield parts

    def detailed(self, image: Tensor, seed: int, share: float | None = None) -> Tensor:
        """Return an image (C, I, J, K) with what networks leave out put back.

        See `medpipe.synthesis.detail.FineDetail.added_to`.
        """
        return image if self.detail is None else self.detail.added_to(image, seed, share)

    def sample(
        self,
        rows: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        *,
        progress: Callable[[Any], None] | None = None,
        **settings: Any,
    ) -> list[DrawnVolume]:
        """Return what `stream` yields; further arguments are those of `DrawSettings`."""
        return list(self.stream(rows, seeds, DrawSettings(**settings), progress=progress))

    def to_bytes(self, *, half: bool = False) -> bytes:
        """Return the content of a safetensors file that `read` reads.

        Parameters
        ----------
        half : bool
            Weights in half precision, a codebook in single. Volumes then differ a little.
        """
        tensors, header = self.route.packed(half)
        if self.detail is not None:
            tensors |= self.detail.packed()
        if self.mapping is not None:
            tensors |= self.mapping.packed()
        if self.reading is not None:
            header["reading"] = self.reading.to_json()
        if self.labeller is not None:
            own, labeller = packed_parts({"labeller": self.labeller.to_bytes()})
            tensors, header = tensors | own, header | labeller
        metadata = {
            "model": KIND,
            "route": self.route.name,
            "affine": [[float(x) for x in row] for row in self.affine],
            "shape": list(self.shape),
            "facts": self.facts,
            "parts": header,
        }
        return pack_weights(tensors, plain_json(metadata))

    @classmethod
    def read(cls, name_or_path: str | Path) -> Generator:
        """Return the generator of a packaged model or a file, on the CPU.

        Raises
        ------
        UsageError
            If there is no such model or file.
        InputError
            If it is no generator.
        """
        return cls._from(*load_weights(name_or_path), Path(name_or_path).name)

    @classmethod
    def from_bytes(cls, content: bytes) -> Generator:
        """Return what `to_bytes` returned; see `read`."""
        return cls._from(*unpack_weights(content), None)

    @classmethod
    def _from(
        cls, tensors: dict[str, Tensor], header: dict[str, Json], where: str | None
    ) -> Generator:
        said = cast(dict[str, Any], header)
        try:
            if said["model"] != KIND:
                raise ValueError
            route = route_from(str(said["route"]), tensors, said["parts"])
            affine = np.array(said["affine"], np.float64).reshape(4, 4)
            i, j, k = (int(n) for n in said["shape"])
            parts = said["parts"]
            reading, labeller = None, None
            if "reading" in parts:
                reading = LabelReading.from_json(parts["reading"])
            if "labeller" in parts:
                labeller = SegmenterModel.from_bytes(part_of("labeller", tensors, parts))
            detail = FineDetail.unpacked(tensors)
            return cls(
                route, affine, (i, j, k), dict(said["facts"]), detail, reading, labeller,
                QuantileMapping.unpacked(tensors),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, MedpipeError):
            raise InputError(
                "the model is no generator", where=where,
                hint="use a file written by training, with both of its networks",
            ) from None  # fmt: skip
