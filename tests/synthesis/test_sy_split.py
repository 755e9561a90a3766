"""Splits by patient: counts, groups, files that were changed."""

import json
from pathlib import Path

import pytest

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.split import read_split, split_patients, write_split

COMMITTED = Path(__file__).resolve().parents[2] / "data_manifests" / "hippocampus_split.json"


def test_parts_have_their_shares_and_keep_patients_together():
    patients = {f"scan{i:03d}": f"p{i // 2:03d}" for i in range(200)}
    split = split_patients(patients, (0.7, 0.2, 0.1), seed=3)
    groups = {name: {patients[c] for c in ids} for name, ids in split.parts.items()}
    assert [len(groups[n]) for n in ("train", "validation", "test")] == [70, 20, 10]
    assert sum(map(len, groups.values())) == 100  # nobody is in two
    assert sum(map(len, split.parts.values())) == 200
    assert split.part_of("scan000") == split.part_of("scan001")


def test_the_order_of_cases_does_not_matter_and_the_seed_does():
    patients = {f"c{i}": f"c{i}" for i in range(50)}
    turned = dict(reversed(patients.items()))
    assert split_patients(patients) == split_patients(turned)
    assert split_patients(patients).digest != split_patients(patients, seed=1).digest


def test_a_split_is_read_as_it_was_written_and_not_when_changed(tmp_path):
    split = split_patients({f"c{i}": f"c{i}" for i in range(20)}, seed=5)
    path = tmp_path / "split.json"
    write_split(path, split)
    assert read_split(path) == split
    record = json.loads(path.read_text())
    record["parts"]["train"].append(record["parts"]["test"].pop())
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="changed after it was written"):
        read_split(path)
    record["parts"]["test"].append(record["parts"]["train"][0])
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="a case twice"):
        read_split(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="no split"):
        read_split(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_split(tmp_path / "none.json")


def test_other_cases_than_those_of_the_split_are_named():
    split = split_patients({f"c{i}": f"c{i}" for i in range(20)})
    split.check([f"c{i}" for i in range(20)])
    with pytest.raises(InputError, match="1 missing, 1 unknown"):
        split.check([f"c{i}" for i in range(1, 21)])
    with pytest.raises(InputError, match="does not name this case"):
        split.part_of("c99")
    with pytest.raises(UsageError, match="too few patients"):
        split_patients({"a": "a", "b": "b"})
    with pytest.raises(UsageError, match="do not add up"):
        split_patients({"a": "a"}, (0.5, 0.1, 0.1))


def test_the_committed_split_is_whole():
    split = read_split(COMMITTED)
    assert [len(split.parts[n]) for n in ("train", "validation", "test")] == [166, 21, 21]
    again = split_patients({c: c for ids in split.parts.values() for c in ids}, seed=split.seed)
    assert again == split


@pytest.mark.real_data
def test_the_committed_split_names_the_real_cases(real_data):
    folder = real_data / "hippocampus" / "images"
    read_split(COMMITTED).check([p.name.removesuffix(".nii.gz") for p in folder.glob("*.nii.gz")])
