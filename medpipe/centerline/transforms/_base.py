"""What the steps of centerlines share: trees as documents, the grids they belong to."""

from __future__ import annotations

from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import StepError
from medpipe.geometry import same_grid
from medpipe.steps._base import affine_of, as_image
from medpipe.types import Finding, Severity

__all__ = ["check_grid_of_tree", "one_channel", "read_tree", "tree_findings"]


def read_tree(document: Any) -> CenterlineTree:
    """Return the tree that a document of the step ``centerline`` holds.

    Raises
    ------
    StepError
        If it is an image or a table.
    InputError
        If it is another document.
    """
    if isinstance(document, CenterlineTree):
        return document
    if not isinstance(document, bytes):
        raise StepError(
            "the step needs a centerline",
            expected="a document of the step centerline",
            got="a table" if isinstance(document, dict) else "an image",
        )
    return CenterlineTree.from_json(document)


def tree_findings(tree: CenterlineTree) -> list[Finding]:
    """Return what was noticed when the tree was extracted."""
    found: Any = tree.facts.get("findings") or []
    return [
        Finding(**{**record, "severity": Severity[str(record["severity"]).upper()]})
        for record in found
    ]


def one_channel(img: Any, role: str) -> tuple[MetaTensor, torch.Tensor]:
    """Return an image and its only channel (I, J, K).

    Raises
    ------
    StepError
        If there are several channels or complex values.
    """
    image = as_image(img)
    if image.shape[0] != 1 or image.is_complex():
        raise StepError(f"the {role} is not scalar", expected="one channel of real values")
    return image, image.as_tensor()[0]


def check_grid_of_tree(image: MetaTensor, tree: CenterlineTree, role: str) -> None:
    """Raise StepError unless an image lies on the grid in which the tree was found."""
    if not same_grid(affine_of(image), image.shape[1:], tree.affine, tree.shape):
        raise StepError(
            f"the {role} is not on the grid of the centerline",
            expected=f"shape {tuple(tree.shape)} at the place of its mask",
            got=f"shape {tuple(image.shape[1:])}",
            hint=f"resample the {role} with resample, like = the mask's key",
        )
