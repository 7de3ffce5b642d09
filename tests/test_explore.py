"""The interactive page: its logic, what it shows and hides, and itself in a real JupyterLab in a real browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import browser
import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from activations.families import hooked_streams

from lib import explore
from lib.activations import extraction, models
from lib.diagnosis.controls import words_only
from lib.paper import CATEGORIES, POOLINGS
from lib.run.files import PROJECT
from lib.run.profile import load_profile
from lib.sae import files
from lib.sae.model import SparseAutoencoder

DEMO = "profiles/demo.yaml"


class Store:
    """A store of one layer and pooling whose rows are the actions themselves."""

    def __init__(self, x):
        self.x = x

    def read(self, layer, pooling, rows):
        return self.x[rows]

    def rows_of(self, actions):
        return np.arange(len(actions))


def test_prototypes_are_means_of_typical_rows_alone():
    cells = [("care", True), ("care", True), ("care", False), ("harm", True), ("", False)]
    x = np.array([[1, 0], [3, 0], [99, 99], [0, -2], [50, 50]], dtype=np.float32)
    subset = pd.DataFrame(cells, columns=["category", "is_prototype"]).assign(action="reading")
    reference = explore.Explorer(None, Store(x), None, subset, None, None).reference(0, "mean")
    assert reference.centre == pytest.approx(x.mean(axis=0))
    prototypes = reference.prototypes + reference.centre
    assert prototypes[CATEGORIES.index("care")] == pytest.approx([2, 0], abs=1e-4)
    assert prototypes[CATEGORIES.index("harm")] == pytest.approx([0, -2], abs=1e-4)
    assert np.isnan(prototypes[2:]).all(), "no typical rows, no prototype"


def test_similarities_are_cosines_after_centring():
    reference = explore.Reference(centre=np.array([1.0, 1.0]), prototypes=np.array([[2.0, 0.0], [0.0, -3.0]]))
    assert explore.similarities(np.array([5.0, 1.0]), reference) == pytest.approx([1, 0])
    assert explore.similarities(np.array([1.0, 0.5]), reference) == pytest.approx([0, 1])


@pytest.mark.parametrize("kind", ["tokens", "pooled"])
def test_a_dictionary_reads_what_it_was_trained_on(tiny_model, tmp_path, kind):
    """Oracle: raw hooks. One of tokens reads every token, and its latents are averaged; one of pooled vectors their mean."""
    model, sae, action = models.open_model(str(tiny_model), device="cpu"), SparseAutoencoder(32, 96, k=7), "lying"
    with torch.no_grad():
        sae.W_enc *= 30
    (folder := tmp_path / "layer_01" / "pretrained").mkdir(parents=True)
    files.save(folder, sae, {"pooling": "mean", "kind": kind})
    table = pd.DataFrame({f"r_{name}": 0.1 for name in CATEGORIES}, index=range(96)).assign(latent=range(96))
    table.assign(category="care").to_parquet(tmp_path / "layer_01" / "features.parquet")
    prompts = extraction.tokenize(model.tokenizer, [action])
    stream = extraction.pooled_residuals(model, prompts, rows=range(1))[POOLINGS.index("mean"), 1, 0].cpu().numpy()
    explorer = explore.Explorer(model, None, None, None, tmp_path, None)
    shown = explorer._latents(action, stream, layer=1, pooling="mean").set_index("latent")["activation"]
    streams = torch.from_numpy(hooked_streams(model._module, prompts.tokens[0])[1])
    with torch.no_grad():
        of_tokens, of_mean = sae.encode(streams).mean(dim=0), sae.encode(streams.mean(dim=0))
    assert not torch.allclose(of_tokens, of_mean, atol=1e-3)
    expected = of_tokens if kind == "tokens" else of_mean
    assert shown.to_numpy() == pytest.approx(expected[shown.index.tolist()].numpy(), abs=1e-4)
    assert shown.iloc[0] == pytest.approx(float(expected.max()), abs=1e-4)


def test_an_error_of_any_part_is_said_on_the_page_and_not_raised(monkeypatch):
    def look(*arguments, **options):
        raise files.FormatError("layer_02 has no cfg.json; run notebook 05_sae first")

    opened = SimpleNamespace(store=SimpleNamespace(layers=3), look=look)
    monkeypatch.setattr(explore, "open_explorer", lambda profile, model: opened)
    boxes = explore.page(DEMO).children
    (button,) = [child for box in boxes if isinstance(box, widgets.HBox) for child in box.children
                 if isinstance(child, widgets.Button)]  # fmt: skip
    button.click()
    assert "run notebook 05_sae first" in boxes[-1].value


@pytest.mark.parametrize("device", ["8bit", "remote"])
def test_a_model_is_opened_on_the_device_of_its_profile_unless_that_is_far_away(demo_run, monkeypatch, device):
    asked = []
    monkeypatch.setattr(models, "open_model", lambda source, **options: asked.append(options["device"]))
    profile = load_profile(DEMO).model_copy(update={"device": device})
    if device == "remote":
        with pytest.raises(explore.ExplorerError, match="device is remote"):
            explore.open_explorer(profile, "moral-small")
    else:
        explore.open_explorer(profile, "moral-small")
    assert asked == ([] if device == "remote" else [device])


def view():
    nearest = pd.DataFrame([("id_1", "a <secret> action", 0.9)], columns=["id", "action", "cosine"])
    latents = pd.DataFrame([(7, 1.5, "harm", 0.3)], columns=["latent", "activation", "category", "correlation"])
    bars = np.linspace(-1, 1, 10), np.linspace(-0.5, 0.5, 10), np.linspace(0, 1, 10)
    return explore.View(*bars, nearest, np.zeros((3, 10)), latents)


def test_texts_are_hidden_unless_asked_for():
    hidden, shown = (explore.render(view(), layer=1, show_content=show_content) for show_content in (False, True))
    assert "secret" not in hidden
    assert "id_1" in hidden
    assert "a &lt;secret&gt; action" in shown, "and escaped"


def test_pictures_have_a_text():
    text = explore.render(view(), layer=1, show_content=False)
    assert text.count("<svg") == text.count("aria-label") == 31


def test_the_twin_stands_beside_the_model_where_the_run_has_one():
    alone, beside = (
        explore.render(view(), layer=1, show_content=False, twin=twin) for twin in (None, np.full(10, 0.77))
    )
    assert "untrained twin" not in alone
    assert "its untrained twin" in beside
    assert beside.count("0.77") == 20, "ten bars and their texts"


@pytest.fixture(scope="module")
def moral(demo_run):
    return explore.open_explorer(load_profile(DEMO), "moral-small")


@pytest.mark.pipeline
def test_an_annotated_action_is_nearest_to_itself(moral):
    action = moral.annotations.loc[17, "action"]
    view = moral.look(action, layer=2, pooling="mean")
    assert view.nearest.loc[0, "action"] == action
    assert view.nearest.loc[0, "cosine"] == pytest.approx(1, abs=1e-4)
    stored = moral.store.read(1, "mean")[moral.store.rows_of([action])][0]
    assert view.path[1] == pytest.approx(explore.similarities(stored, moral.reference(1, "mean")), abs=1e-4)
    assert view.similarities.tolist() == view.path[2].tolist()
    assert (view.latents["activation"] > 0).all()
    assert view.latents["activation"].is_monotonic_decreasing


@pytest.mark.pipeline
def test_words_and_twin_are_compared_with_prototypes_of_their_own(demo_run, moral):
    """Oracle: the controls of stage 03 and the twin's own store, taken by hand."""
    action, row = moral.annotations.loc[17, "action"], moral.subset
    x = words_only([*row["action"], action], moral.store.width, seed=0)
    rows, own = x[:-1] - x[:-1].mean(axis=0), x[-1] - x[:-1].mean(axis=0)
    care = rows[(row["is_prototype"] & (row["category"] == "care")).to_numpy()].mean(axis=0)
    expected = care @ own / np.linalg.norm(care) / np.linalg.norm(own)
    words = moral.look(action, layer=2, pooling="mean").words
    assert words[CATEGORIES.index("care")] == pytest.approx(expected, abs=1e-4)
    twin = explore.open_explorer(load_profile(DEMO), "untrained-small")
    stored = twin.store.read(1, "mean")[twin.store.rows_of([action])][0]
    there = twin.similarities(action, layer=1, pooling="mean")
    assert there == pytest.approx(explore.similarities(stored, twin.reference(1, "mean")), abs=1e-4)


