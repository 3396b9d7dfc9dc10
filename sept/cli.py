"""The `sept` command: a thin skin over the package. Mistakes get one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .config import PRESETS, SeptError, TrainingError, preset, without_secrets
from .durable import STOPPED, Preempted, Sigterm, sigterm

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Model = Annotated[
    str | None, typer.Option(help="Shipped base (F, H, E, I; default H), folder, or hub id[@revision].")
]
Problems = Annotated[
    str | None,
    typer.Option(help="toy:test, toy:dev, toy:train[:families][:n], files, math500, aime24, ..."),
]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="Published settings; `sept plan` lists them.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="field=value, as JSON; may be repeated.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[
    str, typer.Option(help="Weights: float32 or bfloat16 (a GPU computes in bfloat16 anyway).")
]
Remote = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the model's repository run its own Python code.")
]
Template = Annotated[str, typer.Option(help="Prompt template; default: the one trained with, else chat.")]
Grader = Annotated[str, typer.Option(help="string, math or parity, for files and benchmarks.")]
Length = Annotated[
    int | None, typer.Option(min=1, help="Response limit; default 56 on toy questions, else 1024.")
]
Engine = Annotated[
    str,
    typer.Option(
        help="auto, static, transformers, exact, or vllm with settings: vllm:tensor_parallel_size=2"
    ),
]


def _file(path: Path | None) -> Path | None:
    """An output file's name, refused before the work begins rather than after it."""
    if path is not None:
        if path.is_dir():
            raise SeptError(f"output {str(path)!r}: is a folder, name a file")
        place = next(p for p in path.absolute().parents if p.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise SeptError(
                f"output {str(path)!r}: cannot be written in {str(place)!r}; choose another place"
            )
    return path


Json = Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.", callback=_file)]
Table = Annotated[Path | None, typer.Option(help="Write the table's rows here as CSV.", callback=_file)]
Seed = Annotated[int, typer.Option(min=0, help="Of every draw.")]
Threads = Annotated[int, typer.Option(help="CPU threads; of several runs at once, one each.")]


def main() -> None:
    """Entry point: turns mistakes into one line on standard error."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it tells of every retry without a network
    with sigterm() as stop, stop.at_once():
        _main(stop)


def _main(stop: Sigterm) -> None:
    try:
        if (
            app(standalone_mode=False, prog_name="sept") == 130
        ):  # what typer makes of Ctrl-C, and of SIGTERM
            if stop.asked:
                _end("stopped by SIGTERM; give the same command again, what was finished is kept", STOPPED)
            _end("interrupted; what was finished is kept", 130)
    except typer._click.exceptions.ClickException as error:  # typer ships its own click
        if not error.format_message():  # no arguments: help has been shown
            sys.exit(2)
        context = getattr(error, "ctx", None)
        help_ = f"; see `{context.command_path} --help`" if context else ""
        _end(error.format_message().rstrip(".") + help_, 2)
    except (SeptError, OSError) as error:
        _end(str(error), 2)
    except ModuleNotFoundError as error:
        if error.name not in ("papermill", "nbclient"):
            raise
        _end(f"figures need {error.name}, which is not installed: pip install 'sept[notebooks]'", 2)
    except TrainingError as error:
        _end(str(error), 1)
    except (MemoryError, RuntimeError) as error:  # torch has a type for a GPU, and words for a CPU
        line = " ".join(str(error).split())
        if (
            not isinstance(error, MemoryError)
            and "out of memory" not in line
            and "t allocate mem" not in line
        ):
            raise
        _end(
            f"out of memory ({line[:120] or type(error).__name__}); lower micro_batch or max_new_tokens, or "
            "set lora_rank or gradient_checkpointing; `sept plan` estimates what a run takes",
            1,
        )


def _end(message: str, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") != "0":  # mostly rank 0 says the same, and torchrun then ends the others
        time.sleep(5)
    print(f"sept: {without_secrets(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


def _write(path: Path | None, value: Any) -> None:
    if path is not None:
        from .provenance import environment, write_json

        write_json(path, {**value, "provenance": environment()})
        print(f"wrote {path}")


def _with(name: str, option: str) -> str:
    """A model's or problem set's name with its template or grader behind it. SeptError for an empty name,
    which an unset variable of the shell leaves."""
    if not name:
        raise SeptError("--model or --problems is empty: give a name, or leave the option out")
    return f"{name}:{option}" if option else name


def _show_prompt(policy: Any, problems: Any, questions: int = 1, seed: int = 0) -> dict[str, Any]:
    """Print the first problem's prompt as the model sees it; returns what is written beside results."""
    (first, *_) = problems.items or problems.batch(0, questions, seed)
    shown = policy.shown(first.prompt)
    print(f"prompt of problem {first.id}, template {policy.template}: {shown!r}")
    described = {"template": policy.template, "prompt": shown, "grader": problems.world}
    return described | {"revision": policy.revision}


def _set_up(threads: int) -> None:
    import torch
    from transformers.utils import logging

    if not 1 <= threads <= 1024:  # OpenMP crashes on numbers that no machine has
        raise SeptError(f"threads = {threads}: must be at least 1 and at most 1024")
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is wrong with a checkpoint is said in one line of ours
    warnings.showwarning = lambda message, *_: print(
        f"warning: {without_secrets(str(message))}", file=sys.stderr
    )


def _load(name: str, device: str, dtype: str, remote: bool) -> Any:
    """The policy, announced in one line."""
    import torch

    from .policy import load_policy

    if dtype not in ("float32", "bfloat16"):
        raise SeptError(f"dtype {dtype!r}: choose float32 or bfloat16")
    policy = load_policy(name, getattr(torch, dtype), device, trust_remote_code=remote)
    print(policy.summary())
    return policy


def _fields(pairs: list[str] | None) -> dict[str, Any]:
    """Config fields from field=value pairs."""
    fields: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SeptError(f"--set {pair!r}: write field=value")
        try:
            fields[name] = json.loads(value)
        except (ValueError, RecursionError):
            fields[name] = value
    return fields


def _version(asked: bool) -> None:
    if asked:
        print(f"sept {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    """Self-evolving Post-Training: the loop, the theorem, the measurements and the figures."""


@app.command()
def pretrain(
    base: Annotated[str, typer.Option(help="Recipe: F, H, E or I.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    threads: Threads = 1,
) -> None:
    """Rebuild a base of the embedded world from nothing."""
    from . import pretrain as recipes
    from .live import bar
    from .policy import Policy, save_policy

    if base not in recipes.RECIPES:
        raise SeptError(f"base {base!r}: unknown, choose one of {', '.join(recipes.RECIPES)}")
    if out.exists():
        raise SeptError(f"output folder {str(out)!r} exists; choose another --out")
    _file(out)
    _set_up(threads)
    with bar(1, f"pretrain {base}", "tok", unit_scale=True) as shown:

        def show(done: int, total: int, loss: float) -> None:
            shown.total = total
            shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
            shown.update(done - shown.n)

        model, tokenizer, log = recipes.pretrain(recipes.RECIPES[base], show)
    save_policy(Policy(model, tokenizer, base), out)
    recipes.write_card(out, base, log)
    print(f"wrote {out}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    arm: Annotated[str | None, typer.Option(help=f"One of {', '.join(PRESETS)}; default sept.")] = None,
    preset_: PresetName = None,
    model: Model = None,
    problems: Problems = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the question order and of every draw.")] = 0,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with config fields that differ from the arm's.")
    ] = None,
    set_: Settings = None,
    dev: Annotated[
        str | None, typer.Option(help="Questions for --set eval_every=N; default toy:dev:16.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was cut off.")] = False,
    track: Annotated[
        str, typer.Option(help="tensorboard, wandb, mlflow, ... of accelerate, joined by commas.")
    ] = "",
    engine: Engine = "auto",
    template: Template = "",
    grader: Grader = "",
    device: Device = "auto",
    dtype: Dtype = "float32",
    trust_remote_code: Remote = False,
    threads: Threads = 1,
    json_: Json = None,
) -> None:
    """Run Algorithm 1, or any other arm of the paper."""
    from .distributed import join
    from .live import Live, answer_lines, bar, told
    from .loop import train as run_loop
    from .presets import find_preset
    from .problems import load_problems

    fields: dict[str, Any] = {"seed": seed}
    if config is not None:
        try:
            given = json.loads(config.read_text())
        except (OSError, ValueError, RecursionError) as error:
            why = getattr(error, "strerror", None) or error
            raise SeptError(f"config {str(config)!r}: cannot be read as JSON ({why})") from None
        if not isinstance(given, dict):
            raise SeptError(f"config {str(config)!r}: must be a JSON object of config fields")
        fields |= given
    fields |= _fields(set_)
    published = find_preset(preset_) if preset_ is not None else None
    if published and not published.arm:
        raise SeptError(f"--preset {preset_!r}: is a sweep, use `sept sweep`")
    if published and arm is not None:
        raise SeptError(f"--preset {preset_!r} --arm {arm!r}: a preset has its arm, leave --arm out")
    arm = "sept" if arm is None else arm
    settings = published.config(**fields) if published else preset(arm, **fields)
    if published and model is None:
        model, template = published.shape.hub, template or published.shape.template
    chosen = (published.problems if published else "toy:train") if problems is None else problems
    problem_set = load_problems(_with(chosen, grader))
    if dev is not None and not settings.eval_every:
        raise SeptError(f"--dev {dev!r}: no round would ask them; add --set eval_every=10, or leave it out")
    dev_set = load_problems("toy:dev:16" if dev is None else dev) if settings.eval_every else None
    _set_up(threads)
    ranks = join(settings.sharding)  # before the model is loaded, onto this rank's device
    if not ranks.first:
        sys.stdout = open(os.devnull, "w")
        warnings.simplefilter("ignore")
        json_ = None
    live = Live(out, settings, track if ranks.first else "")
    policy = _load(_with("H" if model is None else model, template), device, dtype, trust_remote_code)
    described = _show_prompt(policy, problem_set, settings.questions, settings.seed)
    name = preset_ or arm
    with bar(settings.rounds, f"train {name}", " rounds", not ranks.first) as shown:

        def show(row: dict[str, Any]) -> None:
            live(row)
            shown.initial = shown.initial or row["round"]  # a resumed run's speed counts from there
            shown.n = max(shown.n, shown.initial)
            shown.set_postfix(told(row, live.speed), refresh=False)
            shown.update(row["round"] + 1 - shown.n)
            if lines := answer_lines(row):
                shown.write("\n".join([f"round {row['round']} answered:", *lines]))

        try:
            rows = run_loop(
                settings,
                policy,
                problem_set,
                out,
                dev=dev_set,
                resume=resume,
                engine=engine,
                on_round=show,
                name=name,
            )
        except KeyboardInterrupt as stop:
            _end(str(stop), STOPPED if isinstance(stop, Preempted) else 130)
        finally:
            live.close()
    config_ = json.loads(settings.to_json())
    _write(json_, {**described, "out": str(out), "config": config_, "last_round": rows[-1]})
    print(f"wrote {out / 'final'} and {out / 'rounds.jsonl'}")
    ranks.leave()


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
    model: Model = None,
    problems: Problems = None,
    temperature: Annotated[float, typer.Option(help="Decoding temperature; 0 is greedy.")] = 1.0,
    n: Annotated[int, typer.Option(help="Samples per question.")] = 32,
    seed: Seed = 0,
    engine: Engine = "auto",
    max_new_tokens: Length = None,
    template: Template = "",
    grader: Grader = "",
    card: Annotated[bool, typer.Option("--card", help="Add the score to the model's own card.")] = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    trust_remote_code: Remote = False,
    threads: Threads = 1,
    json_: Json = None,
) -> None:
    """pass@k of a model on a problem set at one temperature."""
    from .cards import add_scores, require_card
    from .policy import with_template

    model = "H" if model is None else model
    problems = "toy:test" if problems is None else problems
    folder = Path(with_template(model)[0])
    if card:
        require_card(folder)
    names, how = (_with(model, template), _with(problems, grader)), (device, dtype, trust_remote_code)
    described, (scores,) = _sweep(*names, [temperature], n, seed, engine, max_new_tokens, how, threads)
    print(_line(scores))
    result = {**described, "seed": seed, **scores}
    if card:
        add_scores(folder, result)
        print(f"wrote {folder / 'README.md'}")
    _write(json_, result)


@app.command()
def general(
    trained: Annotated[str, typer.Option(help="What was trained from --model: folder or hub id.")],
    model: Model = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-eval, task files or folders, with commas; toy; default: Table 3's five."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions per task, for a first look.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences side by side.")] = 8,
    template: Annotated[str, typer.Option(help="plain or chat, for both models.")] = "plain",
    device: Device = "auto",
    dtype: Dtype = "float32",
    trust_remote_code: Remote = False,
    threads: Threads = 1,
    table: Table = None,
    json_: Json = None,
) -> None:
    """General abilities before and after training, with lm-evaluation-harness (Table 3)."""
    import torch

    from .general import compare
    from .published import TABLE_3_TASKS

    _set_up(threads)
    if dtype not in ("float32", "bfloat16"):
        raise SeptError(f"dtype {dtype!r}: choose float32 or bfloat16")
    names = [*TABLE_3_TASKS] if tasks is None else tasks.split(",")
    if not all(names):
        raise SeptError(f"--tasks {tasks!r}: a name is empty; write name,name, or leave the option out")
    loading = {"device": device, "dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code}
    result = compare("H" if model is None else model, trained, names, limit, batch, template, **loading)
    for row in result["rows"]:
        if row["group"]:  # parts of a group are in the table
            continue
        after, delta = (f"[{row[c + '_lo']:.1f}, {row[c + '_hi']:.1f}]" for c in ("trained", "delta"))
        print(
            f"{row['task']:<26}{row['metric']:<26}{row['base']:6.1f} -> {row['trained']:.1f} {after:<16}"
            f"{row['delta']:+7.1f} {delta}{'' if row['paired'] else ' unpaired'}"
        )
    if table is not None:
        import pandas as pd

        from .provenance import write_text

        write_text(table, pd.DataFrame(result["rows"]).to_csv(index=False))
        print(f"wrote {table}")
    _write(json_, result)


@app.command()
def sweep(
    model: Model = None,
    preset_: PresetName = None,
    problems: Problems = None,
    temperatures: Annotated[str, typer.Option(help="start:end:step, or a list a,b,c.")] = "0:1.6:0.1",
    n: Annotated[int, typer.Option(help="Samples per question.")] = 32,
    seed: Seed = 0,
    engine: Engine = "auto",
    max_new_tokens: Length = None,
    template: Template = "",
    grader: Grader = "",
    device: Device = "auto",
    dtype: Dtype = "float32",
    trust_remote_code: Remote = False,
    threads: Threads = 1,
    json_: Json = None,
) -> None:
    """pass@k over decoding temperatures, and the best temperature for each score."""
    from .presets import LIMIT, find_preset

    if preset_ is not None:  # its temperatures and number of samples are the defaults of this verb
        published = find_preset(preset_)
        if model is None:
            model, template = published.shape.hub, template or published.shape.template
        problems = problems or published.evaluated_on
        max_new_tokens = max_new_tokens or LIMIT
    model = "H" if model is None else model
    names = _with(model, template), _with("toy:test" if problems is None else problems, grader)
    taus, how = parse_temperatures(temperatures), (device, dtype, trust_remote_code)
    described, rows = _sweep(*names, taus, n, seed, engine, max_new_tokens, how, threads, show=True)
    best = {}
    for metric in ("pass@1", "pass@8", "pass@32", "AVG"):
        having = [r for r in rows if r["temperature"] > 0 or metric != "AVG"]
        if having and all(metric in r for r in having):
            best[metric] = max(having, key=lambda r: r[metric]["value"])["temperature"]
    print("best temperature: " + ", ".join(f"{tau} for {metric}" for metric, tau in best.items()))
    _write(json_, {**described, "best": best, "sweep": rows})


def _sweep(
    model: str,
    problems: str,
    taus: list[float],
    n: int,
    seed: int,
    engine: str,
    max_new_tokens: int | None,
    how: tuple[str, str, bool],
    threads: int,
    show: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from . import sampling
    from .evaluation import evaluate
    from .live import bar
    from .problems import load_problems

    problem_set = load_problems(problems)
    _set_up(threads)
    policy = _load(model, *how)
    sampler = sampling.make_sampler(policy, engine, training=False)
    described = {"model": policy.name, "problems": problem_set.name, **_show_prompt(policy, problem_set)}
    max_new_tokens = max_new_tokens or (56 if problem_set.world == "toy" else 1024)
    rows = []
    total = sum(len(problem_set.items) * (n if tau else 1) for tau in taus)
    with bar(total, "sampling", " answers") as shown:
        sampling.watchers.append(shown.update)
        try:
            for tau in taus:
                table = evaluate(policy, sampler, problem_set, tau, n, seed, max_new_tokens)
                rows.append(_scores(table, tau))
                if show:
                    shown.write(_line(rows[-1]))
        finally:
            sampling.watchers.remove(shown.update)
    return {**described, "dropped": len(problem_set.items) - rows[-1]["questions"]}, rows


def parse_temperatures(text: str) -> list[float]:
    """`0:1.6:0.1` (both ends included) or `0,0.3,1` as numbers; SeptError on anything else."""
    try:
        if ":" in text:
            start, end, step = (float(part) for part in text.split(":"))
            count = round((end - start) / step)
            if abs(start + count * step - end) > 1e-6 * abs(step) or count > 10_000:
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
def plan(
    name: Annotated[str | None, typer.Argument(metavar="PRESET", help="None: list them.")] = None,
    gpus: Annotated[int | None, typer.Option(help="Devices that share the work.")] = None,
    memory: Annotated[float | None, typer.Option(help="GB of each of them.")] = None,
    device: Annotated[str | None, typer.Option(help="Kind of device, as in H100.")] = None,
    model: Annotated[str | None, typer.Option(help="Another model, as in qwen2.5-math-1.5b.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Mean tokens of an answer.")] = None,
    prompt: Annotated[int | None, typer.Option(min=1, help="Mean tokens of a prompt.")] = None,
    set_: Settings = None,
    json_: Json = None,
) -> None:
    """What a published run takes: tokens, memory, disk, hours. Exit code 2 if it fits on no machine."""
    from dataclasses import replace

    from . import plan as costs
    from .presets import SHAPES, VARIANTS, find_preset, names

    if name is None:
        print("\n".join(names()))
        print(f"each also with {' or '.join(f':{v}' for v in VARIANTS)} behind it; default :{VARIANTS[0]}")
        _write(json_, {"presets": names(), "variants": list(VARIANTS)})
        return
    chosen = find_preset(name)
    if model is not None and model not in SHAPES:
        raise SeptError(f"model {model!r}: its shape is not known here, choose one of {', '.join(SHAPES)}")
    chosen = replace(chosen, model=model or chosen.model)
    length, prompt = length or costs.LENGTH, prompt or costs.PROMPT
    fields = _fields(set_)
    plans = [costs.plan(chosen, m, length, prompt, **fields) for m in costs.machines(device, gpus, memory)]
    costs.refuse(name, plans)
    print("\n".join(costs.lines(chosen, plans, length, prompt)))
    rounds = []
    if chosen.arm:
        from . import scaling

        machine = costs.machines(device or "H100", gpus, memory)[0]
        rounds = scaling.scaling(chosen.config(**fields), chosen.shape, machine, length, prompt)
        print("\n".join(scaling.lines(rounds, machine.name)))
    _write(
        json_,
        {
            "preset": name,
            "model": chosen.model,
            "length": length,
            "prompt": prompt,
            "plans": plans,
            "rounds": rounds,
        },
    )


@app.command()
def theorem(
    exact: Annotated[
        bool, typer.Option("--exact", help="The tabular statements, by enumeration in float64.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Shipped base, folder or hub id to check it on.")
    ] = None,
    trained: Annotated[
        str | None, typer.Option(help="Train nothing: measure this model's margins against --model's.")
    ] = None,
    tau_s: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.6,
    tau_t: Annotated[float, typer.Option(help="Training temperature.")] = 1.0,
    level: Annotated[str, typer.Option(help="logits, head or full.")] = "full",
    prompts: Annotated[
        str | None, typer.Option(help="Problem set, or text file with a prompt a line; see RESULTS.md.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; the same for every tau_s.")] = None,
    samples: Annotated[int | None, typer.Option(help="Fresh answers a step.")] = None,
    targets: Annotated[
        str, typer.Option(help="soft: each draw's expectation; sampled: tokens as drawn.")
    ] = "soft",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Default 56 on toy questions, else 48.")
    ] = None,
    seed: Seed = 0,
    threads: Threads = 1,
    table: Table = None,
    json_: Json = None,
) -> None:
    """Theorem 1 on a language model, or (--exact) every statement of the paper on a tabular policy.

    It needs all logits, so a built-in engine draws; vLLM has no part in it.
    """
    if exact == (model is not None):
        raise SeptError("theorem: give either --model ID_OR_PATH, or --exact for the check by enumeration")
    if exact:
        for option, value in (("table", table), ("trained", trained), ("prompts", prompts)):
            if value is not None:
                raise SeptError(
                    f"--{option}: of a language model only; with --exact leave it out, or take --json"
                )
        from .statements import exact_report

        rows = exact_report(seed)
        for row in rows:
            verdict = "holds" if row["holds"] else "FAILS"
            sign = "<=" if row["bound"] == "at most" else ">="
            print(f"{verdict}  {row['residual']:8.1e} {sign} {row['tolerance']:.0e}  {row['statement']}")
        _write(json_, {"seed": seed, "statements": rows})
        if not all(row["holds"] for row in rows):
            sys.exit(1)
        return
    from . import theorem as lm
    from .policy import load_policy

    _set_up(threads)
    policy = _load(str(model), "auto", "float32", False)
    questions, others = lm.question_sets(policy, prompts, seed)
    described = _show_prompt(policy, questions)
    limit = max_new_tokens or (56 if questions.world == "toy" else 48)
    if trained is not None:
        report = lm.between(policy, load_policy(trained), questions, tau_s, tau_t, seed, limit)
    else:
        report = lm.check(
            policy,
            questions,
            others,
            tau_s,
            tau_t,
            level,
            lm.STEPS if steps is None else steps,
            lm.SAMPLES if samples is None else samples,
            seed,
            limit,
            targets,
            on_record=lambda row: print(_theorem_line(f"step {row['step']}", row), flush=True),
        )
    tables, _ = report.pop("tables", {}), report.pop("tail", None)
    for floor in report.get("floors", []):
        print(
            f"{floor['dtype']:<10}{floor['route']:<13}slope {floor['slope']:.8f}, off by "
            f"{floor['slope_error']:+.1e}; logits off by {floor['residual']:.1e} nats"
        )
    start = report.get("start")
    for name, part in (("perturbed start", start), ("visited", report), ("other", report.get("other"))):
        if part:
            print(_theorem_line(name, part))
    print(
        f"theorem: {report['target']:.4f}; this slope differs by {report['slope'] / report['target'] - 1:+.1%}"
    )
    if table is not None:
        import pandas as pd

        from .provenance import write_text

        parts = [t.assign(questions=name) for name, t in tables.items()]
        write_text(table, pd.concat(parts).to_csv(index=False) if parts else "")
    _write(json_, {**described, **report})


def _theorem_line(name: str, row: dict[str, Any]) -> str:
    low, high = row["slope_interval"]
    line = f"{name:<16} slope {row['slope']:.4f} [{low:.4f}, {high:.4f}]   R2 {row['r2']:.3f}"
    if "other_slope" in row:
        line += f"   on other questions {row['other_slope']:.4f}"
    return line + (f"   prefixes {row['prefixes']}" if "prefixes" in row else "")


@app.command()
def figures(
    profile: Annotated[str, typer.Option(help="smoke, quick, laptop, gpu or paper.")] = "quick",
    out: Annotated[Path | None, typer.Option(help="Default: figures/PROFILE.")] = None,
    only: Annotated[str, typer.Option(help="Notebook numbers, as in 00,03.")] = "",
    redraw: Annotated[bool, typer.Option("--redraw", help="Draw again from the tables in --out.")] = False,
    engine: Annotated[str, typer.Option(help="Default: auto; vllm in gpu and paper.")] = "",
) -> None:
    """Execute the notebooks and write every figure with its table."""
    import os
    import time

    from .profiles import profile as find_profile
    from .runner import run_notebooks

    if engine:
        os.environ["SEPT_ENGINE"] = engine  # the notebooks' processes read it
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
def status(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="Folders of runs; none: the results store."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with a line a round until the runs have ended.")
    ] = False,
    json_: Json = None,
) -> None:
    """Runs side by side with their newest answers; without RUN all that is in the results store."""
    from . import live
    from .experiments import results_dir, status_rows

    if runs:
        print("\n".join(live.table_lines([live.state_of(run) for run in runs])), flush=True)
        for line in live.follow(runs) if follow else ():
            print(line, flush=True)
        _write(json_, {"runs": [live.state_of(run) for run in runs]})
        return
    if follow:
        raise SeptError("--follow: name the folders of the runs, as in `sept status my-run --follow`")

    rows = status_rows()
    for row in rows:
        print(f"{row['name']:<24}{row['state']:<12}{row['rounds']:<10}{row['what']}")
    unfinished = sum(r["state"] != "done" for r in rows)
    print(f"{results_dir()}: {len(rows) - unfinished} done, {unfinished} unfinished")
    _write(json_, {"rows": rows})


@app.command()
def doctor(
    problems: Annotated[
        str | None, typer.Argument(help="A problem set or file to look at instead.")
    ] = None,
    model: Model = None,
    json_: Json = None,
) -> None:
    """What this installation can do (versions, device, shipped bases, a self-check), or what a file holds."""
    if problems is not None:
        from .evaluation import examine
        from .policy import load_policy
        from .problems import load_problems

        _set_up(1)
        problem_set = load_problems(problems)
        looked = examine(problem_set, load_policy(model or "H"))
        wrong = "; ".join(looked["wrong"]) or "nothing found"
        print("\n".join(f"{name:<10}{value}" for name, value in {**looked, "wrong": wrong}.items()))
        _write(json_, looked)
        sys.exit(1 if looked["wrong"] else 0)
    from .doctor import abilities, bases, machine

    _set_up(1)
    report: dict[str, Any] = {"machine": machine()}
    for name, value in report["machine"].items():
        print(f"{name:<14}{value}")
    report["bases"] = {}
    for name, same in bases():
        report["bases"][name] = same
        print(f"base {name:<9}loads; both engines draw the same tokens: {'yes' if same else 'NO'}")
    report["abilities"] = abilities(report["machine"])
    for name, (works, remedy) in report["abilities"].items():
        print(f"works    {name}" if works else f"not yet  {name}; missing: {remedy}")
    _write(json_, report)
    sys.exit(0 if all(report["bases"].values()) else 1)
