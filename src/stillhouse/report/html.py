"""Pages that open offline: one file with its style, its data and Plotly inside.

Everything from a run is escaped by Jinja. As a second wall the page carries a content security
policy: it may load nothing, and only the scripts whose hashes it names may run, so a script that
came in with the data would stay dead.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stillhouse.report import text
from stillhouse.run_directory import write_text_atomic

_JSON_IN_SCRIPT = {
    ord(character): f"\\u{ord(character):04x}"
    for character in ("<", ">", "&", "\N{LINE SEPARATOR}", "\N{PARAGRAPH SEPARATOR}")
}


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render ``template`` and write it atomically; raises OutputError where it cannot be written."""
    page = (
        _environment()
        .get_template(template)
        .render(
            **values,
            style=Markup(_asset("style.css")),  # noqa: S704
            scripts=_scripts(),
            policy=content_policy(),
            version=version("stillhouse"),
        )
    )
    # JSON can carry half a surrogate pair (\ud800), which no UTF-8 file can.
    write_text_atomic(path, page.encode("utf-8", "replace").decode())
    return path


def script_json(value: Any) -> Markup:
    """Return JSON that is safe inside ``<script>``: a ``</script>`` in a string cannot end the block."""
    return Markup(json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_JSON_IN_SCRIPT))  # noqa: S704


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stillhouse.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clip": text.clip,
        "number": text.number,
        "count": text.count,
        "share": text.share,
        "amount": text.amount,
        "duration": text.duration,
        "script_json": script_json,
    }
    return environment


def _asset(name: str) -> str:
    return files("stillhouse.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _scripts() -> tuple[Markup, ...]:
    """Plotly, and our few lines that draw with it."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs()), Markup(_asset("charts.js"))  # noqa: S704


@cache
def content_policy() -> str:
    """Return the content security policy of every page: nothing is loaded, and only our own scripts run."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _scripts()]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
