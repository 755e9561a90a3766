"""Contours of lumen and membrane: as an image that travels between steps, and as a mesh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.geometry import spacing_mm
from medpipe.graphcut.meshes import surface_mesh
from medpipe.io.vtp import PolyData
from medpipe.steps._base import affine_of, as_image, rewrap
from medpipe.types import Affine

__all__ = ["WallContours"]


@dataclass(frozen=True, eq=False)
class WallContours:
    """Contours of lumen and membrane, and their image form.

    The image form is (4, angles, 1, frames): radius of the lumen and of the membrane in
    mm, then for each whether the image decided there (1) or a shadow was bridged (0).
    Its affine is that of the frames with the origin moved to the catheter, so the image
    alone says where the contours are.

    Parameters
    ----------
    radius_mm : Tensor, float64 (2, angles, frames)
    seen : Tensor, bool (2, angles, frames)
    affine : ndarray (4, 4)
        Of the frames, with the catheter of the first frame as origin.
    """

    radius_mm: torch.Tensor
    seen: torch.Tensor
    affine: Affine

    @classmethod
    def read(cls, img: Any) -> WallContours:
        """Return the contours that an image holds.

        Raises
        ------
        StepError
            If it has another form.
        """
        image = as_image(img)
        if image.shape[0] != 4 or image.shape[1] < 3 or image.shape[2] != 1:
            raise StepError(
                "the image is no map of contours",
                expected="shape (4, angles, 1, frames) as lumen_media writes it",
                got=str(tuple(image.shape)),
            )
        values = image.as_tensor()[:, :, 0].to(torch.float64)
        return cls(values[:2], values[2:] > 0.5, affine_of(image))

    def image(self, like: MetaTensor) -> MetaTensor:
        """Return the image form with the metadata of `like`."""
        values = torch.cat([self.radius_mm, self.seen.to(self.radius_mm.dtype)])
        return rewrap(like, values[:, :, None].to(torch.float32), self.affine)

    @property
    def step_mm(self) -> float:
        """Distance of neighbouring frames."""
        return float(spacing_mm(self.affine)[2])

    @property
    def in_plane_mm(self) -> torch.Tensor:
        """Contours in the plane of each frame, around the catheter, (2, frames, angles, 2)."""
        angles = self.radius_mm.shape[1]
        turn = torch.arange(angles, dtype=torch.float64, device=self.radius_mm.device)
        turn = turn * (2 * math.pi / angles)
        rays = torch.stack([turn.cos(), turn.sin()], -1)
        return self.radius_mm.transpose(1, 2)[..., None] * rays

    @property
    def points_mm(self) -> torch.Tensor:
        """Contours in RAS+ mm, (2, frames, angles, 3)."""
        matrix = torch.from_numpy(self.affine).to(self.radius_mm.device)
        frame = torch.nn.functional.normalize(matrix[:3, :2], dim=0)
        rank = torch.arange(self.radius_mm.shape[2], dtype=matrix.dtype, device=matrix.device)
        centers = rank[:, None] * matrix[:3, 2] + matrix[:3, 3]
        return centers[:, None] + self.in_plane_mm @ frame.T

    def mesh(self) -> PolyData:
        """Return lumen and membrane as triangles facing outwards; one frame gives two lines.

        Points carry ``surface`` (1 lumen, 2 media), ``frame`` (from 1), ``radius_mm`` from
        the catheter, ``wall_um`` along the ray and ``seen`` (0 where bridged).
        """
        points = self.points_mm
        count, frames, angles = points.shape[:3]
        each = frames * angles
        rank = torch.arange(1, frames + 1, dtype=torch.int32)
        kind = torch.arange(1, count + 1, dtype=torch.int32)
        wall = 1000 * self.radius_mm.diff(dim=0).expand(count, -1, -1)
        parts: dict[str, Any] = {
            "points_mm": points.reshape(-1, 3),
            "point_data": {
                "surface": kind.repeat_interleave(each),
                "frame": rank.repeat_interleave(angles).repeat(count),
                "radius_mm": self.radius_mm.transpose(1, 2).reshape(-1),
                "wall_um": wall.transpose(1, 2).reshape(-1),
                "seen": self.seen.transpose(1, 2).reshape(-1).to(torch.uint8),
            },
        }
        if frames == 1:
            ring = torch.arange(angles + 1) % angles
            parts["lines"] = [ring + s * each for s in range(count)]
            return PolyData(**parts)
        faces = [surface_mesh(p, wrap=(False, True))[1] + s * each for s, p in enumerate(points)]
        triangles: Any = torch.cat(faces)
        if np.linalg.det(self.affine[:3, :3]) > 0:  # d/dframe × d/dangle then points inwards
            triangles = triangles.flip(1)
        return PolyData(triangles=triangles, **parts)
