"""`medpipe.transforms`: every step's classes, imported when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import medpipe.transforms as transforms


def test_import_is_free_until_a_class_is_used() -> None:
    code = (
        "import sys, medpipe.transforms as t; d = dir(t); "
        "assert 'torch' not in sys.modules and 'monai' not in sys.modules; "
        "print('LoadVolume' in d, 'LoadVolumed' in d, 'LoadVolumed' in vars(t))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "False"]
    assert transforms.LoadVolumed.__module__ == "medpipe.io.transforms"


def test_every_step_has_its_array_and_dictionary_class() -> None:
    from monai.transforms.transform import MapTransform, Transform

    names = set(dir(transforms)) - {"STEPS"}
    assert len(names) == 2 * len(transforms.STEPS) + 2
    dictionary = {name for name in names if name.removesuffix("d") in names and name[-1] == "d"}
    assert len(dictionary) == len(names) / 2
    for name in names:
        found = getattr(transforms, name)
        assert found.__name__ == name
        assert issubclass(found, Transform)
        assert issubclass(found, MapTransform) == (name in dictionary)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"'medpipe\.transforms' has no attribute 'Nope'"):
        _ = transforms.Nope
    with pytest.raises(TypeError):
        transforms.STEPS["x"] = "y"  # type: ignore[index]
