"""Faults, made to happen: kills, preemption, hangs, full and read-only disks, damage, company in the store.

docs/faults.md lists them. Where a fault needs rights that are missing, the test is skipped and says so.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from conftest import random_policy
from test_cli import complaint, sept
from test_distributed import case, torchrun
from test_grading import worker

from sept import durable, experiments, grading, loop
from sept.checkpoints import read_rows
from sept.config import SeptError, notice, preset
from sept.durable import Preempted, seal, sigterm, unseal, writing
from sept.experiments import Score, compute, note_cost
from sept.loop import TrainingError, train
from sept.policy import load_policy
from sept.problems import Problem, ProblemSet
from sept.provenance import write_text
from sept.sampling_static import StaticEngine

ROOT = Path(__file__).resolve().parent.parent
WORDS = ProblemSet("words", tuple(Problem(str(i), "w", f"w{i} w{i + 3} w{2 * i}", "w9") for i in range(24)))
SMALL = {"rounds": 5, "warmup": 0, "questions": 8, "mini_batch": 4, "max_new_tokens": 12, "save_every": 1}
CONFIG = preset("sept", **SMALL, lr=1e-3)


@pytest.fixture(autouse=True)
def _say_again():
    notice.cache_clear()


def run(out, config=CONFIG, problems=WORDS, **more):
    return train(config, random_policy(seed=1), problems, out, **more)


def content(folder):
    """Every file of a folder with its bytes, hidden ones included."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return content(out)


def stop_after(round, what=KeyboardInterrupt):
    def stop(row):
        if row["round"] == round:
            raise what

    return stop


def cut(out, after=3):
    """A run that was interrupted after so many rounds."""
    with pytest.raises(KeyboardInterrupt):
        run(out, on_round=stop_after(after))


# --- kills ------------------------------------------------------------------------------------------------

KILLED = ["--problems", "toy:train", "--seed", "3", "--set", "rounds=24", "--set", "save_every=2"]
KILLED += [
    "--set",
    "questions=32",
    "--set",
    "mini_batch=8",
    "--set",
    "warmup=0",
    "--set",
    "margins_every=5",
]
STARTER = """
import os, sys
from sept import cli, loop, policy
policy.load_policy("H")
for line in sys.stdin:
    if not (pid := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.argv = line.rstrip().split(chr(9))
        cli.main()
        os._exit(0)
    print(pid, flush=True)
    _, status, used = os.wait4(pid, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
"""
"""Starts the command again and again without its imports, which take longer than the run."""


