"""Cuts on the voxel grid as transforms: one object from seeds, organs from rough outlines."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.geometry import is_sheared, spacing_mm
from medpipe.graphcut.layers import boykov_jolly
from medpipe.graphcut.links import Neighbours
from medpipe.graphcut.organs import shape_prior_cut
from medpipe.graphcut.shape_prior import ArcRule
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.transforms.certificate import with_certificate
from medpipe.graphcut.voxels import Spacing
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_same_grid,
    read_key,
    rewrap,
)

__all__ = [
    "GraphCut",
    "GraphCutD",
    "GraphCutDict",
    "GraphCutd",
    "ShapePriorGraphCut",
    "ShapePriorGraphCutD",
    "ShapePriorGraphCutDict",
    "ShapePriorGraphCutd",
]

Unary = Literal["gaussian_mixture", "histogram", "none"]


def one_channel(img: Any, role: str = "image") -> tuple[MetaTensor, torch.Tensor, Spacing]:
    """Return an image, its only channel (X, Y, Z) as float, and its voxel size in mm.

    Raises
    ------
    StepError
        If there are several channels, complex values or a sheared grid.
    """
    image = as_image(img)
    if image.shape[0] != 1 or image.is_complex():
        raise StepError(f"the {role} is not scalar", expected="one channel of real values")
    affine = affine_of(image)
    if is_sheared(affine):
        raise StepError("the grid is sheared", expected="perpendicular axes", hint="resample first")
    x, y, z = (float(s) for s in spacing_mm(affine))
    return image, image.as_tensor()[0].float(), (x, y, z)


def labels_on(image: MetaTensor, labels: Any, role: str) -> torch.Tensor:
    """Return a label map (X, Y, Z) as int64 on the device of `image`.

    Raises
    ------
    StepError
        If it lies on another grid, has several channels or no whole numbers.
    """
    found = as_image(labels)
    check_same_grid(image, found, role)
    values = found.as_tensor()[0].to(image.device)
    if found.shape[0] != 1 or not bool((values == values.round()).all()):
        raise StepError(f"the {role} are no labels", expected="one channel of whole numbers")
    return values.to(torch.int64)


class GraphCut(ArrayStep):
    """Segment one object from seeds by an exact minimum cut.

    The energy of Boykov and Jolly (2001, doi 10.1109/ICCV.2001.937505): intensities
    like those of the seeds, a surface along edges. The result is its global minimum,
    and the metadata carry the proof.

    Parameters
    ----------
    unary : {"gaussian_mixture", "histogram", "none"}
        Model of the intensities of each side.
    components : int
        Components of each Gaussian mixture.
    weight : float
        Price of a square millimetre of surface where intensities are even, in nats.
    sigma : float, optional
        Difference of intensities that counts as an edge; by default estimated from
        the noise of the image.
    neighbours : {6, 18, 26}
        Neighbours of a voxel.
    solver : {"auto", "pseudoflow", "stencil", "ortools", "scipy"}
        See `medpipe.graphcut.solve.min_cut`.
    """

    def __init__(
        self,
        unary: Unary = "gaussian_mixture",
        components: int = 3,
        weight: float = 1.0,
        sigma: float | None = None,
        neighbours: Neighbours = 26,
        solver: Solver = "auto",
    ) -> None:
        self.unary: Unary = unary
        self.components, self.weight, self.sigma = components, weight, sigma
        self.neighbours: Neighbours = neighbours
        self.solver: Solver = solver

    def __call__(self, img: Any, seeds: Any) -> MetaTensor:
        """Return a uint8 mask (1, I, J, K).

        Parameters
        ----------
        img : MetaTensor
            Image (1, I, J, K).
        seeds : MetaTensor
            1 where the object certainly is, 2 where it certainly is not, 0 elsewhere.

        Raises
        ------
        StepError
            If a kind of seed is absent or the grids differ.
        """
        image, x, spacing = one_channel(img)
        marks = labels_on(image, seeds, "seeds")
        result = boykov_jolly(
            x,
            spacing,
            marks == 1,
            marks == 2,
            unary=self.unary,
            components=self.components,
            weight=self.weight,
            sigma=self.sigma,
            neighbours=self.neighbours,
            solver=self.solver,
        )
        out = rewrap(image, result.masks.to(torch.uint8))
        return with_certificate(out, "graph_cut", result, *result.notes)


class GraphCutd(DictStep):
    """Segment one object in images from seeds by an exact minimum cut.

    Parameters
    ----------
    keys : keys of the images, replaced by their masks
    seeds : str
        Key of a label map: 1 where the object certainly is, 2 where it is not.
    unary : str
        Model of the intensities of each side: gaussian_mixture, histogram or none.
    components : int
        Components of each Gaussian mixture.
    weight : float
        Price of a square millimetre of surface where intensities are even, in nats.
    sigma : float, optional
        Difference of intensities that counts as an edge; estimated by default.
    neighbours : int
        Neighbours of a voxel: 6, 18 or 26.
    solver : str
        auto, pseudoflow (CPU), stencil (torch, GPU), ortools or scipy.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("seeds",)
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        seeds: str = "seeds",
        unary: Literal["gaussian_mixture", "histogram", "none"] = "gaussian_mixture",
        components: int = 3,
        weight: float = 1.0,
        sigma: float | None = None,
        neighbours: Literal[6, 18, 26] = 26,
        solver: Literal["auto", "pseudoflow", "stencil", "ortools", "scipy"] = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.seeds = seeds
        self.step = GraphCut(unary, components, weight, sigma, neighbours, solver)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key replaced by its mask."""
        out = dict(data)
        seeds = read_key(data, self.seeds, "label map of seeds")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], seeds)
        return out


class ShapePriorGraphCut(ArrayStep):
    """Segment organs from rough outlines, each with a shape prior, in one exact cut.

    See `medpipe.graphcut.organs.shape_prior_cut` for the method (Bai, Shah and Wu,
    arXiv 1705.10311) and all parameters.
    """

    def __init__(
        self,
        distance_mm: float = 0.0,
        contain: Sequence[tuple[int, int]] = (),
        core_mm: float = 4.0,
        outside_mm: float = 12.0,
        near_per_mm: float = 0.25,
        weight_per_mm2: float = 0.5,
        rule: ArcRule = "cone",
        angle_deg: float = 30.0,
        prior_weight: float | None = None,
        components: int = 2,
        neighbours: Neighbours = 26,
        solver: Solver = "auto",
    ) -> None:
        self.parameters: dict[str, Any] = {
            "distance_mm": distance_mm,
            "contain": [tuple(pair) for pair in contain],
            "core_mm": core_mm,
            "outside_mm": outside_mm,
            "near_per_mm": near_per_mm,
            "weight_per_mm2": weight_per_mm2,
            "rule": rule,
            "angle_deg": angle_deg,
            "prior_weight": prior_weight,
            "components": components,
            "neighbours": neighbours,
            "solver": solver,
        }

    def __call__(self, img: Any, rough: Any) -> MetaTensor:
        """Return a uint8 label map (1, I, J, K) with the labels of the rough outlines.

        Parameters
        ----------
        img : MetaTensor
            Image (1, I, J, K).
        rough : MetaTensor
            Label map (1, I, J, K) of rough outlines.

        Raises
        ------
        StepError
            If the outlines are empty, on another grid, or cannot all hold.
        """
        image, x, spacing = one_channel(img)
        outlines = labels_on(image, rough, "rough outlines")
        found = shape_prior_cut(x, outlines, spacing, **self.parameters)
        out = rewrap(image, found.labels[None])
        return with_certificate(out, "shape_prior_graph_cut", found.result, *found.notes)


class ShapePriorGraphCutd(DictStep):
    """Segment organs in images from rough outlines with shape priors, in one exact cut.

    Parameters
    ----------
    keys : keys of the images, replaced by label maps
    rough : str
        Key of a label map of rough outlines, one label an organ.
    distance_mm : float
        Organs are at least this far apart; 0 lets them touch.
    contain : list of pairs
        Labels (inner, outer) of nested organs.
    core_mm : float
        What lies deeper inside an outline belongs to the organ.
    outside_mm : float
        What lies further from an outline does not.
    near_per_mm : float
        How much less likely a voxel belongs to the organ for each mm outside its
        outline, and more for each inside, in nats.
    weight_per_mm2 : float
        Price of surface where intensities are even.
    rule : str
        Shape prior along the field line (rounded) or within a cone around it (cone).
    angle_deg : float
        How far the organ's normal may turn from the field (cone).
    prior_weight : float, optional
        Price of breaking the shape prior at one voxel; by default it is hard.
    components : int
        Components of the mixture of intensities of each side.
    neighbours : int
        Neighbours of a voxel: 6, 18 or 26.
    solver : str
        auto, pseudoflow (CPU), stencil (torch, GPU), ortools or scipy.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("rough",)
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        rough: str = "rough",
        distance_mm: float = 0.0,
        contain: list[tuple[int, int]] | None = None,
        core_mm: float = 4.0,
        outside_mm: float = 12.0,
        near_per_mm: float = 0.25,
        weight_per_mm2: float = 0.5,
        rule: Literal["rounded", "cone"] = "cone",
        angle_deg: float = 30.0,
        prior_weight: float | None = None,
        components: int = 2,
        neighbours: Literal[6, 18, 26] = 26,
        solver: Literal["auto", "pseudoflow", "stencil", "ortools", "scipy"] = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rough = rough
        self.step = ShapePriorGraphCut(
            distance_mm,
            contain or (),
            core_mm,
            outside_mm,
            near_per_mm,
            weight_per_mm2,
            rule,
            angle_deg,
            prior_weight,
            components,
            neighbours,
            solver,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key replaced by its label map."""
        out = dict(data)
        rough = read_key(data, self.rough, "label map of rough outlines")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], rough)
        return out


GraphCutD = GraphCutDict = GraphCutd
ShapePriorGraphCutD = ShapePriorGraphCutDict = ShapePriorGraphCutd
