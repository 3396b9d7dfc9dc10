"""The `sept` command: a thin skin over the package. Mistakes get one line and exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .config import PRESETS, SeptError, preset

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Model = Annotated[str, typer.Option(help="Shipped base (F, H, E, I), folder, or hub id.")]
Problems = Annotated[str, typer.Option(help="toy:test, toy:dev, toy:train[:families][:n], or a file.")]
Length = Annotated[int | None, typer.Option(help="Response limit; default 56 on toy questions, else 1024.")]
Engine = Annotated[
    str, typer.Option(help="auto, static, transformers, or vllm with settings: vllm:tensor_parallel_size=2")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")]
Threads = Annotated[int, typer.Option(help="CPU threads; small models are fastest with one.")]


def main() -> None:
    """Entry point: turns mistakes into one line on standard error."""
    try:
        if app(standalone_mode=False) == 130:  # what typer makes of Ctrl-C
            _end("interrupted; what was finished is kept", 130)
    except typer._click.exceptions.ClickException as error:  # typer ships its own click
        _end(error.format_message(), 2)
    except (SeptError, OSError) as error:
        _end(str(error), 2)
    except RuntimeError as error:
        from .loop import TrainingError

        if not isinstance(error, TrainingError):
            raise
        _end(str(error), 1)


def _end(message: str, code: int) -> NoReturn:
    print(f"sept: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _write(path: Path | None, value: Any) -> None:
    if path is not None:
        from .provenance import environment, write_json

        write_json(path, {**value, "provenance": environment()})
        print(f"wrote {path}")


def _set_up(threads: int, json_: Path | None = None) -> None:
    import torch
    from transformers.utils import logging

    if threads < 1:
        raise SeptError(f"threads = {threads}: must be at least 1")
    if json_ is not None and json_.is_dir():
        raise SeptError(f"--json {str(json_)!r}: is a folder, name a file")
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is wrong with a checkpoint is said in one line of ours


@app.command()
def pretrain(
    base: Annotated[str, typer.Option(help="Recipe: F, H, E or I.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    threads: Threads = 1,
) -> None:
    """Rebuild a base of the embedded world from nothing."""
    from tqdm import tqdm

    from . import pretrain as recipes
    from .policy import Policy, save_policy

    if base not in recipes.RECIPES:
        raise SeptError(f"base {base!r}: unknown, choose one of {', '.join(recipes.RECIPES)}")
    if out.exists():
        raise SeptError(f"output folder {str(out)!r} exists; choose another --out")
    _set_up(threads)
    with tqdm(unit="tok", unit_scale=True, desc=f"pretrain {base}") as bar:

        def show(done: int, total: int, loss: float) -> None:
            bar.total = total
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update(done - bar.n)

        model, tokenizer, log = recipes.pretrain(recipes.RECIPES[base], show)
    save_policy(Policy(model, tokenizer, base), out)
    recipes.write_card(out, base, log)
    print(f"wrote {out}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    arm: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "sept",
    model: Model = "H",
    problems: Problems = "toy:train",
    seed: Annotated[int, typer.Option(help="Seed of the question order and of every draw.")] = 0,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with config fields that differ from the arm's.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, as JSON; may be repeated.")
    ] = None,
    dev: Annotated[str, typer.Option(help="Questions for --set eval_every=N.")] = "toy:dev:16",
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was cut off.")] = False,
    engine: Engine = "auto",
    threads: Threads = 1,
    json_: Json = None,
) -> None:
    """Run Algorithm 1, or any other arm of the paper."""
    from tqdm import tqdm

    from .loop import train as run_loop
    from .policy import load_policy
    from .problems import load_problems

    fields: dict[str, Any] = {"seed": seed}
    if config is not None:
        try:
            fields |= dict(json.loads(config.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SeptError(f"config {str(config)!r}: cannot be read ({error})") from None
    for pair in set_ or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SeptError(f"--set {pair!r}: write field=value")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    settings = preset(arm, **fields)
    problem_set = load_problems(problems)
    dev_set = load_problems(dev) if settings.eval_every else None
    _set_up(threads, json_)
    policy = load_policy(model)
    with tqdm(total=settings.rounds, unit=" rounds", desc=f"train {arm}") as bar:

        def show(row: dict[str, Any]) -> None:
            bar.update(row["round"] + 1 - bar.n)
            bar.set_postfix(nll=f"{row['nll']:.3f}", right=f"{row['accuracy']:.1%}")

        try:
            rows = run_loop(
                settings, policy, problem_set, out, dev=dev_set, resume=resume, engine=engine, on_round=show
            )
        except KeyboardInterrupt as stop:
            _end(str(stop), 130)
    _write(json_, {"out": str(out), "config": json.loads(settings.to_json()), "last_round": rows[-1]})
    print(f"wrote {out / 'final'} and {out / 'rounds.jsonl'}")


def _scores(table: Any, tau: float) -> dict[str, float]:
    from .evaluation import question_scores, summarise

    scores = question_scores(table, greedy=tau == 0)
    summary = summarise([scores])
    out: dict[str, Any] = {"temperature": tau}
    for metric, row in summary.iterrows():
        out[str(metric)] = {k: round(float(row[k]), 4) for k in ("value", "lo", "hi")}
    families = 100 * scores.groupby("family", sort=False)["pass@1"].mean()
    out["families"] = {str(k): round(float(v), 4) for k, v in families.items()}
    samples = int(table["n"].sum())
    out["finished"] = int(table["finished"].sum()) / samples
    out["questions"], out["n"] = len(table), int(table["n"].iloc[0])
    return out


def _line(scores: dict[str, Any]) -> str:
    parts = [f"T = {scores['temperature']:<4}"]
    for metric in ("pass@1", "pass@8", "pass@32", "AVG"):
        if metric in scores:
            s = scores[metric]
            parts.append(f"{metric} {s['value']:5.1f} [{s['lo']:5.1f}, {s['hi']:5.1f}]")
    return "   ".join(parts)


@app.command("eval")
def evaluate_(
    model: Model = "H",
    problems: Problems = "toy:test",
    temperature: Annotated[float, typer.Option(help="Decoding temperature; 0 is greedy.")] = 1.0,
    n: Annotated[int, typer.Option(help="Samples per question.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
    engine: Engine = "auto",
    max_new_tokens: Length = None,
    threads: Threads = 1,
    json_: Json = None,
) -> None:
    """pass@k of a model on a problem set at one temperature."""
    (scores,) = _sweep(model, problems, [temperature], n, seed, engine, max_new_tokens, threads, json_)
    print(_line(scores))
    _write(json_, {"model": model, "problems": problems, **scores})


@app.command()
def sweep(
    model: Model = "H",
    problems: Problems = "toy:test",
    temperatures: Annotated[str, typer.Option(help="start:end:step, or a list a,b,c.")] = "0:1.6:0.1",
    n: Annotated[int, typer.Option(help="Samples per question.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
    engine: Engine = "auto",
    max_new_tokens: Length = None,
    threads: Threads = 1,
    json_: Json = None,
) -> None:
    """pass@k over decoding temperatures, and the best temperature for each score."""
    taus = parse_temperatures(temperatures)
    rows = _sweep(model, problems, taus, n, seed, engine, max_new_tokens, threads, json_, show=True)
    best = {}
    for metric in ("pass@1", "pass@8", "pass@32", "AVG"):
        having = [r for r in rows if r["temperature"] > 0 or metric != "AVG"]
        if having and all(metric in r for r in having):
            best[metric] = max(having, key=lambda r: r[metric]["value"])["temperature"]
    print("best temperature: " + ", ".join(f"{tau} for {metric}" for metric, tau in best.items()))
    _write(json_, {"model": model, "problems": problems, "best": best, "sweep": rows})


def _sweep(
    model: str,
    problems: str,
    taus: list[float],
    n: int,
    seed: int,
    engine: str,
    max_new_tokens: int | None,
    threads: int,
    json_: Path | None,
    show: bool = False,
) -> list[dict[str, Any]]:
    from tqdm import tqdm

    from .evaluation import evaluate
    from .policy import load_policy
    from .problems import load_problems
    from .sampling import make_sampler

    problem_set = load_problems(problems)
    _set_up(threads, json_)
    policy = load_policy(model)
    sampler = make_sampler(policy, engine, training=False)
    max_new_tokens = max_new_tokens or (56 if problem_set.world == "toy" else 1024)
    rows = []
    for tau in tqdm(taus, desc="sweep", unit=" temperatures", disable=not show):
        table = evaluate(policy, sampler, problem_set, tau, n, seed, max_new_tokens)
        rows.append(_scores(table, tau))
        if show:
            tqdm.write(_line(rows[-1]))
    return rows


def parse_temperatures(text: str) -> list[float]:
    """`0:1.6:0.1` (both ends included) or `0,0.3,1` as numbers; SeptError on anything else."""
    try:
        if ":" in text:
            start, end, step = (float(part) for part in text.split(":"))
            count = round((end - start) / step)
            if abs(start + count * step - end) > 1e-6 * abs(step):
                raise ValueError
            values = [round(start + i * step, 10) for i in range(count + 1)]
        else:
            values = [float(part) for part in text.split(",")]
        if not values or min(values) < 0 or not all(v < float("inf") for v in values):
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise SeptError(
            f"temperatures {text!r}: write a,b,c or start:end:step (a whole number of steps), at least 0"
        ) from None
    return values


@app.command()
def theorem(
    exact: Annotated[
        bool, typer.Option("--exact", help="The tabular statements, by enumeration in float64.")
    ] = False,
    seed: Annotated[int, typer.Option()] = 0,
    json_: Json = None,
) -> None:
    """Check Proposition 1, Equation 2 and Theorem 1; prints the largest residuals."""
    if not exact:
        raise SeptError("theorem: only --exact is available, the check by enumeration")
    from .statements import exact_report

    rows = exact_report(seed)
    for row in rows:
        verdict = "holds" if row["holds"] else "FAILS"
        sign = "<=" if row["bound"] == "at most" else ">="
        print(f"{verdict}  {row['residual']:8.1e} {sign} {row['tolerance']:.0e}  {row['statement']}")
    _write(json_, {"seed": seed, "statements": rows})
    if not all(row["holds"] for row in rows):
        sys.exit(1)


@app.command()
def figures(
    profile: Annotated[str, typer.Option(help="smoke, quick, laptop, gpu or paper.")] = "quick",
    out: Annotated[Path | None, typer.Option(help="Default: figures/PROFILE.")] = None,
    only: Annotated[str, typer.Option(help="Notebook numbers, as in 00,03.")] = "",
    redraw: Annotated[bool, typer.Option("--redraw", help="Draw again from the tables in --out.")] = False,
) -> None:
    """Execute the notebooks and write every figure with its table."""
    import time

    from .profiles import profile as find_profile
    from .runner import run_notebooks

    find_profile(profile)
    target = out or Path("figures") / profile
    started = time.monotonic()
    if redraw:
        from .figures import redraw as draw_again

        names = draw_again(target, target)
        print(
            f"drew {len(names)} figures in {time.monotonic() - started:.0f} s from the tables in {target}"
        )
        return
    executed = run_notebooks(profile, target, only)
    minutes = (time.monotonic() - started) / 60
    print(f"executed {len(executed)} notebooks in {minutes:.1f} minutes; wrote:")
    for path in sorted(target.glob("*.png")):
        print(f"  {path}")
    print(f"  {target}/: beside each picture its PDF and the CSV that it was drawn from")


@app.command()
def claims(
    folder: Annotated[Path, typer.Option("--dir", help="Where `sept figures` wrote.")] = Path(
        "figures/laptop"
    ),
    json_: Json = None,
) -> None:
    """The paper's claims: published and measured evidence, and the verdict."""
    from .claims import claims_table

    rows = claims_table(folder)
    for row in rows:
        measured = (
            "" if row["value"] is None else f"{row['value']:+8.3g} [{row['lo']:.3g}, {row['hi']:.3g}]"
        )
        print(f"{row['verdict']:<20}{row['text']:<76}{measured}")
    _write(json_, {"claims": rows})