def processor_time(pid):
    """Seconds a process has used: a clock that goes on with its work, however busy the machine is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_at_random(count, tmp_path, seed=0):
    """Kill the command `count` times, resume it, and compare every byte of its folder.

    Two of five kills come when a checkpoint or the export is being written; the others at any time after
    the folder is claimed.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    starter = subprocess.Popen([sys.executable, "-c", STARTER], **pipes)

    def start(out, *more):
        print("sept", "train", *KILLED, "--out", out, *more, sep="\t", file=starter.stdin)
        return int(starter.stdout.readline())

    def end():
        code, seconds = starter.stdout.readline().split()
        return int(code), float(seconds)

    rng, whole = random.Random(seed), tmp_path / "whole"
    pid = start(whole)
    while not (whole / "config.json").exists():
        time.sleep(0.002)
    began = processor_time(pid)
    code, ended = end()
    expected, hit = content(whole), []
    assert code == 0 and "final/model.safetensors" in expected
    for number in range(count):
        out = tmp_path / f"cut-{number}"
        pid = start(out)
        kind = ("any time", "checkpoint", "any time", "export", "any time")[number % 5]
        if kind == "any time":
            at = rng.uniform(began, ended)
            while processor_time(pid) < at:
                time.sleep(0.002)
        else:
            part = ".final.*.part" if kind == "export" else f".checkpoint-{rng.randrange(2, 24, 2)}.*.part"
            while alive(pid) and not list(out.glob(part)):
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.02))
        at = processor_time(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        too_late = end()[0] == 0
        found = sorted(p.name for p in out.glob("*") if p.suffix == ".part" or "checkpoint" in p.name)
        hit.append((kind, any(n.endswith(".part") for n in found)))
        print(
            f"kill {number}, seed {seed}: {kind}, after {at:.2f} s of processor time ({began:.2f} to "
            f"{ended:.2f}){' (had ended)' * too_late}; {', '.join(found) or 'nothing saved'}"
        )
        start(out, "--resume")
        assert end()[0] == 0
        found = content(out)
        assert sorted(found) == sorted(expected), "files are missing, or were left behind"
        assert [n for n in expected if found[n] != expected[n]] == []
        shutil.rmtree(out)
    starter.stdin.close()
    assert starter.wait() == 0
    assert any(parts for kind, parts in hit if kind != "any time"), "no write was hit"


@pytest.mark.slow
def test_killed_at_random_it_resumes_to_the_same_bytes(tmp_path):
    kill_at_random(5, tmp_path)


def test_a_run_killed_before_it_began_can_be_started(tmp_path, whole):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.77.part").write_text("{")
    (tmp_path / "run" / ".lock").touch()
    run(tmp_path / "run")
    assert content(tmp_path / "run") == whole


def test_a_run_killed_between_its_export_and_its_end_is_tidied(tmp_path, whole):
    run(tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "final", tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / ".checkpoint-5.77.part").mkdir()
    run(tmp_path / "run", resume=True, on_round=stop_after(0))
    assert content(tmp_path / "run") == whole


def test_refused_runs_leave_nothing(tmp_path):
    with writing(tmp_path / "theirs" / "thesis.tex") as place:
        place.write_text("dear")
    for out, why in ((tmp_path / "theirs", "not empty"), (tmp_path / "theirs" / "thesis.tex", "is a file")):
        with pytest.raises(SeptError, match=why):
            run(out)
    assert content(tmp_path) == {"theirs/thesis.tex": b"dear"}


# --- SIGTERM ----------------------------------------------------------------------------------------------


class Terminated(StaticEngine):
    """Gets SIGTERM while it draws for the third time (the margins' probe draws as well)."""

    finished = 0

    def sample(self, *a, **k):
        if self.finished == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        out = super().sample(*a, **k)
        self.finished += 1
        return out


def test_sigterm_while_sampling_saves_at_once(tmp_path, whole):
    engine = Terminated()
    engine.refresh(random_policy(seed=1))
    config = preset("sept", **{**SMALL, "save_every": 99, "margins_every": 0}, lr=1e-3)
    with pytest.raises(Preempted, match=r"after 2 rounds; continue with --resume from .*checkpoint-2"):
        run(tmp_path / "run", config, sampler=engine)
    assert engine.finished == 2, "the draw is given up, not waited for"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    unseal(tmp_path / "run" / "checkpoint-2")
    config = preset("sept", **SMALL, lr=1e-3)
    run(tmp_path / "run", config, resume=True)
    assert content(tmp_path / "run" / "final")["model.safetensors"] == whole["final/model.safetensors"]


def test_sigterm_while_training_waits_for_the_end_of_the_round(tmp_path, whole, monkeypatch):
    real, steps = loop._steps, []

    def terminated(*a):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*a)

    monkeypatch.setattr(loop, "_steps", terminated)
    with pytest.raises(Preempted, match="after 2 rounds"):
        run(tmp_path / "run", preset("sept", **{**SMALL, "save_every": 99}, lr=1e-3))
    run(tmp_path / "run", resume=True)
    for name in ("rounds.jsonl", "final/model.safetensors"):
        assert content(tmp_path / "run")[name] == whole[name]


def test_sigterm_under_torchrun_saves_on_all_ranks(tmp_path):
    """One rank hears of it in round 2; both end that round and save together."""
    one = case("cut", rounds=1000, die=[1, 2], signal="SIGTERM", stop=-1)
    assert torchrun(2, tmp_path, [one]).returncode == 0
    state = unseal(tmp_path / "cut" / "checkpoint-3")
    assert state["ranks"] == 2 and len(read_rows(tmp_path / "cut" / "checkpoint-3")) == 3
    assert not list((tmp_path / "cut").glob("*.part"))


def test_sigterm_outside_of_the_main_thread_is_not_ours():
    seen = []

    def listen():
        with sigterm() as stop:
            seen.append(stop.asked)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_in_any_verb_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sept.evaluation.evaluate", lambda *a: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = sept(monkeypatch, capsys, "eval", "--problems", "toy:dev:1", "--json", "e.json")
    assert code == 143 and "give the same command again" in complaint(err)
    assert not (tmp_path / "e.json").exists()


# --- a hung grader, a dead engine -------------------------------------------------------------------------


def test_a_hung_grader_does_not_hold_up_the_loop(tmp_path, monkeypatch, whole, caplog):
    """Every fourth answer hangs; the run goes on, those count as wrong, and SePT's weights do not care."""
    monkeypatch.setattr(grading, "_verdicts", {})
    worker(monkeypatch, tmp_path, "if given.endswith(('0', '4', '7')): time.sleep(600)")
    monkeypatch.setattr(grading, "LIMIT", 0.2)
    problems = ProblemSet(WORDS.name, WORDS.items, world="math")
    real = grading.grade_all
    boxed = lambda texts, *rest: real([rf"\boxed{{{t.strip()[-3:]}}}" for t in texts], *rest)  # noqa: E731
    monkeypatch.setattr(loop, "grade_all", boxed)
    started = time.monotonic()
    rows = run(tmp_path / "run", problems=problems)
    assert len(rows) == 5 and "count as wrong" in caplog.text
    assert time.monotonic() - started < 60
    grading._stop_all()
    assert content(tmp_path / "run")["final/model.safetensors"] == whole["final/model.safetensors"]


def test_a_dead_engine_is_one_line_and_resumes(tmp_path, monkeypatch, whole):
    """vLLM's own calls by a stand-in; `test_vllm.py` kills the real one."""
    from sept.sampling_vllm import VllmEngine

    class Dying(VllmEngine):
        real = StaticEngine()
        drawn = 0

        def refresh(self, policy):
            self.real.refresh(policy)
            self.version, self.eos, self.context, self.llm = policy.version, policy.eos_ids, 96, self

        def generate(self, *_, **__):
            raise RuntimeError(
                "EngineCore encountered an issue.\nSee stack trace (above) for the root cause."
            )

        def _draw(self, *request):
            self.drawn += 1
            return super()._draw(*request) if self.drawn == 4 else self.real.sample(*request)

    nothing = lambda *_, **__: None  # noqa: E731
    stand_in = types.SimpleNamespace(SamplingParams=nothing, TokensPrompt=nothing)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    engine = Dying()
    engine.refresh(random_policy(seed=1))
    with pytest.raises(
        TrainingError, match=r"round 2: the engine died \(EngineCore .*--resume.*-2"
    ) as error:
        run(tmp_path / "run", sampler=engine)
    assert "\n" not in str(error.value)
    run(tmp_path / "run", resume=True)
    assert content(tmp_path / "run") == whole


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_killed_vllm_process_is_one_line_and_resumes(tmp_path, monkeypatch):
    """vLLM itself, with two tensor-parallel processes of which one is killed in the middle of the run."""
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("vllm")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[1]}")
    engine = "vllm:kv_cache_memory_bytes=268435456:tensor_parallel_size=2"
    config = preset("sept", **SMALL, lr=1e-3)

    def again(out, **more):
        policy = random_policy(hidden=128, heads=2, kv=2, context=256, seed=1)
        return train(config, policy, WORDS, tmp_path / out, engine=engine, **more)

    def kill(row):
        if row["round"] == 1:
            workers = [
                p for p in psutil.Process().children(recursive=True) if "Worker" in " ".join(p.cmdline())
            ]
            assert len(workers) == 2, "a process for each part of the model"
            workers[1].kill()

    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"round [12].*the engine died.*--resume from .*") as error:
        again("cut", on_round=kill)
    print(f"{time.monotonic() - started:.0f} s until: {error.value}")
    assert "\n" not in str(error.value)
    again("cut", resume=True)
    again("whole")
    for name in ("rounds.jsonl", "final/model.safetensors"):
        assert content(tmp_path / "cut")[name] == content(tmp_path / "whole")[name]


