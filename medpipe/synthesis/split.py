"""Which patients a model was trained with, kept in a file that says when it was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medpipe.errors import InputError, UsageError
from medpipe.io.atomic import canonical_json, write_bytes_atomic

__all__ = ["PARTS", "PatientSplit", "read_split", "split_patients", "write_split"]

PARTS = ("train", "validation", "test")
SCHEMA = 1


@dataclass(frozen=True)
class PatientSplit:
    """Cases in three parts; those of one patient are in one part.

    Attributes
    ----------
    parts : dict
        ``train``, ``validation`` and ``test`` → case ids, sorted.
    seed : int
        What it was drawn with.
    """

    parts: Mapping[str, tuple[str, ...]]
    seed: int = 0

    @property
    def digest(self) -> str:
        """The sha256 of the parts, whatever the seed."""
        listed = {name: list(ids) for name, ids in self.parts.items()}
        return hashlib.sha256(canonical_json(listed)).hexdigest()

    def part_of(self, case_id: str) -> str:
        """Return the part of a case; InputError if the split does not name it."""
        for name, ids in self.parts.items():
            if case_id in ids:
                return name
        raise InputError(
            "the split does not name this case", where=case_id,
            hint="make a new split, or leave the case out of the manifest",
        )  # fmt: skip

    def check(self, case_ids: Sequence[str]) -> None:
        """Raise InputError unless the cases are those of the split, each once."""
        wanted = {case_id for ids in self.parts.values() for case_id in ids}
        missing, unknown = sorted(wanted - set(case_ids)), sorted(set(case_ids) - wanted)
        if missing or unknown or len(set(case_ids)) != len(case_ids):
            raise InputError(
                "the cases are not those of the split",
                expected=f"{len(wanted)} cases", where=", ".join([*unknown, *missing][:3]) or None,
                got=f"{len(case_ids)}, {len(missing)} missing, {len(unknown)} unknown",
            )  # fmt: skip


def split_patients(
    patients: Mapping[str, str],
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> PatientSplit:
    """Return cases in three parts, by patient.

    Parameters
    ----------
    patients : mapping
        Case id → patient id.
    shares : tuple of float
        Of the patients, for training, validation and test; they add up to 1.
    seed : int
        Patients are ordered by a hash of it and their id: neither the order of the cases
        nor the version of a library enters.

    Raises
    ------
    UsageError
        If the shares do not add up to 1, or a part would be empty.
    """
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise UsageError("the shares do not add up", expected="three shares, 1 in all")
    order = sorted(set(patients.values()), key=lambda p: (_rank(seed, p), p))
    first = round(shares[0] * len(order))
    second = first + round(shares[1] * len(order))
    chosen = (order[:first], order[first:second], order[second:])
    if not all(chosen):
        raise UsageError(
            "too few patients for three parts", expected="one or more in each",
            got=f"{len(order)} patients",
        )  # fmt: skip
    place = {patient: name for name, ids in zip(PARTS, chosen, strict=True) for patient in ids}
    parts = {
        name: tuple(sorted(case for case, patient in patients.items() if place[patient] == name))
        for name in PARTS
    }
    return PatientSplit(parts, seed)


def _rank(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}\x1f{patient}".encode()).hexdigest()


def write_split(path: Path, split: PatientSplit) -> None:
    """Write a split as JSON: the same bytes for the same split."""
    record = {
        "schema": SCHEMA,
        "seed": split.seed,
        "cases": {name: len(ids) for name, ids in split.parts.items()},
        "digest": split.digest,
        "parts": {name: list(ids) for name, ids in split.parts.items()},
    }
    write_bytes_atomic(path, (json.dumps(record, indent=1) + "\n").encode())


def read_split(path: Path) -> PatientSplit:
    """Return the split of a file.

    Raises
    ------
    InputError
        If it is no split, names a case twice, or was changed after it was written.
    """
    try:
        record = json.loads(path.read_bytes())
        parts = {name: tuple(record["parts"][name]) for name in PARTS}
        split = PatientSplit(parts, int(record["seed"]))
        whole = all(isinstance(c, str) for ids in parts.values() for c in ids)
        known = record["schema"] == SCHEMA and len(record["parts"]) == len(PARTS) and whole
        digest: Any = record["digest"]
    except OSError:
        raise InputError("the split cannot be read", where=path.name) from None
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError("the file is no split of patients", where=path.name)
    ids = [case_id for part in parts.values() for case_id in part]
    if len(set(ids)) != len(ids):
        raise InputError("the split names a case twice", where=path.name)
    if digest != split.digest:
        raise InputError(
            "the split was changed after it was written", where=path.name,
            expected=f"digest {split.digest[:8]}", got=str(digest)[:8],
            hint="make a new split instead: models are tied to this one",
        )  # fmt: skip
    return split
