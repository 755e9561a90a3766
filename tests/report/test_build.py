# ruff: noqa: E501
"""The report shows what is on the disk, escapes all of it and opens without a network."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from medpipe.errors import UsageError
from medpipe.report.build import build_report

sys.path.insert(0, str(Path(__file__).parent))
import report_tree as tree

VOID = {"meta", "img", "input", "br"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); //",
    "{{ 7 * 7 }}{% raw %}",
    "</style><script>alert(1)</script>",
    "javascript:alert(1)",
    "<svg/onload=alert(1)>",
    "\u202e\ud83d",
)


class Page(HTMLParser):
    """Collects links, images, text and event attributes, and checks that tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.images: list[dict[str, str]] = []
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.stack: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag: str, attrs: list) -> None:
        named = {k: v or "" for k, v in attrs}
        self.attributes += [(tag, k, v) for k, v in named.items()]
        if tag == "a":
            self.links.append(named["href"])
        if tag == "img":
            self.images.append(named)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, tag
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts.append(data)
        elif not self.stack or self.stack[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def pages(out: Path) -> list[Path]:
    return [out / "index.html", *sorted((out / "report").rglob("*.html"))]


def check_self_contained(path: Path) -> Page:
    """Whatever is in the records: no external address, live links, whole images, no handlers."""
    page = Page(path)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert value.startswith("data:image/") or (
                not re.match(r"\s*([a-z][a-z0-9+.-]*:|//)", value, re.I)
            ), value[:80]
    style = re.search(r"<style>(.*?)</style>", page.source, re.S)
    assert style
    assert not re.search(r"url\(|@import|expression", style[1])
    for link in page.links:
        target = (path.parent / unquote(link)).resolve()
        assert target.is_file(), link
    for image in page.images:
        kind, _, content = image["src"].partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        Image.open(io.BytesIO(base64.b64decode(content))).load()
        assert image["alt"]
    return page


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tree.make_tree(tmp_path_factory.mktemp("cohort") / "OUT", 120, 5)
    build_report(out)
    return out


def test_every_page_is_whole_and_self_contained(cohort: Path) -> None:
    found = pages(cohort)
    assert len(found) == 1 + 2 + 120
    for path in found:
        check_self_contained(path)


def test_fifty_cases_a_page_and_every_case_once(cohort: Path) -> None:
    seen: list[str] = []
    for name in ("index.html", "report/page-0002.html", "report/page-0003.html"):
        page = Page(cohort / name)
        rows = re.search(r'<table class="sortable">.*?</table>', page.source, re.S)
        assert rows
        seen += re.findall(r'<th scope="row"><a href="[^"]*">([^<]+)</a>', rows[0])
        assert len(page.images) <= 50
        assert len(page.source) < 5_000_000
    assert len(seen) == 120
    assert len(set(seen)) == 120


def test_failures_come_first_and_say_what_to_do(cohort: Path) -> None:
    page = Page(cohort / "index.html")
    text = page.text
    assert text.index("slices are missing from the series") < text.index("Findings by frequency")
    assert "a gap of 10 mm after slice 14 at z = 62.5 mm" in text
    assert "--set load.missing_slices=interpolate" in text
    cards = re.findall(r'<li class="card (\w+)">', page.source)
    assert cards[:5] == ["failed"] * 5
    assert set(cards[5:]) == {"done"}


def test_summary_numbers_agree_with_the_records(cohort: Path) -> None:
    records = [json.loads(p.read_bytes()) for p in (cohort / "cases").glob("*/case.json")]
    tiles = dict(
        re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd></div>", Page(cohort / "index.html").source)
    )
    assert tiles["Cases"] == "120"
    assert tiles["Done"] == str(sum(r["status"] == "done" for r in records)) == "115"
    assert tiles["Failed"] == "5"
    reused = sum(all(s["status"] == "reused" for s in r["steps"]) for r in records)
    assert tiles["From the store"] == str(reused)
    total = sum(r["seconds"] for r in records)
    assert tiles["Computing time"] == f"{int(total / 60)} min {round(total) % 60:02d} s"


def test_distributions_name_the_outliers(cohort: Path) -> None:
    source = Page(cohort / "index.html").source
    chart = re.search(r"<figcaption>stats.head.volume_ml.*?</figure>", source, re.S)
    assert chart
    named = re.findall(r'<text class="outlier"[^>]*>([^<]+)</text>', chart[0])
    high = max(
        (r["tables"]["stats"]["head"]["volume_ml"], r["case_id"])
        for r in map(json.loads, (p.read_bytes() for p in (cohort / "cases").glob("*/case.json")))
        if r["tables"]
    )
    assert high[1] in named
    assert "voxels along i" in source[source.index("The same in every case") :]


def test_methods_text_names_the_workflow_and_its_parameters(cohort: Path) -> None:
    text = Page(cohort / "index.html").text
    assert "Images of 115 cases were processed with medpipe 0.1.0, workflow head-ct-prepare" in text
    assert "closing_mm = 5" in text
    assert "PyTorch 2.13.0" in text
    assert "The tilt of the gantry is corrected." in text


def test_case_page_shows_the_record(cohort: Path) -> None:
    page = check_self_contained(cohort / "report" / "cases" / "sub-001.html")
    text = page.text
    for wanted in ("sub-001", "head-ct-prepare", "spacing_mm [1.0, 1.0, 1.0]", "14.9 MB", "gantry tilt",
                   "repaired", "medpipe run head-ct-prepare INPUT OUT --case-id sub-001", "volume_ml", "brain window",
                   "ct.nii.gz", "Peak memory"):  # fmt: skip
        assert wanted in text.replace("Window 0 to 80 HU", "brain window"), wanted
    assert any(link.endswith("cases/sub-001/ct.nii.gz") for link in page.links)
    shown = base64.b64decode(page.images[0]["src"].partition(",")[2])
    assert shown == (cohort / "cases" / "sub-001" / "qc-resample-ct.png").read_bytes()


def test_failed_case_page_says_what_where_expected_got_next(cohort: Path) -> None:
    records = {
        p.parent.name: json.loads(p.read_bytes()) for p in (cohort / "cases").glob("*/case.json")
    }
    case_id = next(
        k for k, r in records.items() if r["status"] == "failed" and r["error"].get("signal")
    )
    page = Page(cohort / "report" / "cases" / f"{case_id}.html")
    for wanted in ("the process of this case was killed", "SIGKILL", "--memory-gb 24", "Peak memory",
                   "Last step done load", "Attempts 2"):  # fmt: skip
        assert wanted in page.text, wanted


def hostile_record(text: str) -> dict:
    record = tree.case_record("x", seed=5)
    record["workflow"] = {"name": text, "version": text, "digest": text}
    record["findings"] = [{"check": text, "severity": text, "message": text, "fix": text}]
    record["tables"] = {text: {text: text, "n": {text: 3.5}}, "rows": [{text: text}]}
    record["steps"][0] |= {
        "id": text,
        "use": text,
        "params": {text: text},
        "status": text,
        "out": [text],
    }
    record["outputs"][0] |= {"file": text, "sha256": text, "makes": text}
    record["inputs"] = {text: {"kind": text, "digest": text, "files": text, "bytes": text}}
    record |= {"device": text, "run_id": text}
    record["qc"] = [
        {"step": text, "object": "../..", "png": "../../../etc/passwd", "json": "qc.json"}
    ]
    return record


def test_hostile_strings_are_inert(tmp_path: Path) -> None:
    tree.write_run(tmp_path)
    plain = tree.make_tree(tmp_path / "plain", 1, 0)
    build_report(plain, interactive=True)
    scripts = Page(plain / "report" / "cases" / "sub-001.html").scripts
    for rank, text in enumerate(HOSTILE):
        for status in ("done", "failed"):
            record = hostile_record(text) | {"status": status, "outputs": []}
            record["error"] = dict.fromkeys(
                ("what", "where", "expected", "got", "hint", "step", "type"), text
            )
            record["error"] |= {"frames": [text], "problems": [{"what": text, "line": text}]}
            name = f"{rank}-{status}-" + text.encode("ascii", "replace").decode().replace("/", "_")
            place = tree.write_case(tmp_path, record, None, folder=name)
            numbers = json.loads(tree.pictures()[0][1])
            numbers |= {
                "unit": text,
                "axis_codes": text,
                "notes": [text],
                "panels": [{"view": text}],
            }
            numbers["labels"] = [{"label": text, "name": text, "voxels": 1, "ml": 2.0}]
            numbers["flags"] = [{"check": text, "severity": "error", "message": text}]
            numbers["thumbnail"] = {"mime": text, "base64": text, "width": 1, "height": 1}
            (place / "qc.json").write_text(json.dumps(numbers))
    build_report(tmp_path, interactive=True)
    found = pages(tmp_path)
    assert len(found) == 1 + 2 * len(HOSTILE)
    for path in found:
        page = check_self_contained(path)
        assert page.scripts in (scripts, scripts[:1], []), path.name
        assert "49" not in re.findall(r"\b49\b", page.text)
        assert "root:" not in page.source


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"status": 3}', b'{"status": "done"}', b"\xff\xfe\x00", b"[" * 100_000,
     b'{"status": "done", "steps": 3, "qc": {"a": 1}, "findings": [1, null], "tables": [], "error": "x", '
     b'"inputs": [], "workflow": "w", "seconds": 1e999, "outputs": [{}], "facts": 0}',
     b'{"status": "failed", "error": {"frames": "x", "problems": 4}, "steps": [{}], "qc": [{}]}'],
)  # fmt: skip
def test_damaged_records_are_said_and_the_others_go_on(tmp_path: Path, content: bytes) -> None:
    tree.write_case(tmp_path, tree.case_record("good", seed=1))
    bad = tmp_path / "cases" / "bad"
    bad.mkdir()
    (bad / "case.json").write_bytes(content)
    build_report(tmp_path)
    index = check_self_contained(tmp_path / "index.html")
    assert "good" in index.text
    page = check_self_contained(tmp_path / "report" / "cases" / "bad.html")
    if b'"done"' not in content:
        assert re.search(r"not whole|not a record|no known status|without saying why", page.text)
        assert "Failed cases" in index.text


