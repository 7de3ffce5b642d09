"""Downloads against a server on the loopback address that breaks off or sends another file."""

import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lib.run.files import CompanionError
from lib.vectors import social_chemistry

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CUT = 1_000_000


class Server(ThreadingHTTPServer):
    """Serves ``content``; ``cut`` answers break off after CUT bytes."""

    def __init__(self, content, cut=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.asked = content, cut, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/file.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        body = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut:
            self.server.cut -= 1
            body = body[:CUT]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def archive(tmp_path):
    """A zip with the official file's name and another content."""
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr(f"social-chem-101/{social_chemistry.TSV_NAME}", "action\n")
        stream.writestr("padding.bin", CONTENT)
    return path.read_bytes()


@pytest.fixture
def serve(archive, tmp_path, monkeypatch):
    """Start a server that takes the place of the official one; data go below ``tmp_path``."""
    servers = []

    def start(**options):
        servers.append(Server(archive, **options))
        monkeypatch.setattr(social_chemistry, "URL", servers[-1].url)
        return servers[-1]

    monkeypatch.setattr(social_chemistry, "ZIP_BYTES", len(archive))
    monkeypatch.setattr(social_chemistry, "PROJECT", tmp_path)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def kept(tmp_path):
    return [path.name for path in (tmp_path / "data" / "raw").rglob("*")]


def test_a_broken_download_says_so_and_leaves_nothing_half(serve, tmp_path):
    server = serve(cut=1)
    with pytest.raises(CompanionError, match=r"broke off \(\w+Error\); nothing of it was kept\. Run again") as caught:
        social_chemistry.locate("download", accept_unverified=True)
    assert server.url in str(caught.value)
    assert kept(tmp_path) == []
    assert social_chemistry.locate("download", accept_unverified=True).read_text() == "action\n"
    assert server.asked == 2, "the second call fetched the whole file again"


def test_a_file_of_another_size_is_refused_with_both(serve, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(social_chemistry, "ZIP_BYTES", len(archive) - 1)
    serve()
    sizes = rf"should have {len(archive) - 1:,} bytes, but has {len(archive):,}; it was not kept"
    with pytest.raises(CompanionError, match=sizes):
        social_chemistry.locate("download", accept_unverified=True)
    assert kept(tmp_path) == []


def test_no_server_says_so_and_leaves_nothing(serve, tmp_path):
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(CompanionError, match=r"broke off \(ConnectionError\); nothing of it was kept"):
        social_chemistry.locate("download")
    assert kept(tmp_path) == []


def test_download_fetches_unpacks_and_checks_the_official_file(serve, capsys):
    """The server's zip has the name of the official file and another content, so the checksum must be refused."""
    server = serve()
    with pytest.raises(social_chemistry.AnnotationError, match=f"sha256 {social_chemistry.TSV_SHA256}, but has"):
        social_chemistry.locate("download")
    assert "100%" in capsys.readouterr().err, "a progress bar"
    path = social_chemistry.locate("download", accept_unverified=True)
    assert path.read_text() == "action\n"
    assert server.asked == 1, "the second call found the file already there"
