"""OCTExplorer surfaces: a real file, generated ones, and files that must not be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medpipe.errors import InputError, StepError
from medpipe.graphcut.octexplorer import OctSurfaces, octexplorer_bytes, read_octexplorer


def made(**changes: Any) -> OctSurfaces:
    heights = np.arange(2 * 3 * 4, dtype=np.float64).reshape(2, 3, 4) * 1.25
    parts = {
        "names": ("ILM (ILM)", "IS/OS junction (IS/OSJ)"),
        "heights_voxels": heights,
        "voxel_size_mm": (0.01168, 0.003872, 0.249175),
        "size": (4, 496, 3),
        "labels": (10, 110),
        "laterality": "OS",
        "undefined": np.arange(12).reshape(3, 4) % 5 == 0,
    }
    return OctSurfaces(**(parts | changes))


def assert_same(a: OctSurfaces, b: OctSurfaces) -> None:
    for name in ("names", "voxel_size_mm", "size", "labels", "laterality"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.undefined, b.undefined)
    np.testing.assert_array_equal(a.heights_voxels, b.heights_voxels)


@pytest.mark.real_data
def test_a_real_file_is_read_whole_and_written_back_the_same(real_data: Path) -> None:
    (path,) = (real_data / "oct_iowa_xml").glob("*.xml")
    surfaces = read_octexplorer(path)
    root = ElementTree.parse(path).getroot()  # noqa: S314 - a known file
    heights = [
        [[float(y.text or "") for y in scan] for scan in surface.findall("bscan")]
        for surface in root.findall("surface")
    ]
    np.testing.assert_array_equal(surfaces.heights_voxels, heights)
    assert surfaces.heights_voxels.shape == (11, 19, 512)
    assert surfaces.names == tuple(e.findtext("name") for e in root.findall("surface"))
    assert surfaces.labels == (10, 20, 30, 40, 50, 60, 100, 110, 120, 140, 150)
    assert surfaces.voxel_size_mm == (0.01168, 0.003872, 0.249175)
    assert surfaces.size == (512, 496, 19)
    assert surfaces.laterality == "OD"
    marked = [(int(a.findtext("z") or ""), int(a.findtext("x") or "")) for a in root.iter("ascan")]
    assert surfaces.undefined.sum() == len(marked) == 84
    assert all(surfaces.undefined[place] for place in marked)
    assert (np.diff(surfaces.heights_voxels, axis=0) >= 0).all()  # they are ordered

    content = octexplorer_bytes(surfaces)
    assert_same(read_octexplorer(content), surfaces)
    assert octexplorer_bytes(read_octexplorer(content)) == content
    for text in (b"Heidelberg", b"OCTLayerSeg", b"04/13/2018"):
        assert text in path.read_bytes()
        assert text not in content


def test_a_generated_file_has_the_layout_of_the_format() -> None:
    surfaces = made()
    root = ElementTree.fromstring(octexplorer_bytes(surfaces))  # noqa: S314 - our own
    assert [e.tag for e in root] == [
        "version", "executable", "modification", "scan_characteristics", "unit",
        "surface_size", "surface_num", "surface", "surface", "undefined_region",
    ]  # fmt: skip
    assert [e.text for e in root.findall("scan_characteristics/size/*")] == [
        "voxel",
        "4",
        "496",
        "3",
    ]
    assert root.findtext("surface_num") == "2"
    second = root.findall("surface")[1]
    assert [e.text for e in second.findall("bscan")[0]] == ["15", "16.25", "17.5", "18.75"]
    assert root.findtext("undefined_region/ascan[2]/x") == "1"
    assert root.findtext("undefined_region/ascan[2]/z") == "1"
    assert_same(read_octexplorer(octexplorer_bytes(surfaces)), surfaces)


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)),
        elements=st.floats(-1e6, 1e6),
    ),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_heights_survive(heights: np.ndarray, data: st.DataObject) -> None:
    count, b_scans, a_scans = heights.shape
    surfaces = OctSurfaces(
        names=tuple(f"S {i}" for i in range(count)),
        heights_voxels=heights,
        voxel_size_mm=data.draw(st.tuples(*[st.floats(1e-6, 10)] * 3)),
        size=(a_scans, 100, b_scans),
        laterality=data.draw(st.sampled_from(["OD", "OS", None])),
        undefined=data.draw(hnp.arrays(bool, (b_scans, a_scans))),
    )
    assert_same(read_octexplorer(octexplorer_bytes(surfaces)), surfaces)


def test_heights_in_mm_and_missing_ones() -> None:
    heights = np.full((2, 3, 4), 100.0)
    heights[1, 2, 3] = np.nan
    surfaces = made(heights_voxels=torch.from_numpy(heights), undefined=None)
    assert surfaces.undefined.sum() == 1
    assert surfaces.undefined[2, 3]
    assert surfaces.heights_mm[0, 0, 0] == pytest.approx(0.3872)
    assert np.isnan(surfaces.heights_mm[:, 2, 3]).all()
    again = read_octexplorer(octexplorer_bytes(surfaces))
    np.testing.assert_array_equal(again.undefined, surfaces.undefined)
    np.testing.assert_array_equal(again.heights_mm, surfaces.heights_mm)


def test_rounding_gives_whole_voxels() -> None:
    content = octexplorer_bytes(made(), decimals=0)
    assert b"." not in content.partition(b"<surface>")[2]
    again = read_octexplorer(content)
    assert np.abs(again.heights_voxels - made().heights_voxels).max() <= 0.5


def test_files_with_the_other_order_of_axes() -> None:
    text = octexplorer_bytes(made()).decode()
    swapped = re.sub(r"<(/?)([yz])>", lambda m: f"<{m[1]}{'zy'['yz'.index(m[2])]}>", text)
    assert_same(read_octexplorer(swapped.encode()), made())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heights_voxels": np.zeros((2, 4, 3))}, "heights of shape (2, 4, 3) where (2, 3, 4)"),
        ({"names": ("a",)}, "where (1, 3, 4) is due"),
        ({"names": ("a", "a")}, "names that are not different"),
        ({"names": ("a", "b<c")}, "names that are not different"),
        ({"names": ("a", "b\nc")}, "names that are not different"),
        ({"voxel_size_mm": (0.1, 0.0, 0.1)}, "voxels without a size"),
        ({"voxel_size_mm": (0.1, float("nan"), 0.1)}, "voxels without a size"),
        ({"size": (4, 0, 3)}, "2 surfaces on 4 × 0 × 3 voxels"),
        ({"size": (4, 1 << 20, 3)}, "more than 65536 voxels along an axis"),
        ({"labels": (1, 1)}, "1 different labels for 2 surfaces"),
        ({"laterality": "left"}, "neither OD nor OS"),
        ({"undefined": np.zeros((4, 3), bool)}, "not bool of shape (3, 4)"),
        ({"undefined": np.zeros((3, 4))}, "not bool of shape (3, 4)"),
        ({"heights_voxels": np.full((2, 3, 4), np.inf)}, "heights that are not finite"),
    ],
)
def test_surfaces_that_do_not_fit_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError) as caught:
        made(**changes)
    assert message in str(caught.value)


GOOD = octexplorer_bytes(made()).decode()


def broken(old: str, new: str) -> bytes:
    assert re.search(old, GOOD, re.DOTALL), old
    return re.sub(old, new, GOOD, count=1, flags=re.DOTALL).encode()


BAD = {
    "empty": (b"", "no well-formed XML"),
    "cut": (GOOD[:-40].encode(), "no well-formed XML"),
    "another root": (broken("(?s)<surfaces>.*", "<a/>"), "is no OCTExplorer file"),
    "no surfaces": (broken("<surface>.*</surface>", ""), "is no OCTExplorer file"),
    "doctype": (
        broken("<surfaces>", '<!DOCTYPE s [<!ENTITY a "ZZCANARY">]><surfaces>'),
        "declares a document type",
    ),
    "many surfaces": (broken("(<surface>.*</surface>)", r"\1" * 40), "at most 64, got 80"),
    "unit": (broken("<unit>voxel</unit>\n", "<unit>ZZCANARY</unit>"), "expected voxel"),
    "size unit": (broken("<unit>voxel</unit><x>", "<x>"), "expected voxel"),
    "voxel unit": (broken("<unit>mm</unit>", "<unit>ZZCANARY</unit>"), "expected mm"),
    "size": (broken("<x>4</x>", "<x>ZZCANARY</x>"), "<x> is out of range"),
    "negative": (broken("<x>4</x>", "<x>-4</x>"), "<x> is out of range"),
    "huge": (broken("<y>496</y>", "<y>9999999999</y>"), "whole number up to 65536"),
    "zero": (broken("<y>496</y>", "<y>0</y>"), "4 × 0 × 3 voxels"),
    "voxel size": (broken("<x>0.01168</x>", "<x>ZZCANARY</x>"), "voxel size is no number"),
    "flat voxel": (broken("<x>0.01168</x>", "<x>0</x>"), "voxels without a size"),
    "nan voxel": (broken("<x>0.01168</x>", "<x>nan</x>"), "voxels without a size"),
    "a scan less": (
        broken("<bscan>.*?</bscan>", ""),
        "^surface 1: .*B-scans are missing; expected 3 B-scans, got 2",
    ),
    "a height less": (
        broken("<bscan>\n<y>[^<]*</y>", "<bscan>"),
        "^surface 1, B-scan 1: .*heights are missing; expected 4 heights, got 3",
    ),
    "no number": (broken("<y>16.25</y>", "<y>ZZCANARY</y>"), "^surface 2, B-scan 1: .*no number"),
    "nan": (broken("<y>16.25</y>", "<y>nan</y>"), "no finite number"),
    "no height": (broken("<y>16.25</y>", "<y/>"), "no number"),
    "a name of letters that are not usual": (
        broken("ILM \\(ILM\\)", "ZZCANARY^DOE; 19800101"),
        "names that are not different texts",
    ),
    "no name": (broken("<name>ILM[^/]*</name>", ""), "names that are not different texts"),
    "twice the same": (broken("<label>110</label>", "<label>10</label>"), "1 different labels"),
    "some labels": (broken("<label>110</label>", ""), "1 different labels for 2"),
    "label": (broken("<label>110</label>", "<label>ZZCANARY</label>"), "<label> is out of range"),
    "undefined outside": (broken("<ascan><x>0</x>", "<ascan><x>4</x>"), "<x> is out of range"),
    "undefined without a place": (broken("<ascan><x>0</x>", "<ascan>"), "<x> is out of range"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_one_line_that_names_the_cause(name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(InputError) as caught:
        read_octexplorer(content)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert "CANARY" not in text


def test_texts_that_may_name_somebody_are_not_read() -> None:
    text = GOOD.replace("<name>medpipe</name>", "<name>ZZCANARY</name>")
    text = text.replace("<laterality>OS</laterality>", "<laterality>ZZCANARY</laterality>")
    text = text.replace(">NA<", ">ZZCANARY<")
    surfaces = read_octexplorer(text.encode())
    assert surfaces.laterality is None
    assert "CANARY" not in repr(surfaces)
    assert b"CANARY" not in octexplorer_bytes(surfaces)


def test_files_without_labels_get_tens(tmp_path: Path) -> None:
    path = tmp_path / "s.xml"
    path.write_text(re.sub("<label>[0-9]*</label>", "", GOOD))
    assert read_octexplorer(path).labels == (10, 20)
