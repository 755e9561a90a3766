"""Where a model looked, as a volume in the space of the input, and the page of a case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from medpipe.errors import StepError, UsageError
from medpipe.outcome.bundle import OutcomeBundle
from medpipe.outcome.channels import ct_channels
from medpipe.outcome.explain import (
    BLOOD_HU,
    HEAD_HU,
    SaliencyMap,
    blood_overlap,
    grad_cam,
    occlusion_map,
    randomised_weights,
)
from medpipe.outcome.page import case_page_svg
from medpipe.outcome.predict import check_model_grid, outcome_logit
from medpipe.outcome.prepare import frame_matrix, to_input_space
from medpipe.outcome.transforms.predict import (
    DEFAULT_MODEL,
    ModelOnDevice,
    prepared_image,
    read_prediction,
)
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_choice,
    check_same_grid,
    facts_of,
    read_key,
    rewrap,
    with_facts,
)
from medpipe.types import Finding, Json, Severity

__all__ = [
    "OutcomePage",
    "OutcomePageD",
    "OutcomePageDict",
    "OutcomePaged",
    "OutcomeSaliency",
    "OutcomeSaliencyD",
    "OutcomeSaliencyDict",
    "OutcomeSaliencyd",
]

Method = Literal["grad-cam", "occlusion"]
METHODS = {"grad-cam": "Grad-CAM", "occlusion": "occlusion"}
LITTLE_CHANGE = 0.5
"""Rank correlation with the map of random weights above which a map says little."""


class OutcomeSaliency(ArrayStep):
    """Map where an ensemble looked when it predicted an outcome.

    Parameters
    ----------
    model : str
        A packaged model, the folder of a trained one, or its file.
    method : {"grad-cam", "occlusion"}
        Gradients of the log odds at the last layer of features, averaged over the members;
        or how far the probability falls when a box is filled with brain.
    sanity_stages : int
        How often weights are made random, from the last layer up to all, to compare the
        map of the first member with; 0 leaves the check out.
    box_mm : float
        Side of a box of occlusion; boxes stand side by side.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        method: Method = "grad-cam",
        sanity_stages: int = 3,
        box_mm: float = 20.0,
    ) -> None:
        self.method = check_choice("method", method, get_args(Method))
        if not 0 <= sanity_stages <= 20:
            raise UsageError("sanity_stages is wrong", expected="0 to 20")
        if not box_mm > 0:
            raise UsageError("box_mm is wrong", expected="above 0", got=str(box_mm)[:20])
        self.model = ModelOnDevice(model)
        self.sanity_stages, self.box_mm = sanity_stages, box_mm

    def __call__(self, img: Any, like: Any = None, head: Any = None) -> MetaTensor:
        """Return a float32 map (1, I, J, K), 0 to 1, with its checks as facts.

        Parameters
        ----------
        img : MetaTensor (1, I, J, K)
            HU on the grid of the model.
        like : MetaTensor, optional
            The image in whose space the map is returned; by default that of `img`.
        head : MetaTensor, optional
            Mask of the head on the grid of `img`; by default what is above -300 HU.

        Raises
        ------
        StepError
            If the image is on another grid, or the head on another than the image.
        UsageError, InputError
            If there is no such model, or it cannot be used.
        """
        image = prepared_image(img)
        bundle, networks = self.model.on(image.device)
        check_model_grid(bundle, image)
        hu = image.as_tensor().float()
        inside = self._head(image, hu, head)
        found = self._explain(bundle, networks, hu, inside)
        facts = self._facts(bundle, found, hu, inside, len(networks))
        if self.sanity_stages:
            facts["randomised_weights"] = self._checked(bundle, networks[0], hu, inside)
        made = _in_space(image, found.values, like)
        return with_facts(made, _shown(facts), _findings(facts))

    @staticmethod
    def _head(image: MetaTensor, hu: Tensor, head: Any) -> Tensor:
        if head is None:
            return hu > HEAD_HU
        mask = as_image(head)
        check_same_grid(image, mask, "mask of the head")
        return mask.as_tensor().to(hu.device)[:1] > 0

    def _explain(
        self, bundle: OutcomeBundle, networks: Sequence[nn.Module], hu: Tensor, inside: Tensor
    ) -> SaliencyMap:
        facts, logit = bundle.facts, outcome_logit(bundle.facts)
        if self.method == "grad-cam":
            return grad_cam(networks, ct_channels(hu, facts.preset)[None], logit)
        box = np.maximum(1, np.round(self.box_mm / np.array(facts.spacing_mm))).astype(int)

        def probability(volumes: Tensor) -> Tensor:
            shown = ct_channels(volumes, facts.preset)
            return torch.stack([torch.sigmoid(logit(n(shown))) for n in networks]).mean(0)

        return occlusion_map(
            probability, hu, inside, box_voxels=box.tolist(), stride_voxels=box.tolist()
        )

    def _facts(
        self, bundle: OutcomeBundle, found: SaliencyMap, hu: Tensor, inside: Tensor, members: int
    ) -> dict[str, Any]:
        every = members if self.method == "grad-cam" else 1
        return {
            "method": METHODS[self.method],
            "model": bundle.facts.name,
            "model_digest": bundle.digest,
            "outcome": bundle.facts.outcome,
            "notice": bundle.facts.notice,
            "members": members,
            "empty_members": len(found.empty) if len(found.empty) < every else members,
            "empty": not bool((found.values > 0).any()),
            "largest": float(f"{found.largest:.6g}"),
            "blood_window_hu": list(BLOOD_HU),
            "blood": blood_overlap(found.values, hu[0], inside[0]),
        }

    def _checked(
        self, bundle: OutcomeBundle, network: nn.Module, hu: Tensor, inside: Tensor
    ) -> list[dict[str, Json]]:
        """Return how the map of one member changes when its weights are made random."""

        def explain(one: nn.Module) -> Tensor:
            return self._explain(bundle, [one], hu, inside).values

        return randomised_weights(network, explain, stages=self.sanity_stages, inside=inside[0])