# --- full and read-only disks -----------------------------------------------------------------------------


@pytest.fixture()
def mounted(tmp_path):
    """Mount small file systems; skip where that is not allowed."""
    places = []

    def mount(options, name="disk"):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        call = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(call, capture_output=True).returncode:
            pytest.skip("mounting a file system needs root")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk):
    """Leave no byte free."""
    with (disk / "ballast").open("wb", buffering=0) as handle:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    handle.write(b"x" * size)
            except OSError:
                pass


def test_a_full_disk_stops_the_run_and_loses_nothing(mounted, whole):
    disk = mounted("size=4m")

    def when(row):
        if row["round"] == 2:
            fill(disk)

    with pytest.raises(SeptError, match="No space left on device.*make room.*--resume") as error:
        run(disk / "run", on_round=when)
    assert "\n" not in str(error.value) and "checkpoint-3" in str(error.value)
    assert sorted(p.name for p in (disk / "run").glob("*checkpoint*")) == ["checkpoint-1", "checkpoint-2"]
    (disk / "ballast").unlink()
    run(disk / "run", resume=True)
    assert content(disk / "run") == whole


def test_a_disk_that_is_full_from_the_start_is_one_line(mounted, monkeypatch, capsys):
    disk = mounted("size=64k")
    fill(disk)
    code, _, err = sept(monkeypatch, capsys, "train", "--out", disk / "run", "--set", "rounds=1")
    assert code == 2 and "No space left" in complaint(err)
    assert [p.name for p in disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("where", ["checkpoint", "export"])
def test_a_file_that_may_not_grow_stops_the_run_and_loses_nothing(where, tmp_path, whole):
    """The second way to a full disk, for whoever may not mount: a limit on the size of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(row):
        if row["round"] == (2 if where == "checkpoint" else 4):
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))

    try:
        with pytest.raises(SeptError, match="File too large.*make room") as error:
            run(tmp_path / "run", on_round=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ("checkpoint-3" if where == "checkpoint" else "final") in str(error.value)
    assert not list((tmp_path / "run").glob("*.part"))
    run(tmp_path / "run", resume=True)
    assert content(tmp_path / "run") == whole


def test_a_read_only_folder_is_one_line(mounted, tmp_path, monkeypatch, capsys):
    if os.geteuid():
        place = tmp_path / "disk"
        place.mkdir(mode=0o555)
    else:  # root is not held up by modes
        place = mounted("ro,size=1m")
    code, _, err = sept(monkeypatch, capsys, "train", "--out", place / "run", "--set", "rounds=1")
    assert code == 2 and "cannot write" in complaint(err) and "choose another place" in err
    monkeypatch.setenv("SEPT_RESULTS", str(place / "results"))
    with pytest.raises(SeptError, match="cannot write .*make it writable"):
        compute([Score("H", "toy:dev:1", 0.0, 1)], workers=1)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")
    with pytest.raises(SeptError, match="cannot write"), writing(tmp_path / "a") as place:
        place.write_text("half")
        raise OSError(28, "No space left on device")
    assert content(tmp_path) == {"a": b"old"}


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut could leave a name with nothing behind it."""
    calls = []
    names = {}
    real_open, real_sync, real_replace = os.open, os.fsync, os.replace
    monkeypatch.setattr(
        durable.os, "open", lambda p, *a: names.setdefault(h := real_open(p, *a), str(p)) and h
    )
    monkeypatch.setattr(durable.os, "fsync", lambda h: (calls.append(names.pop(h)), real_sync(h)))
    monkeypatch.setattr(durable.os, "replace", lambda a, b: (calls.append("rename"), real_replace(a, b)))
    with writing(tmp_path / "folder") as place:
        place.mkdir()
        (place / "weights").write_text("w")
    first, second, *rest = (Path(c).name for c in calls)
    assert first == "weights" and second.endswith(".part") and rest == ["rename", tmp_path.name]


# --- damage -----------------------------------------------------------------------------------------------

DAMAGES = {
    "a flipped bit": lambda f: flip(f / "policy.safetensors", -100),
    "a flipped bit of a moment": lambda f: flip(f / "optimizer.safetensors", -100),
    "cut short": lambda f: os.truncate(f / "policy.safetensors", 1000),
    "empty": lambda f: os.truncate(f / "optimizer.safetensors", 0),
    "a file gone": lambda f: (f / "optimizer.safetensors").unlink(),
    "a file too many": lambda f: (f / "sampler.safetensors").write_bytes(
        (f / "policy.safetensors").read_bytes()
    ),
    "no state": lambda f: (f / "state.json").unlink(),
    "half a state": lambda f: os.truncate(f / "state.json", 40),
    "another state": lambda f: (f / "state.json").write_text(
        (f / "state.json").read_text().replace('"version": 6', '"version": 7')
    ),
    "other rounds": lambda f: flip(f / "rounds.jsonl", 30),
}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, tmp_path, whole, caplog):
    cut(tmp_path / "run")
    DAMAGES[damage](tmp_path / "run" / "checkpoint-3")
    seen = []
    run(tmp_path / "run", resume=True, on_round=lambda row: seen.append(row["round"]))
    assert seen == [2, 3, 4], "it went on from the one before"
    (line,) = [r.message for r in caplog.records if "damaged" in r.message]
    assert "checkpoint-3" in line and "going on from the one before" in line and "\n" not in line
    assert content(tmp_path / "run") == whole


