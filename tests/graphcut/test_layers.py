"""Several layers in one cut, against every labelling of tiny grids and real distances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from medpipe.errors import ResourceError, StepError, UsageError
from medpipe.graphcut.layers import (
    Contain,
    Exclude,
    Layer,
    boykov_jolly,
    multi_object_cut,
    multi_object_energy,
)
from medpipe.graphcut.links import contrast_links
from medpipe.graphcut.problem import INFINITE
from medpipe.graphcut.relations import ball_offsets, beyond_border, flipped_layers


def reference_energies(layers, relations, masks, spacing):
    """The energies of labellings (M, O, X, Y, Z) as defined, one pair of voxels after another."""
    total = np.zeros(len(masks))
    shape = masks.shape[2:]
    voxels = list(itertools.product(*map(range, shape)))

    def pay(price, where):
        total[where] += price

    for layer, mask in zip(layers, np.moveaxis(masks, 1, 0), strict=True):
        for p in voxels:
            here = mask[(slice(None), *p)]
            cost = float(layer.data_cost[p])
            pay(abs(cost) if math.isinf(cost) else cost, here if cost > -math.inf else ~here)
            for offset, weights in layer.links:
                q = tuple(np.add(p, offset))
                if q in voxels:
                    pay(float(weights[p]), here != mask[(slice(None), *q)])
            for offset, capacity in layer.arcs:
                q = tuple(np.add(p, offset))
                if q in voxels:
                    price = float(torch.as_tensor(capacity, dtype=torch.float64).expand(shape)[p])
                    pay(price, here & ~mask[(slice(None), *q)])
    names = [layer.name for layer in layers]
    box = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    for relation in relations:
        a, b = (masks[:, names.index(n)] for n in relation.layers)
        contain = isinstance(relation, Contain)
        near = box[np.linalg.norm(box * spacing, axis=1) <= relation.distance_mm + 1e-9]
        for p, v in itertools.product(voxels, near.tolist()):
            q = tuple(np.add(p, v))
            if q in voxels:
                there = b[(slice(None), *q)]
                pay(relation.weight, a[(slice(None), *p)] & (there ^ contain))
            elif contain and relation.border == "outside":
                pay(relation.weight, a[(slice(None), *p)])
    return total


def all_labellings(count, shape):
    bits = count * math.prod(shape)
    numbers = np.arange(2**bits)[:, None] >> np.arange(bits)
    return (numbers & 1).astype(bool).reshape(-1, count, *shape)


def random_case(seed):
    """Layers, relations and spacing on a grid of at most 12 binary variables."""
    rng = np.random.default_rng(seed)
    chain = rng.integers(4)
    count = [1, 2, 3, 2][chain]
    shape = [(3, 2, 2), (3, 2, 1), (2, 1, 2), (1, 5, 1)][chain]
    spacing = tuple(float(s) for s in rng.choice([0.5, 1.0, 1.6], 3))
    names = "abc"[:count]
    layers = []
    for name in names:
        data = torch.from_numpy(rng.normal(0, 3, shape))
        if rng.random() < 0.3:
            data.view(-1)[rng.integers(data.numel())] = math.inf * rng.choice([-1, 1])
        links = contrast_links(
            torch.from_numpy(rng.normal(size=shape)), spacing, 26, float(rng.random())
        )
        arcs = []
        for _ in range(rng.integers(3)):
            offset = tuple(int(v) for v in rng.integers(-1, 2, 3))
            capacity = torch.from_numpy(rng.exponential(2, shape))
            if rng.random() < 0.4:
                capacity[torch.from_numpy(rng.random(shape) < 0.5)] = math.inf
            if any(offset):
                arcs.append((offset, capacity if rng.random() < 0.8 else float(rng.random())))
        layers.append(Layer(name, data, links, arcs))
    colours = {n: int(rng.integers(2)) for n in names}
    relations = []
    for one, two in itertools.combinations(names, 2):
        if rng.random() < 0.8:
            one, two = (one, two) if rng.random() < 0.5 else (two, one)
            distance = float(rng.choice([0.0, 0.5, 1.0, 1.7]))
            weight = math.inf if rng.random() < 0.6 else float(rng.exponential(1))
            if colours[one] == colours[two]:
                border = str(rng.choice(["open", "outside"]))
                relations.append(Contain(one, two, distance, weight, border))
            else:
                relations.append(Exclude(one, two, distance, weight))
    return layers, relations, spacing, shape


def test_random_cases_equal_the_best_of_all_labellings():
    feasible = infeasible = flipped = 0
    for seed in range(120):
        layers, relations, spacing, shape = random_case(seed)
        every = all_labellings(len(layers), shape)
        best = reference_energies(layers, relations, every, spacing).min()
        if math.isinf(best):
            infeasible += 1
            with pytest.raises(StepError, match="contradict"):
                multi_object_cut(layers, relations, spacing)
            continue
        feasible += 1
        flipped += any(flipped_layers([x.name for x in layers], relations))
        result = multi_object_cut(layers, relations, spacing)
        assert result.proved
        assert result.energy == pytest.approx(best, abs=result.gap + 1e-9)
        assert result.bound <= best + 1e-9
        assert result.energy >= best - 1e-9
        assert result.gap < 1e-3
    assert feasible > 90
    assert infeasible > 2
    assert flipped > 20


def test_the_energy_of_any_labelling_is_the_definition():
    for seed in range(40):
        layers, relations, spacing, shape = random_case(seed)
        rng = np.random.default_rng(1000 + seed)
        masks = rng.random((len(layers), *shape)) < 0.5
        energy = multi_object_energy(layers, relations, torch.from_numpy(masks), spacing)
        expected = reference_energies(layers, relations, masks[None], spacing)[0]
        assert energy == pytest.approx(expected)


def test_a_coarse_step_keeps_the_bound_below_the_best():
    gaps = []
    for seed in range(40):
        layers, relations, spacing, shape = random_case(seed)
        every = all_labellings(len(layers), shape)
        best = reference_energies(layers, relations, every, spacing).min()
        if math.isinf(best):
            continue
        result = multi_object_cut(layers, relations, spacing, step=1.5)
        assert result.step == 1.0
        assert result.bound <= best <= result.energy + 1e-9
        gaps.append(result.gap)
    assert max(gaps) > 0.5


def test_every_solver_gives_the_same_labels():
    layers, relations, spacing, _ = random_case(13)
    assert relations
    results = [
        multi_object_cut(layers, relations, spacing, step=1e-3, solver=s)
        for s in ("auto", "ortools", "scipy")
    ]
    for other in results[1:]:
        assert torch.equal(other.masks, results[0].masks)


def phantom(seed=0):
    """Noisy preferences on 24³ that would break every distance if they were free."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))

    def ball(centre, radius):
        away = ((at - torch.tensor(centre)[:, None, None, None]) ** 2).sum(0).sqrt()
        return away < radius

    def prefers(region):
        noise = torch.randn(region.shape, generator=generator)
        return torch.where(region, -1.5, 1.5) + noise

    return (
        prefers(ball((9.0, 12, 12), 5)),
        prefers(ball((11.0, 12, 12), 6)),
        prefers(ball((17.0, 12, 12), 5)),
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.5)])
def test_distances_hold_in_millimetres(spacing):
    inner, outer, other = phantom()
    image = torch.zeros(inner.shape)
    links = contrast_links(image, spacing, 6, 0.3)
    layers = [
        Layer("inner", inner, links),
        Layer("outer", outer, links),
        Layer("other", other, links),
    ]
    relations = [Contain("inner", "outer", 2.0), Exclude("outer", "other", 2.5)]
    result = multi_object_cut(layers, relations, spacing)
    masks = result.masks.numpy()
    assert result.proved
    assert all(150 < m.sum() < 1000 for m in masks)
    to_outside = ndimage.distance_transform_edt(masks[1], sampling=spacing)
    assert to_outside[masks[0]].min() > 2.0
    to_outer = ndimage.distance_transform_edt(~masks[1], sampling=spacing)
    assert to_outer[masks[2]].min() > 2.5
    free = multi_object_cut(layers, (), spacing).masks.numpy()
    assert ndimage.distance_transform_edt(free[1], sampling=spacing)[free[0]].min() <= 2.0
    assert ndimage.distance_transform_edt(~free[1], sampling=spacing)[free[2]].min() <= 2.5
    # no wider than asked either: the layers press against each other
    assert to_outside[masks[0]].min() < 2.0 + max(spacing)
    assert to_outer[masks[2]].min() < 2.5 + max(spacing)


