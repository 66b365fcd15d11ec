"""Downloads from a local server: once, whole, by their hash, and never half."""

import contextlib
import hashlib
import io
import json
import shutil
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import yaml
from processes import kill
from test_boxes import official

from sr4g_utils.dataset import inputs
from sr4g_utils.store import files
from sr4g_utils.store.run import Run


class Server:
    """Serves one body: whole, broken off in the middle (once or always), slowly, or not at all."""

    def __init__(self, body: bytes) -> None:
        self.body, self.mode, self.requests, self.parts = body, "whole", 0, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests += 1
                if server.mode == "missing":
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(server.body)))
                self.end_headers()
                broken = server.mode == "broken" or (server.mode == "broken once" and server.requests == 1)
                length = 1000 if server.mode == "slow" else len(server.body) // 2
                for at in range(0, length if broken else len(server.body), length):
                    with contextlib.suppress(OSError):
                        self.wfile.write(server.body[at : at + length])
                    server.parts += 1
                    time.sleep(0.05 * (server.mode == "slow"))

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=[0.02], daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


NAME = "annotations_trainval2017.zip"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A mirror that holds a small annotation zip, whose hash is the one that is expected."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("annotations/instances_val2017.json", json.dumps(official()))
    server = Server(buffer.getvalue() + b"\0" * 100_000)
    data = tmp_path / "data"
    shutil.copytree(files.DATA, data)
    sources = yaml.safe_load((data / "sources.yaml").read_text())
    sources[NAME]["hash"] = "sha1:" + hashlib.sha1(server.body).hexdigest()
    (data / "sources.yaml").write_text(yaml.safe_dump(sources))
    monkeypatch.setattr(files, "DATA", data)
    monkeypatch.setenv("SR4G_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SR4G_MIRROR", server.url)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda _: None))  # before it tries again
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_download_once(server, tmp_path):
    path = files.download(NAME)
    assert path.parent == tmp_path / "cache" and path.read_bytes() == server.body
    server.mode = "missing"
    assert files.download(NAME) == path and server.requests == 1
    assert inputs.annotations(Run(tmp_path / "run", "x"), None, "val") == path


def test_a_broken_download_starts_again_and_so_does_one_that_was_damaged_since(server):
    server.mode = "broken once"
    path = files.download(NAME)
    assert path.read_bytes() == server.body and server.requests == 2
    path.write_bytes(b"half")
    assert files.download(NAME).read_bytes() == server.body


@pytest.mark.parametrize("mode", ["broken", "missing", "wrong"])
def test_a_failed_download_leaves_no_half_file(server, tmp_path, mode):
    server.mode = mode
    if mode == "wrong":
        server.body = b"something else"
    with pytest.raises(RuntimeError, match=rf"{NAME}: could not download .* download the file yourself") as caught:
        files.download(NAME)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / NAME).exists()


def test_killed_in_the_middle(server, tmp_path):
    server.mode = "slow"
    code = f"from sr4g_utils.store import files; from pathlib import Path; files.DATA = Path({str(files.DATA)!r});"
    code += f"files.download({NAME!r})"
    kill([sys.executable, "-c", code], lambda: server.parts > 9)
    assert server.parts < len(server.body) // 1000
    assert not (tmp_path / "cache" / NAME).exists()
    server.mode = "whole"
    assert files.download(NAME).read_bytes() == server.body


def test_the_official_hashes():
    hashes = {
        "annotations_trainval2017.zip": "sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",
        "val2017.zip": "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41",
        "train2017.zip": "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5",
        "all_vsr_validated.jsonl": "sha256:096251a50060c63b242e074697d835acd0e7d5c97eedaeeccf08301982f1252e",
    }
    sources = yaml.safe_load((files.DATA / "sources.yaml").read_text())
    assert {name: sources[name]["hash"] for name in hashes} == hashes
