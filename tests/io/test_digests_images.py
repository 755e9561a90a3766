"""Digests of sets of weighted images: names and sidecars count, other inputs keep theirs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from medpipe.io.digests import DigestCache, digest_input, fingerprint_input


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        then = time.time() - 3600
        os.utime(folder / name, (then, then))
    return folder


FILES = {"anat/a.nii": b"1", "anat/a.json": b"x", "anat/b.nii": b"2", "anat/b.json": b"y"}


def test_swapped_sidecars_change_the_digest_of_a_set_alone(tmp_path: Path):
    first = fill(tmp_path / "1", FILES)
    swapped = fill(tmp_path / "2", FILES | {"anat/a.json": b"y", "anat/b.json": b"x"})
    assert digest_input(first).digest == digest_input(swapped).digest
    one, two = (digest_input(p, as_images=True) for p in (first, swapped))
    assert one.digest != two.digest
    assert (one.kind, one.files, one.bytes) == ("images", 4, 4)


def test_the_place_of_the_folder_does_not_matter(tmp_path: Path):
    digests = {
        digest_input(fill(tmp_path / name, FILES), as_images=True).digest
        for name in ("x", "y y", "deep/er")
    }
    assert len(digests) == 1
    moved = fill(tmp_path / "moved", {k.replace("anat/", ""): v for k, v in FILES.items()})
    assert digest_input(moved, as_images=True).digest not in digests


def test_names_cannot_be_mistaken_for_content(tmp_path: Path):
    one = fill(tmp_path / "1", {"a": b"1", "b": b"2"})
    two = fill(tmp_path / "2", {"a\n": b"1", "b": b"2"})
    assert digest_input(one, as_images=True).digest != digest_input(two, as_images=True).digest


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_the_sidecar_of_a_file_is_part_of_it(tmp_path: Path, suffix: str):
    path = fill(tmp_path, {f"a{suffix}": b"1", "a.json": b"x", "b.json": b"z"}) / f"a{suffix}"
    plain, before = digest_input(path), digest_input(path, as_images=True)
    mark = fingerprint_input(path, as_images=True).value
    assert before.fingerprint == mark
    fill(tmp_path, {"b.json": b"other"})
    assert fingerprint_input(path, as_images=True).value == mark
    fill(tmp_path, {"a.json": b"yy"})
    assert fingerprint_input(path, as_images=True).value != mark
    after = digest_input(path, as_images=True)
    (tmp_path / "a.json").unlink()
    without = digest_input(path, as_images=True)
    assert len({plain.digest, before.digest, after.digest, without.digest}) == 4
    assert (after.files, without.files) == (2, 1)
    assert digest_input(path).digest == plain.digest
    # the name of a lone file may be that of a patient, and says nothing
    os.rename(path, tmp_path / f"c{suffix}")
    assert digest_input(tmp_path / f"c{suffix}", as_images=True).digest == without.digest


def test_the_cache_keeps_both_digests_of_one_folder_apart(tmp_path: Path):
    folder = fill(tmp_path / "set", FILES)
    plain, images = digest_input(folder), digest_input(folder, as_images=True)
    assert plain.fingerprint != images.fingerprint
    with DigestCache(tmp_path / "cache") as cache:
        cache.put([plain, images])
        cache.flush()
        mark = fingerprint_input(folder, as_images=True).value
        assert cache.get(mark) == images
        assert cache.get(fingerprint_input(folder).value) == plain


def test_a_file_that_is_no_nifti_has_no_sidecar(tmp_path: Path):
    path = fill(tmp_path, {"a.dcm": b"1", "a.json": b"x"}) / "a.dcm"
    assert digest_input(path, as_images=True).files == 1
