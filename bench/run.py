"""The benchmarks: what users wait for, beside what they would use instead, in one run on one machine.

    python bench/run.py [--only sampling,round,...] [--smoke] [--check] [--out bench/results]

Writes results.csv (one row per comparison: ratio with quartiles, run by run), runs.csv (every run),
machine.json and results.png. --smoke: small sizes, to see that everything runs. --check: exit 1 if a ratio lies
more than a quarter below the committed one in bench/results; ratios, because seconds belong to a machine. Peers
that are not installed are reported and left out. Everybody may use one thread or all cores, what is faster.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from harness import CORES, Work, interleave, limits, machine, ratio

from sept.config import preset
from sept.loop import train
from sept.policy import Policy, load_policy, save_policy
from sept.problems import Problem, load_problems
from sept.sampling import make_sampler
from sept.sampling_static import StaticEngine

HERE = Path(__file__).parent
THREADS = sorted({1, CORES})
TAU, LIMIT = 0.6, 56
Row = dict[str, Any]


# ------------------------------------------------------------------------------------------- ingredients


def questions(B: int, policy: Policy) -> tuple[list[str], list[str], list[list[int]]]:
    """Texts, ids and prompt tokens of B training questions of the embedded world."""
    batch = load_problems("toy:train").batch(0, B, 0)
    return [q.prompt for q in batch], [q.id for q in batch], [policy.encode(q.prompt) for q in batch]


def generate(
    policy: Policy, prompts: list[list[int]], length: int, eos: list[int] | None, cache: str | None = None
) -> torch.Tensor:
    """transformers `generate` as its documentation has it for a batch: left padding, the whole distribution."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), policy.pad_id)
    mask = torch.zeros_like(ids)
    for i, p in enumerate(prompts):
        ids[i, width - len(p) :] = torch.tensor(p)
        mask[i, width - len(p) :] = 1
    with torch.inference_mode():
        out = policy.model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=TAU, top_k=0, top_p=1.0, eos_token_id=eos,
            max_new_tokens=length, pad_token_id=policy.pad_id, cache_implementation=cache,
        )  # fmt: skip
    return out[:, width:]


def lengths(tokens: torch.Tensor, eos: int) -> torch.Tensor:
    """Tokens of each answer [N, T] up to and including its first end-of-sequence."""
    ends = tokens == eos
    return torch.where(ends.any(1), ends.int().argmax(1) + 1, tokens.shape[1])


def by_threads(**works: Work) -> dict[str, tuple[int, Work]]:
    """Contenders at every number of threads."""
    return {f"{name}/{t}": (t, work) for name, work in works.items() for t in THREADS}


