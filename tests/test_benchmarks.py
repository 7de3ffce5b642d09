"""How benchmarks are stored and rendered: spreads, fitted exponents, and cells that nobody has measured."""

import sys

import pandas as pd
import pytest
import torch

from lib.run.files import PROJECT

sys.path.insert(0, str(PROJECT / "benchmarks"))

import cells
import residual_streams
import run
import steering

# Tests have rooms of the same names as benchmarks.
sys.path.remove(str(PROJECT / "benchmarks"))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_planted_exponent_is_found(power):
    amounts = [64, 128, 512, 2048]
    assert cells.exponent(amounts, [3 * amount**power for amount in amounts]) == pytest.approx(power)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "HERE", tmp_path)
    return tmp_path


def test_cells_keep_minimum_median_maximum_machine_and_versions(stored):
    cells.record("a thing", "a peer", [1.0, 2.0, 4.0], [4.0, 4.0, 4.0])
    (row,) = run.measured().to_dict("records")
    assert (row["times_faster_min"], row["times_faster_median"], row["times_faster_max"]) == (1.0, 2.0, 4.0)
    assert (row["ours_seconds_min"], row["ours_seconds_max"], row["rounds"]) == (1.0, 4.0, 3)
    assert "cores" in row["machine"]
    assert row["torch"]


def test_growth_is_shown_with_its_exponent(stored):
    cells.record_growth("a thing", "rows", [10, 100, 1000], [[1.0, 1.1], [10.0, 11.0], [100.0, 110.0]])
    expected = pd.DataFrame([{"cell": "a thing", "peer": "itself, more rows", "device": "cpu", "module": "x"}])
    assert run.table(run.measured(), expected)["result"].tolist() == ["cost grows with exponent 1.00 (1.00 to 1.00)"]


def test_a_cell_without_a_measurement_says_so(stored):
    cells.record("a thing", "a peer", [1.0], [3.0])
    expected = pd.DataFrame([{"cell": "a thing", "peer": "a peer", "device": "gpu", "module": "x"}])
    rows = run.table(run.measured(), expected)
    assert rows.set_index("device")["result"].to_dict() == {
        "cpu": "3.00 times as fast (3.00 to 3.00)",
        "gpu": "not measured",
    }
    text = run.markdown(rows)
    assert "| a thing | a peer | 3.00 times as fast" in text
    assert text.endswith("Not measured yet: a thing (gpu).\n")
    assert "nan" not in text


def test_the_estimate_at_the_papers_size_is_shown_with_its_terms(tmp_path):
    path = tmp_path / "paper_size.csv"
    assert "not measured" in run.at_paper_size(path)
    path.write_text(
        "layers,control_layers,rows,width,components,wall_minutes,cpu_minutes,gains_cpu_minutes,peak_gigabytes,machine\n"
        "36,3,16135,4096,1210,12.3,24.4,9.8,4.56,a box\n"
    )
    for part in ("36 layers, 16,135 x 4,096", "took 12 minutes, 24 of CPU time of which 10 ", "4.6 GB", "(a box)"):
        assert part in run.at_paper_size(path)


def test_the_cells_of_a_card_are_measured_alike_on_a_small_shape(stored):
    of = steering.subject(steering.TINY | {"num_hidden_layers": 2}, 2, 3)
    assert torch.equal(of.bare.lm_head.weight, of.model._module.lm_head.weight)
    steering.on_a_gpu(of, "steered, small", rounds=1)
    (row,) = run.measured().to_dict("records")
    steered, plain = (float(speed.replace(",", "")) for speed in row["tokens_per_second"].split(" against "))
    written = (1 + len(steering.ARMS)) * len(steering.PROMPTS) * 3
    assert steered == pytest.approx(written / row["ours_seconds_median"], rel=0.02)
    assert plain == pytest.approx(written / row["peer_seconds_median"], rel=0.02)
    expected = pd.DataFrame([{"cell": "steered, small", "peer": steering.PEER, "device": row["device"], "module": "x"}])
    assert run.table(run.measured(), expected)["result"].iloc[0].endswith(f"; {row['tokens_per_second']} tokens/s")


def test_every_expected_cell_names_a_module_that_is_there():
    modules = {path.stem for path in run.modules()}
    assert set(pd.read_csv(PROJECT / "benchmarks" / "cells.csv")["module"]) <= modules


def test_reading_on_a_card_is_measured_alike_on_a_small_shape(stored):
    residual_streams.on_the_gpu(residual_streams.SMALL | {"num_hidden_layers": 2}, rows=16, device="cpu", rounds=1)
    found = run.measured().set_index("peer")
    assert set(found.index) == {"its matrix products at the rate of one large product", "five minutes"}
    assert found.loc["five minutes", "peer_seconds_median"] == 300
    assert (found["ours_seconds_median"] > 0).all()
