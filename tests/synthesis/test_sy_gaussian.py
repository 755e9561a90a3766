"""Gaussians with few directions against dense covariances and closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.gaussian import Gaussian, held_out_likelihood

CASES, WIDE = 60, 12


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Cases of three strong directions and noise of variance 0.01."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((WIDE, 3)))[0].T
    scores = rng.standard_normal((CASES, 3)) * [3.0, 2.0, 1.0]
    return torch.from_numpy(scores @ directions + 0.1 * rng.standard_normal((CASES, WIDE)) + 4)


def covariance_of(model: Gaussian) -> np.ndarray:
    w = model.directions.double()
    spread = w.T @ (model.variances - model.residual).diag() @ w
    return (spread + model.residual * torch.eye(w.shape[1], dtype=torch.float64)).numpy()


@pytest.mark.parametrize("components", [1, 3, 8])
def test_directions_and_likelihood_are_those_of_the_dense_covariance(rows, components):
    model = Gaussian.fit(rows, components)
    x = rows.numpy()
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    np.testing.assert_allclose(model.variances, values[:components], rtol=1e-8)
    assert model.residual == pytest.approx(values[components:].mean(), rel=1e-8)
    dense = stats.multivariate_normal(x.mean(0), covariance_of(model))
    np.testing.assert_allclose(model.log_likelihood(rows), dense.logpdf(x), rtol=1e-8)


def test_held_out_likelihood_is_that_of_models_fitted_without_the_cases(rows):
    centred = (rows - rows.mean(0)).double()
    found = held_out_likelihood(centred @ centred.T, WIDE, folds=4, seed=3)
    order = torch.randperm(CASES, generator=torch.Generator().manual_seed(3))
    for count in (1, 3, 6):
        each = []
        for part in range(4):
            out = order[part::4]
            kept = np.setdiff1d(np.arange(CASES), out.numpy())
            each.append(Gaussian.fit(rows[kept], count).log_likelihood(rows[out]))
        assert float(found[count]) == pytest.approx(float(torch.cat(each).mean()), rel=1e-8)


def test_as_many_directions_are_kept_as_there_are(rows):
    assert len(Gaussian.fit(rows).variances) == 3
    share = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0)).flip(0)
    two = float(share[:2].sum() / share.sum())
    assert len(Gaussian.fit(rows, two - 1e-6).variances) == 2


@pytest.fixture(scope="module")
def known(rows) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rows.numpy()
    first = 2.0 * x[:, 0] - x[:, 1] + 0.3 * rng.standard_normal(CASES)
    return {"age": first, "sex": (x[:, 2] > np.median(x[:, 2])).astype(float)}


@pytest.mark.parametrize("names", [("age",), ("sex", "age")])
def test_conditional_samples_have_the_conditional_gaussian(rows, known, names):
    model = Gaussian.fit(rows, 3, known=known)
    row = {name: float(np.quantile(known[name], 0.8)) for name in names}
    drawn = model.sample(range(6000), [row] * 6000).numpy()
    # The joint Gaussian of cases, seen along the directions, and what is known; in full.
    w = model.directions.numpy()
    x = rows.numpy()
    seen = (x - x.mean(0)) @ w.T @ w
    c = np.column_stack([known[name] for name in names])
    joint = np.cov(np.column_stack([seen, c]).T, bias=True)
    gain = joint[:WIDE, WIDE:] @ np.linalg.inv(joint[WIDE:, WIDE:])
    mean = x.mean(0) + gain @ (np.array(list(row.values())) - c.mean(0))
    covariance = joint[:WIDE, :WIDE] - gain @ joint[WIDE:, :WIDE]
    scale = np.sqrt(np.trace(covariance))
    assert np.abs(drawn.mean(0) - mean).max() < 0.04 * scale
    assert np.abs(np.cov(drawn.T) - covariance).max() < 0.06 * scale**2


def test_unconditional_samples_have_the_covariance_of_the_directions(rows):
    model = Gaussian.fit(rows, 3)
    drawn = model.sample(range(6000)).numpy()
    wanted = (model.directions.T @ model.variances.diag() @ model.directions).numpy()
    assert np.abs(np.cov(drawn.T) - wanted).max() < 0.06 * np.trace(wanted)


def test_a_case_does_not_depend_on_those_beside_it(rows, known):
    model = Gaussian.fit(rows, 3, known=known)
    row = {"age": float(np.median(known["age"]))}
    both = model.sample([7, 8], [{}, row])
    assert torch.equal(both[1:], model.sample([8], [row]))
    assert not torch.equal(both[:1], model.sample([9]))


def test_a_model_is_read_as_it_was_written(rows, known):
    model = Gaussian.fit(rows, 3, known=known)
    tensors, facts = model.state()
    again = Gaussian.from_state(tensors, facts)
    row = {"sex": 1.0}
    assert torch.equal(again.sample([4], [row]), model.sample([4], [row]))
    with pytest.raises(InputError, match="not those of a Gaussian"):
        Gaussian.from_state(tensors | {"directions": tensors["directions"][:2]}, facts)


def test_what_cannot_be_is_named(rows, known):
    model = Gaussian.fit(rows, 3, known=known)
    with pytest.raises(
        UsageError, match=r"condition age: .* outside what the model was trained on"
    ):
        model.sample([0], [{"age": 1e3}])
    with pytest.raises(UsageError, match="no such condition"):
        model.sample([0], [{"weight": 70.0}])
    with pytest.raises(UsageError, match="cannot be learned"):
        Gaussian.fit(rows, 3, known={"age": np.ones(CASES)})
    with pytest.raises(UsageError, match="follows from the others"):
        Gaussian.fit(rows, 3, known={"a": known["age"], "b": 2 * known["age"] + 1})
    with pytest.raises(UsageError, match="another number of cases"):
        Gaussian.fit(rows, 3, known={"a": known["age"][1:]})
    with pytest.raises(UsageError, match="number of components"):
        Gaussian.fit(rows, 0)
    with pytest.raises(UsageError, match="too few cases"):
        Gaussian.fit(rows[:2])
