"""A folder with a report, shown to this machine's own browser and to nobody else.

The server listens on 127.0.0.1 alone and answers GET and HEAD. What a request names is opened part by part
from the folder's own descriptor without following a link, so no path leads out of it. A page of another
site that has its name point here (DNS rebinding) is known by its Host header and refused.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from stillhouse.errors import OutputError, StillhouseError
from stillhouse.report.html import content_policy
from stillhouse.report.rundata import is_run

HOST = "127.0.0.1"
PAGE = "report.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    **dict.fromkeys((".json", ".jsonl", ".yaml", ".md", ".txt", ".log"), "text/plain; charset=utf-8"),
}
"""Any other file is offered for download."""
SILENT_SECONDS = 30


class ReportServer(ThreadingHTTPServer):
    """Serves ``folder`` on loopback; ``port`` 0 takes a free one. ``write_page`` makes the page of a run that lacks one.

    Raises OutputError for a port that is taken and for a folder that cannot be opened.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int, write_page: Callable[[Path], object]) -> None:
        self.folder, self._write_page = folder.resolve(), write_page
        self._writing = threading.Lock()
        try:
            self.root = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be opened ({error.strerror})") from error
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:  # the base class has closed the server, and with it the folder
            raise OutputError(f"port {port}: cannot be used ({error.strerror}); choose another --port") from error

    @property
    def url(self) -> str:
        """Where the report is."""
        return f"http://{HOST}:{self.server_port}/{PAGE}"

    @property
    def hosts(self) -> tuple[str, str]:
        """The Host headers that our own address has."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    def server_close(self) -> None:
        """Stop listening and let the folder go."""
        super().server_close()
        os.close(self.root)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def open_file(self, parts: list[str]) -> BinaryIO | None:
        """Open a plain file below the folder; None for everything else, links and hidden names included."""
        if not parts or any(part.startswith(".") or "/" in part or "\0" in part for part in parts):
            return None
        found = self._open(parts)
        if found is None and parts[-1] == PAGE and self._make_page(parts[:-1]):
            found = self._open(parts)
        return found

    def _open(self, parts: list[str]) -> BinaryIO | None:
        descriptor = os.dup(self.root)
        try:
            for i, part in enumerate(parts):
                kind = os.O_NONBLOCK if i == len(parts) - 1 else os.O_DIRECTORY
                below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            file = os.fdopen(descriptor, "rb")
            descriptor = -1
            return file
        except OSError:
            return None
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _make_page(self, parts: list[str]) -> bool:
        """Write the page of a run directory below the folder, if that is one and no link leads to it."""
        folder = self.folder.joinpath(*parts)
        if folder.resolve() != folder or not is_run(folder):
            return False
        try:
            with self._writing:
                self._write_page(folder)
        except StillhouseError:
            return False
        return True


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = "stillhouse", ""
    timeout = SILENT_SECONDS

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "This address answers only under its own name")
            return
        path = unquote(urlsplit(self.path).path, errors="surrogateescape")
        if path == "/":
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"/{PAGE}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        file = self.server.open_file(path.removeprefix("/").split("/")) if path.startswith("/") else None
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            self._send(file, Path(path), with_body=with_body)

    def _send(self, file: BinaryIO, path: Path, *, with_body: bool) -> None:
        self.send_response(HTTPStatus.OK)
        kind = TYPES.get(path.suffix.lower())
        self.send_header("Content-Type", kind or "application/octet-stream")
        if kind is None:
            self.send_header("Content-Disposition", "attachment")
        size = os.fstat(file.fileno()).st_size
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if with_body:
            shutil.copyfileobj(file, self.wfile)

    def end_headers(self) -> None:
        """Every answer, errors included, carries the headers that keep other sites out."""
        policy = f"{content_policy()}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not worth a line each in the terminal."""
