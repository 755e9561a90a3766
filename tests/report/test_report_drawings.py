"""Documents that are pictures, on the page of their case."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from report_tree import case_record, pictures

from medpipe.report import drawings
from medpipe.report.build import build_report

SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>\n'


def page_with(out: Path, files: dict[str, bytes], makes: str = "document") -> str:
    """Return the page of a case whose outputs are `files`, named after their steps."""
    folder = out / "cases" / "sub-1"
    folder.mkdir(parents=True, exist_ok=True)
    outputs = []
    for name, content in files.items():
        (folder / name).write_bytes(content)
        step = name.partition(".")[0]
        outputs.append({"step": step, "file": name, "sha256": "0" * 64, "bytes": 9, "makes": makes})
    record = case_record("sub-1", outputs=outputs, qc=[])
    (folder / "case.json").write_text(json.dumps(record))
    build_report(out)
    return (out / "report" / "cases" / "sub-1.html").read_text()


def shown(page: str) -> list[tuple[str, bytes]]:
    found = re.findall(r'<img src="data:(image/[a-z+]+);base64,([^"]*)"', page)
    return [(mime, base64.b64decode(content)) for mime, content in found]


def test_svg_and_png_are_shown_with_caption_and_link_and_other_documents_are_not(
    tmp_path: Path,
) -> None:
    png = pictures()[0][0]
    page = page_with(tmp_path, {"tree.svg": SVG, "strip.png": png, "mesh.vtp": SVG})
    assert shown(page) == [("image/svg+xml", SVG), ("image/png", png)]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    for caption, name in zip(captions, ("tree.svg", "strip.png"), strict=True):
        assert f'<a href="../../cases/sub-1/{name}" download>{name}</a>' in caption
    assert 'alt="Picture tree.svg of step tree"' in page


def test_a_script_in_an_svg_is_never_part_of_the_page(tmp_path: Path) -> None:
    hostile = b"<svg><script>alert(1)</script></svg>"
    page = page_with(tmp_path, {"tree.svg": hostile})
    assert "alert(1)" not in page
    assert shown(page) == [("image/svg+xml", hostile)]
    assert "img-src data:" in page


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html><script>alert(1)</script></html>", "damaged"),
        (b"<svg>cut off", "damaged"),
        (b"<svg>" + b" " * 4_000_000 + b"</svg>", "too large to be shown here"),
    ],
)
def test_what_cannot_be_shown_is_linked(tmp_path: Path, content: bytes, problem: str) -> None:
    page = page_with(tmp_path, {"tree.svg": content})
    assert shown(page) == []
    text = f'<a href="../../cases/sub-1/tree.svg" download>tree.svg</a> is {problem}.'
    assert text in page


def test_all_pictures_of_a_page_have_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawings, "MAX_PAGE_BYTES", 500)
    page = page_with(tmp_path, {f"p{n}.svg": SVG for n in range(9)})
    assert 1 <= len(shown(page)) <= 500 // (len(SVG) * 4 // 3)
    assert page.count("too large") == 9 - len(shown(page))


def test_a_picture_that_is_absent_or_no_document_is_not_shown(tmp_path: Path) -> None:
    assert shown(page_with(tmp_path, {"tree.svg": SVG}, makes="volume")) == []
    folder = tmp_path / "cases" / "sub-1"
    record = json.loads((folder / "case.json").read_text())
    for name in ("gone.svg", "../sub-1/tree.svg", "/etc/hostname.svg"):
        record["outputs"] = [{"step": "a", "file": name, "makes": "document"}]
        (folder / "case.json").write_text(json.dumps(record))
        build_report(tmp_path)
        assert shown((tmp_path / "report" / "cases" / "sub-1.html").read_text()) == []


def test_a_page_is_built_again_when_its_picture_changed(tmp_path: Path) -> None:
    page_with(tmp_path, {"tree.svg": SVG})
    other = SVG.replace(b"<rect/>", b"<circle/>")
    (tmp_path / "cases" / "sub-1" / "tree.svg").write_bytes(other)
    build_report(tmp_path)
    page = (tmp_path / "report" / "cases" / "sub-1.html").read_text()
    assert shown(page) == [("image/svg+xml", other)]
