"""BIDS names, the scanner, cases from a dataset, and derivatives of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.errors import InputError, UsageError
from medpipe.io.bids import bids_cases, parse_name, query, scan_bids
from medpipe.io.bids_derivative import export_derivative


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "ds"
    put(
        root,
        "dataset_description.json",
        "participants.tsv",
        "derivatives/x/sub-01/anat/sub-01_desc-x_T1w.nii.gz",
        "sourcedata/sub-01/anat/anything.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.json",
        "sub-01/ses-a/anat/.DS_Store",
        "sub-01/ses-a/sub-01_ses-a_scans.tsv",
        "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-01_bold.nii.gz",
        "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-02_bold.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_acq-fast_T1w.nii",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz",
        "sub-02/ct/sub-02_ct.nii.gz",
    )
    return root


def test_names() -> None:
    assert parse_name("sub-01_ses-a_task-rest_run-2_bold.nii.gz") == (
        {"sub": "01", "ses": "a", "task": "rest", "run": "2"},
        "bold",
        ".nii.gz",
    )
    for wrong in (
        "T1w.nii.gz",
        "ses-a_sub-01_T1w.nii.gz",
        "sub-01_sub-02_T1w.nii.gz",
        "sub-0 1_T1w.nii.gz",
        "sub-01_T1w_x-1.nii.gz",
        "sub-01_x_T1w.nii.gz",
        "sub-_T1w.nii.gz",
        "",
    ):
        assert parse_name(wrong) is None


LABEL = st.text("abcXYZ019", min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from(["ses", "acq", "run", "echo"]), LABEL), LABEL, LABEL)
def test_names_survive_parsing(entities: dict[str, str], sub: str, suffix: str) -> None:
    entities = {"sub": sub, **entities}
    name = "_".join([*(f"{k}-{v}" for k, v in entities.items()), suffix])
    assert parse_name(name + ".nii") == (entities, suffix, ".nii")


def test_scanning_lists_each_file_once(dataset: Path) -> None:
    files = scan_bids(dataset)
    found = sorted(Path(f.path).relative_to(dataset).as_posix() for f in files)
    truth = sorted(
        p.relative_to(dataset).as_posix()
        for p in dataset.glob("sub-*/**/*")
        if p.is_file() and p.suffix != ".tsv" and p.name[0] != "."
    )
    assert found == truth
    assert len(found) == 8
    assert all(Path(f.path).name == f.stem + f.extension for f in files)
    assert {f.datatype for f in files} == {"anat", "func", "ct"}


def test_queries(dataset: Path) -> None:
    files = scan_bids(dataset)
    assert len(query(files, suffix="T1w", extension=(".nii", ".nii.gz"))) == 3
    assert query(files, sub="01") == query(files, sub="sub-01") == query(files, sub=1)
    assert len(query(files, sub="01")) == 5
    assert [f.entities["run"] for f in query(files, run=2)] == ["02"]
    assert len(query(files, run=None, suffix="bold")) == 0
    assert [f.entities["ses"] for f in query(files, suffix="T1w", acq="fast")] == ["b"]
    assert len(query(files, suffix="T1w", acq=None, extension=".nii.gz")) == 2
    assert len(query(files, sub=["01", "sub-02"])) == 8


def test_cases(dataset: Path) -> None:
    files = scan_bids(dataset)
    rules = {"t1": {"suffix": "T1w"}, "flair": {"suffix": "FLAIR"}}
    cases, left_out = bids_cases(files, rules, optional=["flair"])
    assert [c.case_id for c in cases] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]
    assert [c.patient_id for c in cases] == ["sub-01", "sub-01", "sub-02"]
    assert cases[0].inputs["flair"] is None
    assert cases[2].inputs["flair"] == f"{dataset}/sub-02/anat/sub-02_FLAIR.nii.gz"
    assert left_out == {}
    cases, left_out = bids_cases(files, rules)
    assert [c.case_id for c in cases] == ["sub-02"]
    assert left_out["sub-01_ses-a"] == "no image fits input 'flair'"
    _, left_out = bids_cases(files, {"x": {"suffix": "bold"}}, participant_label=["sub-01"])
    assert left_out["sub-01_ses-a"] == "2 images fit input 'x'"
    cases, _ = bids_cases(files, {"t1": {"suffix": "T1w"}}, session_label=["b"])
    assert [c.case_id for c in cases] == ["sub-01_ses-b"]
    with pytest.raises(UsageError, match="not in the dataset"):
        bids_cases(files, rules, participant_label=["03"])


@pytest.mark.parametrize(
    "name",
    [
        "sub-02/anat/sub-01_T1w.nii.gz",
        "sub-02/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/anat/brain.nii.gz",
        "sub-02/ses-c/anat/sub-02_T1w.nii.gz",
    ],
)
def test_files_in_the_wrong_place_are_refused(dataset: Path, name: str) -> None:
    put(dataset, name)
    with pytest.raises(InputError, match=r"subject 2 in alphabetical order: 1 files") as caught:
        scan_bids(dataset)
    assert Path(name).name not in str(caught.value)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a BIDS dataset"):
        scan_bids(tmp_path)
    with pytest.raises(InputError, match="folder that can be read"):
        scan_bids(tmp_path / "none")


def test_a_thousand_subjects_take_seconds(tmp_path: Path) -> None:
    for n in range(1000):
        folder = tmp_path / f"sub-{n:04d}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{n:04d}_T1w.nii.gz").touch()
        (folder / f"sub-{n:04d}_T1w.json").touch()
    start = time.process_time()
    files = scan_bids(tmp_path)
    assert len(bids_cases(files, {"t1": {"suffix": "T1w"}})[0]) == 1000
    assert time.process_time() - start < 2


def case(out: Path, case_id: str, outputs: dict[str, str], **more) -> None:
    folder = out / "cases" / case_id
    folder.mkdir(parents=True)
    for file in outputs:
        (folder / file).write_text(f"{case_id} {file}")
        (folder / f"{file}.json").write_text("{}")
    record = {
        "case_id": case_id,
        "status": "done",
        "workflow": {"name": "head-ct-prepare", "version": "1", "digest": "d"},
        "outputs": [{"step": "s", "file": f, "makes": m} for f, m in outputs.items()],
        **more,
    }
    (folder / "case.json").write_text(json.dumps(record))


def tree(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_derivatives(tmp_path: Path) -> None:
    out, target = tmp_path / "out", tmp_path / "ds" / "derivatives" / "m"
    case(out, "sub-01_ses-a", {"ct.nii.gz": "volume", "head.nii.gz": "labels"})
    case(out, "sub-02_run-2_T1w", {"a.nii.gz": "volume", "b.nii.gz": "volume"})
    case(out, "p_3", {"ct.nii.gz": "volume"})
    case(out, "sub-04", {}, status="failed")
    report = export_derivative(out, target, source="../..")
    assert (report.cases, report.files, report.left_out) == (3, 5, 1)
    images = [name for name in tree(target) if name.endswith(".nii.gz")]
    d = "desc-headctprepare"
    assert images == [
        f"sub-01/ses-a/anat/sub-01_ses-a_{d}_ct.nii.gz",
        f"sub-01/ses-a/anat/sub-01_ses-a_{d}_dseg.nii.gz",
        f"sub-02/anat/sub-02_run-2_{d}A_T1w.nii.gz",
        f"sub-02/anat/sub-02_run-2_{d}B_T1w.nii.gz",
        f"sub-p3/anat/sub-p3_{d}_ct.nii.gz",
    ]
    assert all((target / name.replace(".nii.gz", ".json")).exists() for name in images)
    assert (target / images[1]).read_text() == "sub-01_ses-a head.nii.gz"
    assert (target / images[1]).samefile(out / "cases" / "sub-01_ses-a" / "head.nii.gz")
    assert len(query(scan_bids(target), extension=".nii.gz")) == 5
    described = json.loads((target / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "medpipe"
    assert described["SourceDatasets"] == [{"URL": "../.."}]
    before = tree(target)
    export_derivative(out, target, source="../..")
    assert tree(target) == before


def test_derivatives_never_go_into_a_raw_dataset(tmp_path: Path, dataset: Path) -> None:
    case(tmp_path / "out", "sub-01", {"t1.nii.gz": "volume"})
    before = tree(dataset)
    for content in ('{"Name": "x"}', '{"DatasetType": "raw"}'):
        (dataset / "dataset_description.json").write_text(content)
        with pytest.raises(UsageError, match="raw BIDS dataset"):
            export_derivative(tmp_path / "out", dataset)
    (dataset / "dataset_description.json").unlink()
    with pytest.raises(UsageError, match="raw BIDS dataset"):
        export_derivative(tmp_path / "out", dataset)
    assert tree(dataset) == [n for n in before if n != "dataset_description.json"]


def test_derivatives_that_would_be_mixed_up_are_refused(tmp_path: Path) -> None:
    case(tmp_path / "a", "p_1", {"ct.nii.gz": "volume"})
    case(tmp_path / "a", "p1", {"ct.nii.gz": "volume"})
    with pytest.raises(UsageError, match="same BIDS name"):
        export_derivative(tmp_path / "a", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    case(tmp_path / "b", "p1", {"ct.nii.gz": "volume"})
    other = {"name": "head-ct-prepare", "version": "2", "digest": "e"}
    case(tmp_path / "b", "p2", {"ct.nii.gz": "volume"}, workflow=other)
    with pytest.raises(InputError, match="different workflows"):
        export_derivative(tmp_path / "b", tmp_path / "y")
    with pytest.raises(InputError, match="no cases"):
        export_derivative(tmp_path / "none", tmp_path / "y")


def test_a_document_is_named_after_its_file_so_that_no_sidecar_is_lost(tmp_path: Path) -> None:
    out, target = tmp_path / "out", tmp_path / "ds"
    case(out, "sub-01_T1w", {"ct.nii.gz": "volume", "mesh.vtp": "document"})
    export_derivative(out, target)
    names = {name.partition("_desc-headctprepare_")[2] for name in tree(target / "sub-01")}
    assert names == {"T1w.nii.gz", "T1w.json", "mesh.vtp", "mesh.json"}


def placed(out: Path, target: Path, case_id: str = "sub-01_T1w") -> dict[str, str]:
    """Return end of the name → content of what the one case of a run became."""
    export_derivative(out, target)
    head = f"{case_id.removesuffix('_T1w')}_desc-headctprepare"
    return {
        name.rpartition("/")[2].removeprefix(head): (target / "sub-01" / name).read_text()
        for name in tree(target / "sub-01")
    }


def test_a_table_never_takes_the_name_of_a_sidecar(tmp_path: Path) -> None:
    """Of an image of the same case, or its own."""
    out = tmp_path / "out"
    case(out, "sub-01_T1w", {"t1.nii.gz": "volume", "table.json": "table", "rows.csv": "table"})
    assert placed(out, tmp_path / "ds") == {
        "_T1w.nii.gz": "sub-01_T1w t1.nii.gz",
        "_T1w.json": "{}",
        "_table.json": "sub-01_T1w table.json",
        "_rows.csv": "sub-01_T1w rows.csv",
        "_rows.json": "{}",
    }


def test_outputs_that_differ_in_little_are_all_kept(tmp_path: Path) -> None:
    """In the ending, or in what a BIDS label cannot hold."""
    out = tmp_path / "out"
    files = {"x.nii.gz": "volume", "x.json": "table", "a_b.csv": "table", "ab.csv": "table"}
    case(out, "sub-01", files)
    found = placed(out, tmp_path / "ds", "sub-01")
    assert sorted(v for v in found.values() if v != "{}") == [f"sub-01 {f}" for f in sorted(files)]
    assert found["X_x.nii.gz"] == "sub-01 x.nii.gz"
    assert found["X2_x.json"] == "sub-01 x.json"
    assert (found["Ab_ab.csv"], found["Ab2_ab.csv"]) == ("sub-01 a_b.csv", "sub-01 ab.csv")
    assert [found[name] for name in ("X_x.json", "Ab_ab.json", "Ab2_ab.json")] == ["{}"] * 3
