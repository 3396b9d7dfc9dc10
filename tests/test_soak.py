"""`make soak`: the same checks as the fast tests, for hours' worth of bad luck. Seeds are printed."""

import ctypes
import gc
import importlib.util
import logging
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fuzzing import (
    OPTIONS,
    check_config,
    check_grading,
    check_name,
    check_problem_file,
    fields,
    name,
    pair,
    problem_file,
)
from test_faults import cut, kill_at_random
from test_fuzz import check_checkpoint, check_model

from sept import experiments, grading
from sept.config import notice

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3 * 3600)]
SEED = int(os.environ.get("SEPT_SOAK_SEED", "1"))
MINUTES = float(os.environ.get("SEPT_SOAK_MINUTES", "10"))


def test_25_kills(tmp_path):
    kill_at_random(25, tmp_path, SEED)


def test_100_000_grader_inputs(monkeypatch):
    """Both rules. A grading process may only die of its limits on time and memory, never of an answer."""
    monkeypatch.setattr(grading, "LIMIT", 1.0)
    monkeypatch.setattr(grading, "PATIENCE", 300)
    deaths, real = [], grading._retire

    def retire(worker):
        if worker.task is not None and time.monotonic() < worker.deadline:
            deaths.append(worker.process.wait(30))
        real(worker)

    monkeypatch.setattr(grading, "_retire", retire)
    rng, count, right, distinct = random.Random(SEED), 0, 0, set()
    used = time.process_time() + sum(os.times()[2:4])
    while count < 100_000:
        pairs = [pair(rng) for _ in range(250)]
        distinct.update(map(hash, pairs))
        for world in ("math", "parity"):
            right += sum(check_grading(pairs, world))
            count += len(pairs)
        notice.cache_clear()
        grading._verdicts.clear()
    used = time.process_time() + sum(os.times()[2:4]) - used
    print(
        f"{count} grader inputs ({len(distinct)} distinct pairs, seed {SEED}): {right} right, {len(deaths)} "
        f"over the limit, {used:.0f} s of processor time"
    )
    assert set(deaths) <= {-27}, "SIGPROF is the limit on time"
    grading._stop_all()


def test_20_000_problem_files(tmp_path):
    rng, loaded, kinds = random.Random(SEED), 0, {}
    logging.disable()
    try:
        for _ in range(20_000):
            suffix, data = problem_file(rng)
            loaded += check_problem_file(tmp_path, suffix, data, rng.choice(OPTIONS))
            kinds[suffix] = kinds.get(suffix, 0) + 1
    finally:
        logging.disable(logging.NOTSET)
    print(f"20000 problem files (seed {SEED}): {loaded} loaded, the others refused in one line; {kinds}")
    assert loaded > 1000


def test_configs_names_checkpoints_and_models(tmp_path):
    rng = random.Random(SEED)
    made = sum(check_config(fields(rng), rng.choice(["sept", "grpo"])) for _ in range(50_000))
    for _ in range(20_000):
        check_name(name(rng))
    cut(tmp_path / "run")
    logging.disable()
    try:
        for _ in range(2_000):
            check_checkpoint(tmp_path / "run", rng)
        whole = sum(check_model(tmp_path / "model", rng) for _ in range(500))
    finally:
        logging.disable(logging.NOTSET)
    print(
        f"50000 configs ({made} valid), 20000 names, 2000 damaged checkpoints, 500 models ({whole} loaded)"
    )


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("target", ["problems", "answers", "config", "state"])
def test_guided_by_coverage(target, tmp_path):
    script = Path(__file__).with_name("atheris_targets.py")
    call = [sys.executable, str(script), target, str(tmp_path)]
    call += ["-max_total_time=60", "-rss_limit_mb=4096", "-timeout=20", f"-seed={SEED}"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, errors="replace")
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.findall(r"Done (\d+) runs in (\d+)", done.stderr)
    print(f"atheris, {target}: {runs[0][0]} runs in {runs[0][1]} s")


def resident(trim=True):
    """Memory of this process in MiB; trim: after the C library has given back what it only kept for later."""
    if trim:
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_smoke_runs_in_a_loop_stay_flat(tmp_path, monkeypatch):
    """Train, evaluate, grade and draw, again and again in one process: no memory and no file is kept."""
    from sept import figures

    monkeypatch.setenv("SEPT_RESULTS", str(tmp_path / "store"))
    problems = tmp_path / "p.jsonl"
    problems.write_text('{"prompt": "12+34:", "answer": "46"}\n{"prompt": "1+2:", "answer": "3"}\n')
    figures.use_style()
    end, rows = time.monotonic() + 60 * MINUTES, []
    tiny = (("mini_batch", 4), ("questions", 8), ("rounds", 3), ("save_every", 1), ("warmup", 0))
    while time.monotonic() < end:
        seed = len(rows)
        run = experiments.Run("H", ("sept", "grpo", "offline")[seed % 3], seed, overrides=_arm(seed, tiny))
        scores = [experiments.Score(run, "toy:dev:1", t, 4) for t in (0.0, 1.0)]
        scores += [experiments.Score(run, f"{problems}:math", 1.0, 2, seed=seed)]
        experiments.compute(scores, workers=1)
        table = experiments.scores(scores[1])
        assert len(table) == 6
        gc.collect()
        kept = resident(trim=False)
        rows.append((resident(), len(os.listdir("/proc/self/fd")), kept))
    rows = np.array(rows)[len(rows) // 4 :]  # caches fill in the first quarter
    slope = np.polyfit(range(len(rows)), rows[:, 0], 1)[0]
    (first, *_, last), files = rows[:, 0], rows[:, 1].astype(int)
    print(
        f"{len(rows)} loops after the warm-up: memory {first:.1f} to {last:.1f} MiB, {slope:+.3f} a loop "
        f"(before trimming {rows[0, 2]:.0f} to {rows[-1, 2]:.0f}); open files {files.min()} to {files.max()}"
    )
    assert files.max() == files.min()
    assert slope < 0.1 and last < 1.02 * first


def _arm(seed, tiny):
    pairs = dict(tiny)
    return tuple(sorted((pairs | ({"questions": 2, "mini_batch": 1} if seed % 3 == 1 else {})).items()))
