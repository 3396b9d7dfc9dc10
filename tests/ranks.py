"""What torchrun starts for test_distributed.py: runs of `train`, with their answers written down.

python tests/ranks.py FOLDER CASES.json: a case has a name, a base, config fields and what is to go wrong.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import random_policy
from safetensors.torch import save_file

from sept import distributed, loop, steps
from sept.config import SeptError, TrainingError, preset
from sept.policy import load_policy
from sept.problems import Problem, ProblemSet, load_problems

WORDS = ProblemSet(
    "words", tuple(Problem(str(i), "words", f"w{i} w{i + 3} w{2 * i}", "w9") for i in range(24))
)


def run(folder: Path, case: dict) -> None:
    """Train as `case` says; FOLDER/NAME.safetensors gets every round's answers, the run's folder the rest."""
    drawn: dict[str, torch.Tensor] = {}
    rank = int(os.environ.get("RANK", "0"))

    class Recording(distributed.SharedSampler):
        def sample(self, *arguments, **named):
            out = super().sample(*arguments, **named)
            keep = torch.arange(out.tokens.shape[1]) < out.lengths[:, None]
            for name in ("tokens", "log_probs"):
                drawn[f"{len(drawn) // 2}/{name}"] = getattr(out, name)[keep]
            return out

    base = case.get("base", "random")
    made = {"random": {}, "random wide": {"hidden": 128, "heads": 2, "kv": 1, "context": 256}}
    policy = random_policy(seed=1, **made[base]) if base in made else load_policy(base)
    problems = WORDS if base in made else load_problems("toy:train")
    fields = {**case["fields"], **(case.get("odd", {}) if rank == 1 else {})}
    config = preset(case["arm"], **fields)
    policy.compute = getattr(torch, case.get("compute", "float32"))
    kept = loop.SharedSampler, loop.grade_all, steps.CHUNK
    loop.SharedSampler = Recording
    if base in made:  # its answers are never right, and without a difference GRPO does not move
        loop.grade_all = lambda texts, *_: [len(text) % 2 == 0 for text in texts]
    steps.CHUNK = case.get("chunk", steps.CHUNK)

    def before(round):
        if round == case.get("stop"):
            raise KeyboardInterrupt
        if case.get("die") == [rank, round]:
            (folder / "died").write_text(str(time.time()))
            os.kill(os.getpid(), getattr(signal, case["signal"]))
        if case.get("poison") == [rank, round]:
            with torch.no_grad():
                next(policy.model.parameters()).fill_(torch.nan)

    class Counting(type(problems)):
        def batch(self, round, *rest):
            before(round)
            return super().batch(round, *rest)

    problems = Counting(**{f: getattr(problems, f) for f in problems.__dataclass_fields__})
    out, engine = folder / case["name"], case.get("engine", "auto")
    try:
        loop.train(config, policy, problems, out, resume=case.get("resume", False), engine=engine)
    except KeyboardInterrupt:
        assert "stop" in case
    except (SeptError, TrainingError) as error:
        (folder / f"{case['name']}.{rank}.error").write_text(str(error))
        if not case.get("fails"):
            raise
    finally:
        loop.SharedSampler, loop.grade_all, steps.CHUNK = kept
    if rank == 0:
        save_file(drawn, folder / f"{case['name']}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[2]).read_text()):
        run(Path(sys.argv[1]), one)
