"""No planted name, id, date or UID reaches anything that medpipe writes or prints.

Simulated patients carry canaries in every header field that may identify
someone, in folder and file names and in NIfTI comments. Every workflow runs
over them through the command line, failures included; then every byte of the
output folder (names, unpacked files, database, report) and of the terminal is
searched. What runs in processes of its own is `dicom-import`, also killed; the others
write the same files from the process of the test.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medpipe.cli.main import invoke
from medpipe.phantoms.dicom_writer import Identity
from medpipe.phantoms.hospital import write_demo, write_hospital_tree

Medpipe = Callable[..., tuple[int, str]]

CANARY = "ZZCANARY"
BIRTH = "19110911"
STUDY_DATE = "19970707"
WHO = Identity(
    name=f"{CANARY}^NAME",
    patient_id=f"{CANARY}-4711",
    birth_date=BIRTH,
    accession=f"{CANARY}ACC",
    study_description=f"{CANARY} STUDY",
    institution=f"{CANARY} HOSPITAL",
    physician=f"{CANARY}^DOCTOR",
    comments=f"{CANARY} COMMENT",
    private_tag=f"{CANARY} PRIVATE",
    study_date=STUDY_DATE,
)


def medpipe(*arguments: object) -> tuple[int, str]:
    """Run the command; return its exit code and all it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "medpipe", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def here(cases_here: None, capfd: pytest.CaptureFixture[str]) -> Medpipe:
    """Return what runs the command as `medpipe` does, in the process of the test.

    All of it is searched then, also what libraries print past Python.
    """

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        code = invoke([str(argument) for argument in arguments])
        return code, "".join(capfd.readouterr())

    return run


def planted_uids(root: Path) -> set[bytes]:
    """Return every UID of the phantoms that stands in a file below a folder."""
    return {
        uid
        for path in root.rglob("*")
        if path.is_file()
        for uid in re.findall(rb"2\.25\.[0-9]{10,}", path.read_bytes())
    }


def everything(out: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of every file, unpacked ones too."""
    for path in out.rglob("*"):
        name = str(path.relative_to(out))
        yield f"the name of {name}", name.encode()
        if path.is_file():
            content = path.read_bytes()
            yield name, content
            if path.suffix == ".gz":
                yield f"{name}, unpacked", gzip.decompress(content)


def leaks(out: Path, printed: str, canaries: set[bytes]) -> list[str]:
    """Return every place where a canary is, in 8-bit or 16-bit text."""
    wide = {canary.decode().encode("utf-16-le") for canary in canaries}
    places = [("the terminal", printed.encode()), *everything(out)]
    alike: dict[bytes, list[bytes]] = {}  # all UIDs begin alike: where none begins there is none
    for canary in canaries | wide:
        alike.setdefault(canary[:5], []).append(canary)
    return [
        f"{canary!r} in {place}"
        for place, content in places
        for start, group in alike.items()
        if start in content
        for canary in group
        if canary in content
    ]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital export whose folders, files and headers carry canaries."""
    root = tmp_path_factory.mktemp("export") / f"{CANARY}_HOSPITAL"
    write_hospital_tree(root, matrix=32, identity=WHO)
    for folder in sorted(root.rglob("*"), reverse=True):
        folder.rename(folder.with_name(f"{CANARY}_{folder.name}"))
    return root


@pytest.fixture(scope="module")
def canaries(hospital: Path) -> set[bytes]:
    """Everything that must not come out."""
    uids = planted_uids(hospital)
    assert len(uids) > 50
    return {CANARY.encode(), BIRTH.encode(), STUDY_DATE.encode()} | uids


@pytest.fixture(scope="module")
def scanned(
    hospital: Path, canaries: set[bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The manifest of the export, and what its making printed."""
    manifest = tmp_path_factory.mktemp("manifest") / "cases.csv"
    code, printed = medpipe("manifest", "scan", hospital, manifest, "--kind", "dicom")
    assert code == 0, printed
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 10
    for row in rows:  # the paths are the user's own; the ids are ours
        assert not any(c in (row["case_id"] + row["patient_id"]).encode() for c in canaries)
    return manifest, printed


def test_the_search_finds_a_leak(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(b"\0" * 100 + f"{CANARY}^NAME".encode())
    (tmp_path / f"{CANARY}.json").write_text("{}")
    (tmp_path / "b.sqlite").write_bytes("x ZZCANARY".encode("utf-16-le"))
    found = leaks(tmp_path, f"case {CANARY}", {CANARY.encode()})
    assert len(found) == 4


@pytest.mark.slow
@pytest.mark.parametrize("workflow", ["dicom-import", "head-ct-prepare"])
def test_dicom_workflows_leak_nothing(
    workflow: str,
    scanned: tuple[Path, str],
    canaries: set[bytes],
    here: Medpipe,
    tmp_path: Path,
) -> None:
    (manifest, printed), out = scanned, tmp_path / "out"
    if workflow == "head-ct-prepare":  # at 4 mm: what leaks does not depend on the voxels
        rows = manifest.read_text().splitlines()
        manifest = tmp_path / "cases.csv"
        manifest.write_text("\n".join(rows[:5]) + "\n")
        coarse = ["--set", "resample.spacing_mm=4.0", "--set", "load.resample_spacing_mm=4.0"]
        code, more = here("run", workflow, manifest, out, *coarse)
    else:
        code, more = medpipe("run", workflow, manifest, out)
    assert code in (0, 3), more
    states = [json.loads(p.read_text())["status"] for p in out.glob("cases/*/case.json")]
    assert "done" in states
    if workflow == "dicom-import":
        assert "failed" in states
    assert (out / "index.html").is_file()
    assert leaks(out, printed.replace(str(scanned[0]), "") + more, canaries) == []


@pytest.mark.slow
def test_nifti_workflow_leaks_nothing(tmp_path: Path, canaries: set[bytes], here: Medpipe) -> None:
    folder, out = tmp_path / f"{CANARY}_IMAGES", tmp_path / "out"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        image = nib.Nifti1Image(rng.normal(size=(12, 13, 14)).astype(np.float32), np.eye(4))
        for field in ("descrip", "aux_file", "db_name", "intent_name"):
            image.header[field] = f"{CANARY}"
        image.header.extensions.append(
            nib.nifti1.Nifti1Extension("comment", f"{CANARY} {BIRTH}".encode())
        )
        path = folder / f"{CANARY}_{index}.nii.gz"
        nib.save(image, path)
        if index == 2:
            path.write_bytes(path.read_bytes()[:400])
    code, printed = here("run", "nifti-check", folder, out)
    assert code == 3, printed
    assert leaks(out, printed, canaries) == []


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_either(tmp_path: Path, canaries: set[bytes]) -> None:
    root, out = tmp_path / f"{CANARY}_DEMO", tmp_path / "out"
    truth = write_demo(root, matrix=32, identity=WHO)
    uids = planted_uids(root)
    series = str(root / truth.series[0].folder)
    done = subprocess.run(
        [sys.executable, "-m", "medpipe", "run", "dicom-import", series, str(out), "--retries=0"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MEDPIPE_CRASH_AT": "before_write"},
    )
    assert done.returncode == 4, done.stderr
    assert "SIGKILL" in done.stdout
    assert leaks(out, done.stdout + done.stderr, canaries | uids) == []
