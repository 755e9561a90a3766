"""Random optimal-surface problems and their solution by enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from medpipe.graphcut.surfaces import ConvexPrior, Separation, SurfaceProblem

SOFT = ("none", "linear", "quadratic", "dead_zone", "dead_zone_quadratic", "huber", "custom")


def lopsided(x):
    """Convex, 0 at 0, steeper on one side."""
    return torch.where(x > 0, 3 * x, x * x)


def psi(prior, x, pick):
    """The cost of a difference, written out from its definition."""
    w, width, m = (pick(v) for v in (prior.weight, prior.width_mm, prior.expected_mm))
    y = np.abs(x - m)
    out = np.maximum(y - width, 0)
    return {
        "none": lambda: 0 * y,
        "linear": lambda: w * y,
        "quadratic": lambda: w * y**2,
        "dead_zone": lambda: w * out,
        "dead_zone_quadratic": lambda: w * out**2,
        "huber": lambda: w * np.where(y <= width, y**2, 2 * width * y - width**2),
        "custom": lambda: w * np.where(x > m, 3 * (x - m), (x - m) ** 2),
    }[prior.kind]()


def edges(problem):
    """Yield (surface a, column a, surface b, column b, prior, least, most, picker)."""
    columns = list(np.ndindex(*problem.shape[1:-1]))
    present = problem.present().numpy()
    for s, column in product(range(problem.shape[0]), columns):
        for other, prior, key in neighbours(problem, s, column):
            if not (present[(s, *column)] and present[(s, *other)]):
                continue
            pick = picker(key)
            jump = np.inf if prior.max_jump_mm is None else pick(prior.max_jump_mm)
            m = pick(prior.expected_mm)
            yield (s, column), (s, other), prior, m - jump, m + jump, pick
    separations = problem.separations
    if isinstance(separations, Separation):
        separations = [separations] * (problem.shape[0] - 1)
    if not isinstance(separations, dict):
        separations = {(s, s + 1): v for s, v in enumerate(separations) if v is not None}
    for ((a, b), separation), column in product(separations.items(), columns):
        if not (present[(a, *column)] and present[(b, *column)]):
            continue
        pick = picker(column)
        soft = separation.soft or ConvexPrior()
        least, most = pick(separation.min_mm), pick(separation.max_mm)
        yield (a, column), (b, column), soft, least, most, pick


def neighbours(problem, s, column):
    if problem.links is not None:
        for j, row in enumerate(problem.links.tolist()):
            if row[column[0]] >= 0:
                yield (row[column[0]],), prior_of(problem, s, 0), (j, column[0])
        return
    for axis, size in enumerate(problem.shape[1:-1]):
        step = list(column)
        step[axis] += 1
        if size > 1 and (step[axis] < size or axis in problem.wrap):
            step[axis] %= size
            yield tuple(step), prior_of(problem, s, axis), column


def prior_of(problem, s, axis):
    if isinstance(problem.priors, ConvexPrior):
        return problem.priors
    entry = problem.priors[s]
    return entry if isinstance(entry, ConvexPrior) else entry[axis]


def picker(key):
    def pick(value):
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            return float(value)
        return float(value[key[-value.ndim :]])

    return pick


def enumerate_all(problem):
    """Return (least energy or inf, {every best index tuple}), S·C nodes each."""
    shape = problem.shape
    sites = [(s, *c) for s in range(shape[0]) for c in np.ndindex(*shape[1:-1])]
    number = {site: i for i, site in enumerate(sites)}
    present, data = problem.present().numpy(), problem.with_data().numpy()
    choices = [range(shape[-1]) if present[site] else [0] for site in sites]
    index = np.array(list(product(*choices)), dtype=np.int64)
    at = problem.positions().numpy()
    costs = problem.costs.numpy().astype(float)
    energy = np.zeros(len(index))
    for i, site in enumerate(sites):
        if data[site]:
            energy += costs[site][index[:, i]]
    energy += region_energy(problem, sites, index, data)
    for (a, ca), (b, cb), prior, least, most, pick in edges(problem):
        i, j = number[(a, *ca)], number[(b, *cb)]
        x = at[(b, *cb)][index[:, j]] - at[(a, *ca)][index[:, i]]
        energy += psi(prior, x, pick)
        energy[(x < least - 1e-9) | (x > most + 1e-9)] = np.inf
    best = energy.min()
    winners = index[energy <= best + 1e-9] if np.isfinite(best) else index[:0]
    return best, winners


def region_energy(problem, sites, index, data):
    """Sum the region cost of every node by which surfaces lie below it."""
    total = np.zeros(len(index))
    if problem.region_costs is None:
        return total
    region = problem.region_costs.numpy().astype(float)
    surfaces, depth = problem.shape[0], problem.shape[-1]
    for column in np.ndindex(*problem.shape[1:-1]):
        if not data[(slice(None), *column)].all():
            continue
        mine = [sites.index((s, *column)) for s in range(surfaces)]
        for k in range(depth):
            r = (index[:, mine] < k).sum(1)
            total += region[(slice(None), *column)][r, k]
    return total


def random_problem(rng):
    """Return a small problem with whole costs and positions and any of the features."""
    links = None
    surfaces = int(rng.integers(1, 3))
    grid = [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2), (1, 4)][int(rng.integers(6))]
    wrap = tuple(a for a in (0, 1) if grid[a] > 1 and rng.random() < 0.4)
    if rng.random() < 0.2:
        grid, wrap = (3,), ()
        links = torch.tensor([[1, 2, -1], [2, -1, -1]])
    sites = surfaces * int(np.prod(grid))
    depth = int(rng.integers(2, 6 if sites <= 6 else 4))
    shape = (surfaces, *grid, depth)
    leading = shape[1:-1] if rng.random() < 0.6 else shape[:-1]
    positions = torch.from_numpy(
        np.cumsum(rng.integers(1, 5, (*leading, depth)), -1) + rng.integers(-3, 4, (*leading, 1))
    ).double()
    regions = rng.random() < 0.3
    if regions:
        positions = positions.reshape(-1, *grid, depth)[0]
    costs = torch.from_numpy(rng.integers(-9, 10, shape)).double()
    if rng.random() < 0.3:
        costs[torch.from_numpy(rng.random(shape) < 0.2)] = torch.inf
    valid = None
    if rng.random() < 0.3:
        valid = torch.from_numpy(
            rng.random(grid if regions or rng.random() < 0.5 else shape[:-1]) < 0.7
        )
    priors = [random_prior(rng, grid, links) for _ in range(surfaces)]
    if links is None and rng.random() < 0.3:
        priors[0] = (priors[0], random_prior(rng, grid, links))
    priors = priors if rng.random() < 0.8 or not isinstance(priors[0], ConvexPrior) else priors[0]
    region_costs = None
    separations = ()
    if surfaces > 1 and (regions or rng.random() < 0.8):
        separations = random_separation(rng, grid, regions)
    if regions:
        region_costs = torch.from_numpy(rng.integers(-4, 5, (surfaces + 1, *shape[1:]))).double()
    missing = "absent" if rng.random() < 0.5 else "bridge"
    return SurfaceProblem(
        costs, positions, priors, separations, region_costs, valid, missing, wrap, links
    )


def random_prior(rng, grid, links):
    def whole(low, high):
        if rng.random() < 0.3:
            return torch.from_numpy(rng.integers(low, high, grid)).double()
        return float(rng.integers(low, high))

    kind = SOFT[int(rng.integers(len(SOFT)))]
    return ConvexPrior(
        kind,
        weight=whole(0, 4),
        width_mm=whole(1, 3),
        max_jump_mm=whole(1, 8) if rng.random() < 0.4 else None,
        expected_mm=whole(-2, 3) if rng.random() < 0.3 else 0.0,
        function=lopsided if kind == "custom" else None,
    )


def random_separation(rng, grid, regions):
    least = float(rng.integers(0, 4)) if regions else float(rng.integers(-2, 4))
    if rng.random() < 0.3:
        least = torch.from_numpy(rng.integers(0, 3, grid)).double()
    most = float(rng.integers(3, 9)) if rng.random() < 0.5 else np.inf
    soft = random_prior(rng, grid, None) if rng.random() < 0.4 else None
    if soft is not None:
        soft = ConvexPrior(
            soft.kind, soft.weight, soft.width_mm, None, soft.expected_mm, soft.function
        )
    separation = Separation(least, most, soft)
    return {(0, 1): separation} if rng.random() < 0.3 else separation
