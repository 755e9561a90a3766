"""Gradient vector flow against direct solves, a closed form and symmetry."""

import numpy as np
import pytest
import torch
from scipy import ndimage, sparse

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.vector_field import gradient_vector_flow, smooth_mask

MM = (0.8, 1.1, 2.3)


def bumps(shape, seed=0):
    noise = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(ndimage.gaussian_filter(noise, 1.5))


def ball(shape, spacing, radius_mm, centre=None):
    axes = [
        (np.arange(n) - (n - 1) / 2 if centre is None else np.arange(n) - centre[a]) * spacing[a]
        for a, n in enumerate(shape)
    ]
    r = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0)
    return torch.from_numpy(r <= radius_mm)


def second_difference(n, step):
    """The 1-D Laplacian with Neumann ends as a sparse matrix."""
    d = sparse.diags([-np.ones(n - 1), np.ones(n - 1)], [0, 1], shape=(n - 1, n)) / step
    return -(d.T @ d)


def direct(f, spacing, mu, kind, kappa):
    """The Euler equations as their authors state them, by a sparse direct solve."""
    u = np.stack(np.gradient(f, *spacing))
    length = np.sqrt((u**2).sum(0))
    u, length = u / length.max(), length / length.max()
    eyes = [sparse.eye(n) for n in f.shape]
    parts = []
    for axis, (n, step) in enumerate(zip(f.shape, spacing, strict=True)):
        factors = [second_difference(n, step) if a == axis else eyes[a] for a in range(3)]
        parts.append(sparse.kron(sparse.kron(factors[0], factors[1]), factors[2]))
    laplace = sum(parts)
    if kind == "gvf":
        smooth, data = np.full(f.size, mu), (length**2).ravel()
    else:
        g = np.exp(-length / kappa).ravel()
        smooth, data = mu * g, 1 - g
    system = (sparse.diags(data) - sparse.diags(smooth) @ laplace).tocsc()
    solved = [sparse.linalg.spsolve(system, data * part.ravel()) for part in u]
    return np.stack(solved).reshape(3, *f.shape)


def angle_deg(a, b):
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


@pytest.mark.parametrize(("kind", "mu"), [("gvf", 0.7), ("gvf", 20.0), ("ggvf", 0.7)])
@pytest.mark.parametrize("multilevel", [True, False])
def test_equals_a_direct_solve_of_the_euler_equations(kind, mu, multilevel):
    f = bumps((15, 13, 10))
    field = gradient_vector_flow(f, MM, mu, kind, kappa=0.3, tol=1e-8, multilevel=multilevel)
    assert field.converged
    assert field.change <= 1e-8
    expected = direct(f.numpy(), MM, mu, kind, 0.3)
    assert np.abs(field.vectors.numpy() - expected).max() < 1e-6


def test_single_precision_agrees_with_a_direct_solve():
    f = bumps((15, 13, 10))
    field = gradient_vector_flow(f.float(), MM, 2.0, tol=1e-6)
    assert field.vectors.dtype == torch.float32
    expected = direct(f.numpy(), MM, 2.0, "gvf", 0.1)
    assert np.abs(field.vectors.numpy() - expected).max() < 1e-4


def test_closed_form_in_one_dimension():
    # f = |x|: mu v'' = v - sign(x) on the lattice has v = sign(x) (1 - q^|k|)
    n, step, mu = 81, 0.5, 3.0
    x = (torch.arange(n, dtype=torch.float64) - n // 2) * step
    field = gradient_vector_flow(x.abs()[:, None, None], step, mu, tol=1e-10)
    b = 2 + step**2 / mu
    q = (b - np.sqrt(b * b - 4)) / 2
    k = np.arange(n) - n // 2
    expected = np.sign(k) * (1 - q ** np.abs(k))
    inner = np.abs(k) < 15  # further out the end of the lattice is felt
    np.testing.assert_allclose(field.vectors[0, :, 0, 0].numpy()[inner], expected[inner], atol=1e-5)
    assert float(field.vectors[1:].abs().max()) == 0


def test_ball_gives_radial_vectors_from_both_sides():
    spacing, shape = (1.0, 1.0, 1.0), (41, 41, 41)
    field = gradient_vector_flow(ball(shape, spacing, 11.0), spacing, tol=1e-5)
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    radial = -torch.stack(axes)
    r = radial.norm(dim=0)
    off = angle_deg(field.vectors, radial)
    assert float(off[(r > 1.5) & (r < 17)].max()) < 4
    assert float(off[(r > 1.5) & (r < 17)].mean()) < 0.8
    # harmonic inside: the length falls linearly to the centre
    length = field.vectors.norm(dim=0)
    assert float(length[20, 20, 20]) < 1e-3
    assert float(length[25, 20, 20] / length[23, 20, 20]) == pytest.approx(5 / 3, rel=0.03)


def test_turning_the_image_turns_the_field():
    f = bumps((16, 14, 18), 3)
    there = gradient_vector_flow(f, MM, tol=1e-8).vectors
    turned = gradient_vector_flow(
        f.permute(2, 0, 1).flip(1), (MM[2], MM[0], MM[1]), tol=1e-8
    ).vectors
    back = turned.flip(2).permute(0, 2, 3, 1)[[1, 2, 0]]
    back[0] *= -1
    np.testing.assert_allclose(back.numpy(), there.numpy(), atol=1e-6)


def test_anisotropic_samples_of_one_object_give_the_same_directions():
    fine = gradient_vector_flow(ball((48, 48, 48), (1, 1, 1), 13.0), (1, 1, 1), tol=1e-5).vectors
    coarse = gradient_vector_flow(ball((48, 48, 24), (1, 1, 2), 13.0), (1, 1, 2), tol=1e-5).vectors
    mean = (fine[..., ::2] + fine[..., 1::2]) / 2
    use = mean.norm(dim=0) > 0.05
    off = angle_deg(mean, coarse)[use]
    assert float(off.mean()) < 1.5
    assert float(off.max()) < 12
    wrong = gradient_vector_flow(ball((48, 48, 24), (1, 1, 2), 13.0), (1, 1, 1), tol=1e-5).vectors
    assert float(angle_deg(mean, wrong)[use].mean()) > 5


def test_units_of_the_image_do_not_matter():
    f = bumps((12, 12, 12))
    a, b = (gradient_vector_flow(f * s, 1.0, tol=1e-6).vectors for s in (1.0, 1000.0))
    np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-9)


