"""Volumes encoded as they are and moved: the shifts that are said are the shifts there were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sy_tiny_models import tokeniser

from medpipe.errors import UsageError
from medpipe.synthesis.coded import SHIFTS, encode_moved


def volumes(count=3, size=(12, 9, 7)):
    made = np.random.default_rng(0)
    return [made.random((1, *size), np.float32) for _ in range(count)]


def moved(volume, move):
    """Voxel by voxel: what is now at x was at x − move, edges repeated."""
    out = np.empty_like(volume)
    for at in np.ndindex(*volume.shape[1:]):
        ends = np.array(volume.shape[1:]) - 1
        was = np.clip(np.array(at) - move, 0, ends)
        out[(0, *at)] = volume[(0, *was)]
    return out


def test_every_copy_is_the_volume_moved_as_it_says():
    model, some = tokeniser(classes=0), volumes()
    made = encode_moved(model, some, shift_voxels=2, copies=4, seed=3)
    assert made.subjects == [0] * 4 + [1] * 4 + [2] * 4
    assert made.shape == (12, 9, 7)
    moves = np.array([made.shifts[name] for name in SHIFTS]).T
    assert not moves[::4].any()
    assert np.abs(moves).max() == 2
    assert len({tuple(m) for m in moves}) > 6
    for n, move in enumerate(moves):
        x = torch.from_numpy(moved(some[made.subjects[n]], move))
        assert torch.equal(made.codes[n], model.tokeniser.encode(x[None])[0])
    again = encode_moved(model, some[:1], shift_voxels=2, copies=4, seed=3)
    assert torch.equal(again.codes, made.codes[:4])


def test_a_table_gets_a_row_for_each_copy():
    model, some, said = tokeniser(classes=0), volumes(2), []
    made = encode_moved(model, some, shift_voxels=1, copies=2, progress=lambda *at: said.append(at))
    table = made.table({"age": [30, None]})
    assert table["age"] == [30, 30, None, None]
    assert set(table) == {"age", *SHIFTS}
    assert said == [(1, 2), (2, 2)]
    plain = encode_moved(model, some)
    assert plain.table({"age": [30, 40]}) == {"age": [30, 40]}
    assert torch.equal(plain.codes, model.encode(some))


def test_what_cannot_be_is_said():
    with pytest.raises(UsageError, match="these volumes cannot be encoded"):
        encode_moved(tokeniser(classes=0), [])
    with pytest.raises(UsageError, match="copies of 1 or more"):
        encode_moved(tokeniser(classes=0), volumes(1), copies=0)
