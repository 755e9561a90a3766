"""What every signal model keeps: derivatives, precision, shapes, registration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from medpipe.errors import UsageError
from medpipe.qmri.acquisition import Acquisition
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES
from medpipe.qmri.settings import SETTINGS
from medpipe.qmri.signals import MODELS, SignalModel, register_model
from medpipe.qmri.signals._model import _MODELS

SETS = {
    "spgr": {"flip_angle_deg": [2, 5, 15], "repetition_time_s": 0.006, "echo_time_s": 0.002},
    "dess": {
        "flip_angle_deg": [30, 10],
        "repetition_time_s": [0.0175, 0.02],
        "echo_time_s": 0.00467,
    },
    "gradient_echo": {"echo_time_s": [0.003, 0.01, 0.04]},
    "inversion_recovery": {"inversion_time_s": [0.05, 0.4, 1.5], "repetition_time_s": 2.5},
    "inversion_recovery_fixed": {"inversion_time_s": [0.05, 0.4, 1.5]},
    "spin_echo": {"echo_time_s": [0.01, 0.05]},
    "epg_spin_echo": {"echo_time_s": [0.01 * i for i in range(1, 9)], "refocusing_angle_deg": 150},
    "epg_spin_echo_b1": {"echo_time_s": [0.01 * i for i in range(1, 33)]},
    "mp2rage": {
        "inversion_time_s": [0.7, 2.5],
        "flip_angle_deg": [4, 5],
        "repetition_time_s": 0.0075,
        "repetition_time_preparation_s": 5.0,
        "number_shots": 160,
    },
}
RANGES = {
    "t1_s": (0.2, 4.5),
    "t2_s": (0.02, 0.3),
    "t2star_s": (0.01, 0.2),
    "inversion_efficiency": (0.6, 1.0),
    "kappa": (0.6, 1.3),
}
every_model = pytest.mark.parametrize("name", list(SETS))


def acquisition(name):
    return Acquisition(name, SETS[name])


def names_of(model, also=False):
    return (*model.latents, *model.knowns, *(model.also if also else ()))


def draw(names, shape, seed=0):
    rng = np.random.default_rng(seed)
    return {n: torch.from_numpy(rng.uniform(*RANGES[n], shape)) for n in names}


def test_every_model_is_tested_here():
    assert set(SETS) == set(MODELS)


@every_model
@pytest.mark.parametrize("also", [False, True])
def test_derivatives_are_those_of_finite_differences(name, also):
    a = acquisition(name)
    values = draw(names_of(a.signal_model, also), 20)
    for latent in values:

        def f(x, latent=latent):
            return a.signal_model.signal(values | {latent: x}, a.tensors)

        x = values[latent]
        signal, slope = torch.func.jvp(f, (x,), (torch.ones_like(x),))
        step = 1e-5 * x
        # fourth order, so that the difference is good to 1e-9
        wide, near = f(x + 2 * step) - f(x - 2 * step), f(x + step) - f(x - step)
        difference = (8 * near - wide) / (12 * step[:, None])
        assert signal.shape == slope.shape == (20, a.count)
        np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)


@every_model
def test_float32_agrees_with_float64(name):
    a = acquisition(name)
    values = draw(names_of(a.signal_model, True), 2000)
    # the same numbers in both: it is the arithmetic that is compared
    single = {k: v.float() for k, v in values.items()}
    truth = a.signal_model.signal({k: v.double() for k, v in single.items()}, a.tensors)
    out = a.signal_model.signal(single, a.tensors)
    assert out.dtype == torch.float32
    scale = truth.abs().amax(-1, keepdim=True)
    assert ((out - truth).abs() / scale).max() < 1e-5


@every_model
def test_values_broadcast_to_any_shape(name):
    a = acquisition(name)
    names = names_of(a.signal_model)
    whole = draw(names, (3, 4))
    out = a.signal_model.signal(whole, a.tensors)
    assert out.shape == (3, 4, a.count)
    for i in range(3):
        row = a.signal_model.signal({k: v[i] for k, v in whole.items()}, a.tensors)
        np.testing.assert_allclose(row, out[i], rtol=1e-13, atol=1e-15)
    one = a.signal_model.signal({k: v[1, 2] for k, v in whole.items()}, a.tensors)
    np.testing.assert_allclose(one, out[1, 2], rtol=1e-13, atol=1e-15)
    for fixed in names:
        mixed = {k: v if k == fixed else v[0, 0] for k, v in whole.items()}
        assert a.signal_model.signal(mixed, a.tensors).shape == (3, 4, a.count)
        across = {k: v[:, :1] if k == fixed else v[0] for k, v in whole.items()}
        assert a.signal_model.signal(across, a.tensors).shape[-1] == a.count


@every_model
def test_signal_and_derivative_can_be_mapped_over_voxels(name):
    a = acquisition(name)
    values = draw(names_of(a.signal_model), 7)

    def f(v):
        return a.signal_model.signal(v, a.tensors)

    np.testing.assert_allclose(torch.func.vmap(f)(values), f(values), rtol=1e-12, atol=1e-15)
    jacobian = torch.func.vmap(torch.func.jacfwd(f))(values)
    back = torch.func.vmap(torch.func.jacrev(f))(values)
    for latent in a.signal_model.latents:
        assert jacobian[latent].shape == (7, a.count)
        np.testing.assert_allclose(jacobian[latent], back[latent], rtol=1e-9, atol=1e-12)


@every_model
def test_signals_depend_on_no_value_and_no_device_but_those_of_the_voxels(name):
    a = acquisition(name)
    # tensors without data: a branch on a value or a constant left on the host would raise
    values = {n: torch.empty(5, device="meta") for n in names_of(a.signal_model, True)}
    out = a.signal_model.signal(values, a.tensors)
    assert out.device.type == "meta"
    assert out.shape == (5, a.count)


@every_model
@pytest.mark.gpu
def test_signals_on_the_gpu_are_those_of_the_host(name):
    a = acquisition(name)
    values = draw(names_of(a.signal_model), 100)
    out = a.signal_model.signal({k: v.cuda() for k, v in values.items()}, a.tensors)
    assert out.is_cuda
    np.testing.assert_allclose(
        out.cpu(), a.signal_model.signal(values, a.tensors), rtol=1e-11, atol=1e-14
    )


@every_model
def test_kappa_is_1_where_it_is_not_given(name):
    a = acquisition(name)
    values = draw(a.signal_model.latents, 5)
    given = values | {"kappa": torch.ones(5, dtype=torch.float64)}
    plain = a.signal_model.signal(values, a.tensors)
    if "kappa" in a.signal_model.knowns:
        np.testing.assert_array_equal(a.signal_model.signal(given, a.tensors), plain)
        less = values | {"kappa": torch.full((5,), 0.8, dtype=torch.float64)}
        assert (a.signal_model.signal(less, a.tensors) - plain).abs().max() > 1e-3


@every_model
def test_models_say_what_they_are(name):
    model = MODELS[name]
    assert model.reference.startswith("10.")
    assert model.signal.__doc__
    assert set(model.single) <= {*model.required, *model.optional}
    assert all(n in QUANTITIES for n in (*model.latents, *model.knowns, *model.also))
    labels = acquisition(name).labels
    assert len(labels) == len(set(labels)) == acquisition(name).count


@pytest.fixture
def own_model():
    def signal(values, settings):
        t1 = values["t1_s"].unsqueeze(-1)
        return 1 - torch.exp(-settings["repetition_time_s"].to(t1) / t1)

    model = SignalModel(
        name="saturation_recovery",
        latents=("t1_s",),
        knowns=(),
        required=("repetition_time_s",),
        optional={},
        signal=signal,
        measured=lambda settings: settings["repetition_time_s"].numel(),
        magnitude=True,
        reference="10.1000/own",
    )
    register_model(model)
    yield model
    del _MODELS[model.name]


def test_a_model_of_ones_own_works_in_a_protocol(own_model):
    record = {"model": own_model.name, "repetition_time_s": [0.5, 2.0]}
    protocol = Protocol.from_dict({"acquisitions": [record]})
    assert protocol.latents == ("m0", "t1_s")
    assert protocol.labels == ("saturation_recovery TR 500 ms", "saturation_recovery TR 2000 ms")
    out = protocol.signal({"t1_s": torch.tensor(1.0), "m0": torch.tensor(100.0)})
    np.testing.assert_allclose(out, 100 * (1 - np.exp([-0.5, -2.0])), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "a model of this name is there already"),
        ({"name": "x", "latents": ("t3_s",)}, "t3_s is no quantity"),
        ({"name": "x", "latents": ("m0", "t1_s")}, "m0 is no quantity"),
        ({"name": "x", "required": ("flip_angle",)}, "flip_angle is no setting"),
    ],
)
def test_a_model_without_units_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        register_model(dataclasses.replace(MODELS["spgr"], **change))


def test_settings_and_quantities_have_units():
    for name, s in SETTINGS.items():
        suffix = {"s": "_s", "deg": "_deg", "1": "", "count": ""}[s.unit]
        assert name.endswith(suffix)
        assert s.description
        assert s.plausible[0] < s.plausible[1]
    for name, q in QUANTITIES.items():
        assert name.endswith("_s") == (q.unit == "s")