def test_two_damaged_checkpoints_mean_a_new_start(tmp_path, whole, caplog):
    cut(tmp_path / "run")
    for name in ("checkpoint-2", "checkpoint-3"):
        flip(tmp_path / "run" / name / "policy.safetensors", -9)
    run(tmp_path / "run", resume=True)
    assert sum("damaged" in r.message for r in caplog.records) == 2 and content(tmp_path / "run") == whole


def test_damage_does_not_push_out_whole_checkpoints(tmp_path, whole):
    """The last two whole ones are kept, whatever lies above them."""
    cut(tmp_path / "run")
    flip(tmp_path / "run" / "checkpoint-3" / "policy.safetensors", -9)
    config = preset("sept", **{**SMALL, "save_every": 99}, lr=1e-3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", config, resume=True, on_round=stop_after(3))
    seen = []
    run(tmp_path / "run", resume=True, on_round=lambda row: seen.append(row["round"]))
    assert seen == [2, 3, 4] and content(tmp_path / "run") == whole


def test_half_written_and_foreign_folders_are_no_checkpoints(tmp_path, whole):
    cut(tmp_path / "run")
    out = tmp_path / "run"
    shutil.copytree(out / "checkpoint-3", out / ".checkpoint-4.77.part")
    (out / "checkpoint-old").mkdir()
    (out / "checkpoint-9").symlink_to(out / "checkpoint-2")
    assert [p.name for p in loop.checkpoints(out)] == ["checkpoint-2", "checkpoint-3"]
    (out / "checkpoint-9").unlink()
    (out / "checkpoint-old").rmdir()
    seen = []
    run(out, resume=True, on_round=lambda row: seen.append(row["round"]))
    assert seen == [3, 4] and content(out) == whole


@pytest.mark.parametrize("name", ["config.json", "rounds.jsonl"])
def test_a_damaged_record_of_a_finished_run_is_one_line(name, tmp_path):
    run(tmp_path / "run")
    os.truncate(tmp_path / "run" / name, 30)
    with pytest.raises(SeptError, match=f"{name}.*damaged; remove"):
        run(tmp_path / "run", resume=True)


def test_a_sealed_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    seal(tmp_path, {"version": 3})
    assert unseal(tmp_path)["version"] == 3
    (tmp_path / "sub" / "a").write_text("2")
    with pytest.raises(ValueError, match="sub/a differs"):
        unseal(tmp_path)


def shards(folder):
    """Base H in several files, as large models come."""
    policy = load_policy("H")
    policy.model.save_pretrained(folder, max_shard_size="300KB")
    policy.tokenizer.save_pretrained(folder)
    return sorted(folder.glob("model-*.safetensors"))


@pytest.mark.parametrize("how", ["cut", "gone", "index"])
def test_a_damaged_shard_is_one_line(how, tmp_path, monkeypatch, capsys):
    files = shards(tmp_path / "model")
    assert len(files) > 2 and load_policy(str(tmp_path / "model"))
    if how == "cut":
        os.truncate(files[1], files[1].stat().st_size // 2)
    elif how == "gone":
        files[1].unlink()
    else:
        os.truncate(tmp_path / "model" / "model.safetensors.index.json", 100)
    code, _, err = sept(
        monkeypatch, capsys, "eval", "--model", tmp_path / "model", "--problems", "toy:dev:1"
    )
    assert code == 2 and "model" in complaint(err)


# --- company ----------------------------------------------------------------------------------------------

TOGETHER = """
import sys
from sept import experiments
from sept.experiments import Run, Score, compute
real, train = experiments._write_score, experiments._pass_over
log = open(sys.argv[1], "a", buffering=1)
experiments._write_score = lambda s, *a: (log.write("score " + s.key() + chr(10)), real(s, *a))
experiments._pass_over = lambda r, *a: (log.write("train " + r.key() + chr(10)), train(r, *a))
runs = [Run("H", "sept", seed, overrides=(("mini_batch", 4), ("questions", 8), ("rounds", 2), ("warmup", 0)))
        for seed in (7, 8)]
compute([Score(m, "toy:dev:1", 1.0, 4) for m in ("H", *runs)], workers=1)
"""


@pytest.mark.slow
def test_processes_that_fill_one_store_at_once(tmp_path, monkeypatch):
    tables = []
    for count in (3, 1):
        env = {**os.environ, "SEPT_RESULTS": str(tmp_path / f"store-{count}")}
        call = [sys.executable, "-c", TOGETHER, str(tmp_path / f"log-{count}")]
        crowd = [subprocess.Popen(call, env=env, stderr=subprocess.PIPE) for _ in range(count)]
        assert [(p.communicate()[1], p.returncode)[1] for p in crowd] == [0] * count
        lines = (tmp_path / f"log-{count}").read_text().split("\n")[:-1]
        assert sorted(lines) == sorted(set(lines)) and len(lines) == 5, "each result is computed once"
        store = content(tmp_path / f"store-{count}")
        tables.append(
            {n: d for n, d in store.items() if n.endswith(("counts.csv", "rounds.jsonl", "tensors"))}
        )
        assert not [n for n in store if n.endswith(".part")]
        assert len(json.loads(store["cost-other.json"])) == 5
    assert tables[0] == tables[1] and len(tables[0]) == 7


def test_accounts_of_processes_add_up(tmp_path, monkeypatch):
    store = experiments.results_dir()
    folders = [store / f"eval-{i}" for i in range(40)]
    for folder in folders:
        write_text(folder / "seconds", "1.0")
    threads = [threading.Thread(target=note_cost, args=([f],)) for f in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((store / "cost-other.json").read_text())) == 40


def test_a_run_is_not_started_twice(tmp_path):
    """Neither in one folder at once, nor by another config: its record is left alone."""
    errors = []

    def second(row):
        for config in (CONFIG, preset("sept", **SMALL, lr=1e-4)):
            with pytest.raises(SeptError, match="another process") as error:
                run(tmp_path / "run", config, resume=True)
            errors.append(error)

    run(tmp_path / "run", on_round=second)
    assert len(errors) == 10
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["lr"] == 1e-3


def test_a_pools_process_that_is_killed_is_one_line(monkeypatch):
    with pytest.raises(SeptError, match="was killed, perhaps for lack of memory; do the same again"):
        experiments.side_by_side([("dying", _die, [1, 2])], [], workers=2)


def _die(_):
    os.kill(os.getpid(), signal.SIGKILL)


POOL = """
import os, sys, time
from pathlib import Path
from sept import experiments
def job(name):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)
if __name__ == "__main__":
    experiments.side_by_side([("waiting", job, [1, 2])], [], workers=2)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def within(seconds, ready):
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_pool_leaves_no_process_behind(tmp_path):
    (tmp_path / "pids").mkdir()
    (tmp_path / "pool.py").write_text(POOL)
    call = [sys.executable, str(tmp_path / "pool.py"), str(tmp_path / "pids")]
    pool = subprocess.Popen(call, stderr=subprocess.DEVNULL)
    within(120, lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    pool.kill()
    pool.wait()
    pids = [int(p.name) for p in (tmp_path / "pids").iterdir()]
    within(10, lambda: not any(map(alive, pids)))


# --- notebooks --------------------------------------------------------------------------------------------


def family(store):
    """Processes that work for a store, the command itself included."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"SEPT_RESULTS={store}".encode() in (place / "environ").read_bytes() and alive(place.name):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def figures(tmp_path, name):
    env = {**os.environ, "SEPT_RESULTS": str(tmp_path / f"store-{name}")}
    call = [sys.executable, "-m", "sept", "figures", "--profile", "smoke", "--only", "00"]
    return subprocess.Popen(
        [*call, "--out", str(tmp_path / name)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def tables(folder):
    return {n: d for n, d in content(folder).items() if n.endswith(".csv")}


@pytest.mark.slow
def test_a_notebook_that_is_killed_half_way_goes_on(tmp_path):
    """SIGTERM, SIGKILL of the command, SIGKILL of the kernel alone: nobody is left, and it resumes."""
    done = figures(tmp_path, "whole")
    assert (done.communicate(), done.returncode)[1] == 0
    expected = tables(tmp_path / "whole")
    assert expected
    for how in ("SIGTERM", "SIGKILL", "kernel"):
        process, store = figures(tmp_path, how), tmp_path / f"store-{how}"
        within(
            240,
            lambda s=store: list(s.glob("train-*/rounds.jsonl")) or list(s.glob("train-*/progress.json")),
        )
        if how == "kernel":
            (kernel,) = [
                pid for pid in family(store) if b"ipykernel" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            os.kill(kernel, signal.SIGKILL)
        else:
            process.send_signal(signal.Signals[how])
        err = process.communicate()[1].decode()
        expected_code = {"SIGTERM": 143, "SIGKILL": -9, "kernel": 2}[how]
        assert process.returncode == expected_code, err
        if how != "SIGKILL":  # processes of the notebook may remark on their own end
            (line,) = re.findall("^sept: .*$", err, re.MULTILINE)
            assert "give the same command again" in line
        within(30, lambda s=store: not family(s))
        again = figures(tmp_path, how)
        assert (again.communicate(), again.returncode)[1] == 0
        assert tables(tmp_path / how) == expected
        assert not [n for n in content(store) if n.endswith(".part")]


# --- the table --------------------------------------------------------------------------------------------


def test_every_row_of_the_fault_table_names_a_test_that_exists():
    rows = [
        line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")
    ]
    assert len(rows) > 15
    for row in rows[1:]:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), test
