"""A Hub on this machine: as much of the Hub's API as finding, listing and downloading models needs."""

import json
import threading
from collections.abc import Mapping
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants, hf_api

REFUSED = {  # what may stand in the place of a repository's folder
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}),
    "withdrawn": (403, {"X-Error-Code": "DisabledRepo", "X-Error-Message": "Access to this resource is disabled."}),
}


class Hub:
    """Serves folders as models, in a ``with`` block; ``asked`` is the list of the paths that were asked for.

    Args:
        folders: by "owner/name" (revision main) or "owner/name@revision", a model's folder or a key of ``REFUSED``. A
            revision of 40 hexadecimal digits is a commit; other revisions get a commit derived from their name.
    """

    def __init__(self, folders: Mapping[str, Path | str]) -> None:
        self.folders = {key if "@" in key else f"{key}@main": folder for key, folder in folders.items()}
        self.asked: list[str] = []

    def __enter__(self) -> "Hub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def fetched(self) -> set[str]:
        """The files whose content was asked for, as "owner/name/path"."""
        parts = [asked.split("/") for asked in self.asked if asked.startswith("GET ") and "/resolve/" in asked]
        return {"/".join([*part[1:3], *part[5:]]) for part in parts}

    def environment(self, cache: Path) -> dict[str, str]:
        """What makes another process ask here, with a cache of its own."""
        names = {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return {**names, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}

    def commit(self, key: str) -> str:
        revision = key.rpartition("@")[2]
        return revision if len(revision) == 40 else sha1(key.encode()).hexdigest()


def use(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """What ``Hub.environment`` says to a fresh process: huggingface_hub reads it once, when imported."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    values = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache)}
    for name, value in {**values, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        """api/models/{id}, …/revision/{revision} and …/tree/{revision}, and {id}/resolve/{revision}/{path}."""
        path = self.path.split("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        owner, name, *rest = path.strip("/").removeprefix("api/models/").split("/")
        what, revision = (rest[0], unquote(rest[1])) if rest else ("revision", "main")
        known = [key for key in self.hub.folders if key.startswith(f"{owner}/{name}@")]
        if not known:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if isinstance(refusal := self.hub.folders[known[0]], str):
            return self.answer(REFUSED[refusal][0], b"{}", REFUSED[refusal][1])
        key = next((key for key in known if revision in (key.rpartition("@")[2], self.hub.commit(key))), None)
        if key is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        folder, commit = Path(self.hub.folders[key]), self.hub.commit(key)
        files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
        if what == "revision":
            about = {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            return self.answer(200, json.dumps(about).encode())
        if what == "tree":
            sizes = {file: at.stat().st_size for file, at in files.items()}
            tree = [{"type": "file", "path": file, "size": size, "oid": file} for file, size in sizes.items()]
            return self.answer(200, json.dumps(tree).encode())
        if (file := unquote("/".join(rest[2:]))) not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = files[file].read_bytes()
        return self.answer(200, data, {"X-Repo-Commit": commit, "ETag": f'"{sha256(data).hexdigest()}"'})

    def answer(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        about = {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}
        for key, value in about.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
