"""A tree as a label image: its thin line, or every voxel of the mask with its branch."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.centerline.branching import generations, strahler
from medpipe.centerline.graph import foreground_graph
from medpipe.centerline.solve import shortest_paths
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import StepError
from medpipe.steps._base import check_choice

__all__ = ["Shown", "dense_labels", "line_labels", "node_values"]

Shown: TypeAlias = Literal["branch", "generation", "strahler", "structure", "line"]

MAX_LABEL = 65535
"""The largest label that 16 bits hold."""


def node_values(tree: CenterlineTree, show: Shown) -> NDArray[np.int64]:
    """Return the label of each node, (N,), 1 or more.

    Parameters
    ----------
    tree : CenterlineTree
    show : {"branch", "generation", "strahler", "structure", "line"}
        One more than the number of the branch, one more than its generation, Strahler
        order, label value of the structure, or 1 everywhere.

    Raises
    ------
    StepError
        If there are more than 65535 labels.
    UsageError
        If `show` is something else.
    """
    check_choice("show", show, get_args(Shown))
    of = tree.branch_of
    if show == "structure":
        values = tree.structures
    elif show == "line" or not tree.branches:
        values = np.ones(len(tree), np.int64)
    else:
        per_branch = {
            "branch": np.arange(1, len(tree.branches) + 1),
            "generation": np.array(generations(tree)) + 1,
            "strahler": np.array(strahler(tree)),
        }[show]
        # a root without a branch is one node alone
        values = np.where(of >= 0, per_branch[of], 1)
    if int(values.max()) > MAX_LABEL:
        raise StepError(
            "there are too many labels", expected=f"{MAX_LABEL} at most", got=str(int(values.max()))
        )
    return values.astype(np.int64)


def line_labels(tree: CenterlineTree, values: NDArray[np.int64]) -> torch.Tensor:
    """Return the voxels of the nodes with their values, (I, J, K), 0 elsewhere."""
    out = torch.zeros(tuple(tree.shape), dtype=_smallest(values))
    i, j, k = torch.from_numpy(tree.voxels.T.copy())
    out[i, j, k] = torch.from_numpy(values).to(out.dtype)
    return out


def _smallest(values: NDArray[np.int64]) -> torch.dtype:
    """Return the smallest type that holds all values: a whole CT is 200 million of them."""
    top = int(values.max())
    return torch.uint8 if top <= 255 else torch.int16 if top <= 32767 else torch.int32


def dense_labels(
    tree: CenterlineTree, mask: torch.Tensor, values: NDArray[np.int64]
) -> torch.Tensor:
    """Return every voxel of a mask with the value of the node that is nearest within it.

    Nearest is measured along the mask, so that a vessel does not take over voxels of
    one that passes by. Parts of the mask without a node are 0.

    Parameters
    ----------
    tree : CenterlineTree
    mask : integer tensor (I, J, K)
        The label map in which the tree was found.
    values : int64 array (N,)

    Returns
    -------
    integer tensor (I, J, K)
        uint8, int16 or int32, as the values need.
    """
    graph = foreground_graph(mask, tree.affine)
    shape = tuple(int(n) for n in tree.shape)
    at = _linear(graph.voxels.long(), shape)
    nodes = _linear(torch.from_numpy(tree.voxels).to(mask.device), shape)
    # voxels of the graph ascend
    place = torch.searchsorted(at, nodes).clamp(max=len(at) - 1)
    inside = at[place] == nodes
    out = torch.zeros(shape, dtype=_smallest(values), device=mask.device)
    label = torch.from_numpy(values).to(mask.device, out.dtype)[inside]
    if not len(label):
        return out
    source = shortest_paths(graph, None, place[inside]).source.long()
    out.view(-1)[at] = torch.where(source >= 0, label[source.clamp(min=0)], 0)
    return out


def _linear(voxels: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return (voxels[:, 0] * shape[1] + voxels[:, 1]) * shape[2] + voxels[:, 2]
