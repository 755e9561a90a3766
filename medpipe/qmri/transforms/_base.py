"""What the fits share: weighted images in, maps of relaxation out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.qmri.estimate import Estimate, check_voxels
from medpipe.qmri.noise import noise_sigma as estimate_noise
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.transforms.estimators import Method
from medpipe.qmri.transforms.protocols import ProtocolSource
from medpipe.qmri.transforms.provenance import describe_fit
from medpipe.qmri.transforms.region import kappa_on, region_of, weighted_images, without_images
from medpipe.steps._base import ArrayStep, DictStep, as_image, read_key, rewrap, with_facts

__all__ = ["Fit", "Fitd", "Range"]

Range = tuple[float, float] | list[float] | None
OUTSIDE = -1.0
"""Quality of a voxel that was not fitted."""


class Fit(ArrayStep):
    """Base of the fits: weighted images in, maps out."""

    source: ProtocolSource
    method: Method
    noise_sigma: float | None
    leave_out: frozenset[int]

    def set_up(
        self,
        protocol: Protocol | str | None,
        model: str | None,
        noise_sigma: float | None,
        method: Method,
        leave_out: Sequence[int] = (),
    ) -> None:
        """Note where the protocol comes from and how values are estimated."""
        if min(leave_out, default=1) < 1:
            raise UsageError("leave_out is wrong", expected="numbers of images, from 1")
        if noise_sigma is not None and not 0 < noise_sigma < float("inf"):
            raise UsageError("noise_sigma is wrong", expected="a number above 0")
        self.source = ProtocolSource(protocol, model)
        self.noise_sigma = noise_sigma
        self.method = method
        self.leave_out = frozenset(leave_out)

    def __call__(self, img: Any, mask: Any = None, b1: Any = None) -> MetaTensor:
        """Return maps (C, I, J, K) as float32, named in ``source["maps"]``.

        Parameters
        ----------
        img : MetaTensor
            Weighted images (D, I, J, K) in the order of the protocol.
        mask : MetaTensor, optional
            On the grid of the images; voxels above 0 are fitted. By default those with
            a signal.
        b1 : MetaTensor, optional
            Flip-angle scaling as a fraction, on any grid; 0 and NaN are voxels
            without a value.

        Returns
        -------
        MetaTensor
            The latents in SI units, their standard errors (``"t1_s_error"``) and
            ``"quality"`` (`medpipe.qmri.Flag` bits, -1 outside the region). Maps are 0
            outside the region that was fitted and NaN where a voxel has no answer.

        Raises
        ------
        StepError, InputError, UsageError
            If images, mask, map of B1 and protocol do not fit each other.
        """
        taken, notes = without_images(as_image(img), self.leave_out)
        protocol = self.source.of(taken)
        image, said = weighted_images(taken, protocol)
        notes += [*said, *self.source.doubts(protocol, image)]
        if b1 is not None and "kappa" not in protocol.knowns:
            raise StepError(
                "a B1 map is given, but no signal of the protocol depends on it",
                hint="leave it out, or use another signal model",
            )
        data = image.as_tensor()
        found = self._noise(protocol, data)
        region, said = region_of(image, mask, found)
        signal = data[:, region].T.contiguous()
        known = {} if b1 is None else {"kappa": kappa_on(image, b1)[region]}
        _check_early(signal, known, protocol)
        estimator = self.method.estimator(protocol, signal, found, scaled=b1 is not None)
        estimate = estimator.estimate(signal, known)
        names, maps = _scatter(estimate, estimator.latents, region)
        facts, more = describe_fit(
            protocol, self.method, estimate, found, self.noise_sigma is not None, bool(known)
        )
        return with_facts(rewrap(image, maps), {"maps": names, **facts}, [*notes, *said, *more])

    def _noise(self, protocol: Protocol, images: torch.Tensor) -> float | None:
        """Return the noise as given, or that of the images."""
        if self.noise_sigma is not None:
            return self.noise_sigma
        if all(a.model == "mp2rage" for a in protocol.acquisitions):
            # the first readout may be a magnitude with a sign: neither Rician nor normal
            images = images[1::2]
        return estimate_noise(images)


def _check_early(
    signal: torch.Tensor, known: Mapping[str, torch.Tensor], protocol: Protocol
) -> None:
    """Refuse what an estimator would refuse, before one is trained."""
    stride = max(1, len(signal) // 10_000)
    check_voxels(signal[::stride], {k: v[::stride] for k, v in known.items()}, protocol)


def _scatter(
    estimate: Estimate, latents: tuple[str, ...], region: torch.Tensor
) -> tuple[list[str], torch.Tensor]:
    """Return the names of the maps and the maps (C, I, J, K)."""
    order = [n for n in latents if n != "m0"] + ["m0"]
    rows = {name: estimate.values[name] for name in order}
    # a method without standard errors leaves them open
    none = torch.full_like(rows["m0"], torch.nan)
    rows |= {f"{name}_error": estimate.errors.get(name, none) for name in order}
    rows["quality"] = estimate.quality
    maps = torch.zeros((len(rows), *region.shape), dtype=torch.float32, device=region.device)
    maps[-1] = OUTSIDE
    for one, row in zip(maps, rows.values(), strict=True):
        one[region] = row.to(torch.float32)
    return list(rows), maps


class Fitd(DictStep):
    """Base of the dictionary classes: mask and B1 map are read where the case has them."""

    mask: str | None
    b1: str | None
    optional_reads: ClassVar[tuple[str, ...]] = ("mask", "b1")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key replaced by its maps."""
        out = dict(data)
        mask, b1 = (
            read_key(data, key, role) if key is not None and key in data else None
            for key, role in ((self.mask, "mask"), (self.b1, "B1 map"))
        )
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], mask, b1)
        return out
