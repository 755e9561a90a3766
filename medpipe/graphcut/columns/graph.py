"""Edges of a mesh and their colouring into rows of links."""

from __future__ import annotations

import torch

from medpipe.errors import StepError

__all__ = ["check_faces", "edges_of", "links_of"]


def check_faces(faces: torch.Tensor, vertices: int) -> None:
    """Raise StepError unless `faces` are int64 (F, 3) and name existing vertices."""
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype != torch.int64 or not len(faces):
        raise StepError(
            "the triangles have a wrong shape or type",
            expected="int64 (F, 3)",
            got=f"{faces.dtype} {tuple(faces.shape)}",
        )
    if int(faces.min()) < 0 or int(faces.max()) >= vertices:
        raise StepError("a triangle names a vertex that does not exist", expected=f"< {vertices}")


def edges_of(faces: torch.Tensor) -> torch.Tensor:
    """Return every edge of the triangles once, int64 (E, 2), sorted."""
    pairs = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return torch.unique(pairs.sort(dim=-1).values, dim=0)


def links_of(faces: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the edges as rows of links, int64 (J, C) with -1 for none.

    Row j leads from column c to ``links[j, c]``. In one row each column is the tail
    of at most one edge and the head of at most one (a proper edge colouring of the
    graph of tails and heads), so that a whole row can be processed at once. An edge
    takes the direction and the first row that are free for it.
    """
    tails_used, heads_used = [0] * columns, [0] * columns  # bit j: taken in row j
    rows, tails, heads = [], [], []
    for a, b in edges_of(faces).tolist():
        forth, back = tails_used[a] | heads_used[b], tails_used[b] | heads_used[a]
        bit, tail, head = min((~forth & (forth + 1), a, b), (~back & (back + 1), b, a))
        tails_used[tail] |= bit
        heads_used[head] |= bit
        rows.append(bit.bit_length() - 1)
        tails.append(tail)
        heads.append(head)
    links = torch.full((max(rows) + 1, columns), -1, dtype=torch.int64)
    links[torch.tensor(rows), torch.tensor(tails)] = torch.tensor(heads)
    return links.to(faces.device)
