"""Seeds: fixed by the place, apart for different places."""

from __future__ import annotations

from medpipe.seeds import derive_seed


def test_a_seed_is_a_pinned_function_of_its_place() -> None:
    # printf '0\x1fcase0001\x1fnoise' | sha256sum | cut -c1-8
    assert derive_seed(0, "case0001", "noise") == 0x27E91593 & 0x7FFF_FFFF


def test_neighbouring_places_have_unrelated_seeds() -> None:
    seeds = {
        derive_seed(run, f"case{c}", step) for run in (0, 1) for c in range(500) for step in "ab"
    }
    assert len(seeds) > 1990  # of 2000; 31 bits make a chance collision about 1 in 1000


def test_names_do_not_run_into_each_other() -> None:
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")
