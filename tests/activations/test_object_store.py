"""The activation store in an S3-compatible object store on the loopback address, a breaking connection included."""

import socket
import threading

import numpy as np
import pandas as pd
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from lib.activations import arrays, store

ROWS, LAYERS, WIDTH = 40, 3, 16
POOLINGS = ("mean", "last")


class Wire:
    """A relay to a server that can be cut: after ``limit`` bytes upward it drops every connection until mended."""

    def __init__(self, port: int) -> None:
        self.target, self.limit, self.sent, self.cuts = port, None, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                inward, _ = self.listener.accept()
            except OSError:
                return
            outward = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._pump, args=(inward, outward, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(outward, inward, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        try:
            while data := source.recv(4096):
                if upward:
                    self.sent += len(data)
                if self.limit is not None and self.sent > self.limit:
                    self.cuts += 1
                    break
                sink.sendall(data)
        except OSError:
            pass  # the other direction was cut
        finally:
            for each in (source, sink):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


@pytest.fixture(scope="module")
def server():
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield running.get_host_and_port()[1]
    running.stop()


@pytest.fixture
def wire(server, monkeypatch):
    relay = Wire(server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.core.S3FileSystem, "retries", 1)
    monkeypatch.setenv(arrays.VARIABLE, "s3://companion/store")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdirs("companion", exist_ok=True)
    yield relay
    relay.listener.close()
    s3fs.S3FileSystem.clear_instance_cache()


def values():
    return {name: np.random.default_rng(n).normal(size=(LAYERS, ROWS, WIDTH)) for n, name in enumerate(POOLINGS)}


def create(folder):
    index = pd.DataFrame({"action": [f"doing {n}" for n in range(ROWS)], "tokens": 5})
    return store.create_store(folder, index, layers=LAYERS, width=WIDTH, poolings=POOLINGS, rows_per_chunk=10)


def write(target, chunks=None):
    for rows in target.chunks() if chunks is None else chunks:
        target.write_chunk(rows, {name: array[:, rows.start : rows.stop] for name, array in values().items()})


def test_what_is_written_is_read_and_verified(wire, tmp_path):
    target = create(tmp_path / "model")
    write(target)
    again = store.ActivationStore(tmp_path / "model")
    np.testing.assert_array_equal(again.read(1, "last"), values()["last"][1].astype("float32"))
    assert set(again.verify()["state"]) == {"ok"}
    assert not (tmp_path / "model" / "residuals.zarr").exists()


def test_a_store_is_read_where_it_was_written_whatever_the_environment_says_later(wire, tmp_path, monkeypatch):
    write(create(tmp_path / "model"))
    monkeypatch.delenv(arrays.VARIABLE)
    assert store.ActivationStore(tmp_path / "model").read(0, "mean").shape == (ROWS, WIDTH)
    with pytest.raises(store.StoreError, match="has url"):
        create(tmp_path / "model")


def test_a_connection_that_breaks_in_the_middle_costs_one_chunk(wire, tmp_path):
    target = create(tmp_path / "model")
    write(target, target.chunks()[:2])
    wire.limit = wire.sent + 2_000
    with pytest.raises(Exception, match=r"(?i)connect|closed|endpoint|disconnect"):
        write(target, target.chunks()[2:])
    assert wire.cuts > 0
    assert [rows.start for rows in target.missing_chunks()] == [20, 30]
    wire.limit = None
    s3fs.S3FileSystem.clear_instance_cache()
    target = create(tmp_path / "model")
    write(target, target.missing_chunks())
    np.testing.assert_array_equal(target.read(2, "mean"), values()["mean"][2].astype("float32"))
    assert set(target.verify()["state"]) == {"ok"}


def test_damaged_bytes_in_the_bucket_are_noticed(wire, tmp_path):
    target = create(tmp_path / "model")
    write(target)
    files = s3fs.S3FileSystem()
    chunk = next(path for path in files.find("companion/store") if tmp_path.name in path and "/last/c/" in path)
    files.pipe_file(chunk, b"x" * 100)
    assert "damaged" in set(target.verify()["state"])
    assert target.missing_chunks()


def test_another_run_is_refused_and_changes_nothing(wire, tmp_path, monkeypatch):
    """Two machines whose directories have the same name below their projects name the same place in the bucket."""
    target = create(tmp_path / "model")
    write(target, target.chunks()[:2])
    elsewhere = tmp_path / "elsewhere"
    first = target.description["url"]
    monkeypatch.setattr(arrays, "short", lambda path: first.removeprefix("s3://companion/store/"))
    with pytest.raises(arrays.OwnershipError, match=r"belongs to the run in .*model on .* since .*COMPANION_STORE"):
        create(elsewhere / "model")
    assert len(target.missing_chunks()) == 2
    np.testing.assert_array_equal(target.verify()["state"].value_counts()[["ok", "missing"]], [4, 2])


def test_of_runs_that_claim_a_store_at_once_one_gets_it(wire, tmp_path):
    outcomes = []

    def claim(number):
        try:
            arrays.claim("s3://companion/contested", tmp_path / str(number) / "model")
            outcomes.append("taken")
        except arrays.OwnershipError:
            outcomes.append("refused")

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["taken"]


def test_the_same_run_may_come_again(wire, tmp_path):
    for _ in range(2):
        arrays.claim("s3://companion/own", tmp_path / "model")
    arrays.claim("s3://companion/own", tmp_path / "another-model")  # beside it, so the same run