def _in_space(image: MetaTensor, values: Tensor, like: Any) -> MetaTensor:
    """Return a map at the voxels of `like`; 0 outside what the model saw."""
    own = rewrap(image, values[None].float())
    if like is not None:
        framed = "frame_to_input_ras_mm" in (facts_of(image).get("head_frame") or {})
        matrix = frame_matrix(image) if framed else np.eye(4)
        own = to_input_space(own, like, matrix)
        own = rewrap(own, own.as_tensor().clamp(0, 1))
    # facts and findings of the CT are none of the map
    own.meta["medpipe"] = {"source": {}, "findings": []}
    return own


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts of a volume, with how pictures are to show it."""
    note = "not for clinical use" if facts["notice"] else "0 to 1"
    display = {"name": f"{facts['method']} saliency, {note}", "unit": "", "factor": 1.0}
    return {"saliency": facts, "display": display}


def _findings(facts: Mapping[str, Any]) -> list[Finding]:
    """Return what a reader of a map must know."""
    found = []
    if facts["notice"]:
        found.append(Finding("outcome.notice", Severity.WARNING, facts["notice"]))
    if facts["empty"]:
        found.append(
            Finding(
                "outcome.empty_map",
                Severity.WARNING,
                "empty map: no voxel speaks for the outcome in this model; nothing is shown",
            )
        )
    elif facts["empty_members"]:
        found.append(
            Finding(
                "outcome.empty_members",
                Severity.INFO,
                f"the map is empty in {facts['empty_members']} of {facts['members']} members",
            )
        )
    rows = facts.get("randomised_weights") or []
    last = rows[-1]["rank_correlation"] if rows else None
    if last is not None and last > LITTLE_CHANGE:
        found.append(
            Finding(
                "outcome.map_unchanged",
                Severity.WARNING,
                "the map changes little when all weights are random (rank correlation "
                f"{last:.2f}): it does not show what was learned",
            )
        )
    return found


class OutcomeSaliencyd(DictStep):
    """Replace prepared head CTs by maps of where the model looked, in the space of the input.

    Values are 0 to 1 in float32. Facts: empty members, the change when weights are made
    random, and the share of the map in blood (45 to 90 HU) against the share of the head.

    Parameters
    ----------
    keys : keys of CTs in HU on the grid of the model, replaced by maps
    model : str
        A packaged model, the folder of a trained one, or its file.
    like : str, optional
        Key of the CT in whose space the map is returned.
    head : str, optional
        Key of the mask of the head on the grid of the prepared CT.
    method : {"grad-cam", "occlusion"}
        Gradients at the last layer of features; or filled boxes, which is much slower.
    sanity_stages : int
        Comparisons with maps of random weights; 0 leaves them out.
    box_mm : float
        Side of a box of occlusion.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("like", "head")
    writes = ()
    files = ("model",)
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        model: str = "sah-mortality-demo",
        like: str | None = None,
        head: str | None = None,
        method: Literal["grad-cam", "occlusion"] = "grad-cam",
        sanity_stages: int = 3,
        box_mm: float = 20.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.like, self.head = like, head
        self.step = OutcomeSaliency(model, method, sanity_stages, box_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each prepared CT replaced by its map."""
        out = dict(data)
        like = None if self.like is None else read_key(data, self.like, "image to return to")
        head = None if self.head is None else read_key(data, self.head, "mask of the head")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], like, head)
        return out


class OutcomePage(ArrayStep):
    """Draw the page of a case: probability, what it rests on, and where the model looked.

    Parameters
    ----------
    slices : int
        Axial slices, the one with most of the map among them.
    """

    def __init__(self, slices: int = 8) -> None:
        if not 1 <= slices <= 24:
            raise UsageError("slices is wrong", expected="1 to 24", got=str(slices)[:20])
        self.slices = slices

    def __call__(self, prediction: Any, ct: Any, saliency: Any) -> bytes:
        """Return an SVG document.

        Raises
        ------
        StepError
            If the map is not on the grid of the CT.
        """
        found = read_prediction(prediction)
        image, heat = prepared_image(ct), prepared_image(saliency)
        check_same_grid(image, heat, "map")
        facts = facts_of(heat).get("saliency")
        if not isinstance(facts, Mapping):
            raise StepError(
                "the map does not say how it was made", expected="one of outcome_saliency"
            )
        if facts["model_digest"] != found.model["digest"]:
            raise StepError(
                "map and prediction are of different models",
                hint="give predict and saliency the same model",
            )
        return case_page_svg(
            found,
            image.as_tensor()[0].float(),
            heat.as_tensor()[0].float().to(image.device),
            affine_of(image),
            facts,
            slices=self.slices,
        )


class OutcomePaged(DictStep):
    """Replace predictions by pages: probability, members, slices with the map, notice (.svg).

    Parameters
    ----------
    keys : keys of documents of ``predict_outcome``, replaced by documents
    ct : str
        Key of the CT in HU.
    saliency : str
        Key of the map of ``outcome_saliency`` on the grid of the CT.
    slices : int
        Axial slices.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("ct", "saliency")
    writes = ()
    files = ()
    makes = "document"
    suffix = ".svg"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        ct: str = "ct",
        saliency: str = "saliency",
        slices: int = 8,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ct, self.saliency = ct, saliency
        self.step = OutcomePage(slices)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each prediction replaced by its page."""
        out = dict(data)
        ct = read_key(data, self.ct, "CT")
        saliency = read_key(data, self.saliency, "map")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], ct, saliency)
        return out


OutcomeSaliencyD = OutcomeSaliencyDict = OutcomeSaliencyd
OutcomePageD = OutcomePageDict = OutcomePaged