def test_missing_and_damaged_pictures_are_said(tmp_path: Path) -> None:
    for name in ("no-png", "no-json", "half-png"):
        tree.write_case(tmp_path, tree.case_record(name))
    (tmp_path / "cases/no-png/qc-resample-ct.png").unlink()
    (tmp_path / "cases/no-json/qc-resample-ct.json").write_text("{")
    (tmp_path / "cases/half-png/qc-resample-ct.png").write_bytes(b"no picture")
    build_report(tmp_path)
    for name, wanted in (
        ("no-png", "absent or damaged"),
        ("half-png", "absent or damaged"),
        ("no-json", "not whole"),
    ):
        assert wanted in check_self_contained(tmp_path / "report" / "cases" / f"{name}.html").text
    assert "no picture" in check_self_contained(tmp_path / "index.html").text


def test_picture_is_found_in_the_store_when_the_case_folder_lost_it(tmp_path: Path) -> None:
    place = tree.write_case(tmp_path, tree.case_record("a"))
    store = tmp_path / "store" / "cc" / ("c" * 64)
    store.mkdir(parents=True)
    (place / "qc-resample-ct.png").rename(store / "picture.png")
    (place / "qc-resample-ct.json").rename(store / "picture.json")
    build_report(tmp_path)
    assert len(check_self_contained(tmp_path / "report" / "cases" / "a.html").images) == 1
    assert len(Page(tmp_path / "index.html").images) == 1


