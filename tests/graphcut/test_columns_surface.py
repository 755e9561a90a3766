"""Optimal surfaces on generated columns, from an image back to space."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from medpipe.graphcut.columns import icosphere, polar_columns, star_columns
from medpipe.graphcut.convex import ConvexPrior
from medpipe.graphcut.displacement import (
    parabola_displacement,
    resample_costs,
    slope_along_columns,
)
from medpipe.graphcut.surface_problem import SurfaceProblem
from medpipe.graphcut.surfaces import optimal_surfaces

PRIOR = ConvexPrior("quadratic", weight=0.02)


def oblique(shape, spacing):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix() * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def centres(affine, shape):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return torch.from_numpy(index @ affine[:3, :3].T + affine[:3, 3])


def surfaces(columns, image, affine):
    """The surface on regular and on displaced nodes, (..., ) in mm."""
    values = columns.sample(image[None], affine)
    costs = -slope_along_columns(values, columns.positions_mm)
    moved = parabola_displacement(costs, columns.positions_mm)
    common = {"priors": PRIOR, "wrap": columns.wrap, "links": columns.links}
    regular = SurfaceProblem(costs[None], columns.positions_mm, **common)
    irregular = SurfaceProblem(resample_costs(costs, moved)[None], moved.positions_mm, **common)
    found = [optimal_surfaces(p, step=1e-4) for p in (regular, irregular)]
    assert all(f.proved for f in found)
    return [f.position_mm for f in found]


def test_a_sphere_beside_the_centre_is_found_between_the_nodes():
    # nodes 1 mm apart; the radius from the centre of the columns is known
    shape = (48, 44, 40)
    affine = oblique(shape, (0.6, 0.6, 0.6))
    shift = torch.tensor([0.8, -0.5, 0.6]).double()
    r = torch.linalg.vector_norm(centres(affine, shape) - shift, dim=-1)
    image = torch.special.erf((r - 7.0) / (1.2 * math.sqrt(2)))
    columns = star_columns((0, 0, 0), inner_mm=3, outer_mm=11, node_mm=1.0, subdivisions=3)
    directions, _ = icosphere(3)
    along = directions @ shift
    truth = along + torch.sqrt(along**2 + 49 - shift @ shift)
    regular, irregular = surfaces(columns, image, affine)
    errors = [float((p[0] - truth).abs().mean()) for p in (regular, irregular)]
    assert 0.2 < errors[0] < 0.4
    assert errors[1] < 0.2 * errors[0]
    points = columns.points_at(irregular)[0]
    distance = torch.linalg.vector_norm(points - shift, dim=-1)
    assert float((distance - 7).abs().max()) < 0.2
    labels = columns.labels(irregular, shape, affine)[0]
    clear = (r - 7).abs() > 0.2
    assert torch.equal(labels[clear] == 0, (r < 7)[clear])


def test_circles_beside_the_centre_close_without_a_jump():
    shape = (60, 60, 3)
    affine = oblique(shape, (0.3, 0.3, 1.0))
    flat = np.linalg.inv(affine[:3, :3])
    voxel = torch.from_numpy((centres(affine, shape).numpy() - affine[:3, 3]) @ flat.T)
    r = torch.hypot((voxel[..., 0] - 32.5) * 0.3, (voxel[..., 1] - 27.5) * 0.3)
    image = torch.special.erf((r - 4.0) / (0.5 * math.sqrt(2)))
    columns = polar_columns(shape, affine, inner_mm=1, outer_mm=7, node_mm=0.5, angles=60)
    turn = torch.arange(60).double() * 2 * math.pi / 60
    along = 0.9 * torch.cos(turn) - 0.6 * torch.sin(turn)
    truth = (along + torch.sqrt(along**2 + 16 - 0.9**2 - 0.6**2))[:, None].expand(60, 3)
    regular, irregular = surfaces(columns, image, affine)
    errors = [float((p[0] - truth).abs().mean()) for p in (regular, irregular)]
    assert errors[1] < 0.25 * errors[0]
    jump = (irregular[0] - irregular[0].roll(-1, 0)).abs()
    assert float(jump[-1].max()) <= float(jump.max()) < 0.2
