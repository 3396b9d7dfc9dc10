"""The explorer: its table is the theory's, and moving a slider moves what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from sept import figures_explorer as ex
from sept import tabular
from sept.policy import load_policy
from sept.problems import load_problems

ROOT = Path(__file__).resolve().parent.parent
TOKENS = list("abcde")
LOGITS = np.array([0.3, -1.2, 2.0, 0.0, -0.4])


@pytest.mark.parametrize("tau_s, tau_t", [(0.6, 1.0), (1.4, 1.0), (0.5, 0.8), (1.0, 1.0)])
def test_with_all_samples_it_is_the_round_that_enumeration_fits(tau_s, tau_t):
    tree, logits = tabular.build_tree(5, 1), LOGITS
    for rounds in (1, 2, 3):
        logits = tabular.sept_round(tree, np.atleast_2d(logits), tau_s, tau_t)[0]
        table = ex.explored(TOKENS, LOGITS, tau_s, tau_t, rounds)
        np.testing.assert_allclose(
            table["new_logit"] - table["new_logit"][0], logits - logits[0], atol=1e-9
        )
        found = ex.measured(table)
        assert found["slope"] == pytest.approx((tau_t / tau_s) ** rounds) == pytest.approx(found["theory"])
        assert np.sign(found["entropy_old"] - found["entropy_new"]) == np.sign(round(tau_t / tau_s - 1, 6))


def test_few_samples_fit_their_counts_and_lose_tokens():
    many = ex.explored(TOKENS, LOGITS, 0.6, samples=200_000)
    np.testing.assert_allclose(many["trained"], ex.explored(TOKENS, LOGITS, 0.6)["trained"], atol=5e-3)
    few = ex.explored(TOKENS, LOGITS, 0.6, samples=8, rounds=3)
    lost = np.isneginf(few["new_logit"])
    assert 0 < lost.sum() == ex.measured(few)["lost"] and (few["trained"][lost] == 0).all()
    later = ex.explored(TOKENS, LOGITS, 0.6, samples=8, rounds=6)
    assert np.isneginf(later["new_logit"][lost]).all(), "a token that is gone does not come back"
    one = ex.explored(TOKENS, LOGITS, 0.6, tau_t=2.0, samples=64)
    shares = one["trained"] ** 0.5  # tau_t log(counts), decoded at 1: counts squared
    assert np.allclose(64 * shares / shares.sum(), np.round(64 * shares / shares.sum()))


def test_prefixes_of_a_model_are_its_own_logits():
    policy, problem = load_policy("H"), load_problems("toy:test:add3:5").items[3]
    found = ex.prefixes_of(policy, problem)
    likeliest = [np.exp(logits - logits.max()).sum() ** -1 for _, logits in found.values()]
    assert len(found) == 6 and likeliest == sorted(likeliest), "the least certain comes first"
    for text, (tokens, logits) in found.items():
        import torch

        ids = policy.encode(problem.prompt)
        ids += policy.tokenizer.encode(text.removeprefix(problem.prompt), add_special_tokens=False)
        with torch.no_grad():
            alone = policy.model(torch.tensor([ids])).logits[0, -1].numpy()
        np.testing.assert_allclose(alone, logits, atol=1e-4)
        assert tokens[int(alone.argmax())] == policy.tokenizer.convert_ids_to_tokens(int(alone.argmax()))


def test_moving_a_slider_moves_the_table_the_line_and_the_picture():
    pytest.importorskip("ipywidgets")
    explorer = ex.Explorer({"one": (TOKENS, LOGITS), "other": (TOKENS, -LOGITS)})
    states = [(explorer.table, explorer.line.value, bytes(explorer.picture.value))]
    assert "1.67" in states[0][1] and states[0][2].startswith(b"\x89PNG")
    moves = {"tau_s": 0.3, "tau_t": 0.8, "rounds": 2, "samples": 32, "prefix": "other"}
    for name, value in moves.items():
        explorer.sliders[name].value = value
        states.append((explorer.table, explorer.line.value, bytes(explorer.picture.value)))
        assert not states[-1][0].equals(states[-2][0]), f"{name} changes nothing"
        assert states[-1][2] != states[-2][2], f"{name} does not change the picture"
    values = {k: v for k, v in moves.items() if k != "prefix"}
    assert explorer.table.equals(ex.explored(TOKENS, -LOGITS, **values))


@pytest.mark.slow
def test_the_notebooks_sliders_in_a_kernel(tmp_path):
    """Runs the notebook, then moves the slider as a person would and reads what is shown."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "notebooks" / "20_explorer.ipynb", as_version=4)
    tagged = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    tagged.source = f"profile, out_dir = 'smoke', {str(tmp_path)!r}"
    move = "model_tab.sliders['tau_s'].value = 0.3; print(model_tab.line.value)"
    notebook.cells.append(nbformat.v4.new_code_cell(f"print(model_tab.line.value); {move}"))
    nbclient.NotebookClient(notebook, kernel_name="python3", cwd=str(ROOT)).execute()
    before, after = notebook.cells[-1].outputs[0].text.splitlines()
    assert "<b>1.67</b>" in before and "<b>3.33</b>" in after
    shown = [o for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert any("application/vnd.jupyter.widget-view+json" in o.data for o in shown)
    assert len(list(tmp_path.glob("explorer_*.png"))) == 4


JUPYTER = "() => [...document.querySelectorAll('.widget-html')].map((e) => e.innerText).join(' ')"


@pytest.mark.slow
def test_dragging_a_slider_in_jupyterlab(tmp_path):
    """The real thing: JupyterLab in a browser, Run All, arrow keys on the first slider."""
    import os
    import shutil
    import socket
    import subprocess
    import sys
    import time
    import urllib.request

    pytest.importorskip("jupyterlab")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: install one to try the explorer in JupyterLab")
    shutil.copy(ROOT / "notebooks" / "20_explorer.ipynb", tmp_path / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"]
    folders = {f"JUPYTER_{k}_DIR": str(tmp_path / k) for k in ("CONFIG", "RUNTIME", "DATA")}
    env = {**os.environ, **folders, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2)
                break
            except OSError:
                time.sleep(1)
        with playwright.sync_playwright() as p:
            page = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
            page.goto(f"{address}/lab/tree/explorer.ipynb?reset", timeout=120_000)
            page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            handle = page.locator(".widget-slider .noUi-handle").first
            handle.wait_for(timeout=150_000)
            handle.scroll_into_view_if_needed()
            before = page.evaluate(JUPYTER)
            assert "1.67" in before
            handle.focus()
            for _ in range(6):  # six steps of 0.05: from 0.6 to 0.3
                page.keyboard.press("ArrowLeft")
            page.wait_for_function(f"({JUPYTER})().includes('3.33')", timeout=60_000)
    finally:
        server.terminate()
        server.wait(30)