def test_running_and_empty_folders_have_a_report(tmp_path: Path) -> None:
    build_report(tmp_path)
    assert "no case in this folder yet" in check_self_contained(tmp_path / "index.html").text
    tree.write_run(tmp_path, status="running")
    (tmp_path / "cases" / "started").mkdir(parents=True)
    tree.write_case(tmp_path, tree.case_record("done-1"))
    build_report(tmp_path)
    text = check_self_contained(tmp_path / "index.html").text
    assert "A run is in progress" in text
    assert "Not finished 1" in text


def test_only_changed_cases_are_built_again(tmp_path: Path) -> None:
    tree.make_tree(tmp_path, 4, 0)
    build_report(tmp_path)
    folder = tmp_path / "report" / "cases"
    before = {p.name: p.stat().st_ino for p in folder.iterdir()}
    record = tree.case_record("sub-002", seed=99)
    (tmp_path / "cases" / "sub-002" / "case.json").write_text(json.dumps(record))
    (tmp_path / "cases" / "sub-003" / "case.json").unlink()
    for file in (tmp_path / "cases" / "sub-003").iterdir():
        file.unlink()
    (tmp_path / "cases" / "sub-003").rmdir()
    build_report(tmp_path)
    after = {p.name: p.stat().st_ino for p in folder.iterdir()}
    assert {n for n in after if after[n] != before[n]} == {"sub-002.html"}
    assert "sub-003.html" not in after


def test_same_records_same_bytes_and_no_leftovers(tmp_path: Path) -> None:
    tree.make_tree(tmp_path, 3, 0)
    build_report(tmp_path)
    first = {p: p.read_bytes() for p in pages(tmp_path)}
    for path in first:
        path.unlink()
    build_report(tmp_path)
    assert {p: p.read_bytes() for p in pages(tmp_path)} == first
    assert not list(tmp_path.rglob(".tmp-*"))


def test_pages_allow_themselves_nothing_but_their_own_scripts(cohort: Path) -> None:
    import hashlib

    page = Page(cohort / "index.html")
    policy = next(v for t, k, v in page.attributes if t == "meta" and v.startswith("default-src"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="page size"):
        build_report(tmp_path, page_size=0)
    with pytest.raises(UsageError, match="output folder"):
        build_report(tmp_path / "absent")
