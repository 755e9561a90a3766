"""Layer surfaces of OCT volumes in the XML format of the Iowa OCTExplorer.

The format holds the height of each surface on each A-scan in voxels along the
depth, surface by surface and B-scan by B-scan, and A-scans that are not to be
trusted. Of a file only geometry, eye and surface names are read: the names of
programs, people and scans that it may hold go nowhere.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, MedpipeError, StepError
from medpipe.io.safe_xml import parse_xml, read_limited
from medpipe.io.vtk_arrays import host_array

__all__ = ["OctSurfaces", "octexplorer_bytes", "read_octexplorer"]

MAX_BYTES = 1 << 29
MAX_ELEMENTS = 1 << 23
MAX_SURFACES = 64
MAX_SIZE = 1 << 16
EYES = ("OD", "OS")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ()/_.,+'-]{0,79}")
_WHAT = "OCTExplorer file"


@dataclass(frozen=True, eq=False)
class OctSurfaces:
    """Surfaces of an OCT volume of B B-scans with A A-scans each.

    Parameters
    ----------
    names : tuple of str
        One for each surface, from the vitreous to the choroid.
    heights_voxels : array, shape (S, B, A)
        Where each surface crosses each A-scan, in voxels from the first (0) along
        the depth. Not finite where there is no surface: such A-scans are undefined.
    voxel_size_mm : (float, float, float)
        Between A-scans, along the depth, between B-scans.
    size : (int, int, int)
        Number of A-scans in a B-scan, voxels along the depth, and B-scans.
    labels : tuple of int, optional
        Numbers of the surfaces; by default 10, 20, 30 and so on.
    laterality : {"OD", "OS"}, optional
        Right or left eye.
    undefined : bool array, shape (B, A), optional
        A-scans that are not to be used; by default those where a height is not finite.

    Raises
    ------
    StepError
        If the parts do not fit together.
    """

    names: tuple[str, ...]
    heights_voxels: NDArray[np.float64]
    voxel_size_mm: tuple[float, float, float]
    size: tuple[int, int, int]
    labels: tuple[int, ...] = ()
    laterality: str | None = None
    undefined: NDArray[np.bool_] = None  # type: ignore[assignment] # __post_init__ sets it

    def __post_init__(self) -> None:
        heights = host_array(self.heights_voxels).astype(np.float64)
        names = tuple(self.names)
        missing = np.asarray(~np.isfinite(heights).all(axis=0))
        undefined = missing if self.undefined is None else host_array(self.undefined)
        values = {
            "names": names,
            "heights_voxels": heights,
            "voxel_size_mm": tuple(float(s) for s in self.voxel_size_mm),
            "size": tuple(int(n) for n in self.size),
            "labels": tuple(self.labels) or tuple(range(10, 10 * len(names) + 1, 10)),
            "undefined": undefined,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if problem := self._problem(missing):
            raise StepError("the surfaces do not fit together", got=problem)

    def _problem(self, missing: NDArray[np.bool_]) -> str | None:
        a_scans, depth, b_scans = self.size
        shape = (len(self.names), b_scans, a_scans)
        if self.heights_voxels.shape != shape:
            return f"heights of shape {self.heights_voxels.shape} where {shape} is due"
        if not 1 <= len(self.names) <= MAX_SURFACES or not 1 <= min(self.size) <= MAX_SIZE:
            return f"{len(self.names)} surfaces on {a_scans} × {depth} × {b_scans} voxels"
        if max(self.size) > MAX_SIZE:
            return f"more than {MAX_SIZE} voxels along an axis"
        if not all(math.isfinite(s) and s > 0 for s in self.voxel_size_mm):
            return "voxels without a size"
        if len(self.labels) != len(self.names) or len(set(self.labels)) < len(self.labels):
            return f"{len(set(self.labels))} different labels for {len(self.names)} surfaces"
        if len(set(self.names)) < len(self.names) or not all(map(_NAME.fullmatch, self.names)):
            return "names that are not different texts of letters, digits and ( ) / _ . , + ' -"
        if self.laterality not in (None, *EYES):
            return "an eye that is neither OD nor OS"
        undefined = self.undefined
        if undefined.shape != missing.shape or undefined.dtype != bool:
            return f"undefined A-scans that are not bool of shape {missing.shape}"
        if bool((missing & ~undefined).any()):
            return "heights that are not finite on A-scans that are not undefined"
        return None

    @property
    def heights_mm(self) -> NDArray[np.float64]:
        """Return the heights in mm from the first voxel, (S, B, A), NaN where undefined."""
        return np.where(self.undefined, np.nan, self.heights_voxels * self.voxel_size_mm[1])


def octexplorer_bytes(surfaces: OctSurfaces, *, decimals: int | None = None) -> bytes:
    """Return surfaces as the content of an OCTExplorer XML file.

    Parameters
    ----------
    surfaces : OctSurfaces
    decimals : int, optional
        Round heights to so many decimals; 0 gives whole voxels, as the Iowa
        programs write them. By default every digit is kept. Heights that are not
        finite, on undefined A-scans, are written as 0.
    """
    a_scans, depth, b_scans = surfaces.size
    voxel = "".join(f"<{n}>{s!r}</{n}>" for n, s in zip("xyz", surfaces.voxel_size_mm, strict=True))
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<surfaces>\n<version>4.0.0</version>\n'
        "<executable><name>medpipe</name><version>NA</version><date>NA</date>"
        "<configuration>NA</configuration><authors>NA</authors><institute>NA</institute>"
        "<comment>For investigational use only</comment></executable>\n"
        "<modification><date>NA</date><time>NA</time><modifier>NA</modifier>"
        "<approval>N</approval></modification>\n"
        "<scan_characteristics><manufacturer>NA</manufacturer>"
        f"<size><unit>voxel</unit><x>{a_scans}</x><y>{depth}</y><z>{b_scans}</z></size>"
        f"<voxel_size><unit>mm</unit>{voxel}</voxel_size>"
        f"<laterality>{surfaces.laterality or 'NA'}</laterality>"
        "<center_type>NA</center_type></scan_characteristics>\n<unit>voxel</unit>\n"
        f"<surface_size><x>{a_scans}</x><z>{b_scans}</z></surface_size>\n"
        f"<surface_num>{len(surfaces.names)}</surface_num>\n"
    )
    heights = np.where(np.isfinite(surfaces.heights_voxels), surfaces.heights_voxels, 0.0)
    if decimals is not None:
        heights = np.round(heights, decimals)
    parts = [head]
    for name, label, surface in zip(surfaces.names, surfaces.labels, heights, strict=True):
        label_text = f"<label>{label}</label>\n<name>{escape(name)}</name>"
        parts.append(f"<surface>\n{label_text}\n<instance>NA</instance>\n")
        parts += [_b_scan(row) for row in surface.tolist()]
        parts.append("</surface>\n")
    b_scan, a_scan = np.nonzero(surfaces.undefined)
    scans = zip(a_scan.tolist(), b_scan.tolist(), strict=True)
    parts.append("<undefined_region>\n")
    parts += [f"<ascan><x>{x}</x><z>{z}</z></ascan>\n" for x, z in scans]
    parts.append("</undefined_region>\n</surfaces>\n")
    return "".join(parts).encode()


def _b_scan(heights: list[float]) -> str:
    texts = [str(int(h)) if h.is_integer() else repr(h) for h in heights]
    return "<bscan>\n" + "".join(f"<y>{text}</y>\n" for text in texts) + "</bscan>\n"


def read_octexplorer(source: bytes | str | Path) -> OctSurfaces:
    """Read surfaces from an OCTExplorer XML file.

    Both orders of the axes are read: depth as y and B-scans along z, as in files of
    version 4, and the other way round.

    Raises
    ------
    InputError
        If the file cannot be read or is no such file, heights are missing or not in
        voxels, or a surface has no usual name.
    """
    content = read_limited(source, _WHAT, MAX_BYTES)
    root = parse_xml(content, _WHAT, max_elements=MAX_ELEMENTS)
    found = root.findall("surface")
    if root.tag != "surfaces" or not found:
        raise InputError(f"the file is no {_WHAT}", expected="surfaces in <surfaces>")
    if len(found) > MAX_SURFACES:
        raise _wrong("too many surfaces", expected=f"at most {MAX_SURFACES}", got=str(len(found)))
    depth_axis = "y" if found[0].find("bscan/y") is not None else "z"
    axes = ("x", depth_axis, "z" if depth_axis == "y" else "y")
    if _text(root, "unit") != "voxel" or _text(root, "scan_characteristics/size/unit") != "voxel":
        raise _wrong("its heights have another unit", expected="voxel")
    if _text(root, "scan_characteristics/voxel_size/unit") != "mm":
        raise _wrong("its voxel size has another unit", expected="mm")
    size = tuple(_whole(root, f"scan_characteristics/size/{axis}", MAX_SIZE) for axis in axes)
    eye = _text(root, "scan_characteristics/laterality")
    labels = [_whole(s, "label", 1 << 31) for s in found if s.find("label") is not None]
    try:
        return OctSurfaces(
            names=tuple(_text(s, "name") for s in found),
            heights_voxels=np.stack(
                [_heights(s, i, depth_axis, size) for i, s in enumerate(found)]
            ),
            voxel_size_mm=_voxel_size(root, axes),
            size=size,  # type: ignore[arg-type]
            labels=tuple(labels),
            laterality=eye if eye in EYES else None,
            undefined=_undefined(root, axes, size),
        )
    except StepError as error:
        raise _wrong("its parts do not fit together", got=error.got) from None


def _heights(
    surface: Element, number: int, axis: str, size: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the heights of one surface, shape (B, A)."""
    where = f"surface {number + 1}"
    scans = surface.findall("bscan")
    if len(scans) != size[2]:
        raise _wrong("B-scans are missing", where, f"{size[2]} B-scans", str(len(scans)))
    rows = []
    for i, scan in enumerate(scans):
        texts = [e.text or "" for e in scan.findall(axis)]
        where = f"surface {number + 1}, B-scan {i + 1}"
        if len(texts) != size[0]:
            raise _wrong("heights are missing", where, f"{size[0]} heights", str(len(texts)))
        try:
            row = np.array(texts, dtype=np.float64)
        except ValueError:
            raise _wrong("a height is no number", where) from None
        if not np.isfinite(row).all():
            raise _wrong("a height is no finite number", where)
        rows.append(row)
    return np.stack(rows)


def _voxel_size(root: Element, axes: tuple[str, ...]) -> tuple[float, float, float]:
    try:
        x, y, z = (float(_text(root, f"scan_characteristics/voxel_size/{a}")) for a in axes)
    except ValueError:
        raise _wrong("its voxel size is no number") from None
    return x, y, z


def _undefined(root: Element, axes: tuple[str, ...], size: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros((size[2], size[0]), bool)
    for scan in root.iterfind("undefined_region/ascan"):
        x, z = _whole(scan, axes[0], size[0] - 1), _whole(scan, axes[2], size[2] - 1)
        mask[z, x] = True
    return mask


def _text(element: Element, path: str) -> str:
    return " ".join((element.findtext(path) or "").split())


def _whole(element: Element, path: str, most: int) -> int:
    text = _text(element, path)
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > most:
        tag = path.rpartition("/")[2]
        raise _wrong(f"<{tag}> is out of range", expected=f"a whole number up to {most}")
    return int(text)


def _wrong(
    what: str, where: str | None = None, expected: str | None = None, got: Any = None
) -> MedpipeError:
    return InputError(
        f"the {_WHAT} cannot be used: {what}", where=where, expected=expected, got=got
    )
