"""One self-contained HTML page out of the templates: no network, nothing run that is not ours."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def render_page(context: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    """The page as UTF-8.

    context: what report.html.j2 shows; every text in it is escaped there. data: what report.js
    reads.
    """
    scripts = {"library": vega_bundle(), "script": _read("report.js")}
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            context,
            policy=content_policy(*scripts.values()),
            style=Markup(_read("report.css")),
            data=script_json(data),
            **{name: Markup(text) for name, text in scripts.items()},
        )
    )
    return html.encode("utf-8")


def script_json(value: Any) -> Markup:
    """`value` as JSON that can stand in a script element: it cannot close it or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_ESCAPES))


def content_policy(*scripts: str) -> str:
    """A Content-Security-Policy: these scripts, inline styles, pictures in the page, no network."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which leaves only `window.vegaEmbed` and kin.

    The bundle declares hundreds of short names at its top level; the function keeps them to itself.
    """
    import vl_convert

    # Without a snippet the bundle puts its libraries on `window`; the stub's type forgets that.
    # Its default Vega-Lite goes with its Vega; an older one warns on each plot.
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    bundle = bundle.replace("</script", "<\\/script").replace("\r", "")
    return f"(function () {{\n{bundle}\n}})();\n"


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