@pytest.mark.pipeline
def test_what_a_run_does_not_have_is_named(moral):
    with pytest.raises(explore.ExplorerError, match="type an action"):
        moral.look("  ", layer=0, pooling="mean")
    with pytest.raises(explore.ExplorerError, match="poolings mean"):
        moral.look("lying", layer=0, pooling="median")
    with pytest.raises(explore.ExplorerError, match=r"steering is possible at layers \[2\]"):
        moral.answers("lying", layer=0, steered=True)
    with pytest.raises(explore.ExplorerError, match="no model 'other'"):
        explore.open_explorer(load_profile(DEMO), "other")
    assert moral.look("lying", layer=0, pooling="mean").latents.empty


@pytest.mark.pipeline
def test_steering_is_a_switch(moral):
    assert set(moral.answers("helping my sister", layer=2, steered=False)) == {"as it is"}
    answers = moral.answers("helping my sister", layer=2, steered=True)
    assert answers["as it is"] == moral.answers("helping my sister", layer=2, steered=False)["as it is"]
    assert answers["steered"] != answers["as it is"]


@pytest.fixture(scope="module")
def lab(demo_run, tmp_path_factory):
    """A JupyterLab on a copy of the page, with its own settings; hands out its address."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(PROJECT / "notebooks" / "explore.ipynb", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = os.environ | {name: str(folder / f".{name.lower()}") for name in homes}
    environment |= {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}", f"--notebook-dir={folder}"]
    command += [
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--expose-app-in-browser",
        "--ServerApp.ip=127.0.0.1",
    ]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=PROJECT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/api/status", process, folder / "log")
            yield address
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for(url, process, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not answer: {log.read_text()}")


@pytest.mark.pipeline
def test_the_page_in_jupyterlab(lab):
    with browser.chromium() as page:
        page.size(1400, 1400)
        page.open(f"{lab}/lab/tree/explore.ipynb?reset")
        page.until("!!window.jupyterapp", "JupyterLab did not start")
        page.run("window.jupyterapp.restored.then(() => true)")
        page.until("!!document.querySelector('.jp-Notebook .jp-CodeCell')", "the notebook did not open")
        panel = "[...window.jupyterapp.shell.widgets('main')].find(w => w.title.label == 'explore.ipynb')"
        page.until(f"{panel}?.sessionContext?.session?.kernel?.status == 'idle'", "the kernel did not start", 120)
        page.run(f"window.jupyterapp.shell.activateById({panel}.id)")
        page.call("Page.bringToFront")
        page.until("!!window.jupyterapp.shell.currentWidget", "the notebook did not come to the front")
        page.run("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
        page.until("!!document.querySelector('.widget-text input')", "the page was not shown", 180)

        page.run("document.querySelector('.widget-text input').focus()")
        page.type("breaking a vow to my sister")
        page.enter()
        page.until("!!document.querySelector('table.similarities')", "nothing was looked at")
        assert page.run("document.querySelectorAll('table.similarities tr').length") == 11
        heads = page.run("[...document.querySelectorAll('table.similarities th')].map(cell => cell.textContent)")
        assert {"its untrained twin", "words alone"} < set(heads)
        assert page.run("document.querySelectorAll('svg.path polyline').length") == 10
        assert page.run("document.querySelectorAll('table.latents tr').length") > 1
        texts = "[...document.querySelectorAll('table.nearest tr td:last-child')].map(cell => cell.textContent)"
        assert set(page.run(texts)) == {"hidden"}

        boxes = "[...document.querySelectorAll('.widget-checkbox input')]"
        page.run(f"{boxes}[0].click()")
        page.until(f"{texts}.every(text => text != 'hidden')", "texts did not appear when asked for")
        page.run(f"{boxes}[1].click()")
        page.until("document.querySelectorAll('table.answers tr').length == 2", "no answers")
        before = page.run("document.querySelector('table.similarities').textContent")
        choose = "const s = document.querySelectorAll('.widget-dropdown select')[{}]; s.selectedIndex = {}; " + (
            "s.dispatchEvent(new Event('change', {{bubbles: true}}))"
        )
        page.run(f"(() => {{ {choose.format(2, 3)} }})()")
        page.until(
            f"document.querySelector('table.similarities').textContent != {json.dumps(before)}", "pooling does nothing"
        )
        page.run(f"(() => {{ {choose.format(1, 0)} }})()")
        page.until(
            "/no aligned autoencoder/.test(document.querySelector('p.message')?.textContent)", "layer 0 was steered"
        )
        unwanted = [e for e in page.errors if "favicon" not in e and "404" not in e]
        assert not unwanted
        if folder := os.environ.get("COMPANION_PICTURES"):
            page.picture(f"{folder}/jupyterlab.png")
