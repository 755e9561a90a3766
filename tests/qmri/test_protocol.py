"""Protocols: files, checks, one form, and the signals of all acquisitions together."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.errors import InputError, UsageError
from medpipe.qmri.acquisition import Acquisition
from medpipe.qmri.protocol import Protocol, protocol_from_settings, read_protocol
from medpipe.qmri.quantities import check_quantity
from medpipe.qmri.settings import check_setting
from medpipe.qmri.signals import MODELS

PAPER = {
    "acquisitions": [
        {
            "model": "spgr",
            "flip_angle_deg": [15, 5],
            "repetition_time_s": 0.0122,
            "echo_time_s": 0.00467,
        },
        {
            "model": "dess",
            "flip_angle_deg": 30,
            "repetition_time_s": 0.0175,
            "echo_time_s": 0.00467,
        },
    ]
}


def protocol(*entries):
    return Protocol.from_dict({"acquisitions": list(entries)})


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def test_the_protocol_of_the_paper():
    p = Protocol.from_dict(PAPER)
    assert p.count == 4
    assert p.latents == ("m0", "t1_s", "t2_s")
    assert p.knowns == ("kappa",)
    assert p.labels == ("SPGR 15°", "SPGR 5°", "DESS 30° echo 1", "DESS 30° echo 2")
    out = p.signal({"m0": tensor(0.77), "t1_s": tensor(0.832), "t2_s": tensor(0.0796)})
    np.testing.assert_allclose(out, [0.0568, 0.0503, 0.0868, 0.0560], rtol=0, atol=5e-5)


def test_latents_come_in_one_order_whatever_the_order_of_the_acquisitions():
    entries = [
        {"model": "gradient_echo", "echo_time_s": [0.005, 0.01]},
        {"model": "inversion_recovery", "inversion_time_s": [0.1, 0.5]},
        {"model": "epg_spin_echo_b1", "echo_time_s": [0.01, 0.02]},
        PAPER["acquisitions"][0],
    ]
    latents = ("m0", "t1_s", "t2_s", "t2star_s", "inversion_efficiency", "kappa")
    assert protocol(*entries).latents == protocol(*entries[::-1]).latents == latents
    # a scaling that is estimated is not asked for
    assert protocol(*entries).knowns == ()


def test_a_latent_of_one_acquisition_reaches_the_others():
    t1, t2 = tensor(0.8), tensor(0.05)
    spgr, dess = (protocol(a) for a in PAPER["acquisitions"])
    both = Protocol.from_dict(PAPER)
    values = {"t1_s": t1, "t2_s": t2}
    decay = math.exp(-0.00467 / 0.05)
    np.testing.assert_allclose(both.signal(values)[:2], decay * spgr.signal(values))
    np.testing.assert_array_equal(both.signal(values)[2:], dess.signal(values))
    # a protocol without T2 has it in M0, though a value is given
    np.testing.assert_array_equal(spgr.signal(values), spgr.signal({"t1_s": t1}))


def test_magnitudes_are_the_absolute_of_the_signed_signal():
    ir = {"model": "inversion_recovery_fixed", "inversion_time_s": [0.05, 2.0]}
    values = {"t1_s": tensor([0.5, 1.0]), "m0": tensor([1.0, 3.0])}
    stored, signed = protocol(ir), protocol(ir | {"magnitude": False})
    assert (signed.signal(values)[:, 0] < 0).all()
    np.testing.assert_array_equal(signed.signal(values).abs(), stored.signal(values))
    np.testing.assert_array_equal(stored.signal(values, magnitude=False), signed.signal(values))
    assert signed.difference(stored) == [
        "acquisition 1 (inversion_recovery_fixed): signed values against magnitudes"
    ]


def test_values_of_different_shapes_are_broadcast_over_all_acquisitions():
    p = protocol(*PAPER["acquisitions"], {"model": "spin_echo", "echo_time_s": 0.05})
    out = p.signal({"t1_s": torch.rand(3, 1) + 0.5, "t2_s": torch.rand(4) / 10 + 0.05})
    assert out.shape == (3, 4, 5)
    assert out.dtype == torch.float32
    with pytest.raises(UsageError, match="protocol · signal: t2_s is missing"):
        p.signal({"t1_s": torch.ones(3)})


def test_signals_made_in_inference_mode_leave_derivatives_possible():
    p = Protocol.from_dict(PAPER)
    values = {"t1_s": tensor([0.8]), "t2_s": tensor([0.08])}
    with torch.inference_mode():
        p.signal(values)
    t1 = values["t1_s"].clone().requires_grad_()
    p.signal(values | {"t1_s": t1}).sum().backward()
    assert torch.isfinite(t1.grad).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"repetition_time_s": 0.0122}, {"repetition_time_s": [0.0122, 0.0122]}),
        ({"echo_time_s": 0.0}, {}),
        ({"magnitude": True}, {}),
    ],
)
def test_equal_acquisitions_have_one_form(one, other):
    base = {"model": "spgr", "flip_angle_deg": [15, 5], "repetition_time_s": 0.0122}
    a, b = protocol(base | one), protocol(base | other)
    assert a == b
    assert hash(a) == hash(b)
    assert a.to_dict() == b.to_dict()
    assert a.difference(b) == []


def test_repeated_measurements_are_counted():
    p = protocol({"model": "spgr", "flip_angle_deg": [15, 15], "repetition_time_s": 0.01})
    assert p.count == 2
    p = protocol({"model": "spgr", "flip_angle_deg": 15, "repetition_time_s": [0.01, 0.01, 0.01]})
    assert p.count == 3
    assert p.acquisitions[0].settings["flip_angle_deg"] == (15.0, 15.0, 15.0)


def test_protocols_can_be_copied_and_not_changed():
    p = Protocol.from_dict(PAPER)
    assert copy.deepcopy(p) == p
    with pytest.raises(TypeError):
        p.acquisitions[0].settings["echo_time_s"] = (1.0,)
    with pytest.raises(AttributeError):
        p.acquisitions = ()


def test_differences_are_named():
    p = Protocol.from_dict(PAPER)
    spgr, dess = PAPER["acquisitions"]
    assert p.difference(protocol(spgr | {"flip_angle_deg": [15, 10]}, dess)) == [
        "acquisition 1 (spgr): flip_angle_deg 15, 5 against 15, 10"
    ]
    assert p.difference(protocol(spgr)) == ["2 acquisitions against 1"]
    assert p.difference(protocol(dess, spgr)) == [
        "acquisition 1: model spgr against dess",
        "acquisition 2: model dess against spgr",
    ]
    more = p.difference(protocol(spgr, dess | {"flip_angle_deg": [30, 30]}))
    assert more == ["acquisition 2 (dess): flip_angle_deg 30 against 30, 30"]
    assert p.difference(protocol(spgr | {"repetition_time_s": 12.2e-3 + 1e-12}, dess)) == []
    train = {"model": "epg_spin_echo", "echo_time_s": [0.01, 0.02]}
    given = protocol(train | {"refocusing_angle_deg": 160, "echo_spacing_s": 0.01})
    assert protocol(train).difference(given) == [
        "acquisition 1 (epg_spin_echo): refocusing_angle_deg 180 against 160",
        "acquisition 1 (epg_spin_echo): echo_spacing_s not given against 0.01",
    ]


SPGR = {"model": "spgr", "flip_angle_deg": [5, 15, 20], "repetition_time_s": 0.01}
IR = {"model": "inversion_recovery", "inversion_time_s": [0.05, 0.5]}
MP2RAGE = {
    "model": "mp2rage",
    "inversion_time_s": [0.7, 2.5],
    "flip_angle_deg": [4, 5],
    "repetition_time_s": 0.0075,
    "repetition_time_preparation_s": 5.0,
    "number_shots": 160,
}
EPG = {"model": "epg_spin_echo", "echo_time_s": [0.01, 0.02, 0.03]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (SPGR | {"model": "spgrr"}, r'acquisition 1: .*not a known.*did you mean "spgr"\?'),
        ({"flip_angle_deg": 3}, "acquisition 1: model is missing; expected spgr | dess"),
        (SPGR | {"model": None}, "not a known signal model"),
        (SPGR | {"flip_angle": 3}, r"unknown setting 'flip_angle'.*mean \"flip_angle_deg\"\?"),
        ({"model": "spgr", "flip_angle_deg": 5}, r"\(spgr\): repetition_time_s is missing"),
        (
            SPGR | {"repetition_time_s": 1830},
            r"repetition_time_s is not plausible; expected 0.001 to 1 s, got 1830",
        ),
        (SPGR | {"repetition_time_s": 12.2}, r"got 12.2 \(in ms\?\). Next: give seconds"),
        (IR | {"repetition_time_s": 1830}, r"expected 0.05 to 60 s, got 1830 \(in ms\?\)"),
        (IR | {"inversion_time_s": [50, 500]}, r"inversion_time_s .*got 50 \(in ms\?\)"),
        (SPGR | {"flip_angle_deg": 0.26}, r"got 0.26 \(in radians\?\). Next: give degrees"),
        (SPGR | {"flip_angle_deg": -5}, "flip_angle_deg is not plausible.*got -5$"),
        (SPGR | {"flip_angle_deg": math.nan}, "flip_angle_deg is not finite"),
        (SPGR | {"flip_angle_deg": 10**400}, "flip_angle_deg is not finite"),
        (SPGR | {"flip_angle_deg": True}, "not a number.*got true or false"),
        (SPGR | {"flip_angle_deg": ["3", "5"]}, "not a number.*got a text.*without quotes"),
        (SPGR | {"flip_angle_deg": [[3, 5]]}, "flip_angle_deg is not a number"),
        (SPGR | {"flip_angle_deg": []}, "flip_angle_deg is empty"),
        (
            SPGR | {"echo_time_s": [0.001, 0.002, 0.003, 0.004, 0.005]},
            "flip_angle_deg has 3 values and echo_time_s has 5",
        ),
        (SPGR | {"echo_time_s": [0.001, 0.002, 0.003]}, "nothing in the protocol measures"),
        (SPGR | {"echo_time_s": 0.011}, "echo_time_s is not below repetition_time_s"),
        (SPGR | {"magnitude": "yes"}, "magnitude is not true or false"),
        (
            {
                "model": "dess",
                "flip_angle_deg": 30,
                "repetition_time_s": 0.02,
                "echo_time_s": 0.012,
            },
            "more than half of repetition_time_s",
        ),
        (IR | {"repetition_time_s": 0.3}, "inversion_time_s is above repetition_time_s"),
        (EPG | {"echo_time_s": [0.01, 0.025]}, "no multiples of the echo spacing"),
        (EPG | {"echo_time_s": [0.02, 0.01]}, "does not rise"),
        (EPG | {"echo_time_s": [10, 20]}, r"echo_time_s.*in ms\?"),
        (EPG | {"refocusing_angle_deg": [180, 160, 160]}, "3 different values; expected one"),
        (EPG | {"refocusing_angle_deg": math.pi}, r"in radians\?"),
        (MP2RAGE | {"inversion_time_s": 0.7}, "inversion_time_s has 1 values and needs 2"),
        (MP2RAGE | {"inversion_time_s": [0.5, 2.5]}, "too short for the excitations before"),
        (MP2RAGE | {"inversion_time_s": [0.7, 1.8]}, "too close for the excitations"),
        (MP2RAGE | {"repetition_time_preparation_s": 3.0}, "too short for the second train"),
        (MP2RAGE | {"number_shots_before": 200}, "more than number_shots"),
        (MP2RAGE | {"partial_fourier": 75}, r"partial_fourier .*in percent\?"),
        (MP2RAGE | {"number_shots": 10000}, "number_shots is not plausible.*got 10000$"),
        ("spgr", "acquisition 1: it is no table"),
    ],
)
def test_wrong_settings_are_refused_by_name(entry, message):
    with pytest.raises(UsageError, match=message) as caught:
        protocol(entry)
    assert str(caught.value).startswith("protocol")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "protocol: it is no table; expected acquisitions"),
        ({}, "acquisitions is no list"),
        ({"acquisitions": []}, "acquisitions is no list"),
        ({"acquisition": [SPGR]}, r"unknown field 'acquisition'.*did you mean \"acquisitions\"\?"),
    ],
)
def test_wrong_records_are_refused(record, message):
    with pytest.raises(UsageError, match=message):
        Protocol.from_dict(record)


def test_echo_times_of_two_acquisitions_must_agree_without_a_decay():
    a = {"model": "spgr", "flip_angle_deg": 5, "repetition_time_s": 0.02, "echo_time_s": 0.002}
    with pytest.raises(UsageError, match=r"got 0.002, 0.006 s"):
        protocol(a, a | {"echo_time_s": 0.006})
    assert protocol(a, a | {"echo_time_s": 0.0022}).count == 2
    with_t2 = protocol(a, a | {"echo_time_s": 0.006}, PAPER["acquisitions"][1])
    assert with_t2.count == 4


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (100, r"kappa is not plausible; expected 0.2 to 3, got 100 \(in percent\?\)"),
        (1000, r"got 1000 \(in thousandths\?\)"),
        (0, "got 0$"),
        (-1, "got -1$"),
        (math.inf, "not finite"),
    ],
)
def test_a_scaling_in_percent_is_named(value, message):
    with pytest.raises(UsageError, match=message):
        check_setting("kappa", value, "b1")
    assert check_setting("kappa", np.float32(0.5), "b1") == 0.5


def test_quantities_have_a_unit():
    assert check_quantity("t1_s", 1.2, "bounds") == 1.2
    with pytest.raises(UsageError, match=r"bounds: t1_s .*got 1200 \(in ms\?\)"):
        check_quantity("t1_s", 1200, "bounds")
    assert check_quantity("m0", 5e4, "bounds") == 5e4
    with pytest.raises(UsageError, match="m0 is not finite"):
        check_quantity("m0", math.nan, "bounds")


# -- files


def test_a_file_is_read_as_json_and_as_yaml(tmp_path):
    p = Protocol.from_dict(PAPER)
    (tmp_path / "p.json").write_text(json.dumps(PAPER))
    assert read_protocol(tmp_path / "p.json") == p
    text = """