def test_the_ball_is_that_of_the_distance_map_and_its_shell_is_not_enough():
    spacing, radius = (0.7, 1.0, 2.0), 3.0
    grid = np.ones((19, 19, 19), bool)
    grid[9, 9, 9] = False
    near = np.argwhere(ndimage.distance_transform_edt(grid, sampling=spacing) <= radius) - 9
    assert {tuple(v) for v in near.tolist()} == set(ball_offsets(radius, spacing))
    # one voxel of the inner layer must fill its whole ball, also between centre and shell
    data = torch.full((9, 9, 9), 1.0)
    seed = torch.zeros(data.shape, dtype=torch.bool)
    seed[4, 4, 4] = True
    result = multi_object_cut(
        [Layer("in", data, inside=seed), Layer("out", data)], [Contain("in", "out", 3.0)]
    )
    filled = torch.nonzero(result.mask("out")) - 4
    assert {tuple(v) for v in filled.tolist()} == set(ball_offsets(3.0, (1.0, 1.0, 1.0)))
    assert result.energy == 1.0 + len(filled)


def test_the_border_is_open_or_outside():
    data = torch.full((7, 1, 1), -1.0)
    layers = [Layer("in", data), Layer("out", data)]
    spacing = (2.0, 1.0, 1.0)
    assert multi_object_cut(layers, [Contain("in", "out", 4.0)], (2, 9, 9)).masks.all()
    closed = [Contain("in", "out", 4.0, border="outside")]
    inside = multi_object_cut(layers, closed, (2.0, 9.0, 9.0)).mask("in").flatten()
    assert inside.tolist() == [False, False, True, True, True, False, False]
    # in a flat image the ball leaves through the sides everywhere
    flat = multi_object_cut(layers, closed, spacing)
    assert not flat.mask("in").any()
    assert flat.notes == ["layer in is empty", "layer out fills the whole image"]


