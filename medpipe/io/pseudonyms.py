"""Ids for cases and patients that hold nothing of the patient."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from medpipe.errors import UsageError

__all__ = ["read_key", "tag"]

MIN_KEY_BYTES = 16


def read_key(path: str | os.PathLike[str] | None) -> bytes | None:
    """Return the secret in a key file, None for no file.

    Raises
    ------
    UsageError
        If the file cannot be read or holds fewer than 16 bytes.
    """
    if path is None:
        return None
    try:
        key = Path(path).read_bytes().strip()
    except OSError:
        raise UsageError("the key file of the pseudonyms cannot be read") from None
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(
            "the key of the pseudonyms is too short",
            expected=f"{MIN_KEY_BYTES} bytes or more",
            got=f"{len(key)}",
            hint="make one with `openssl rand -hex 32 > pseudonyms.key`, and keep it secret",
        )
    return key


def tag(key: bytes, *parts: str, digits: int) -> str:
    """Return the first hex digits of the HMAC-SHA256 of `parts` (RFC 2104)."""
    message = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:digits]
