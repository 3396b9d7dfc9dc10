"""What is seen of a run while it goes on: the bar, progress.json, `sept status`, sample answers, trackers."""

import io
import json
import os
import sys
import time

import pytest
import torch

from sept import cli, live
from sept.config import SeptError, preset
from sept.durable import locked
from sept.live import Live, bar, follow, state_of, table_lines
from sept.loop import train
from sept.policy import load_policy
from sept.problems import load_problems

SMALL = {"rounds": 5, "questions": 8, "mini_batch": 4, "warmup": 0, "margins_every": 0, "save_every": 2}


def run(out, track="", stop=None, **fields):
    """Rows of a small run; interrupted once round `stop` has been told."""
    config = preset("sept", **{**SMALL, **fields})
    told = Live(out, config, track)

    def tell(row):
        told(row)
        if row["round"] == stop:
            raise KeyboardInterrupt

    try:
        return train(config, load_policy("H"), load_problems("toy:train"), out, resume=True, on_round=tell)
    finally:
        told.close()


def scalars(out, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tracked" / "sept"), size_guidance={"scalars": 0})
    found.Reload()
    return [(e.step, e.value) for e in found.Scalars(tag)]


@pytest.mark.parametrize("noted", [True, False])
def test_tensorboard_shows_every_round_once_after_a_cut(tmp_path, noted):
    """Round 2 is told and lost: its checkpoint is that of round 1, so it is drawn again."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, "tensorboard", stop=2)
    assert [step for step, _ in scalars(out, "nll")] == [0, 1, 2]
    if not noted:  # killed between the writing of an event and the note of it
        (out / "tracked" / "last.json").write_text('{"round": 1}')
        time.sleep(1)  # event files are named by the second
    rows = run(out, "tensorboard")
    for tag in ("nll", "accuracy", "tau_s"):
        found = scalars(out, tag)
        assert [step for step, _ in found] == [0, 1, 2, 3, 4], tag
        assert [v for _, v in found] == pytest.approx([row[tag] for row in rows], rel=1e-6)
    assert all(speed > 0 for _, speed in scalars(out, "tokens a second"))


def test_every_tracker_of_accelerate_is_driven_alike(tmp_path, monkeypatch):
    from accelerate import tracking

    class Fake:
        requires_logging_directory = False
        calls: list = []

        def __init__(self, name, **more):
            self.calls.append(("init", name, more))

        def start(self):
            self.calls.append(("start",))

        def store_init_configuration(self, values):
            self.calls.append(("config", values["tau_s"]))

        def log(self, values, step):
            assert "answers" not in values and "round" not in values
            self.calls.append(("log", step))

        def finish(self):
            self.calls.append(("finish",))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.WANDB])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", "wandb", stop=2)
    run(tmp_path / "run", "wandb")
    begin = [("init", "sept", {}), ("start",)]
    first = [*begin, ("config", "0.6"), ("log", 0), ("log", 1), ("log", 2), ("finish",)]
    assert Fake.calls == [*first, *begin, ("log", 3), ("log", 4), ("finish",)]
    with pytest.raises(SeptError, match="pip install 'sept"):
        live.check_trackers("tensorboard")


def test_answers_are_kept_every_few_rounds_and_change_nothing(tmp_path):
    with_, without = (run(tmp_path / str(n), answers_every=n, questions=4) for n in (3, 0))
    assert [bool(row.get("answers")) for row in with_] == [True, False, False, True, True]
    assert not any("answers" in row for row in without)
    assert [{k: v for k, v in row.items() if k != "answers"} for row in with_] == without
    shown = {a["id"]: a for row in with_ for a in row.get("answers", [])}
    assert len(shown) == 9
    for a in shown.values():
        left, right = (int(x) for x in a["prompt"].rstrip(":").replace("-", "+").split("+"))
        result = left + right if "+" in a["prompt"] else left - right
        assert a["right"] == a["answer"].endswith(f"#{result}"), a
    assert {a["right"] for a in shown.values()} == {True, False}
    config = preset("sept")
    assert config.key() == preset("sept", answers_every=3).key()


def test_status_of_runs_side_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(live, "NOTED", 0.0)
    done, cut = tmp_path / "done", tmp_path / "cut"
    rows = run(done)
    with pytest.raises(KeyboardInterrupt):
        run(cut, stop=2)
    assert (state_of(done)["state"], state_of(done)["round"]) == ("done", 5)
    assert state_of(done)["row"] == rows[-1] and not (done / "progress.json").exists()
    assert state_of(cut)["speed"] > 0
    assert (state_of(cut)["state"], state_of(cut)["round"]) == ("stopped", 3)
    (cut / "progress.json").unlink()
    assert state_of(cut)["round"] == 2, "of the last checkpoint"
    with locked(cut / ".lock", wait=False):
        assert state_of(cut)["state"] == "running"
    lines = table_lines([state_of(done), state_of(cut)])
    assert lines[0].split() == [str(done), str(cut)]
    cells = {line.split()[0]: line.split()[-2:] for line in lines if line[:1].isalpha()}
    assert cells["state"] == ["done", "stopped"] and cells["round"] == ["5/5", "2/5"]
    assert cells["tau_s"] == ["0.6", "0.6"]
    assert {"nll", "entropy", "accuracy", "length"} <= set(cells)
    assert any(line.startswith(("  right", "  wrong")) for line in lines)
    written = tmp_path / "s.json"
    monkeypatch.setattr(sys, "argv", ["sept", "status", str(done), str(cut), "--json", str(written)])
    cli.main()
    assert [r["round"] for r in json.loads(written.read_text())["runs"]] == [5, 2]
    assert "5/5" in capsys.readouterr().out


def test_follow_tells_each_round_once_until_the_run_ends(tmp_path, monkeypatch):
    out, seen = tmp_path / "run", []
    monkeypatch.setattr(live, "NOTED", 0.0)
    config = preset("sept", **SMALL)
    told = Live(out, config)

    def tell(row):  # a look from outside, while the run holds its folder
        told(row)
        seen.append(next(follow([out])))

    train(config, load_policy("H"), load_problems("toy:train"), out, on_round=tell)
    assert [line.split("round ")[1].split(",")[0] for line in seen] == [f"{r}/5" for r in range(1, 6)]
    assert all("running" in line and "time left" in line for line in seen)
    (last,) = follow([out])
    assert ": done, round 5/5" in last


class Screen(io.StringIO):
    def __init__(self, live):
        super().__init__()
        self.live = live

    def isatty(self):
        return self.live


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_one_line_in_a_terminal_and_lines_in_a_log(monkeypatch, terminal):
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    with bar(3, "work", " rounds", every=0.2) as shown:
        assert not screen.getvalue(), "what takes less than two seconds shows nothing"
        shown.update()
        shown.set_postfix(nll="0.125", refresh=False)
        time.sleep(2.6)
        shown.update()
    text = screen.getvalue()
    assert "work" in text and "1/3" in text and "nll=0.125" in text
    if terminal:
        assert "\r" in text and text.count("\n") <= 1
    else:
        assert "\r" not in text and all(line.startswith("work: ") for line in text.splitlines())
        assert 2 <= len(text.splitlines()) <= 6 and "left" in text


def test_a_bar_shows_nothing_of_short_work(capfd):
    with bar(2, "work", "") as shown:
        shown.update(2)
    assert capfd.readouterr().err == ""


def test_sampling_tells_how_many_answers_are_there():
    from sept import sampling

    policy, drawn = load_policy("H"), []
    sampling.watchers.append(drawn.append)
    try:
        for engine in ("static", "transformers"):
            drawn.clear()
            prompts = [policy.encode(f"{i}+{i}:") for i in range(30)]
            sampling.make_sampler(policy, engine).sample(
                prompts, [str(i) for i in range(30)], 20, 1.0, 8, 0
            )
            assert sum(drawn) == 600 and len(drawn) > 1
    finally:
        sampling.watchers.clear()
    assert torch.get_num_threads() == 1


def test_figures_shows_the_progress_of_its_own_notebook_only(tmp_path, monkeypatch, capsys):
    from sept.runner import _watched

    monkeypatch.setenv("SEPT_RESULTS", str(tmp_path))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    note = tmp_path / "progress.json"
    note.write_text(json.dumps({"label": "base evaluating", "done": 3, "total": 11}))
    os.utime(note, (time.time() - 60,) * 2)  # a notebook was interrupted a minute ago
    with _watched("nb"):
        time.sleep(1.5)
    before, after, end = capsys.readouterr().err, "", time.monotonic() + 30
    with _watched("nb"):
        time.sleep(0.1)  # a file's clock is a little behind
        note.touch()
        while "base evaluating 3/11" not in after and time.monotonic() < end:
            time.sleep(0.2)
            after += capsys.readouterr().err
    assert before.startswith("\r") and "evaluating" not in before
    assert "base evaluating 3/11" in after