def test_beyond_the_border_counts_every_voxel_of_the_ball():
    shape, radius, spacing = (4, 3, 5), 2.0, (1.0, 0.8, 1.5)
    counted = beyond_border(shape, radius, spacing)
    padded = torch.ones(tuple(n + 8 for n in shape))
    padded[4:-4, 4:-4, 4:-4] = 0
    for p in itertools.product(*map(range, shape)):
        expected = sum(
            int(padded[tuple(4 + a + b for a, b in zip(p, v, strict=True))])
            for v in ball_offsets(radius, spacing)
        )
        assert counted[p] == expected


@pytest.mark.parametrize(
    ("relations", "flips"),
    [
        ([], [False] * 4),
        ([Exclude("a", "b")], [False, True, False, False]),
        ([Contain("d", "a"), Exclude("b", "d"), Contain("b", "c")], [False, True, True, False]),
        ([Exclude("a", "b"), Exclude("b", "c"), Exclude("c", "d"), Exclude("d", "a")], None),
    ],
)
def test_exclusion_flips_one_side(relations, flips):
    expected = flips or [False, True, False, True]
    assert flipped_layers("abcd", relations) == expected


@pytest.mark.parametrize(
    ("relations", "cycle"),
    [
        (
            [Exclude("a", "b"), Exclude("b", "c"), Exclude("c", "a"), Contain("d", "a")],
            "a excludes b excludes c excludes a",
        ),
        (
            [Contain("c", "b"), Contain("b", "a"), Exclude("a", "c"), Exclude("d", "a")],
            "a contains b contains c excludes a",
        ),
        ([Contain("b", "d"), Exclude("b", "d")], "b excludes d contains b"),
    ],
)
def test_a_frustrated_cycle_is_named(relations, cycle):
    layers = [Layer(n, torch.zeros(2, 2, 2)) for n in "abcd"]
    with pytest.raises(StepError) as error:
        multi_object_cut(layers, relations)
    assert error.value.got == cycle
    assert "\n" not in str(error.value)


def seeded(*places, shape=(5, 5, 5)):
    mask = torch.zeros(shape, dtype=torch.bool)
    for p in places:
        mask[p] = True
    return mask