acquisitions:
  - {model: spgr, flip_angle_deg: [15, 5], repetition_time_s: 0.0122, echo_time_s: 0.00467}
  - model: dess
    flip_angle_deg: 30
    repetition_time_s: 0.0175
    echo_time_s: 0.00467
"""
    (tmp_path / "p.yaml").write_text(text)
    assert read_protocol(tmp_path / "p.yaml") == p


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", "{", r"^p.json:1: the file is not valid JSON"),
        ("p.json", b"\xff\xfe\xfd", "not valid JSON"),
        ("p.json", "[" * 50_000, "not valid JSON"),
        ("p.json", '{"acquisitions": [], "acquisitions": []}', "a field is there twice"),
        ("p.json", '{"acquisitions": [{"model": "spgr", "flip_angle_deg": NaN}]}', "missing"),
        ("p.json", "1" + " " * 100_000, "too long; expected at most 100 kB"),
        ("p.json", "3", "p.json: it is no table"),
        ("p.yaml", "a: [", "p.yaml:1: the file is not valid YAML"),
        ("p.yaml", "!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("p.yaml", "acquisitions: []\nacquisitions: []", "a field is there twice"),
        ("p.yaml", "!!map text", "not valid YAML"),
        ("p.yaml", "acquisitions: 2026-99-99", "not valid YAML"),
        ("p.toml", "", "unknown kind of protocol file; expected .json or .yaml"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, name, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        read_protocol(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"^absent.json: the protocol file cannot be read"):
        read_protocol(tmp_path / "absent.json")


def test_yaml_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    (tmp_path / "p.yml").write_text("acquisitions: []")
    with pytest.raises(UsageError, match=r"PyYAML is not installed. Next: write the protocol"):
        read_protocol(tmp_path / "p.yml")


# -- settings from headers


def headers(model, **lists):
    n = len(next(iter(lists.values())))
    return protocol_from_settings([{k: v[i] for k, v in lists.items()} for i in range(n)], model)


def test_settings_of_headers_make_the_protocol():
    p = headers(
        "spgr", flip_angle_deg=["3", "20"], repetition_time_s=["0.015", 0.015], other=[1, 2]
    )
    assert p == protocol({"model": "spgr", "flip_angle_deg": [3, 20], "repetition_time_s": 0.015})
    p = headers("inversion_recovery", inversion_time_s=[0.05, 1.0], complex_part=["real"] * 2)
    assert p == protocol(
        {"model": "inversion_recovery", "inversion_time_s": [0.05, 1], "magnitude": False}
    )
    p = headers("spin_echo", echo_time_s=[[0.01], [0.02]], complex_part=["magnitude", None])
    assert p == protocol({"model": "spin_echo", "echo_time_s": [0.01, 0.02]})
    one = headers("spgr", flip_angle_deg=[3, 20], repetition_time_excitation_s=[0.015, 0.015])
    assert one.acquisitions[0].settings["repetition_time_s"] == (0.015,)


def test_both_echoes_of_a_dess_are_one_set_of_settings():
    p = headers(
        "dess",
        flip_angle_deg=[30, 30, 10, 10],
        repetition_time_s=[0.0175] * 4,
        echo_time_s=[0.00467, 0.01283, 0.00467, 0.01283],
    )
    assert p.count == 4
    assert p.labels[1:3] == ("DESS 30° echo 2", "DESS 10° echo 1")
    assert p.acquisitions[0].settings["echo_time_s"] == (0.00467,)
    with pytest.raises(InputError, match=r"no sets of 2; expected a multiple of 2, got 3"):
        headers("dess", flip_angle_deg=[30] * 3)


def test_headers_of_mp2rage_make_one_protocol():
    same = {k: [v] * 2 for k, v in MP2RAGE.items() if k not in ("model", "inversion_time_s")}
    same |= {"flip_angle_deg": [4, 5], "number_shots": [120, 120], "number_shots_before": [40, 40]}
    p = headers("mp2rage", inversion_time_s=["0.7", "2.5"], **same)
    assert p == protocol(MP2RAGE | {"number_shots": 120, "number_shots_before": 40})
    assert p.labels == ("MP2RAGE INV1", "MP2RAGE INV2")


@pytest.mark.parametrize(
    ("model", "lists", "message"),
    [
        (
            "spgr",
            {"flip_angle_deg": [3, None], "repetition_time_s": [0.01, 0.01]},
            "image 2: flip_angle_deg is missing. Next: give FlipAngle in its sidecar",
        ),
        (
            "spgr",
            {"flip_angle_deg": [3, 5], "repetition_time_s": [0.01, 15]},
            r"image 2: repetition_time_s is not plausible.*got 15 \(in ms\?\)",
        ),
        ("spgr", {"flip_angle_deg": [3, "5°"]}, "image 2: flip_angle_deg is not a number; got"),
        ("spgr", {"flip_angle_deg": [3, [5, 6]]}, "image 2: flip_angle_deg is not a number"),
        (
            "spin_echo",
            {"echo_time_s": [0.01, 0.02], "complex_part": ["magnitude", "phase"]},
            "not all of one usable part",
        ),
        (
            "epg_spin_echo",
            {"echo_time_s": [0.01, 0.025]},
            "images of epg_spin_echo: echo_time_s are no multiples",
        ),
        (
            "spgr",
            {
                "flip_angle_deg": [3, 5],
                "repetition_time_s": [0.01, 0.01],
                "echo_time_s": [0.002, 0.004],
            },
            "images of spgr: echo_time_s differs",
        ),
        ("mp2rage", {k: [v] * 3 for k, v in MP2RAGE.items() if k != "model"}, "inversion_time_s"),
    ],
)
def test_wrong_headers_are_refused_with_the_image(model, lists, message):
    with pytest.raises(InputError, match=message) as caught:
        headers(model, **lists)
    assert "5°" not in str(caught.value)


def test_no_images_and_no_model_are_refused():
    with pytest.raises(InputError, match="there are no images"):
        protocol_from_settings([], "spgr")
    with pytest.raises(UsageError, match=r'did you mean "mp2rage"\?'):
        protocol_from_settings([{}], "MP2RAGE")


# -- over random protocols


def numbers(low, high, count):
    return st.lists(st.floats(low, high), min_size=count, max_size=count)


@st.composite
def entries(draw):
    model = draw(st.sampled_from(sorted(MODELS)))
    n = draw(st.integers(1, 4))
    one = {"model": model}
    if model in ("spgr", "dess"):
        one["flip_angle_deg"] = draw(numbers(1, 90, n))
        one["repetition_time_s"] = draw(st.one_of(st.floats(0.005, 1), numbers(0.005, 1, n)))
        one["echo_time_s"] = 0.002
    elif model.startswith("inversion"):
        one["inversion_time_s"] = draw(numbers(0, 5, n))
        if draw(st.booleans()):
            one["repetition_time_s"] = draw(st.floats(5, 20))
    elif model.startswith("epg"):
        spacing = draw(st.floats(0.004, 0.05))
        one["echo_time_s"] = [spacing * i for i in range(1, n + 1)]
        one["refocusing_angle_deg"] = draw(st.floats(60, 180))
    elif model == "mp2rage":
        one |= MP2RAGE | {"flip_angle_deg": draw(numbers(1, 12, 2))}
        one["partial_fourier"] = draw(st.floats(0.6, 1))
    else:
        one["echo_time_s"] = draw(numbers(0.001, 0.3, n))
    if draw(st.booleans()):
        one["magnitude"] = draw(st.booleans())
    return one


VALUES = {
    "t1_s": st.floats(0.05, 5),
    "t2_s": st.floats(0.005, 2),
    "t2star_s": st.floats(0.002, 1),
    "inversion_efficiency": st.floats(0.3, 1),
    "kappa": st.floats(0.3, 1.6),
}


@settings(max_examples=150, deadline=None)
@given(st.lists(entries(), min_size=1, max_size=3), st.data())
def test_random_protocols(records, data):
    p = protocol(*records)
    again = Protocol.from_dict(json.loads(json.dumps(p.to_dict())))
    assert again == p
    assert again.difference(p) == p.difference(again) == []
    assert len(p.labels) == p.count == sum(a.count for a in p.acquisitions)
    names = [n for n in (*p.latents, *p.knowns) if n != "m0"]
    values = {n: tensor([data.draw(VALUES[n]) for _ in range(2)]) for n in names}
    out = p.signal(values)
    assert out.shape == (2, p.count)
    assert torch.isfinite(out).all()
    assert (out.abs() <= 1 + 1e-9).all()
    signed = p.signal(values, magnitude=False)
    stored = torch.tensor([a.magnitude for a in p.acquisitions for _ in range(a.count)])
    np.testing.assert_array_equal(torch.where(stored, signed.abs(), signed), out)
    m0 = tensor([2.5, 1e4])
    np.testing.assert_allclose(p.signal(values | {"m0": m0}), out * m0[:, None], rtol=1e-14)


def test_an_acquisition_of_its_own_names_itself():
    with pytest.raises(UsageError, match=r"^acquisition \(spgr\): flip_angle_deg is missing"):
        Acquisition("spgr", {"repetition_time_s": 0.01})
    with pytest.raises(UsageError, match="a protocol needs acquisitions"):
        Protocol(())
