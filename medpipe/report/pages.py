"""The template environment: everything is escaped, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from typing import Any

import medpipe
from medpipe.report.text import FILTERS

__all__ = ["render_page", "template_digest"]

_FILES = ("style.css", "page.js", "viewer.js")
_TEMPLATES = (
    "base.html", "parts.html", "case.html", "cohort.html", "outcome.html", "synthesis.html",
)  # fmt: skip


@functools.cache
def _source(name: str) -> str:
    return resources.files("medpipe.report").joinpath("templates", name).read_text("utf-8")


@functools.cache
def template_digest() -> str:
    """Return a digest of everything but the records that a page is made from."""
    digest = hashlib.sha256(medpipe.__version__.encode())
    for name in (*_FILES, *_TEMPLATES):
        digest.update(_source(name).encode())
    return digest.hexdigest()[:16]


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


@functools.cache
def _environment() -> Any:
    from jinja2 import ChainableUndefined, DictLoader, Environment
    from markupsafe import Markup

    environment = Environment(
        loader=DictLoader({name: _source(name) for name in _TEMPLATES}),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    # Our own constant files; nothing of a record ever becomes Markup.
    environment.globals["style"] = Markup(_source("style.css"))  # noqa: S704
    environment.globals["medpipe_version"] = medpipe.__version__
    return environment


def render_page(name: str, *, interactive: bool = False, **values: Any) -> bytes:
    """Return a page as UTF-8 bytes.

    The page forbids itself, by its content security policy, to load anything
    and to run any script but the ones written here.
    """
    from markupsafe import Markup

    scripts = [_source("page.js")] + ([_source("viewer.js")] if interactive else [])
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
    policy += " ".join(map(_hash, scripts))
    page = (
        _environment()
        .get_template(name)
        .render(
            scripts=[Markup(s) for s in scripts],  # noqa: S704
            policy=policy,
            interactive=interactive,
            **values,
        )
    )
    return page.encode("utf-8", "replace")
