"""Downloads against a server on the loopback address that breaks off, ignores ranges or sends another file."""

import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lib import download, runs, social_chemistry

CUT = 15 * download.CHUNK
CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves ``content``; ``cut`` answers break off after CUT bytes; ``ranges`` says whether it knows ranges."""

    def __init__(self, content=CONTENT, cut=0, ranges=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.ranges, self.asked = content, cut, ranges, []
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/file.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut:
            self.server.cut -= 1
            body = body[:CUT]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(**options):
        servers.append(Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def fetch(server, folder, size=3_000_000):
    download.ResumingDownloader(folder / "file.zip.part", size)(server.url, str(folder / "file.zip"), None)
    return (folder / "file.zip").read_bytes()


def test_a_broken_connection_is_resumed_where_it_stopped(serve, tmp_path):
    server = serve(cut=2)
    for arrived in (f"{CUT:,}", f"{2 * CUT:,}"):
        with pytest.raises(download.DownloadError, match=rf"stopped after {arrived} of 3,000,000 bytes.*run again"):
            fetch(server, tmp_path)
    assert fetch(server, tmp_path) == CONTENT
    assert server.asked == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]
    assert not (tmp_path / "file.zip.part").exists()


def test_a_server_without_ranges_sends_the_whole_file_again(serve, tmp_path):
    server = serve(cut=1, ranges=False)
    with pytest.raises(download.DownloadError):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path) == CONTENT


def test_a_file_of_another_size_is_refused_with_both(serve, tmp_path):
    with pytest.raises(
        download.DownloadError, match=r"should have 2,999,999 bytes, but has 3,000,000; it was not kept"
    ):
        fetch(serve(), tmp_path, size=len(CONTENT) - 1)
    assert list(tmp_path.iterdir()) == []


def test_no_server_says_what_arrived(serve, tmp_path):
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(download.DownloadError, match=r"stopped after 0 of 3,000,000 bytes \(ConnectionError\)"):
        fetch(server, tmp_path)


def test_download_fetches_unpacks_and_checks_the_official_file(serve, tmp_path, monkeypatch):
    """The server's zip has the name of the official file and another content, so the checksum must be refused."""
    archive = tmp_path / "made.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr(f"social-chem-101/{social_chemistry.TSV_NAME}", "action\n")
    server = serve(content=archive.read_bytes())
    monkeypatch.setattr(social_chemistry, "URL", server.url)
    monkeypatch.setattr(social_chemistry, "ZIP_BYTES", archive.stat().st_size)
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    with pytest.raises(social_chemistry.AnnotationError, match=f"sha256 {social_chemistry.TSV_SHA256}, but has"):
        social_chemistry.locate("download")
    found = social_chemistry.locate("download", accept_unverified=True)
    assert found.read_text() == "action\n"
    assert len(server.asked) == 1, "the second call found the file already there"
