"""Reading manifests: what is accepted, and that each defect is named with its line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.errors import ManifestError, UsageError
from medpipe.io.case import Case
from medpipe.io.manifest import load_manifest, read_manifest, write_manifest
from medpipe.io.manifest_rows import MAX_PROBLEMS

PLANTED = "Erika-Mustermann"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "study" / "images"
    (images / "series").mkdir(parents=True)
    (images / "series" / "1.dcm").write_bytes(b"x")
    for name in ("a", "b", "c"):
        (images / f"{name}.nii.gz").write_bytes(name.encode())
    (tmp_path / "outside.nii.gz").write_bytes(b"o")
    return tmp_path / "study"


def manifest(folder: Path, content: str | bytes, name: str = "cases.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(folder: Path, content: str | bytes, **options) -> list[tuple[int | None, str]]:
    options.setdefault("inputs", ["ct"])
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest(folder, content), **options)
    text = str(caught.value)
    assert PLANTED not in text
    assert all(line.startswith("cases.csv") for line in text.splitlines())
    return [(p.line, f"{p.what} | {p.hint}") for p in caught.value.problems]


def only(problems: list[tuple[int | None, str]], line: int | None, words: str) -> None:
    assert [(at, words in text) for at, text in problems] == [(line, True)], problems


def test_a_sound_manifest_gives_its_cases(folder: Path) -> None:
    path = manifest(
        folder,
        "case_id,patient_id,ct,t1,age,delta\n"
        "c1,p1,images/a.nii.gz,,63,-1.5\n"
        f"c2,,images/series,{folder}/images/b.nii.gz,,+2e3\n",
    )
    got = read_manifest(path, inputs=["ct"], optional=["t1", "mask"])
    assert got == [
        Case(
            "c1",
            {"ct": f"{folder}/images/a.nii.gz", "t1": None},
            "p1",
            {"age": "63", "delta": "-1.5"},
        ),
        Case(
            "c2",
            {"ct": f"{folder}/images/series", "t1": f"{folder}/images/b.nii.gz"},
            None,
            {"age": "", "delta": "+2e3"},
        ),
    ]


def test_inputs_are_recognised_by_spelling_or_existence(folder: Path) -> None:
    (folder / "scan1").mkdir()
    (folder / "scan1" / "x").write_bytes(b"x")
    path = manifest(
        folder,
        "case_id,ct,dicom,date,site,ratio,empty\n"
        "c1,images/a.nii.gz,scan1,12/03/2024,n/a,mg/ml,\n"
        "c2,,scan1,13/03/2024,north,1/2,\n",
    )
    assert load_manifest(path).inputs == ("ct", "dicom")
    assert load_manifest(path, check_files=False).inputs == ("ct",)
    problems = refused(folder, "case_id,ct\nc1,images/a.nii.gz\nc2,images/no.nii.gz\n", inputs=None)
    only(problems, 3, "input 'ct' does not exist")


def test_a_digest_column_makes_its_stem_an_input(folder: Path) -> None:
    path = manifest(folder, "case_id,scan,scan_sha256\nc1,images,\n")
    assert load_manifest(path, check_files=False).inputs == ("scan",)


def test_all_problems_come_at_once_in_the_order_of_the_lines(folder: Path) -> None:
    problems = refused(
        folder,
        "case_id,ct,note\n"
        'c1,images/a.nii.gz,"two\nlines"\n'
        "C1,images/a.nii.gz,\n"
        ",images/a.nii.gz,\n"
        "c3,images/none.nii.gz,\n"
        "c4,images/a.nii.gz\n"
        "c5,,\n"
        "c6,images/a.nii.gz,\"=cmd|' /C calc'!A0\"\n"
        f"{PLANTED} x,{PLANTED},{PLANTED}\n",
    )
    assert [(line, text.partition(" |")[0]) for line, text in problems] == [
        (4, "case_id 'C1' is already used in line 2"),
        (5, "case_id is empty"),
        (6, "input 'ct' does not exist"),
        (7, "the row has 2 cells, the header 3"),
        (8, "input 'ct' is empty"),
        (9, "column 3 starts with = + - or @"),
        (10, "case_id has characters that a folder name should not have"),
        (10, "input 'ct' does not exist"),
    ]


@pytest.mark.parametrize(
    ("case_id", "words"),
    [
        ("1E5", "scientific notation"),
        ("1.23457E+11", "scientific notation"),
        ("12-Mar", "into a date"),
        ("Mar-12", "into a date"),
        ("#REF!", "error value"),
        ("########", "error value"),
        ("1234567890123450000", "cut to 15 digits"),
        ("=A1", "would run"),
        ("@x", "would run"),
        ("-x", "would run"),
        ("CON", "device on Windows"),
        ("lpt1.old", "device on Windows"),
        ("a.", "dot"),
        (" a", "blanks around"),
        ("a" * 65, "65 characters"),
        ("..", "folder name"),
        ("a/b", "folder name"),
        ("a\u0301", "folder name"),
        ("٣", "folder name"),
        ("_a", "folder name"),
    ],
)
def test_ids_that_cannot_be_used(folder: Path, case_id: str, words: str) -> None:
    only(refused(folder, f"case_id,ct\n{case_id},images/a.nii.gz\n"), 2, words)


@pytest.mark.parametrize("case_id", ["91e07632", "march", "Mar-1999-x", "con1", "12.5", "0", "7-T"])
def test_ids_that_only_resemble_damage_are_accepted(folder: Path, case_id: str) -> None:
    path = manifest(folder, f"case_id,ct\n{case_id},images/a.nii.gz\n")
    assert read_manifest(path, inputs=["ct"])[0].case_id == case_id


@pytest.mark.parametrize("column", ["case_id", "patient_id"])
def test_lost_zeros_are_suspected_among_padded_ids(folder: Path, column: str) -> None:
    ids = ["0011", "12", "0013", "2014"]
    other = "patient_id" if column == "case_id" else "case_id"
    rows = "".join(f"{i},x{n},images/a.nii.gz\n" for n, i in enumerate(ids))
    only(refused(folder, f"{column},{other},ct\n{rows}"), 3, "lost its zeros")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("case_id;ct", "semicolons"),
        ("case_id\tct", "tabs"),
        ("sep=,", "spreadsheet alone"),
        ("", "first line is blank"),
        ("Case ID,ct", "not quite 'case_id'"),
        ("case_id,CT", "not quite 'ct'"),
        ("case_id,ct,Patient_ID", "not quite 'patient_id'"),
        ("case_id,cta", "did you mean 'ct' where it says 'cta'"),
        ("case_id,ct,age,Age", "columns 3 and 4 have the same name 'Age'"),
        ("case_id,ct,", "column 3 has no name"),
        ("case_id,ct, age", "blanks around it"),
        ("case_id,ct,=age", "not plain text"),
        ("case_id,ct,t1_sha256", "no input has that name"),
        ("case_id,ct,ct_sah256", None),
    ],
)
def test_headers(folder: Path, header: str, words: str | None) -> None:
    row = ",".join(["c1", "images/a.nii.gz", "1", "2"][: header.count(",") + 1])
    if words is None:
        assert read_manifest(manifest(folder, f"{header}\n{row}\n"), inputs=["ct"])
    else:
        only(refused(folder, f"{header}\n{row}\n"), 1, words)


def test_a_file_without_header_is_not_quoted(folder: Path) -> None:
    problems = refused(folder, f"{PLANTED},images/a.nii.gz,{PLANTED}\n")
    assert {line for line, _ in problems} == {1}
    assert any("no column 'case_id'" in text for _, text in problems)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("case_id,ct\nc1,a\n".encode("utf-16"), None, "UTF-16"),
        ("case_id,ct\nc1,a\n".encode("utf-16-le"), None, "UTF-16"),
        (
            "case_id,ct,n\nc1,images/a.nii.gz,a\nc2,images/a.nii.gz,M\u00fc\n".encode("latin-1"),
            3,
            "UTF-8",
        ),
        (b"PK\x03\x04rest", None, "spreadsheet, not a CSV"),
        (b"\x1f\x8brest", None, "compressed"),
        (b"", None, "is empty"),
        (b"case_id,ct\n", None, "no case below"),
        (b"case_id,ct,n\nc1,images/a.nii.gz,a\0b\n", 2, "NUL"),
        (b'case_id,ct\nc1,images/a.nii.gz\nc2,"images/a.nii.gz\nc3,x\n', 3, "quotes"),
        (b'case_id,ct\nc1,"images/a.nii.gz"x\n', 2, "quotes"),
        (b"case_id,ct\nc1," + b"a" * 200_000 + b"\n", 2, "huge"),
    ],
)
def test_damaged_files(folder: Path, content: bytes, line: int | None, words: str) -> None:
    problems = refused(folder, content)
    assert any(at == line and words in text for at, text in problems), problems


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_marks_line_ends_and_blank_rows_are_tolerated(folder: Path, ending: str) -> None:
    lines = ["case_id,ct", "c1,images/a.nii.gz", "", ",", "c2,images/b.nii.gz", ""]
    got = load_manifest(
        manifest(folder, b"\xef\xbb\xbf" + ending.join(lines).encode()), inputs=["ct"]
    )
    assert [case.case_id for case in got.cases] == ["c1", "c2"]
    assert [f.check for f in got.findings] == ["manifest.bom", "manifest.blank_rows"]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("images/none.nii.gz", "does not exist"),
        ("../outside.nii.gz", "leads out"),
        ("images/../../outside.nii.gz", "leads out"),
        ("images/link.nii.gz", "link that leads out"),
        ("images/dangling.nii.gz", "link to nothing"),
        ("images/pipe.nii.gz", "neither a file nor a folder"),
        ("images/hollow.nii.gz", "empty file"),
        ("images/hollow", "empty folder"),
        ("https://example.org/a.nii.gz", "not a local path"),
        ("~/a.nii.gz", "not expanded"),
        ("images\\a.nii.gz", "backslashes"),
        ("images/a.nii.gz ", "blanks around"),
        ('"images/a\n.nii.gz"', "control character"),
        ("=images/a.nii.gz", "would run"),
        ("#REF!", "error value"),
        ("images/" + "a" * 300, "does not exist"),
    ],
)
def test_paths(folder: Path, cell: str, words: str) -> None:
    images = folder / "images"
    (images / "link.nii.gz").symlink_to("../../outside.nii.gz")
    (images / "dangling.nii.gz").symlink_to("nothing")
    (images / "hollow.nii.gz").touch()
    (images / "hollow").mkdir()
    os.mkfifo(images / "pipe.nii.gz")
    only(refused(folder, f"case_id,ct\nc1,{cell}\n"), 2, words)


def test_leading_out_can_be_allowed(folder: Path) -> None:
    (folder / "images" / "link.nii.gz").symlink_to("../../outside.nii.gz")
    path = manifest(folder, "case_id,ct\nc1,../outside.nii.gz\nc2,images/link.nii.gz\n")
    got = read_manifest(path, inputs=["ct"], allow_outside=True)
    assert got[0].inputs["ct"] == str(folder.parent / "outside.nii.gz")


def test_a_link_within_the_folder_is_no_escape(folder: Path) -> None:
    (folder / "images" / "link.nii.gz").symlink_to("a.nii.gz")
    path = manifest(folder, "case_id,ct\nc1,images/link.nii.gz\n")
    assert read_manifest(path, inputs=["ct"])
    (folder.parent / "alias").symlink_to(folder)
    assert read_manifest(folder.parent / "alias" / path.name, inputs=["ct"])


def test_digests_are_verified_on_demand(folder: Path) -> None:
    good = hashlib.sha256(b"a").hexdigest()
    of_folder = hashlib.sha256(hashlib.sha256(b"x").hexdigest().encode()).hexdigest()
    head = "case_id,ct,ct_sha256\n"
    sound = f"{head}c1,images/a.nii.gz,{good.upper()}\nc2,images/series,{of_folder}\n"
    path = manifest(folder, f"{sound}c3,images/b.nii.gz,\n")
    got = read_manifest(path, inputs=["ct"], verify_sha256=True)
    assert len(got) == 3
    assert got[0].covariates == {}
    bad = f"{sound}c3,images/b.nii.gz,{good}\nc4,images/b.nii.gz,abc\n"
    problems = refused(folder, bad, verify_sha256=True)
    assert [line for line, _ in problems] == [4, 5]
    assert [line for line, _ in refused(folder, bad)] == [5]


def test_missing_and_odd_manifests(folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")
    for name, words in [("none.csv", "does not exist"), ("pipe.csv", "not a file"), (".", "file")]:
        with pytest.raises(ManifestError, match=words):
            read_manifest(folder / name)


def test_many_problems_are_counted(folder: Path) -> None:
    problems = refused(folder, "case_id,ct\n" + "c1,none\n" * 1000)
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1][1].startswith(f"and {1999 - MAX_PROBLEMS} more")


def test_a_hundred_thousand_rows_take_seconds(folder: Path) -> None:
    rows = (f"case{i:07d},p{i // 2:06d},images/case{i:07d}.nii.gz,{i % 90}" for i in range(100_000))
    path = manifest(folder, "case_id,patient_id,ct,age\n" + "\n".join(rows))
    start = time.process_time()
    assert len(read_manifest(path, inputs=["ct"], check_files=False)) == 100_000
    assert time.process_time() - start < 10


def test_reading_imports_nothing_heavy(folder: Path) -> None:
    path = manifest(folder, "case_id,ct\nc1,images/a.nii.gz\n")
    code = (
        "import sys; from medpipe.io.manifest import read_manifest; read_manifest(sys.argv[1]);"
        "print(sorted({'torch', 'monai', 'numpy', 'pandas', 'pyarrow', 'pydicom', 'nibabel'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_parquet_equals_csv(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = {
        "case_id": ["c1", "c2"],
        "ct": ["images/a.nii.gz", "images/b.nii.gz"],
        "age": [5, None],
    }
    pq.write_table(pa.table(table), folder / "cases.parquet")
    text = "case_id,ct,age\nc1,images/a.nii.gz,5\nc2,images/b.nii.gz,\n"
    assert read_manifest(folder / "cases.parquet") == read_manifest(manifest(folder, text))
    table["ct"][1] = "images/none.nii.gz"
    pq.write_table(pa.table(table), folder / "cases.parquet")
    with pytest.raises(ManifestError, match=r"cases.parquet:3: input 'ct' does not exist"):
        read_manifest(folder / "cases.parquet", inputs=["ct"])
    (folder / "cases.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ManifestError, match="not a Parquet table"):
        read_manifest(folder / "cases.parquet")


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(
        st.from_regex(r"[a-z][a-z0-9_]{1,8}x", fullmatch=True), min_size=1, max_size=4, unique=True
    ),
    values=st.lists(
        st.one_of(TEXT, st.sampled_from(["=1+1", "'=x", "-", "-1", "@a", "''+"])),
        min_size=4,
        max_size=4,
    ),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], values: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("roundtrip")
    cases = [
        Case(name, {"ct": f"{folder}/=a b/{name}.nii"}, f"p{name}", {"note": value})
        for name, value in zip(ids, values, strict=False)
        if not value.startswith("#")
    ]
    if not cases:
        return
    write_manifest(folder / "cases.csv", cases)
    assert read_manifest(folder / "cases.csv", inputs=["ct"], check_files=False) == cases
    for line in (folder / "cases.csv").read_text().split(",")[1:]:
        assert not line.startswith(("=", "@"))


def test_writing_refuses_what_could_not_be_read(tmp_path: Path) -> None:
    target = tmp_path / "cases.csv"
    write_manifest(target, [Case("a", {"ct": "/x/a.nii"})])
    before = target.read_bytes()
    assert before == b"case_id,ct\na,/x/a.nii\n"
    for cases in (
        [Case("a b", {})],
        [Case("a", {}), Case("A", {})],
        [Case("a", {"ct": "x"}, None, {"CT": "1"})],
    ):
        with pytest.raises(UsageError):
            write_manifest(target, cases)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]
