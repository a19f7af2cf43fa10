"""What the data tests share: an isolated cache, the folder of real data, a server on the loopback."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

REAL_DATA = os.environ.get("PRUNEKIT_DATA")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; the user's folders and proxies are out of reach."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PRUNEKIT_CACHE", str(folder))
    monkeypatch.delenv("PRUNEKIT_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def real_data() -> Path:
    """The folder of real data that PRUNEKIT_DATA names."""
    if not REAL_DATA:
        pytest.skip("PRUNEKIT_DATA names no folder of real data")
    return Path(REAL_DATA)


class Server:
    """Serves `contents` by path; `requests` lists the paths asked for, `cut` the ones broken off halfway."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut: set[str] = set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=partial(self._http.serve_forever, poll_interval=0.01), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args) -> None:
        self.owner = server
        super().__init__(*args)

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.owner.requests.append(name)
        content = self.owner.contents.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.owner.cut else content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, bytes]], Server]]:
    """A function that starts a server of some contents; all are stopped after the test."""
    servers = []

    def start(contents: dict[str, bytes]) -> Server:
        server = Server()
        server.contents.update(contents)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
