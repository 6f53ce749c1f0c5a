"""The local server: what it shows, and everything that it must not."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillhouse.errors import OutputError
from stillhouse.report.folder import fresh_page
from stillhouse.report.serve import ReportServer

MakeRun = Callable[..., Path]
SECRET = "not for everyone"


@contextmanager
def served(folder: Path) -> Iterator[ReportServer]:
    with ReportServer(folder, 0, fresh_page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files of several kinds, and a secret beside it."""
    (tmp_path / "secret.txt").write_text(SECRET)
    inside = tmp_path / "inside"
    (inside / "runs").mkdir(parents=True)
    (inside / "report.html").write_text("<!doctype html><p>hello")
    (inside / "runs" / "log.txt").write_text("a line")
    (inside / "model.safetensors").write_bytes(b"\0\1")
    (inside / ".hidden").write_text(SECRET)
    return inside


def ask(
    server: ReportServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


def test_it_serves_the_folder_on_loopback_only(folder: Path) -> None:
    with served(folder) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.server_port}/report.html"
        status, body, headers = ask(server, "/report.html?x=1#y")
        assert (status, body) == (200, b"<!doctype html><p>hello")
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert ask(server, "/")[2]["location"] == "/report.html"
        assert ask(server, "/runs/log.txt")[2]["content-type"] == "text/plain; charset=utf-8"
        assert ask(server, "/model.safetensors")[2]["content-disposition"] == "attachment"


def test_head_has_no_body_and_other_methods_are_refused(folder: Path) -> None:
    with served(folder) as server:
        status, body, headers = ask(server, "/report.html", "HEAD")
        assert (status, body, headers["content-length"]) == (200, b"", "23")
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "CONNECT"):
            assert ask(server, "/report.html", method)[0] == 501


@pytest.mark.parametrize("path", ["/report.html", "/nothing", "/"])
def test_every_answer_keeps_other_sites_out(folder: Path, path: str) -> None:
    with served(folder) as server:
        headers = ask(server, path)[2]
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
    assert headers["content-security-policy"].endswith("frame-ancestors 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"


def test_a_name_that_was_pointed_here_is_refused(folder: Path) -> None:
    with served(folder) as server:
        port = server.server_port
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
            status, body, _ = ask(server, "/report.html", host=host)
            assert status == 421, host
            assert b"hello" not in body
        assert ask(server, "/report.html", host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/%2e%2e/secret.txt", "/runs/../../secret.txt", "/runs/%2e%2e%2f..%2fsecret.txt",
        "//etc/passwd", "/.hidden", "/runs", "/runs/", "/report.html/", "/report.html%00.txt", "/..%5csecret.txt",
        "/%ff%fe", "/runs//log.txt", "*",
    ],
)  # fmt: skip
def test_nothing_outside_and_nothing_hidden(folder: Path, path: str) -> None:
    with served(folder) as server:
        status, body, _ = ask(server, path)
    assert status == 404
    assert SECRET.encode() not in body


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    with served(folder) as server:
        for path in ("/link.txt", "/up/secret.txt", "/up/inside/report.html", "/pipe"):
            assert ask(server, path)[0] == 404, path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(["..", ".", "", "runs", "secret.txt", "inside", "%2e", "~", "\\", "\0"]), max_size=6)
)
def test_no_path_leads_out(folder: Path, parts: list[str]) -> None:
    server = ReportServer(folder, 0, fresh_page)
    try:
        file = server.open_file(parts)
        assert file is None
    finally:
        server.server_close()


def test_a_strange_request_does_not_stop_it(folder: Path) -> None:
    with served(folder) as server:
        for line in (
            b"\x16\x03\x01\x02\x00",
            b"GET /report.html\r\n\r\n",
            b"GET " + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as connection:
                connection.sendall(line)
                connection.shutdown(socket.SHUT_WR)
                assert b"hello" not in connection.recv(1 << 16)
        assert ask(server, "/report.html")[0] == 200


def test_the_page_of_a_run_below_is_written_when_it_is_asked_for(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("kd run")
    (tmp_path / "report.html").write_text("<!doctype html><p>study")
    (tmp_path / "linked").symlink_to(run)
    with served(tmp_path) as server:
        assert ask(server, "/linked/report.html")[0] == 404
        assert not (run / "report.html").exists()
        status, body, _ = ask(server, f"/{quote('kd run')}/report.html")
        assert status == 200
        assert b"Training closed 98 % of the gap" in body
        assert ask(server, "/elsewhere/report.html")[0] == 404


def test_a_damaged_run_below_has_no_page(make_run: MakeRun, tmp_path: Path) -> None:
    (make_run("kd") / "result.json").write_text("{")
    with served(tmp_path) as server:
        assert ask(server, "/kd/report.html")[0] == 404


def test_a_port_that_is_taken_and_a_folder_that_is_none_are_named(folder: Path) -> None:
    with ReportServer(folder, 0, fresh_page) as server, pytest.raises(OutputError, match=r"choose another --port"):
        ReportServer(folder, server.server_port, fresh_page)
    with pytest.raises(OutputError, match="cannot be opened"):
        ReportServer(folder / "report.html", 0, fresh_page)
