"""The results store: what is computed once, what is computed again, and the notebooks that share it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from sept import config, experiments, runner
from sept.config import SeptError
from sept.durable import locked
from sept.experiments import Run, Score, compute, counts, run_folder, score_file
from sept.policy import BASES
from sept.problems import ProblemSet, load_problems
from sept.profiles import PROFILES, profile

TINY = (("mini_batch", 4), ("questions", 8), ("rounds", 2), ("warmup", 0))
NOTEBOOKS = Path(experiments.__file__).parent.parent / "notebooks"


def test_compute_trains_and_scores_once(monkeypatch):
    run = Run("H", "sept", 7, overrides=TINY)
    wanted = [Score(run, "toy:dev:1", 1.0, 4), Score("H", "toy:dev:1", 0.0, 4)]
    compute(wanted, workers=1)
    assert counts(wanted[0])["n"].tolist() == [4] * 6
    assert counts(wanted[1])["n"].tolist() == [1] * 6, "greedy is one answer"
    stamps = [score_file(s).stat().st_mtime_ns for s in wanted]

    def refuse(_):
        raise AssertionError("a finished result was computed again")

    monkeypatch.setattr(experiments, "_train_job", refuse)
    monkeypatch.setattr(experiments, "_score_job", refuse)
    compute(wanted, workers=1)
    assert stamps == [score_file(s).stat().st_mtime_ns for s in wanted]
    rows = experiments.status_rows()
    assert len(rows) == 3 and {row["state"] for row in rows} == {"done"}


def test_two_runs_of_one_config_give_the_same_table(tmp_path, monkeypatch):
    tables = []
    for folder in ("one", "two"):
        monkeypatch.setenv("SEPT_RESULTS", str(tmp_path / folder))
        run = Run("H", "grpo", 7, overrides=(("questions", 2), ("mini_batch", 1), ("rounds", 2)))
        score = Score(run, "toy:dev:1", 1.0, 8)
        compute([score], workers=1)
        rounds = (run_folder(run) / "rounds.jsonl").read_bytes()
        tables.append((score_file(score).read_bytes(), rounds))
    assert tables[0] == tables[1]


def test_keys_depend_on_everything_that_changes_numbers(monkeypatch):
    run = Run("H", "sept", 7, overrides=TINY)
    others = [
        Run("F", "sept", 7, overrides=TINY),
        Run("H", "offline", 7, overrides=TINY),
        Run("H", "sept", 8, overrides=TINY),
        Run("H", "sept", 7, "toy:train:add3", TINY),
        Run("H", "sept", 7, overrides=(*TINY, ("lr", 1e-5))),
        Run("H", "sept", 7, overrides=TINY, engine="vllm"),
    ]
    score = Score(run, "toy:dev:1", 1.0, 4)
    scores = [
        Score(others[0], "toy:dev:1", 1.0, 4),
        Score(run, "toy:dev:2", 1.0, 4),
        Score(run, "toy:dev:1", 0.9, 4),
        Score(run, "toy:dev:1", 1.0, 8),
        Score(run, "toy:dev:1", 1.0, 4, seed=1),
        Score(run, "toy:dev:1", 1.0, 4, max_new_tokens=40),
        Score("H", "toy:dev:1", 1.0, 4),
        Score("H", "toy:dev:1", 1.0, 4, engine="vllm"),
        Score(others[-1], "toy:dev:1", 1.0, 4),
    ]
    for same in ("static", "transformers"):  # they draw the same tokens
        assert Score("H", "toy:dev:1", 1.0, 4, engine=same).key() == scores[-3].key()
    keys = [x.key() for x in (run, *others, score, *scores)]
    assert len(set(keys)) == len(keys)
    monkeypatch.setattr(experiments, "RESULTS_VERSION", config.RESULTS_VERSION + 1)
    assert not {x.key() for x in (run, *others, score, *scores)} & set(keys)


def test_scores_on_the_way_do_not_disturb_training(tmp_path, monkeypatch):
    """Measured while training, or in a second pass over a finished run: same scores, same weights."""
    run = Run("H", "sept", 7, overrides=(("lr", 3e-3), *TINY))
    early, late = (Score(run, "toy:dev:1", 1.0, 4, at=at) for at in (1, 2))
    last = Score(run, "toy:dev:1", 1.0, 4)
    weights, tables = [], []
    for name, order in (("together", [[early, late, last]]), ("apart", [[last], [early, late]])):
        monkeypatch.setenv("SEPT_RESULTS", str(tmp_path / name))
        for wanted in order:
            compute(wanted, workers=1)
        weights.append((run_folder(run) / "final" / "model.safetensors").read_bytes())
        tables.append([score_file(s).read_bytes() for s in (early, late, last)])
        assert not list((tmp_path / name).glob("again-*")), "the second pass is thrown away"
    assert weights[0] == weights[1]
    assert tables[0] == tables[1]
    assert tables[0][1] == tables[0][2] != tables[0][0], "after the last round is the end"
    with pytest.raises(SeptError, match="2 rounds only"):
        compute([Score(run, "toy:dev:1", 1.0, 4, at=3)], workers=1)


def test_a_second_pass_starts_anew_and_must_be_the_same_run():
    run = Run("H", "sept", 7, overrides=(("lr", 3e-3), *TINY))
    point = Score(run, "toy:dev:1", 1.0, 4, at=1)
    compute([Score(run, "toy:dev:1", 1.0, 4)], workers=1)
    rest = run_folder(run).with_name(f"again-{run.key()}")
    rest.mkdir()  # what a killed second pass left
    (rest / "rounds.jsonl").write_text("half")
    compute([point], workers=1)
    assert counts(point)["n"].tolist() == [4] * 6 and not rest.exists()
    shutil.rmtree(score_file(point).parent)
    rows = run_folder(run) / "rounds.jsonl"
    rows.write_text(rows.read_text().replace('"entropy": 0', '"entropy": 1'))  # trained elsewhere
    with pytest.raises(SeptError, match="comes out differently.*delete its folder"):
        compute([point], workers=1)
    assert not score_file(point).exists() and not rest.exists()


def test_a_store_of_another_version_is_refused(monkeypatch):
    wanted = [Score("H", "toy:dev:1", 0.0, 1)]
    compute(wanted, workers=1)
    monkeypatch.setattr(experiments, "RESULTS_VERSION", config.RESULTS_VERSION + 1)
    for stamped in (True, False):
        if not stamped:
            (experiments.results_dir() / "results_version").unlink()
        with pytest.raises(SeptError, match="results version .*move it away"):
            compute(wanted, workers=1)


def test_a_missing_result_says_so():
    with pytest.raises(SeptError, match="missing"):
        counts(Score("H", "toy:dev:3", 1.0, 4))


def test_arms_that_coincide_are_trained_once(monkeypatch):
    """With the paper's annealed schedule in every arm, `sept` and `sept-annealed` are one run."""
    trained = []
    monkeypatch.setattr(experiments, "_train_job", lambda job: trained.append(job[0].arm))
    monkeypatch.setattr(experiments, "_score_job", lambda score: None)
    extra = (("tau_s_schedule", "linear"), *TINY)
    runs = [Run("H", arm, 7, overrides=tuple(sorted(extra))) for arm in ("sept", "sept-annealed")]
    compute([Score(run, "toy:dev:1", 1.0, 4) for run in runs], workers=1)
    assert len(trained) == 1