def larger_model(folder: Path) -> Policy:
    """A random model of 4 M parameters with heads of 64 (which vLLM asks for) over base H's tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    base = load_policy("H")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=base.model.config.vocab_size, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=base.model.config.bos_token_id, eos_token_id=base.eos_ids[0], pad_token_id=base.pad_id,
    )  # fmt: skip
    policy = Policy(Qwen2ForCausalLM(config).eval(), base.tokenizer, "random, 4 M parameters")
    save_policy(policy, folder)
    return policy


def constant_rewards(completions: list[Any], **_: Any) -> list[float]:
    """The reward of the GRPO peer: none."""
    return [0.0] * len(completions)


def share(ours: float, units: float, by: tuple[float, float]) -> Row:
    """Columns: least seconds for a unit of work, by operations and by bytes; share of the larger reached.

    ours: units a second; by: seconds (`limits`) for `units` of them.
    """
    operations, moved = (seconds / units for seconds in by)
    return {"by_operations": operations, "by_bytes": moved, "share": ours * max(operations, moved)}


# ------------------------------------------------------------------------------------------------- rows
# Each takes `smoke` and yields (row of results, its runs).


def sampling(smoke: bool) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Answers of base H to B questions, until end-of-sequence; tokens a second."""
    policy = load_policy("H")
    engine = StaticEngine()
    engine.refresh(policy)
    eos = policy.eos_ids[0]
    for B, goal in ((32, 3.2), (128, 4.2), (512, 4.7)):
        _, ids, prompts = questions(B, policy)
        draw = iter(range(10**6))

        def ours(
            ids: list[str] = ids, prompts: list[list[int]] = prompts, draw: Iterator[int] = draw
        ) -> float:
            return int(engine.sample(prompts, ids, 1, TAU, LIMIT, 0, next(draw)).lengths.sum())

        def peer(cache: str | None, prompts: list[list[int]] = prompts) -> float:
            return int(lengths(generate(policy, prompts, LIMIT, [eos], cache), eos).sum())

        contenders = by_threads(ours=ours, generate=lambda peer=peer: peer(None))
        contenders |= {"generate/static cache": (1, lambda peer=peer: peer("static"))}
        if B == 512:  # prompts cost their products too
            answers = ours()
            contenders |= products(policy, B, answers + sum(map(len, prompts)), answers)
        runs = interleave(contenders, 2 if smoke else 12, 60)
        found, drawn = (
            ratio(runs, "ours", "generate"),
            engine.sample(prompts, ids, 1, TAU, LIMIT, 0).lengths,
        )
        by = limits(policy.model, [*map(len, prompts)], drawn.tolist())
        found |= share(found["ours"], int(drawn.sum()), by)
        yield dict(what=f"sampling, B = {B}", peer_name="generate", goal=goal, **found), runs
    found = ratio(runs, "ours", "products")
    what = "sampling, B = 512, share of the limit"
    yield dict(what=what, peer_name="products", goal=0.5, **found), runs.head(0)


def products(policy: Policy, rows: int, tokens: float, units: float) -> dict[str, tuple[int, Work]]:
    """The matrix products of `tokens` tokens and nothing else, `rows` at a time, on 1 and on all threads."""
    c = policy.model.config
    inner = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.hidden_size // c.num_attention_heads
    shapes = [(c.hidden_size, inner), (c.hidden_size, c.hidden_size)]
    shapes += [(c.hidden_size, 2 * c.intermediate_size), (c.intermediate_size, c.hidden_size)]

    def works(threads: int) -> Work:
        triples = [(torch.randn(rows, a), torch.randn(a, b), torch.empty(rows, b)) for a, b in shapes]

        def share(_: int) -> None:
            for _ in range(round(tokens / rows / threads) * c.num_hidden_layers):
                for x, w, out in triples:
                    torch.mm(x, w, out=out)

        def work() -> float:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(share, range(threads)))
            return units

        return work

    return {f"products/{t}": (1, works(t)) for t in THREADS}