ZERO = torch.zeros(5, 5, 5)


@pytest.mark.parametrize(
    ("layers", "relations", "text"),
    [
        (
            [Layer("a", ZERO, inside=seeded((1, 1, 1), (2, 2, 2)), outside=seeded((2, 2, 2)))],
            [],
            r"seeds of layer a contradict.* 1 voxels",
        ),
        (
            [
                Layer("a", ZERO, inside=seeded((2, 2, 2), (0, 0, 0))),
                Layer("b", ZERO, outside=seeded((2, 2, 4))),
            ],
            [Contain("a", "b", 2.0)],
            r"layers a and b contradict.*margin of 2 mm, got 1 voxels",
        ),
        (
            [Layer("a", ZERO, inside=seeded((1, 2, 2))), Layer("b", ZERO)],
            [Contain("a", "b", 2.0, border="outside")],
            r"layers a and b contradict.*border of the image",
        ),
        (
            [
                Layer("a", ZERO, inside=seeded((2, 2, 2), (2, 2, 3))),
                Layer("b", ZERO, inside=seeded((2, 2, 2))),
            ],
            [Exclude("a", "b", 1.0)],
            r"layers a and b contradict.*1 mm apart, got 2 voxels",
        ),
        (
            [
                Layer("a", ZERO, inside=seeded((0, 2, 2))),
                Layer("b", ZERO),
                Layer("c", ZERO, outside=seeded((3, 2, 2))),
            ],
            [Contain("a", "b", 2.0), Contain("b", "c", 1.0)],
            r"contradict each other; got 1 voxels of layer a.*voxels of layer c",
        ),
        (
            [
                Layer(
                    "a",
                    ZERO,
                    arcs=[((1, 0, 0), math.inf)],
                    inside=seeded((0, 0, 0)),
                    outside=seeded((3, 0, 0)),
                )
            ],
            [],
            r"hard prior arcs contradict each other; got 4 voxels of layer a",
        ),
    ],
)
def test_contradictions_name_the_layers_and_count_the_voxels(layers, relations, text):
    with pytest.raises(StepError, match=text) as error:
        multi_object_cut(layers, relations)
    assert "\n" not in str(error.value)


NAN = ZERO.clone()
NAN[1, 2, 3] = math.nan


@pytest.mark.parametrize(
    ("layers", "relations", "text"),
    [
        ([], [], "no layer"),
        ([Layer("a", NAN)], [], "layer a: the data cost holds NaN; got 1 voxels"),
        ([Layer("a", ZERO), Layer("b", ZERO[:4])], [], r"layer b: .*expected shape \(5, 5, 5\)"),
        ([Layer("a", ZERO), Layer("a", ZERO)], [], "same name"),
        ([Layer("a", ZERO[0])], [], "wrong axes"),
        ([Layer("a", ZERO, [((1, 0, 0), ZERO - 1)])], [], "125 values below 0 or NaN"),
        ([Layer("a", ZERO, [((1, 0, 0), ZERO + math.inf)])], [], "infinite"),
        ([Layer("a", ZERO, [((0, 0, 0), ZERO)])], [], "unusable offset"),
        ([Layer("a", ZERO, arcs=[((1, 0, 0), NAN)])], [], "1 values below 0 or NaN"),
        ([Layer("a", ZERO, inside=torch.ones(2, 2, 2))], [], "inside is on another grid"),
        ([Layer("a", ZERO)], [Contain("a", "x")], "does not exist; expected a, got x"),
    ],
)
def test_unusable_layers_are_refused_in_one_line(layers, relations, text):
    with pytest.raises(StepError, match=text) as error:
        multi_object_cut(layers, relations)
    assert "\n" not in str(error.value)


