"""What a deep model must beat: a Gaussian of voxels, and a deformed template.

`PcaGaussian` draws images and labels together from a Gaussian with some principal
directions; its labels have the volumes that their shares add up to, which are as linear in
what was drawn as the Gaussian is. `TemplateDeformation` deforms one mean image, and its
labels with it, by velocities that are drawn from a Gaussian of those that registration found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from medpipe.errors import InputError
from medpipe.models import pack_weights, unpack_weights
from medpipe.synthesis.deformation import flow_from_nodes, register, resized, warped
from medpipe.synthesis.gaussian import Gaussian
from medpipe.synthesis.label_shares import labels_of_shares
from medpipe.synthesis.tokeniser import join_labels
from medpipe.synthesis.tokeniser_samples import check_intensities
from medpipe.types import Json

__all__ = ["PcaGaussian", "RegistrationSettings", "TemplateDeformation"]


def _joined(images: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """Return images (N, C, I, J, K) with the labels but 0 as further channels, checked."""
    if images.ndim != 5 or 0 in images.shape:
        raise InputError(
            "the volumes have the wrong shape", expected="(N, C, I, J, K)",
            got=f"shape {tuple(images.shape)}",
        )  # fmt: skip
    check_intensities(images)
    if not classes:
        return images
    if labels is None or len(labels) != len(images):
        raise InputError(
            "there are not as many label maps as images", expected=str(len(images)),
            got="none" if labels is None else str(len(labels)),
        )  # fmt: skip
    channels = images.shape[1]
    both = join_labels(images, labels, classes)
    return torch.cat([both[:, :channels], both[:, channels + 1 :]], 1)


def _parted(joined: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
    """Return images and the labels (B, 1, I, J, K) of what was joined."""
    if not classes:
        return joined, None
    images, shares = joined.split([joined.shape[1] - (classes - 1), classes - 1], 1)
    return images, labels_of_shares(shares)


@dataclass(frozen=True, eq=False)
class PcaGaussian:
    """A Gaussian of images and labels, conditional on numbers that are known of a case.

    Attributes
    ----------
    gaussian : Gaussian
    shape : tuple of int
        (C, I, J, K) of images and labels together.
    label_classes : int
        Background included; 0 without labels.
    """

    gaussian: Gaussian
    shape: tuple[int, ...]
    label_classes: int = 0

    @classmethod
    def fit(
        cls,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        label_classes: int = 0,
        conditions: Mapping[str, Any] | None = None,
        components: int | float | str = 0.95,
        seed: int = 0,
    ) -> PcaGaussian:
        """Return the Gaussian of training volumes.

        Parameters
        ----------
        images : Tensor (N, C, I, J, K)
            On one grid and one scale of about 0 to 1.
        labels : Tensor (N, 1, I, J, K), optional
        label_classes : int
        conditions : mapping, optional
            Name → N numbers.
        components, seed
            See `medpipe.synthesis.gaussian.Gaussian.fit`.

        Raises
        ------
        InputError, UsageError
            If volumes are not normalised, labels do not fit, or there are too few.
        """
        joined = _joined(images, labels, label_classes)
        gaussian = Gaussian.fit(joined.flatten(1), components, known=conditions, seed=seed)
        return cls(gaussian, tuple(joined.shape[1:]), label_classes)

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """(I, J, K) of what is drawn."""
        _, i, j, k = self.shape
        return i, j, k

    def sample(
        self, seeds: Sequence[int], rows: Sequence[Mapping[str, float]] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return images (B, C, I, J, K) and labels (B, 1, I, J, K), each from its own seed.

        Parameters
        ----------
        seeds : sequence of int
        rows : sequence of mappings, optional
            What is known of each case; what is left out is drawn along.
        """
        drawn = self.gaussian.sample(seeds, rows)
        return _parted(drawn.reshape(-1, *self.shape), self.label_classes)

    def average(self) -> tuple[Tensor, Tensor | None]:
        """Return the mean image (1, C, I, J, K) and its labels."""
        return _parted(self.gaussian.mean.reshape(1, *self.shape), self.label_classes)

    def log_likelihood(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the log-density of cases in nats, shape (N,)."""
        joined = _joined(images, labels, self.label_classes)
        if tuple(joined.shape[1:]) != self.shape:
            raise InputError(
                "the volumes are not on the grid of the model",
                expected=str(self.shape), got=str(tuple(joined.shape[1:])),
            )  # fmt: skip
        return self.gaussian.log_likelihood(joined.flatten(1))

    def to_bytes(self) -> bytes:
        """Return the model as the content of a safetensors file."""
        tensors, facts = self.gaussian.state()
        own: dict[str, Json] = {"shape": list(self.shape), "label_classes": self.label_classes}
        return pack_weights(tensors, {"kind": "pca-gaussian", **facts, **own})

    @classmethod
    def read(cls, content: bytes, where: str | None = None) -> PcaGaussian:
        """Return the model that `to_bytes` wrote; InputError for anything else."""
        tensors, facts = _unpacked(content, "pca-gaussian", where)
        gaussian = Gaussian.from_state(tensors, facts)
        shape, classes = _tuple(facts.get("shape")), facts.get("label_classes")
        size = 1
        for n in shape:
            size *= n
        if size != len(gaussian.mean) or not isinstance(classes, int):
            raise InputError("the weights do not fit their description", where=where)
        return cls(gaussian, shape, classes)


@dataclass(frozen=True)
class RegistrationSettings:
    """How a template is made and registered.

    Attributes
    ----------
    node_voxels : float
        Distance of the nodes of a velocity.
    rounds : int
        How often the template is averaged anew.
    iterations, rate, stiffness
        See `medpipe.synthesis.deformation.register`.
    label_weight : float
        Weight of each label channel against the image.
    coarseness : float
        Voxels are registered so many times as wide; the template is of the volumes' own.
    batch : int
        Volumes registered at a time.
    """

    node_voxels: float = 4.0
    rounds: int = 2
    iterations: int = 30
    rate: float = 0.1
    stiffness: float = 0.02
    label_weight: float = 0.5
    coarseness: float = 2.0
    batch: int = 16


@dataclass(frozen=True, eq=False)
class TemplateDeformation:
    """A mean image with its labels, and a Gaussian of the velocities that deform it.

    A sample has the intensities of the template: only shape differs between samples.

    Attributes
    ----------
    template : Tensor (C, I, J, K)
        Images and, behind them, shares of the labels but 0.
    gaussian : Gaussian
        Of velocities in voxels at the nodes, flattened.
    nodes : tuple of int
        Size of their lattice.
    label_classes : int
    settings : RegistrationSettings
    facts : dict
        ``unexplained``: mean squared difference of images and the deformed template,
        relative to that of images and the undeformed mean.
    """

    template: Tensor
    gaussian: Gaussian
    nodes: tuple[int, int, int]
    label_classes: int = 0
    settings: RegistrationSettings = field(default_factory=RegistrationSettings)
    facts: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        label_classes: int = 0,
        conditions: Mapping[str, Any] | None = None,
        components: int | float | str = 0.95,
        settings: RegistrationSettings | None = None,
        seed: int = 0,
    ) -> TemplateDeformation:
        """Return template and velocities of training volumes; see `PcaGaussian.fit`.

        Template and registrations take turns: each round averages the volumes taken back
        to the template, with the mean velocity taken out of all of them.
        """
        how = settings or RegistrationSettings()
        joined = _joined(images, labels, label_classes)
        weights = joined.new_ones(joined.shape[1])
        weights[images.shape[1] :] = how.label_weight
        velocities = _template_velocities(joined, weights, how)
        template = _template(joined, velocities, how.batch)
        gaussian = Gaussian.fit(velocities.flatten(1), components, known=conditions, seed=seed)
        i, j, k = velocities.shape[2:]
        channels = images.shape[1]
        facts: dict[str, Json] = {
            "unexplained": _unexplained(template[:channels], images, velocities, how.batch)
        }
        return cls(template, gaussian, (i, j, k), label_classes, how, facts)

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """(I, J, K) of what is drawn."""
        _, i, j, k = self.template.shape
        return i, j, k

    def sample(
        self, seeds: Sequence[int], rows: Sequence[Mapping[str, float]] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return images and labels, each from its own seed; see `PcaGaussian.sample`."""
        velocities = self.gaussian.sample(seeds, rows).reshape(-1, 3, *self.nodes)
        moved = flow_from_nodes(velocities, self.template.shape[1:])
        return _parted(warped(self.template[None], moved), self.label_classes)

    def average(self) -> tuple[Tensor, Tensor | None]:
        """Return the template (1, C, I, J, K) and its labels."""
        return _parted(self.template[None], self.label_classes)

    def to_bytes(self) -> bytes:
        """Return the model as the content of a safetensors file."""
        tensors, facts = self.gaussian.state()
        own: dict[str, Json] = {
            "kind": "template-deformation", "nodes": list(self.nodes),
            "label_classes": self.label_classes, "settings": asdict(self.settings),
            "facts": self.facts,
        }  # fmt: skip
        return pack_weights({**tensors, "template": self.template}, {**facts, **own})

    @classmethod
    def read(cls, content: bytes, where: str | None = None) -> TemplateDeformation:
        """Return the model that `to_bytes` wrote; InputError for anything else."""
        tensors, facts = _unpacked(content, "template-deformation", where)
        gaussian, nodes = Gaussian.from_state(tensors, facts), _tuple(facts.get("nodes"))
        template = tensors.get("template")
        try:
            settings = RegistrationSettings(**facts["settings"])
            classes, known = int(facts["label_classes"]), dict(facts["facts"])
        except (KeyError, TypeError, ValueError):
            template = None
        fits = template is not None and template.ndim == 4 and len(nodes) == 3
        if not fits or 3 * nodes[0] * nodes[1] * nodes[2] != len(gaussian.mean):
            raise InputError("the weights do not fit their description", where=where)
        i, j, k = nodes
        return cls(tensors["template"], gaussian, (i, j, k), classes, settings, known)


def _template_velocities(joined: Tensor, weights: Tensor, how: RegistrationSettings) -> Tensor:
    """Return velocities (N, 3, i, j, k) in voxels from a template that is made on the way."""
    shape = joined.shape[2:]
    i, j, k = (max(2, round((n - 1) / how.node_voxels) + 1) for n in shape)
    coarse = [max(2, round((n - 1) / how.coarseness) + 1) for n in shape]
    small = torch.cat([resized(part, coarse) for part in joined.split(how.batch)])
    ratio = small.new_tensor(
        [(n - 1) / max(m - 1, 1) for n, m in zip(shape, coarse, strict=True)]
    ).reshape(3, 1, 1, 1)
    template = small.mean(0)
    velocities = small.new_zeros(len(small), 3, i, j, k)
    for _ in range(how.rounds):
        velocities = _registered(template, small, velocities, weights, how)
        velocities = velocities - velocities.mean(0)
        template = _template(small, velocities, how.batch)
    return _registered(template, small, velocities, weights, how) * ratio


def _registered(
    template: Tensor, joined: Tensor, velocities: Tensor, weights: Tensor, how: RegistrationSettings
) -> Tensor:
    parts = zip(velocities.split(how.batch), joined.split(how.batch), strict=True)
    return torch.cat(
        [
            register(
                template, volumes, begin.shape[2:], start=begin, weights=weights,
                stiffness=how.stiffness, iterations=how.iterations, rate=how.rate,
            )
            for begin, volumes in parts
        ]
    )  # fmt: skip


def _template(joined: Tensor, velocities: Tensor, batch: int) -> Tensor:
    """Return the mean of the volumes taken back to the template."""
    total = torch.zeros_like(joined[0])
    for volumes, part in zip(joined.split(batch), velocities.split(batch), strict=True):
        total += warped(volumes, flow_from_nodes(-part, joined.shape[2:])).sum(0)
    return total / len(joined)


def _unexplained(template: Tensor, images: Tensor, velocities: Tensor, batch: int) -> float:
    """Return the mean square that the deformed template leaves, relative to the plain mean."""
    left = before = 0.0
    mean, shape = images.mean(0), images.shape[2:]
    for volumes, part in zip(images.split(batch), velocities.split(batch), strict=True):
        moved = flow_from_nodes(part, shape)
        left += float((warped(template[None], moved) - volumes).square().sum())
        before += float((volumes - mean).square().sum())
    return left / before


def _unpacked(
    content: bytes, kind: str, where: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, facts = unpack_weights(content, where)
    if facts.get("kind") != kind:
        raise InputError("the weights are those of another model", where=where, expected=kind)
    return tensors, dict(facts)


def _tuple(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(n, int) and n > 0 for n in value)
    return tuple(value) if whole else ()
