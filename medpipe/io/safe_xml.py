"""Reading XML that others wrote: no document type, no entities, limits on everything.

Without a document type declaration XML has no entities of its own and refers to
no other file, so neither can grow without bound or reach anything. Expat itself
is of the standard library; what it says of a file is not repeated in errors,
only its fixed words and the line.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from medpipe.errors import InputError
from medpipe.io.nifti_stream import open_regular

__all__ = ["parse_xml", "read_limited"]

MAX_DEPTH = 32


class _Counter:
    """Builds the tree and refuses what no image format needs."""

    def __init__(self, what: str, max_elements: int) -> None:
        self.what, self.left, self.depth = what, max_elements, 0
        self.builder = TreeBuilder()

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.left -= 1
        self.depth += 1
        if self.left < 0:
            raise InputError(f"the {self.what} holds too many elements")
        if self.depth > MAX_DEPTH:
            raise InputError(
                f"the {self.what} is nested too deeply", expected=f"at most {MAX_DEPTH} levels"
            )
        self.builder.start(tag, attributes)

    def end(self, tag: str) -> None:
        self.depth -= 1
        self.builder.end(tag)

    def refuse(self, *_: object) -> None:
        raise InputError(
            f"the {self.what} declares a document type or entities, which are not read",
            hint="remove the DOCTYPE",
        )


def parse_xml(content: bytes, what: str, *, max_elements: int = 1 << 22) -> Element:
    """Return the root element of an XML file.

    Parameters
    ----------
    content : bytes
    what : str
        What the file is called in errors, for example ``"VTP file"``.
    max_elements : int
        Largest number of elements.

    Raises
    ------
    InputError
        If it is not well formed, declares a document type or entities, or is too
        large or too deep.
    """
    counter = _Counter(what, max_elements)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = counter.start
    parser.EndElementHandler = counter.end
    parser.CharacterDataHandler = counter.builder.data
    parser.StartDoctypeDeclHandler = counter.refuse
    parser.EntityDeclHandler = counter.refuse
    try:
        parser.Parse(content, True)
        return counter.builder.close()
    except expat.ExpatError as error:
        got = f"{expat.ErrorString(error.code)} in line {error.lineno}"
        raise InputError(f"the {what} is no well-formed XML", got=got) from None
    except (LookupError, ValueError):
        raise InputError(f"the {what} has an unknown text encoding", expected="UTF-8") from None


def read_limited(source: bytes | str | Path, what: str, max_bytes: int) -> bytes:
    """Return the content of a file, or `source` itself if it is the content.

    Raises
    ------
    InputError
        If it cannot be read or is larger than `max_bytes`.
    """
    if isinstance(source, bytes):
        size, content = len(source), source
    else:
        with open_regular(source) as (file, status):
            size = status.st_size
            content = b"" if size > max_bytes else file.readall()  # type: ignore[attr-defined]
    if size > max_bytes:
        raise InputError(
            f"the {what} is too large",
            expected=f"at most {max_bytes} bytes",
            got=f"{size} bytes",
        )
    return content