def test_keys_see_more_than_weights(tmp_path):
    """Another norm epsilon, another grading rule: other results."""
    base = shutil.copytree(BASES / "H", tmp_path / "H")
    described = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**described, "rms_norm_eps": 1e-2}))
    assert Score(str(base), "toy:dev:1", 1.0, 4).key() != Score("H", "toy:dev:1", 1.0, 4).key()
    assert Score(str(BASES / "H"), "toy:dev:1", 1.0, 4).key() == Score("H", "toy:dev:1", 1.0, 4).key()
    toy = load_problems("toy:dev:1")
    assert ProblemSet("x", toy.items, world="file").hash() != toy.hash()


def test_two_processes_do_not_share_a_folder(tmp_path):
    run = Run("H", "sept", 7, overrides=TINY)
    run_folder(run).mkdir(parents=True)
    with locked(run_folder(run) / ".lock", wait=False):
        with (
            pytest.raises(SeptError, match="another process"),
            locked(run_folder(run) / ".lock", wait=False),
        ):
            pass


def test_profiles():
    for name in ("smoke", "quick", "laptop", "gpu", "paper"):
        scale = profile(name)
        for arm in experiments.ARM_NAMES:
            assert [r.config().seed for r in scale.runs(arm)] == list(scale.seeds)
        assert len({scale.dev, scale.test, scale.train}) == 3
    assert len(PROFILES["laptop"].seeds) >= 3
    grpo, sept = (profile("laptop").runs("grpo")[0].config(), profile("laptop").runs("sept")[0].config())
    assert grpo.questions * grpo.G == sept.questions * sept.G, "as many answers a round"
    with pytest.raises(SeptError, match="quick"):
        profile("quack")


