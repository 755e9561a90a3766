"""Messages arrive whole or are noticed not to be."""

from __future__ import annotations

import os
import threading

import pytest

from medpipe.engine.wire import LineReader, send


def test_round_trip_beyond_the_size_of_a_pipe() -> None:
    read, write = os.pipe()
    messages = [{"n": i, "text": "é\n" * (i * 50_000)} for i in range(3)]
    writer = threading.Thread(target=lambda: [send(write, m) for m in messages])
    writer.start()
    reader, got = LineReader(read), []
    while len(got) < len(messages):
        assert reader.fill()
        while (message := reader.next()) is not None:
            got.append(message)
    writer.join()
    assert got == messages
    os.close(write)
    assert not reader.fill()
    os.close(read)


@pytest.mark.parametrize("half", [b"", b"12", b'12 {"n": 1'])
def test_half_a_message_is_none(half: bytes) -> None:
    read, write = os.pipe()
    os.write(write, b'8 {"n": 1}\n' + half)
    os.close(write)
    reader = LineReader(read)
    assert reader.fill()
    assert reader.next() == {"n": 1}
    assert reader.next() is None
    assert not reader.fill()
    os.close(read)


@pytest.mark.parametrize("wrong", [b'9 {"n": 1}\n', b'x {"n": 1}\n', b"hello\n", b"3 {x}\n"])
def test_what_is_no_message_is_refused(wrong: bytes) -> None:
    read, write = os.pipe()
    os.write(write, wrong)
    reader = LineReader(read)
    reader.fill()
    with pytest.raises(ValueError):  # noqa: PT011 - JSON errors are of this class too
        reader.next()
    os.close(write)
    os.close(read)