def test_unusable_relations_and_parameters_are_refused():
    for make in (
        lambda: Contain("a", "a"),
        lambda: Contain("a", "b", -1.0),
        lambda: Exclude("a", "b", math.nan),
        lambda: Exclude("a", "b", 1.0, 0.0),
        lambda: Contain("a", "b", border="shut"),
        lambda: multi_object_cut([Layer("a", ZERO)], (), (1.0, 0.0, 1.0)),
        lambda: multi_object_cut([Layer("a", ZERO)], step=-1.0),
        lambda: boykov_jolly(ZERO, (1, 1, 1), ZERO > 0, ZERO > 0, unary="magic"),
    ):
        with pytest.raises(UsageError):
            make()
    with pytest.raises(ResourceError, match="distance is too large"):
        multi_object_cut(
            [Layer("a", ZERO), Layer("b", ZERO)], [Contain("a", "b", 20.0)], (0.5, 0.5, 0.5)
        )


def test_a_finite_cost_never_becomes_a_hard_one():
    """Divided by so small a step it would be infinite."""
    costs = torch.tensor([[[1.0, -2.0]]])
    with pytest.raises(StepError, match="the data costs are too large for exact integers"):
        multi_object_cut([Layer("a", costs)], step=1e-310)


def test_an_empty_object_is_a_note():
    result = multi_object_cut([Layer("tumour", ZERO + 1.0), Layer("brain", ZERO - 1.0)])
    assert result.notes == ["layer tumour is empty", "layer brain fills the whole image"]
    assert result.energy == -125.0


def test_many_voxels_that_hang_on_one_seed_do_not_outweigh_it():
    # in units of the first step the chain costs twice what an infinite arc does
    shape = (2 * INFINITE // 2**20, 1, 1)
    data = torch.full(shape, 1.0)
    seed = torch.zeros(shape, dtype=torch.bool)
    seed[0] = True
    result = multi_object_cut([Layer("a", data, arcs=[((1, 0, 0), math.inf)], inside=seed)])
    assert result.masks.all()
    assert result.energy == result.bound == shape[0]
    assert result.step == 2.0**-20
    assert result.notes == ["layer a fills the whole image"]


def test_the_step_grows_where_the_sum_of_costs_is_too_large_for_the_solver():
    # in units of the first step the costs make 2^32, and SciPy counts in 32 bits
    shape = (2**12, 1, 1)
    result = multi_object_cut([Layer("a", torch.full(shape, -1.0))], solver="scipy")
    assert result.masks.all()
    assert result.energy == result.bound == -shape[0]
    assert result.step > 2.0**-20
    assert any("rounded" in note for note in result.notes)


def noisy_sphere(noise, seed=0):
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*[np.arange(32.0)] * 3, indexing="ij")) - 15.5
    at[2] *= 1.5
    truth = np.sqrt((at**2).sum(0)) < 10
    image = np.where(truth, 100.0, 60.0) + rng.normal(0, noise, truth.shape)
    far = np.sqrt((at**2).sum(0))
    return (
        torch.from_numpy(image.astype(np.float32)),
        truth,
        torch.from_numpy(far < 4),
        torch.from_numpy(far > 15),
    )


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("unary", ["gaussian_mixture", "histogram"])
def test_a_sphere_in_noise_is_found_where_the_intensities_alone_fail(unary):
    image, truth, inside, outside = noisy_sphere(40.0)
    found = boykov_jolly(image, (1.0, 1.0, 1.5), inside, outside, unary=unary, components=1)
    alone = boykov_jolly(
        image, (1.0, 1.0, 1.5), inside, outside, unary=unary, components=1, weight=0.0
    )
    assert found.proved
    assert found.details["sigma"] == pytest.approx(40 * math.sqrt(2), rel=0.03)
    assert dice(alone.mask("object").numpy(), truth) < 0.6
    assert dice(found.mask("object").numpy(), truth) > 0.88


def test_seeds_and_edges_alone_fill_a_sphere():
    image, truth, inside, outside = noisy_sphere(4.0)
    found = boykov_jolly(image, (1.0, 1.0, 1.5), inside, outside, unary="none", metric="euclidean")
    assert dice(found.mask("object").numpy(), truth) > 0.99
    with pytest.raises(StepError, match="no seeds"):
        boykov_jolly(image, (1, 1, 1), inside, outside & False, unary="none")


def test_overlapping_seeds_are_refused():
    image, _, inside, outside = noisy_sphere(4.0)
    outside = outside.clone()
    outside[16, 16, 16] = True
    with pytest.raises(StepError, match="layer object contradict each other; got 1 voxels"):
        boykov_jolly(image, (1, 1, 1), inside, outside)
