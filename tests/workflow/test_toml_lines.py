"""Lines of keys, and limits on hostile text."""

from __future__ import annotations

import os
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.errors import WorkflowError
from medpipe.workflow.toml_lines import MAX_BYTES, MAX_DEPTH, parse_toml, read_toml

TEXT = '''\
# a comment with [[step]] in it
name = "x"
about = """
[[step]]
id = "no"  # """ # not this one
"quoted.key" = 'a # b'

[inputs.ct]
kind = "volume"
[inputs."m r"]

[[step]]
id = "one"
[[step]]
id = "two"
list = [
  1, # ]
  [2, "]"],
  { deep = 3 },
]
with = { a = 1, b.c = "}", d = """x
y""", e = 2 }
[step.save]
file = "f"
[[step.more]]
k = 1
[[step.more]]
k = 2

[[step]]
id = "three"
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("about",), 3),
        (("quoted.key",), 6),
        (("inputs",), 8),
        (("inputs", "ct"), 8),
        (("inputs", "ct", "kind"), 9),
        (("inputs", "m r"), 10),
        (("step", 0), 12),
        (("step", 0, "id"), 13),
        (("step", 1), 14),
        (("step", 1, "id"), 15),
        (("step", 1, "list", 0), 17),
        (("step", 1, "list", 1, 1), 18),
        (("step", 1, "list", 2, "deep"), 19),
        (("step", 1, "with", "a"), 21),
        (("step", 1, "with", "b", "c"), 21),
        (("step", 1, "with", "e"), 22),
        (("step", 1, "save", "file"), 24),
        (("step", 1, "more", 1, "k"), 28),
        (("step", 2), 30),
        (("step", 2, "id"), 31),
        (("step", 2, "absent"), 30),
        (("absent",), None),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_of_a_key(path: tuple[str | int, ...], line: int | None, newline: str) -> None:
    text = TEXT.replace("\n", newline)
    assert parse_toml(text, "f").line(path) == line


def _leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in _leaves(v, (*path, k))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [p for i, v in enumerate(value) for p in _leaves(v, (*path, i))]
    return [path]


_key = st.sampled_from(["a", "b-c", "d_e", "f9"])
_value = st.one_of(
    st.integers(-9, 9).map(str),
    st.booleans().map(lambda b: str(b).lower()),
    st.text(st.characters(codec="ascii", min_codepoint=32), max_size=9).map(
        lambda s: '"' + s.replace("\\", "\\\\").replace('"', '\\"').replace("\x7f", "") + '"'
    ),
    st.sampled_from(["'a#]\"'", '"""\n[x]\n"q" \\""""', "'''\n# \\ '''", "[ 1,\n #]\n 2 ]", "{}"]),
)


@given(
    st.lists(st.dictionaries(_key, _value, min_size=1), min_size=1, max_size=4),
    st.lists(st.sampled_from(["", "# [a]", "  "]), max_size=3),
)
def test_every_value_is_found_on_its_own_line(
    tables: list[dict[str, str]], fill: list[str]
) -> None:
    lines: list[str] = []
    expected: dict[tuple[str | int, ...], int] = {}
    for index, table in enumerate(tables):
        lines += [*fill, "[[t]]"]
        for key, value in table.items():
            expected["t", index, key] = len(lines) + 1
            lines += f"{key} = {value}".split("\n")
    text = "\n".join(lines)
    file = parse_toml(text, "f")
    assert file.data == tomllib.loads(text)
    assert {path: file.line(path) for path in expected} == expected


@pytest.mark.parametrize(
    "bomb",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 1000 + "]" * 1000,
        "a = " + "{b=" * 20_000,
        ".".join(["a"] * 60_000) + " = 1",
        "[" + ".".join(["a"] * 60_000) + "]",
        "[[" + ".".join(["a"] * 60_000) + "]]",
        "a = { " + ".".join(["b"] * 60_000) + " = 1 }",
        "x" * (MAX_BYTES + 1),
        "a = " + "9" * 100_000,
        'a = "' + "\\" * 100_000,
        'a = """' + '""' * 50_000,
        "a = '''" + "'" * 100_000,
        "\x00",
        "a = 1\na = 2",
        "a = nonsense",
        "[a\nb = [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]",
    ],
    ids=range(16),
)
def test_a_hostile_text_is_refused_quickly(bomb: str) -> None:
    start = time.process_time()
    with pytest.raises(WorkflowError) as caught:
        parse_toml(bomb, "bomb.toml")
    assert time.process_time() - start < 5
    assert str(caught.value).startswith("bomb.toml")
    assert len(str(caught.value)) < 300


def test_the_deepest_nesting_that_is_allowed() -> None:
    fits = "a = " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)
    assert parse_toml(fits, "f").data
    with pytest.raises(WorkflowError, match=rf"f:1: more than {MAX_DEPTH} levels"):
        parse_toml(f"a = [{fits[4:]}]", "f")


@given(st.text(alphabet="[]{}=.,\"'#\n\\ a1", max_size=60))
def test_any_text_is_read_as_tomllib_reads_it_or_refused(text: str) -> None:
    try:
        expected = tomllib.loads(text)
    except (ValueError, RecursionError):
        expected = None
    if expected is None:
        with pytest.raises(WorkflowError):
            parse_toml(text, "f")
        return
    try:
        found = parse_toml(text, "f")
    except WorkflowError as error:
        if "levels of nesting" not in str(error):
            raise
        return
    assert found.data == expected
    for path in _leaves(found.data):
        assert found.line(path) is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "bad.toml:1: not UTF-8 text. Next: save the file as UTF-8"),
        (b"a = 1\nb = '\xe9'\n", "bad.toml:2: not UTF-8 text"),
        (b"a = 1\nb = \n", "bad.toml:2: not TOML: Invalid value"),
        (b"a = 1\n\nb", "bad.toml:3: not TOML"),
        (b"#" * (MAX_BYTES + 1), "bad.toml: the file is longer than 256 KiB"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(WorkflowError) as caught:
        read_toml(tmp_path / "bad.toml")
    assert message in str(caught.value)


def test_a_file_saved_by_notepad_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 2\r\n")
    file = read_toml(tmp_path / "w.toml")
    assert file.data == {"a": 1, "b": 2}
    assert file.line(("b",)) == 2


def test_pipes_folders_and_absent_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path, why in [
        (tmp_path / "pipe.toml", "not a regular file"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "none.toml", "FileNotFoundError"),
    ]:
        with pytest.raises(WorkflowError, match=why):
            read_toml(path)