def test_coarse_grids_save_steps_on_the_fine_one():
    mask = ball((64, 56, 40), (1, 1, 1.5), 20.0)
    slow = gradient_vector_flow(mask, (1, 1, 1.5), multilevel=False)
    fast = gradient_vector_flow(mask, (1, 1, 1.5))
    assert slow.converged
    assert fast.converged
    assert fast.iterations < slow.iterations / 2
    assert slow.coarse_iterations == ()
    assert len(fast.coarse_iterations) >= 2


def test_says_when_it_did_not_converge():
    field = gradient_vector_flow(
        ball((40, 40, 40), (1, 1, 1), 12), 1.0, tol=1e-7, max_iterations=7, multilevel=False
    )
    assert not field.converged
    assert field.iterations == 7
    assert field.change > 1e-7


def test_generalised_flow_keeps_edges_that_the_plain_one_rounds():
    gap = torch.zeros(40, 20, 20, dtype=torch.bool)
    gap[:18], gap[22:] = True, True  # a slit of four voxels: the normals of its walls oppose
    plain = gradient_vector_flow(gap, 1.0, 30.0, "gvf", smooth_mm=1.0, tol=1e-6).vectors
    general = gradient_vector_flow(gap, 1.0, 30.0, "ggvf", smooth_mm=1.0, tol=1e-6).vectors
    assert float(general[0, 17].abs().min()) > 1.5 * float(plain[0, 17].abs().max())


def test_smoothed_mask_keeps_its_volume_and_its_width_is_in_mm():
    mask = ball((40, 40, 20), (1, 1, 2), 9.0)
    smooth = smooth_mask(mask, (1.0, 1.0, 2.0), 2.0)
    assert float(smooth.sum()) == pytest.approx(float(mask.sum()), rel=5e-3)
    expected = ndimage.gaussian_filter(mask.numpy().astype(float), (2, 2, 1), truncate=3)
    np.testing.assert_allclose(smooth.numpy(), expected, atol=0.02)


def test_an_axis_of_one_voxel_is_allowed():
    flat = ball((30, 30, 1), (1, 1, 1), 8.0)
    field = gradient_vector_flow(flat, 1.0)
    assert field.vectors.shape == (3, 30, 30, 1)
    assert float(field.vectors[2].abs().max()) == 0


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (torch.zeros(4, 4), "axes"),
        (torch.zeros(4, 4, 4), "constant"),
        (torch.ones(4, 4, 4, dtype=torch.bool), "neither empty nor full"),
        (torch.full((4, 4, 4), float("nan")), "NaN"),
        (torch.ones(4, 4, 4, dtype=torch.int32), "int32"),
    ],
)
def test_unusable_images_are_refused_in_one_line(image, text):
    with pytest.raises(StepError, match=text) as caught:
        gradient_vector_flow(image, 1.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mu_mm2": 0.0},
        {"mu_mm2": float("nan")},
        {"kappa": -1.0},
        {"tol": 0.0},
        {"max_iterations": 0},
        {"smooth_mm": 0.0},
        {"kind": "gvff"},
        {"spacing_mm": (1, 0, 1)},
    ],
)
def test_wrong_parameters_are_refused(wrong):
    mask = ball((8, 8, 8), (1, 1, 1), 3)
    with pytest.raises(UsageError):
        gradient_vector_flow(mask, **({"spacing_mm": 1.0} | wrong))
