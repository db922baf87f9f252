"""What our server shows beside Prefect's UI, under the same address: reports, and the artifacts that rounds made.

A browser opens no ``file://`` link of a page that came by HTTP, so the links that Prefect's UI shows lead here. Read-only:
one report a folder, and of artifacts the files that their manifests name. Ground truth and everything else in the data
folder are out of reach. With ``PREFECT_SERVER_API_AUTH_STRING`` set, the same user and password are asked for here.

``python -m selu.cli.pages DATA_DIR`` is Prefect's server with these pages, on the port of Prefect's settings, and on their
host unless ``--host`` names another: what a browser is told to ask stays that of the settings, as a container needs it.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hmac
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route

from selu.cli.profile import keep_leases
from selu.errors import SeluError
from selu.store import ArtifactRef, Manifest, Store

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["create_app", "pages"]

_REPORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHOWN = frozenset({"README.md", "lineage.json", "guard.json", "round.json"})
"""Files of an artifact that people read, shown on its page."""
_LONGEST_SHOWN = 200_000

_LOOPBACK = ["127.0.0.1", "localhost"]

_HEADERS = {
    # Texts of models are escaped; should one slip through, no script runs and nothing is asked of anybody.
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox allow-popups "
    "allow-downloads; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ manifest.kind }} {{ manifest.digest[:12] }}</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
td, th { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }
th { white-space: nowrap }
pre { padding: 1rem; overflow: auto; border: 1px solid #8886; border-radius: 6px; white-space: pre-wrap }
code { overflow-wrap: anywhere }
</style></head><body>
<h1>{{ manifest.kind.replace("_", " ") }} {{ manifest.digest[:12] }}</h1>
<table>
<tr><th>made by</th><td>{{ made_by }}, {{ manifest.created[:16].replace("T", " ") }} UTC</td></tr>
<tr><th>key</th><td><code>{{ manifest.key }}</code></td></tr>
<tr><th>digest</th><td><code>{{ manifest.digest }}</code></td></tr>
<tr><th>on disk</th><td><code>{{ folder }}</code></td></tr>
</table>
<h2>Files</h2>
<table>{% for file in manifest.files %}
<tr><td><a href="files/{{ file.name|urlencode }}" download>{{ file.name }}</a></td>
<td>{{ "{:,}".format(file.size) }} bytes</td></tr>
{% endfor %}</table>
{% for name, text in shown %}<h2>{{ name }}</h2><pre>{{ text }}</pre>{% endfor %}
</body></html>
"""
)


_INDEX = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Reports</title></head><body>
<h1>Reports</h1>
<ul>{% for name in names %}<li><a href="reports/{{ name|urlencode }}/">{{ name }}</a></li>
{% else %}<li>No round is finished yet.</li>{% endfor %}</ul>
</body></html>
"""
)


def pages(data_dir: Path, password: str | None = None) -> Starlette:
    """Reports and artifacts of a data folder; `password` is ``user:password``, None asks nobody."""
    root = data_dir.absolute()
    store = Store(root / "store")

    async def report(request: Request) -> Response:
        name = request.path_params["name"]
        path = root / "reports" / name / "index.html"
        if not _REPORT.fullmatch(name) or not path.is_file():
            raise HTTPException(404, "There is no such report in this data folder.")
        return FileResponse(path, media_type="text/html", headers=_HEADERS)

    def index(request: Request) -> Response:
        written = [
            path.parent for path in (root / "reports").glob("*/index.html") if _REPORT.fullmatch(path.parent.name)
        ]
        written.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        return HTMLResponse(_INDEX.render(names=[folder.name for folder in written]), headers=_HEADERS)

    def found(request: Request) -> tuple[Path, Manifest]:
        try:
            kind, key = request.path_params["kind"], request.path_params["key"]
            ref = ArtifactRef(kind=kind, key=key, digest="")
            return store.path(ref), store.manifest(ref)
        except (ValidationError, SeluError):
            raise HTTPException(404, "There is no such artifact in this data folder.") from None

    def artifact(request: Request) -> Response:
        folder, manifest = found(request)
        shown = [(file.name, _read(folder / file.name)) for file in manifest.files if file.name in _SHOWN]
        told = manifest.provenance
        made_by = told.get("shard") or told.get("stage") or "nobody knows whom"
        text = _PAGE.render(manifest=manifest, made_by=made_by, folder=folder, shown=shown)
        return HTMLResponse(text, headers=_HEADERS)

    def file(request: Request) -> Response:
        folder, manifest = found(request)
        name = request.path_params["name"]
        if name not in {file.name for file in manifest.files}:
            raise HTTPException(404, "The artifact has no such file.")
        # Data, whatever it is called: a browser keeps it and opens none of it.
        return FileResponse(
            folder / name,
            media_type="application/octet-stream",
            filename=name.rpartition("/")[2],
            content_disposition_type="attachment",
            headers=_HEADERS,
        )

    async def asked(request: Request, go_on: RequestResponseEndpoint) -> Response:
        if password is not None and not _knows(request.headers.get("authorization", ""), password):
            return Response("user and password", 401, {"WWW-Authenticate": 'Basic realm="selu"', **_HEADERS})
        return await go_on(request)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/reports/{name}/", report),
            Route("/artifacts/{kind}/{key}/", artifact),
            Route("/artifacts/{kind}/{key}/files/{name:path}", file),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=asked)],
    )


def _read(path: Path) -> str:
    """A text for people, without the lines at its head that are for the hub."""
    text = path.read_text(encoding="utf-8", errors="replace")[:_LONGEST_SHOWN]
    return re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.DOTALL)


def _knows(header: str, password: str) -> bool:
    scheme, _, told = header.partition(" ")
    try:
        given = base64.b64decode(told, validate=True)
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == "basic" and hmac.compare_digest(given, password.encode())


def create_app(data_dir: Path) -> FastAPI:
    """Prefect's server, with the pages of a data folder."""
    from prefect.server.api.server import create_app as create_server
    from prefect.settings import get_current_settings

    from selu.tasks.reporting import PAGES

    app = create_server(final=True)
    password = get_current_settings().server.api.auth_string
    if password is None and get_current_settings().server.api.host in _LOOPBACK:
        # A page elsewhere whose name was made to mean this machine is of the same origin to a browser, and of another host.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK)
    # In front: Prefect's UI takes every path that is left.
    app.router.routes.insert(
        0, Mount(PAGES, app=pages(data_dir, password.get_secret_value() if password is not None else None))
    )
    return app


def _main() -> None:
    keep_leases()
    import uvicorn
    from prefect.settings import get_current_settings

    parser = argparse.ArgumentParser(description="Prefect's server, with the reports and artifacts of a data folder.")
    parser.add_argument("data_dir", type=Path)
    api = get_current_settings().server.api
    parser.add_argument("--host", default=api.host)
    wanted = parser.parse_args()
    if not wanted.data_dir.is_dir():
        sys.exit(f"{wanted.data_dir} is no folder; give the data folder of the runs (the setting data_dir).")
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((wanted.host, api.port))
        except OSError as error:
            # Uvicorn looks only when all else has started.
            sys.exit(f"{wanted.host}:{api.port} cannot be listened on ({error.strerror}); take another port (--port).")
    uvicorn.run(
        create_app(wanted.data_dir),
        host=wanted.host,
        port=api.port,
        timeout_keep_alive=api.keepalive_timeout,
        ws_ping_interval=api.websocket_ping_interval,
        ws_ping_timeout=api.websocket_ping_timeout,
        log_level=get_current_settings().server.logging_level.lower(),
    )


if __name__ == "__main__":
    _main()