def test_a_profile_carries_its_engine(monkeypatch):
    assert {name: p.engine for name, p in PROFILES.items() if p.engine != "auto"} == {
        "gpu": "vllm",
        "paper": "vllm",
    }
    monkeypatch.setenv("SEPT_ENGINE", "vllm:max_num_seqs=64")
    scale = profile("smoke")
    made = [scale.runs("sept")[0], scale.score("H"), *scale.points(scale.runs("sept")[0])]
    assert {x.engine for x in made} == {"vllm:max_num_seqs=64"}


def test_jobs_sample_with_their_engine(monkeypatch):
    """The engine asked for trains and scores; one that stays behind leaves scores on the way to another."""
    from sept import sampling, sampling_static

    made, make = [], sampling.make_sampler

    class Engine:  # what vLLM is to the jobs: one engine at a time, its draws its own
        def __init__(self, policy):
            self.inner, self.calls, self.closed = sampling_static.StaticEngine(), [], False
            self.refresh(policy)

        version = property(lambda self: self.inner.version)

        def refresh(self, policy):
            self.inner.refresh(policy)

        def sample(self, *args, **options):
            assert not self.closed
            self.calls.append(len(args[0]))
            return self.inner.sample(*args, **options)

        def close(self):
            self.closed = True

    def choose(policy, engine="auto", training=True):
        if engine != "vllm":
            made.append(engine)
            return make(policy, engine, training)
        made.append(Engine(policy))
        return made[-1]

    monkeypatch.setattr(sampling, "make_sampler", choose)
    monkeypatch.setattr("sept.loop.parse_engine", lambda engine: None)  # vLLM need not be installed
    for arm, built_in in (("sept", 0), ("offline", 2)):
        made.clear()
        run = Run("H", arm, 7, overrides=TINY, engine="vllm")
        scores = [Score(run, "toy:dev:1", 1.0, 4, at=at, engine="vllm") for at in (1, 2)]
        compute([*scores, Score(run, "toy:dev:1", 1.0, 4, engine="vllm")], workers=1)
        training, *others, scoring = made
        assert others == ["auto"] * built_in
        assert training.closed and scoring.closed
        assert training.calls.count(8) >= 2 and training.calls.count(6) == 2 - built_in
        assert scoring.calls == [6], "the scores, of six questions"
        assert json.loads((run_folder(run) / "config.json").read_text())["identity"]["engine"] == "vllm"


# --- notebooks ------------------------------------------------------------------------------------------


def notebook_names():
    return sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("name", notebook_names())
def test_notebook_and_its_text_agree(name):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(NOTEBOOKS / f"{name}.ipynb")
    text = jupytext.read(NOTEBOOKS / f"{name}.py")
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in text.cells
    ], f"run: jupytext --to ipynb --update notebooks/{name}.py"


@pytest.mark.parametrize("name", notebook_names())
def test_notebooks_are_thin(name):
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    assert len(tagged) == 1
    assert 5 <= len(code) <= 10
    assert not any(re.search(r"^\s*(def|class) ", source, re.M) for source in code)
    assert max(source.count("\n") for source in code) < 30
    assert "record(out_dir" in code[-1], "the last cell records the headline numbers"
    first = "".join(cells[0]["source"])
    assert "**Question.**" in first and "**Answer.**" in first


def test_undeclared_parameters_are_an_error(tmp_path):
    pytest.importorskip("papermill")
    with pytest.raises(SeptError, match="profil_name.*not declared"):
        runner.run_notebooks("smoke", tmp_path / "out", "01", {"profil_name": "x"})


def test_readme_numbers_are_those_of_the_committed_tables():
    """Every number in README.md between <!-- name --> marks is the recorded one, to its last digit."""
    root = NOTEBOOKS.parent
    text = (root / "README.md").read_text()
    marks = re.findall(r"<!--(laptop|quick)/(\S+?):(.+?)-->\s*\**([-+0-9.]+)", text)
    assert len(marks) >= 5
    for scale, notebook, key, shown in marks:
        path = root / "figures" / scale / f"{notebook}.json"
        if not path.is_file():
            assert scale != "laptop", f"{path} is not committed"
            continue
        value = json.loads(path.read_text())
        for part in key.split("/"):
            value = value[int(part)] if isinstance(value, list) else value[part]
        digits = len(shown.partition(".")[2])
        off = abs(float(shown) - float(value))
        # Figures on another machine may draw other samples: quick numbers agree within their noise.
        assert off <= (0.5001 * 10**-digits if scale == "laptop" else 5), (key, shown, value)


def test_the_committed_result_is_above_zero():
    """The core's claim, on base H with five seeds, as the laptop profile recorded it."""
    result = json.loads((NOTEBOOKS.parent / "figures" / "laptop" / "03_main_result.json").read_text())
    value, low, high = result["sept_minus_baseline_AVG"]
    assert 0 < low < value < high and result["seeds"] >= 3 and result["questions"] >= 500
