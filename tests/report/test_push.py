"""Uploading, against a stand-in that speaks the hub's HTTP: create, preupload and commit of small files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import ModelError, OutputError
from stillhouse.report.push import push

TOKEN = "hf_secret_of_the_test"


@dataclass
class Hub:
    """What the stand-in was sent."""

    url: str = ""
    refuse: bool = False
    created: list[dict[str, Any]] = field(default_factory=list)
    committed: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if self.refuse:
            return 403, {"error": f"no write access with {TOKEN}"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.url}/me/small"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/api/models/me/small/preupload/"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if path.startswith("/api/models/me/small/commit/"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {
                "commitUrl": f"{self.url}/me/small/commit/abc",
                "commitOid": "abc",
                "hookOutput": "",
                "success": True,
            }
        return 404, {"error": path}


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.tokens.add(self.headers.get("Authorization"))
            status, answer = state.answer(self.path.partition("?")[0], body)
            encoded = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    # The stand-in for the hub is on loopback; a machine set to offline mode must still reach it.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# small\n", encoding="utf-8")
    return folder


def test_the_hub_gets_every_file_in_a_private_repository(
    hub: Hub, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = push(model_dir, "me/small", private=True, dry_run=False, endpoint=hub.url)
    assert hub.committed == {path.name: path.read_bytes() for path in model_dir.iterdir()}
    assert len(hub.created) == 1
    assert (hub.created[0]["name"], hub.created[0]["organization"]) == ("small", "me")
    assert hub.created[0].get("visibility") == "private" or hub.created[0].get("private") is True
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert done.url == f"{hub.url}/me/small"
    assert done.lines()[0] == f"uploaded to {hub.url}/me/small (private):"


def test_a_dry_run_lists_the_files_and_sends_nothing(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    lines = push(model_dir, "me/small", private=False, dry_run=True, endpoint="http://127.0.0.1:9").lines()
    assert lines[0] == "dry run: nothing was sent. It would upload to me/small (public):"
    assert "  model.safetensors  16 B" in lines
    assert lines[-1] == "3 files, 54 B"


def test_a_missing_token_is_named(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    with pytest.raises(OutputError, match="MY_TOKEN is not set"):
        push(model_dir, "me/small", private=True, dry_run=False, token_env="MY_TOKEN")


def test_a_refusal_is_told_without_the_token(hub: Hub, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refuse = True
    with pytest.raises(OutputError, match="me/small: the hub refused") as caught:
        push(model_dir, "me/small", private=True, dry_run=False, endpoint=hub.url)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.pt", "modeling.py", "sub/weights.pkl", ".gitattributes"]
)
def test_other_kinds_of_files_are_refused(model_dir: Path, name: str) -> None:
    (model_dir / name).parent.mkdir(exist_ok=True)
    (model_dir / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=f"{name} is of a kind that is not uploaded"):
        push(model_dir, "me/small", private=True, dry_run=True)


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "config.json is missing"), ("model.safetensors", "no weights")]
)
def test_a_folder_that_is_no_model_is_refused(model_dir: Path, missing: str, message: str) -> None:
    (model_dir / missing).unlink()
    with pytest.raises(ModelError, match=message):
        push(model_dir, "me/small", private=True, dry_run=True)
