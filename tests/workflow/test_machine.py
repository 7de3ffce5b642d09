"""What this machine is: its rates are measured once and kept, its GPU is known by NVIDIA's name."""

import pytest

from lib.run.resources import ResourceError, accelerators
from workflow import machine


@pytest.fixture
def kept(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"
    monkeypatch.setattr(machine, "resolve", lambda name: path)
    machine.rates.cache_clear()
    machine.gpu.cache_clear()
    yield path
    machine.rates.cache_clear()
    machine.gpu.cache_clear()


def test_rates_are_measured_once_and_kept(kept, monkeypatch):
    timed = []
    monkeypatch.setattr(machine, "measure", lambda described: timed.append(described) or machine.Rates(
        machine=described, product=3, forward=2, stored=1))  # fmt: skip
    first = machine.rates()
    machine.rates.cache_clear()  # as in another process
    assert machine.rates() == first
    assert len(timed) == 1
    for changed in (first.model_copy(update={"machine": "another one"}).model_dump_json(), "{}"):
        kept.write_text(changed)
        machine.rates.cache_clear()
        assert machine.rates() == first
    assert len(timed) == 3


def test_measured_rates_are_those_of_a_machine():
    measured = machine.measure("here")
    assert 1e9 < measured.forward < measured.product * 2
    assert 1e6 < measured.stored < 1e11


LISTED = {
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 4090": "RTX-4090",
}


@pytest.mark.parametrize("listed", LISTED)
def test_a_gpu_is_known_by_its_long_name(kept, monkeypatch, listed):
    monkeypatch.setattr(machine, "names", lambda: [listed])
    assert machine.gpu() == LISTED[listed]


def test_every_gpu_of_the_table_is_tried():
    assert set(LISTED.values()) == set(accelerators().index)


def test_no_gpu_and_an_unknown_one(kept, monkeypatch):
    monkeypatch.setattr(machine, "names", list)
    assert machine.gpu() is None
    machine.gpu.cache_clear()
    monkeypatch.setattr(machine, "names", lambda: ["NVIDIA T1000"])
    with pytest.raises(
        ResourceError, match=r"NVIDIA T1000, is not in data/accelerators.csv: add it, or name one that is by `gpu:`"
    ):
        machine.gpu()