@app.command()
def status(json_: Json = None) -> None:
    """Runs and scores in the results store."""
    from .experiments import results_dir, status_rows

    rows = status_rows()
    for row in rows:
        print(f"{row['name']:<24}{row['state']:<12}{row['rounds']:<10}{row['what']}")
    unfinished = sum(r["state"] != "done" for r in rows)
    print(f"{results_dir()}: {len(rows) - unfinished} done, {unfinished} unfinished")
    _write(json_, {"rows": rows})


@app.command()
def doctor(json_: Json = None) -> None:
    """What this installation can do: versions, device, threads, shipped bases, a self-check."""
    import torch

    from .policy import BASES, load_policy
    from .provenance import environment
    from .sampling import StaticEngine, TransformersEngine

    _set_up(1)
    found = environment()
    for name, value in found.items():
        print(f"{name:<10}{value}")
    report: dict[str, Any] = {"bases": {}}
    for folder in sorted(BASES.iterdir()):
        policy = load_policy(folder.name)
        prompts, drawn = [policy.encode("123+456:")], []
        for engine in (StaticEngine(), TransformersEngine()):
            engine.refresh(policy)
            drawn.append(engine.sample(prompts, ["doctor"], 4, 1.0, 40, seed=0))
        width = min(d.tokens.shape[1] for d in drawn)
        same = bool(torch.equal(drawn[0].tokens[:, :width], drawn[1].tokens[:, :width]))
        report["bases"][folder.name] = same
        print(f"base {folder.name:<5}loads; both engines draw the same tokens: {'yes' if same else 'NO'}")
    _write(json_, report)
