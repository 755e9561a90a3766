"""The search of a dictionary against the same search written plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.errors import UsageError
from medpipe.qmri import atoms
from medpipe.qmri.atoms import best_atoms, kappa_bins, make_atoms, mesh
from medpipe.qmri.dictionary import DictionarySearch
from medpipe.qmri.estimate import Flag
from medpipe.qmri.least_squares import NonlinearLeastSquares
from medpipe.qmri.protocol import Acquisition, Protocol

SPGR = {"flip_angle_deg": (15, 5), "repetition_time_s": 0.0122, "echo_time_s": 0.00467}
DESS = {"flip_angle_deg": 30, "repetition_time_s": 0.0175, "echo_time_s": 0.00467}
T1_T2 = Protocol((Acquisition("spgr", SPGR), Acquisition("dess", DESS)))
VFA = Protocol((Acquisition("spgr", {"flip_angle_deg": (2, 5, 12), "repetition_time_s": 0.0054}),))
RECOVERY = Protocol(
    (
        Acquisition(
            "inversion_recovery", {"inversion_time_s": (0.1, 0.4, 0.9, 2), "repetition_time_s": 4}
        ),
    )
)
SUPPORT = {"t1_s": (0.3, 3.0), "t2_s": (0.03, 0.4)}


def random_signal(protocol: Protocol, count: int, noise: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    values = {"m0": torch.tensor(rng.uniform(100, 900, count))}
    for name in protocol.latents[1:]:
        low, high = SUPPORT.get(name, (0.85, 1.0))
        values[name] = torch.tensor(np.exp(rng.uniform(np.log(low), np.log(high), count)))
    kappa = torch.tensor(rng.uniform(0.8, 1.2, count))
    known = {"kappa": kappa} if protocol.knowns else {}
    ideal = protocol.signal({**values, **known})
    jitter = noise * float(ideal.max()) * torch.tensor(rng.standard_normal(ideal.shape))
    return values, known, (ideal + jitter).abs()


@pytest.mark.parametrize("protocol", [T1_T2, RECOVERY])
@pytest.mark.parametrize("tile", [512, 7])
def test_the_best_atom_is_that_of_a_plain_search(protocol, tile, monkeypatch):
    monkeypatch.setattr(atoms, "WIDTH", tile)
    names = protocol.latents[1:]
    support = {n: SUPPORT.get(n, (0.5, 1.0)) for n in names}
    points = mesh(names, support, (40, 15), torch.zeros(1))
    table = make_atoms(protocol, names, points, {})
    _, _, signal = random_signal(protocol, 50, 0.02)
    signal = signal.float()
    scores, chosen = best_atoms(table, signal)
    best = chosen.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    ideal = protocol.signal(dict(zip(names, points, strict=True))).numpy()
    plain = (signal.numpy() @ (ideal / np.linalg.norm(ideal, axis=1, keepdims=True)).T).max(1)
    assert np.allclose(scores.amax(1), plain, rtol=1e-6)
    assert np.allclose((table.unit[best] * signal).sum(1), plain, rtol=1e-6)
    # the values of an atom are those that give its signal
    again = protocol.signal(dict(zip(names, table.values, strict=True)))
    torch.testing.assert_close(again / again.norm(dim=1, keepdim=True), table.unit)


def test_patterns_of_signs_are_those_of_the_null():
    points = mesh(("t1_s",), {"t1_s": (0.05, 4.0)}, (300,), torch.zeros(1))
    single = Acquisition("inversion_recovery_fixed", {"inversion_time_s": (0.1, 0.4, 0.9)})
    table = make_atoms(Protocol((single,)), ("t1_s",), points, {})
    assert table.ends[-1] == 300
    found = {tuple(s) for s in table.signs.tolist()}
    assert found == {(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (-1, -1, -1)}
    begin = 0
    for signs, end in zip(table.signs, table.ends, strict=True):
        t1 = table.values[0, begin:end]
        null = t1 * np.log(2)
        for sign, time in zip(signs, (0.1, 0.4, 0.9), strict=True):
            assert bool(((null > time) == (sign < 0)).all())
        begin = end


def test_values_lie_within_a_step_of_the_truth():
    values, known, signal = random_signal(T1_T2, 60, 0.0)
    found = DictionarySearch(
        T1_T2, support=SUPPORT, sizes={"t1_s": 150, "t2_s": 150}, kappa_width=0.005
    ).estimate(signal, known)
    assert found.errors == {}
    for name, within in (("t1_s", 0.04), ("t2_s", 0.04), ("m0", 0.04)):
        error = (found.values[name].double() - values[name]) / values[name]
        assert float(error.abs().max()) < within, name
    assert not (found.quality & int(Flag.POOR_FIT | Flag.NO_SIGNAL)).any()


def test_refined_values_are_those_of_least_squares():
    _, known, signal = random_signal(T1_T2, 40, 0.002)
    sizes = {"t1_s": 60, "t2_s": 60}
    refined = DictionarySearch(T1_T2, SUPPORT, sizes, kappa_width=0.05, refine=True)
    found = refined.estimate(signal, known)
    want = NonlinearLeastSquares(T1_T2, SUPPORT).estimate(signal, known)
    for name in T1_T2.latents:
        torch.testing.assert_close(found.values[name], want.values[name], rtol=1e-4, atol=0)
        torch.testing.assert_close(found.errors[name], want.errors[name], rtol=1e-3, atol=0)


def test_kappa_shares_a_dictionary_within_the_width_and_no_further():
    kappa = torch.tensor([0.5, 0.993, 1.0, 1.007, 1.2, 1.2004])
    centres, which = kappa_bins(kappa, 0.02)
    assert which.tolist() == [0, 1, 1, 1, 2, 2]
    assert float((centres[which] / kappa).log().abs().max()) <= 0.01
    assert float(centres[1]) == 1.0


def test_the_edge_of_the_grid_and_bad_voxels_are_flagged():
    values = {"t1_s": torch.tensor([0.05, 1.0, 9.0, 1.0, 1.0])}
    signal = VFA.signal(values)
    signal[3] = 0
    signal[4, 0] = torch.nan
    search = DictionarySearch(VFA, support={"t1_s": (0.3, 3.0)})
    found = search.estimate(signal, {"kappa": torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])})
    flags = [Flag(int(q)) for q in found.quality]
    assert flags[0] & Flag.AT_BOUND
    assert flags[1] == Flag.KAPPA_MISSING
    assert flags[2] & Flag.AT_BOUND
    assert flags[3] == Flag.NO_SIGNAL
    assert flags[4] == Flag.NOT_FINITE
    assert bool(found.values["t1_s"][3:].isnan().all())
    assert float(found.values["t1_s"][1]) == pytest.approx(1.0, rel=2e-3)


def test_what_is_no_dictionary_is_refused():
    with pytest.raises(UsageError, match="t2_s is no latent"):
        DictionarySearch(VFA, support={"t2_s": (0.01, 1)})
    with pytest.raises(UsageError, match="bounds of t1_s are wrong"):
        DictionarySearch(VFA, support={"t1_s": (3.0, 1.0)})
    with pytest.raises(UsageError, match="wrong size"):
        DictionarySearch(T1_T2, sizes={"t1_s": 5000, "t2_s": 5000})
    with pytest.raises(UsageError, match="kappa_width"):
        DictionarySearch(T1_T2, kappa_width=0)