def larger(smoke: bool) -> Iterator[tuple[Row, pd.DataFrame]]:
    """A random model of 4 M parameters, heads of 64, 32 tokens an answer; tokens a second."""
    python, length = HERE.parent / ".venv-vllm/bin/python", 32
    with tempfile.TemporaryDirectory() as folder:
        policy = larger_model(Path(folder) / "model")
        policy.model.generation_config.eos_token_id = policy.model.config.vocab_size  # never drawn
        engine = StaticEngine()
        engine.refresh(policy)
        vllm = None
        if python.exists() and not smoke:
            vllm = subprocess.Popen(
                [python, HERE / "peer_vllm.py", Path(folder) / "model"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            assert vllm.stdout is not None
            if not vllm.stdout.readline().strip():
                raise SystemExit(
                    f"vLLM does not start; see why with: {python} {HERE / 'peer_vllm.py'} MODEL"
                )
        else:
            print(
                "vLLM's CPU build is not installed (make test-vllm installs it): left out", file=sys.stderr
            )
        for B, goal in ((32, 1.9), (128, 1.9), (512, 1.9)):
            _, ids, prompts = questions(B, policy)

            def ours(ids: list[str] = ids, prompts: list[list[int]] = prompts) -> float:
                return int(engine.sample(prompts, ids, 1, TAU, length, 0).lengths.sum())

            def peer(prompts: list[list[int]] = prompts) -> float:
                return generate(policy, prompts, length, None).numel()

            def served(prompts: list[list[int]] = prompts) -> float:
                assert vllm is not None and vllm.stdin is not None and vllm.stdout is not None
                vllm.stdin.write(json.dumps([prompts, length, TAU]) + "\n")
                vllm.stdin.flush()
                return json.loads(vllm.stdout.readline())[0]

            contenders = by_threads(ours=ours, generate=peer)
            contenders |= {"vllm/its own": (1, served)} if vllm else {}
            runs = interleave(contenders, 2 if smoke else 6, 90)
            for name, wanted in (("generate", goal), ("vllm", 1.0)):
                if name == "generate" or vllm:
                    found = ratio(runs, "ours", name)
                    by = limits(policy.model, [*map(len, prompts)], [length] * B)
                    found |= share(found["ours"], B * length, by)
                    what = f"sampling, 4 M parameters, B = {B}"
                    yield dict(what=what, peer_name=name, goal=wanted, **found), runs
        if vllm is not None:
            vllm.terminate()
            vllm.wait()


def round_(smoke: bool) -> Iterator[tuple[Row, pd.DataFrame]]:
    """A SePT round: 128 problems, mu = 2, two mini-batches of 64; rounds a second."""
    B, mu = (32, 1) if smoke else (128, 2)
    peers: dict[str, Work] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = load_policy("H")
        texts, *_ = questions(B, base)
        for name, make in (("TRL SFTTrainer + generate", sft_peer), ("TRL GRPOTrainer", grpo_peer)):
            try:
                peers[name] = make(load_policy("H"), B, mu, Path(folder) / name.split()[1])
            except ImportError as error:
                print(
                    f"{name} left out: {error} (pip install -c constraints.txt '.[peers]')", file=sys.stderr
                )
        count = iter(range(10**6))

        def ours() -> float:
            """Rounds of a whole run of ten, with its grading, checks and writing."""
            rounds = 1 if smoke else 10
            config = preset(
                "sept", rounds=rounds, questions=B, mini_batch=B // 2, mu=mu, warmup=0, margins_every=0
            )
            train(config, policy, load_problems("toy:train"), Path(folder) / f"ours-{next(count)}")
            return rounds

        policy = load_policy("H")
        contenders = by_threads(ours=ours)
        for name, work in peers.items():
            contenders |= {f"{name}/{t}": (t, work) for t in THREADS}
        runs = interleave(contenders, 1 if smoke else 5, 150)
    _, ids, prompts = questions(B, base)
    answers = make_sampler(base).sample(prompts, ids, 1, TAU, LIMIT, 0).lengths.tolist()
    by = limits(base.model, [*map(len, prompts)], answers, passes=mu, steps=2 * mu)
    for name in peers:
        found = ratio(runs, "ours", name)
        what = f"SePT round, {B} problems, mu = {mu}"
        yield dict(what=what, peer_name=name, goal=4.0, **found, **share(found["ours"], 1, by)), runs


def trainer_settings(folder: Path, B: int) -> dict[str, Any]:
    """What both TRL trainers are told: the run's own numbers, and nothing that costs time for no work."""
    return dict(
        output_dir=str(folder), per_device_train_batch_size=B // 2, learning_rate=1e-4, weight_decay=0.01,
        lr_scheduler_type="constant", max_grad_norm=1.0, use_cpu=True, bf16=False, report_to=[], seed=0,
        logging_strategy="no", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )  # fmt: skip


def sft_peer(policy: Policy, B: int, mu: int, folder: Path) -> Work:
    """`generate`, then TRL's SFTTrainer on the answers. One trainer, set up once; every round gets new data."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    _, _, prompts = questions(B, policy)
    eos = policy.eos_ids[0]

    def answers() -> Dataset:
        policy.model.eval()
        tokens = generate(policy, prompts, LIMIT, [eos])
        rows = [t[:n].tolist() for t, n in zip(tokens, lengths(tokens, eos).tolist(), strict=True)]
        pairs = list(zip(prompts, rows, strict=True))
        labels = [[-100] * len(p) + r for p, r in pairs]
        return Dataset.from_dict({"input_ids": [p + r for p, r in pairs], "labels": labels})

    config = SFTConfig(
        **trainer_settings(folder, B),
        num_train_epochs=mu,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(policy.model, config, train_dataset=answers(), processing_class=policy.tokenizer)
    trainer.remove_callback(PrinterCallback)

    def work() -> float:
        trainer.train_dataset = answers()
        trainer.train()
        return 1

    return work


def grpo_peer(policy: Policy, B: int, mu: int, folder: Path) -> Work:
    """TRL's GRPOTrainer with a constant reward: as many sampled answers and as many steps on them."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    texts, *_ = questions(B, policy)
    group = 8
    config = GRPOConfig(
        **trainer_settings(folder, B), max_steps=2 * mu, num_generations=group, generation_batch_size=B,
        num_iterations=mu, temperature=TAU, top_p=1.0, top_k=0, max_completion_length=LIMIT, beta=0.0,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": texts})
    trainer = GRPOTrainer(
        policy.model, constant_rewards, args=config, train_dataset=data, processing_class=policy.tokenizer
    )
    trainer.remove_callback(PrinterCallback)

    def work() -> float:
        trainer.train()
        return 1

    return work


def evaluation(smoke: bool) -> Iterator[tuple[Row, pd.DataFrame]]:
    """The six embedded families, n = 32 samples a question at temperature 1, graded; answers a second."""
    try:
        from math_verify import parse, verify
    except ImportError:
        print("math-verify is not installed: evaluation left out", file=sys.stderr)
        return
    from sept.evaluation import evaluate

    policy, n = load_policy("H"), 4 if smoke else 32
    problems = load_problems("toy:test:1" if smoke else "toy:test:8")
    sampler = make_sampler(policy)
    eos, batch = policy.eos_ids[0], 256
    prompts = [policy.encode(p.prompt) for p in problems.items for _ in range(n)]
    golds = [parse(f"${p.answer}$") for p in problems.items]

    def ours() -> float:
        return int(evaluate(policy, sampler, problems, TAU, n)["n"].sum())

    def peer() -> float:
        right = 0
        for first in range(0, len(prompts), batch):
            tokens = generate(policy, prompts[first : first + batch], LIMIT, [eos])
            for i, text in enumerate(
                policy.tokenizer.batch_decode(tokens, skip_special_tokens=True), first
            ):
                right += verify(golds[i // n], parse(text))
        return len(prompts)

    runs = interleave(by_threads(ours=ours, plain=peer), 1 if smoke else 4, 150)
    found, texts = ratio(runs, "ours", "plain"), prompts[::n]
    answers = sampler.sample(texts, [p.id for p in problems.items], n, TAU, LIMIT, 0).lengths.tolist()
    found |= share(found["ours"], len(answers), limits(policy.model, [*map(len, texts)], answers, n))
    what = f"evaluation, {len(problems.items)} questions of six families, n = {n}"
    yield dict(what=what, peer_name="generate + math-verify", goal=5.0, **found), runs


def theorem(smoke: bool) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Margins at a vocabulary of 151,936, logits given: prefixes a second beside the machine's limit."""
    from margins import measure

    rows = [measure(t, 151_936, 8 if smoke else 256) for t in THREADS]
    top = max(rows, key=lambda r: r["ours"])
    what = "theorem, V = 151,936, share of the larger limit"
    del top["extra"]
    yield dict(what=what, peer_name="limit", goal=0.5, **top), pd.DataFrame()


def answers_in_mathematics(count: int) -> list[tuple[str, str]]:
    """Pairs of answer and reference as models and data sets write them, some equal, some not, all different."""
    rng, pairs = random.Random(0), []
    for i in range(count):
        a, b, c = rng.randint(2, 99), rng.randint(2, 99), i + 2
        kind = i % 6
        if kind == 0:
            pairs.append((rf"\frac{{{a * c}}}{{{b * c}}}", rf"\frac{{{a}}}{{{b}}}"))
        elif kind == 1:
            pairs.append((rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c}}}"))
        elif kind == 2:
            pairs.append((rf"({c}, {a}]", rf"({c},{a}]"))
        elif kind == 3:
            pairs.append((rf"\{{{a}, {b}, {c}\}}", rf"\{{{c},{b},{a}\}}"))
        elif kind == 4:
            pairs.append((f"x^2+{a}x+{c}", f"{c}+{a}x+x^2"))
        else:
            pairs.append((f"{c}.5", rf"\frac{{{2 * c + 1 + rng.randint(0, 1)}}}{{2}}"))
    return pairs


def grading(smoke: bool) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Mathematical answers: on all cores, and again from the cache; answers a second."""
    try:
        from math_verify import parse, verify
    except ImportError:
        print("math-verify is not installed: grading left out", file=sys.stderr)
        return
    from sept import grading as module

    count = 60 if smoke else 240
    pairs = answers_in_mathematics(count)
    texts = [rf"so \boxed{{{given}}}" for given, _ in pairs]
    problems = [Problem(str(i), "x", "", reference) for i, (_, reference) in enumerate(pairs)]

    def ours() -> float:
        module._verdicts.clear()
        kept, module._recall, module._keep = (module._recall, module._keep), lambda _: None, lambda _: None
        try:
            module.grade_all(texts, [True] * count, problems, "math")
        finally:
            module._recall, module._keep = kept
        return count

    def cached() -> float:
        module.grade_all(texts, [True] * count, problems, "math")
        return count

    def plain() -> float:
        for text, problem in zip(texts, problems, strict=True):
            verify(parse(f"${problem.answer}$"), parse(text))
        return count

    contenders = {"ours/all cores": (1, ours), "cached/1": (1, cached), "plain/1": (1, plain)}
    runs = interleave(contenders, 1 if smoke else 6, 60)
    what = f"grading, {count} different answers"
    yield (
        dict(
            what=f"{what}, {CORES} cores", peer_name="math-verify", goal=1.8, **ratio(runs, "ours", "plain")
        ),
        runs,
    )
    yield (
        dict(what=f"{what}, cached", peer_name="math-verify", goal=50.0, **ratio(runs, "cached", "plain")),
        runs,
    )


def starting(smoke: bool) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Seconds until `import sept` and `sept --help` are done, less nothing; against their limits."""

    def run(*arguments: str) -> Work:
        def work() -> float:
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=HERE.parent)
            return 1

        return work

    contenders = {"import": (1, run("-c", "import sept")), "help": (1, run("-m", "sept", "--help"))}
    runs = interleave(contenders, 2 if smoke else 10, 30)
    for name, what, limit in (("import", "import sept", 0.3), ("help", "sept --help", 0.5)):
        took = runs[runs["contender"] == name]["wall"]
        low, mid, high = took.quantile([0.25, 0.5, 0.75])
        yield dict(
            what=f"{what}: its limit over its seconds", peer_name=f"{limit} s", goal=1.0, ours=mid, peer=limit,
            ratio=limit / mid, lo=limit / high, hi=limit / low, ours_as="s", peer_as="s", runs=len(took),
        ), runs  # fmt: skip


ROWS: dict[str, Callable[[bool], Iterator[tuple[Row, pd.DataFrame]]]] = {
    "sampling": sampling,
    "larger": larger,
    "round": round_,
    "evaluation": evaluation,
    "theorem": theorem,
    "grading": grading,
    "starting": starting,
}


# --------------------------------------------------------------------------------------------- reporting


def draw(results: pd.DataFrame, path: Path) -> None:
    """A dot and its quartiles per comparison over its goal: at least 1 is asked for; beyond 4, an arrow."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = results.iloc[::-1]
    figure, axis = plt.subplots(figsize=(8, 0.32 * len(table) + 1.2), layout="constrained")
    for y, (_, row) in enumerate(table.iterrows()):
        colour = "tab:green" if row["ratio"] >= row["goal"] else "tab:red"
        low, middle, high = (min(row[c] / row["goal"], 4) for c in ("lo", "ratio", "hi"))
        axis.plot([low, high], [y, y], color=colour)
        axis.plot(middle, y, ">" if middle == 4 else "o", color=colour)
        axis.annotate(
            f"{row['ratio']:,.{0 if row['ratio'] > 100 else 2}f}, asked {row['goal']:g}",
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
        )
    axis.set_yticks(
        range(len(table)), [f"{w} / {p}" for w, p in zip(table["what"], table["peer_name"], strict=True)]
    )
    axis.axvline(1, color="grey", lw=0.8, zorder=0)
    axis.set(xscale="log", xlim=(0.25, 4.4))
    axis.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axis.minorticks_off()
    axis.set_xlabel("ratio over what is asked for (quartiles)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def regressions(results: pd.DataFrame, committed: pd.DataFrame) -> list[str]:
    """Comparisons whose upper quartile lies more than a quarter below the committed ratio."""
    both = results.merge(committed, on=["what", "peer_name"], suffixes=("", " before"))
    worse = both[both["hi"] < 0.75 * both["ratio before"]]
    return [
        f"{r['what']} / {r['peer_name']}: {r['ratio']:.2f}, was {r['ratio before']:.2f}"
        for _, r in worse.iterrows()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(ROWS)}")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    a = parser.parse_args()
    names = a.only.split(",") if a.only else list(ROWS)
    if unknown := sorted(set(names) - set(ROWS)):
        parser.error(f"no benchmark {unknown[0]!r}; choose of {', '.join(ROWS)}")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    committed = HERE / "results" / "results.csv"
    before = (
        pd.read_csv(committed)
        if committed.is_file()
        else pd.DataFrame(columns=["what", "peer_name", "ratio"])
    )
    rows, all_runs, started = [], [], time.monotonic()
    for name in names:
        for row, own in ROWS[name](a.smoke):
            rows.append({"benchmark": name, **row})
            all_runs.append(own.assign(benchmark=name, what=row["what"]))
            print(
                f"{row['what']} / {row['peer_name']}: {row['ratio']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}], "
                f"asked {row['goal']:g} ({row['ours']:,.4g} {row['ours_as']}, "
                f"{row['peer']:,.4g} {row['peer_as']})",
                flush=True,
            )
    a.out.mkdir(parents=True, exist_ok=True)
    runs = pd.concat(all_runs).drop_duplicates()  # two peers of one benchmark share theirs
    tables = {"results.csv": (pd.DataFrame(rows), "%.4g"), "runs.csv": (runs, "%.5g")}
    for file, (table, digits) in tables.items():
        if a.only and (a.out / file).is_file():  # some benchmarks again: the others stay as they are
            kept = pd.read_csv(a.out / file)
            table = pd.concat([kept[~kept["benchmark"].isin(names)], table])
        table = table.sort_values("benchmark", key=lambda c: c.map([*ROWS].index), kind="stable")
        table.to_csv(a.out / file, index=False, float_format=digits)
    note = {
        **machine(),
        "seconds": round(time.monotonic() - started),
        "benchmarks": names,
        "smoke": a.smoke,
    }
    (a.out / "machine.json").write_text(json.dumps(note, indent=1) + "\n")
    draw(pd.read_csv(a.out / "results.csv"), a.out / "results.png")
    if a.check and (worse := regressions(pd.DataFrame(rows), before)):
        raise SystemExit("slower than committed:\n" + "\n".join(worse))


if __name__ == "__main__":
    main()
