"""A document on the page of its case: a file to download."""

from __future__ import annotations

import json
import re
from pathlib import Path

from report_tree import case_record

from medpipe.report.build import build_report


def test_a_document_is_offered_for_download_and_an_image_is_a_plain_link(tmp_path: Path) -> None:
    folder = tmp_path / "cases" / "sub-1"
    folder.mkdir(parents=True)
    outputs = [
        {"step": "mesh", "file": "mesh.vtp", "sha256": "0" * 64, "bytes": 9, "makes": "document"},
        {"step": "load", "file": "ct.nii.gz", "sha256": "1" * 64, "bytes": 9, "makes": "volume"},
    ]
    for output in outputs:
        (folder / str(output["file"])).write_bytes(b"content")
    record = case_record("sub-1", outputs=outputs, qc=[])
    (folder / "case.json").write_text(json.dumps(record))
    build_report(tmp_path)
    page = (tmp_path / "report" / "cases" / "sub-1.html").read_text()
    links = dict(re.findall(r'<a href="(\S+/sub-1/[^"]+)"( download)?>', page))
    assert links == {
        "../../cases/sub-1/mesh.vtp": " download",
        "../../cases/sub-1/ct.nii.gz": "",
    }
    assert "<td>document</td>" in page
