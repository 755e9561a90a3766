"""Optimal surfaces where columns have few nodes left: the bound must hold even then."""

import pytest
import torch

from medpipe.graphcut.surfaces import ConvexPrior, SurfaceProblem, optimal_surfaces


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("first", [[0.0, torch.inf], [torch.inf, 0.0]])
@pytest.mark.parametrize("second", [-3.0, 3.0])
@pytest.mark.parametrize("expected_mm", [-0.7, -0.3, 0.3, 1.3])
def test_the_bound_holds_where_a_column_has_one_node_left(kind, first, second, expected_mm):
    # what is paid there is no multiple of the step, and the ring ties the columns both ways
    costs = torch.tensor([[[first, [0.0, second]]]], dtype=torch.float64)
    prior = ConvexPrior(kind, 2.0, expected_mm=expected_mm)
    problem = SurfaceProblem(costs, torch.tensor([0.0, 1.0]), prior, wrap=(1,))
    result = optimal_surfaces(problem, step=2.0**-4)
    power = 1 if kind == "linear" else 2
    best = min(
        float(costs[0, 0, 0, i] + costs[0, 0, 1, j])
        + 2.0 * (abs(j - i - expected_mm) ** power + abs(i - j - expected_mm) ** power)
        for i in range(2)
        for j in range(2)
    )
    assert result.bound <= best + 1e-12
    assert result.energy <= best + 2 * result.rounding + 1e-12
    assert result.proved
