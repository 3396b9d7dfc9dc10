"""General abilities (Table 3): lm-evaluation-harness on a model and on what was trained from it, paired.

The harness asks and grades; both models are loaded by the package's own rules, and their answers are compared
question by question. Needs the `eval` extra.
"""

from __future__ import annotations

import difflib
import logging
import random
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .config import RESULTS_VERSION, SeptError, digest, notice
from .evaluation import difference, family_means, summarise
from .experiments import Run, note_cost, results_dir, run_folder
from .policy import Policy, load_policy
from .provenance import environment, write_json, write_text

LOCAL = Path(__file__).parent / "data" / "general"
"""Tasks of the embedded world, `toy` for short: a folder of task files like any other."""
NUMBER = (int, float, np.number)


@lru_cache(maxsize=4)
def _manager(folders: tuple[Path, ...], defaults: bool) -> Any:
    """An index of task files, which takes seconds to make where the harness's own are part of it."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[*folders], include_defaults=defaults)


def _place(name: str) -> Path:
    return LOCAL if name == "toy" else Path(name)


def find_tasks(names: Sequence[str]) -> Any:
    """The harness's tasks with their data, as its `evaluate` takes them, always with the same random choices.

    A name is one of the harness's, a task file, or a folder of them (its groups, or its tasks if it has none).
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError:
        raise SeptError("general tasks need lm-eval: pip install -c constraints.txt '.[eval]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it remarks on what is done on purpose here
    places = [_place(name) for name in names]
    folders = [p if p.is_dir() else p.parent for p in places if p.exists()]
    manager = _manager((*folders,), len(folders) < len(names))
    specs: list[str] = []
    for name, place in zip(names, places, strict=True):
        found = [name] if place.is_file() or name in manager.all_tasks else []
        if place.is_dir():
            own = _manager((place,), False)
            found = own.all_groups or own.all_subtasks
        if not found:
            close = difflib.get_close_matches(name, manager.all_tasks, 1)
            hint = f", did you mean {close[0]}" if close else ""
            raise SeptError(
                f"task {name!r}: no task of lm-eval{hint}; no task file nor folder of such either"
            )
        specs += found
    try:
        random.seed(0)  # as the harness's own command does: some tasks shuffle their choices
        np.random.seed(1234)
        loaded = manager.load(specs)
    except Exception as error:  # a task is a program of whoever wrote it, and fetches data
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise SeptError(
            f"tasks {', '.join(names)}: cannot be loaded ({why}); check the network, your "
            "access to their data, or the task file"
        ) from None
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)
    return loaded


def harness_model(policy: Policy, batch: int) -> Any:
    """The policy as the harness's own model, in its precision and blind to padded vocabulary.

    Its attribute `cut` counts prompts that were shortened on the left to fit.
    """
    from lm_eval.models.huggingface import HFLM

    rows = policy.model.get_input_embeddings().weight.shape[0]
    padding = list(range(policy.vocab, rows)) if policy.vocab else None

    class HarnessModel(HFLM):
        cut = 0

        def _model_call(self, *given: Any, **options: Any) -> Any:
            return super()._model_call(*given, **options)[..., : policy.vocab]

        def _model_generate(self, *given: Any, **options: Any) -> Any:
            return super()._model_generate(*given, **options, suppress_tokens=padding)

        def _loglikelihood_tokens(self, requests: Any, *given: Any, **options: Any) -> Any:
            self.cut += sum(len(context) + len(text) > self.max_length + 1 for _, context, text in requests)
            return super()._loglikelihood_tokens(requests, *given, **options)

        def tok_batch_encode(self, strings: Any, *given: Any, **options: Any) -> Any:
            self.cut += sum(len(self.tok_encode(text)) > options["left_truncate_len"] for text in strings)
            return super().tok_batch_encode(strings, *given, **options)

    lower = policy.compute if policy.compute != next(policy.model.parameters()).dtype else None
    options: dict[str, Any] = {"softmax_dtype": "float32", "mixed_precision_dtype": lower}
    return HarnessModel(policy.model, tokenizer=policy.tokenizer, batch_size=batch, **options)


def ask(name: str, names: Sequence[str], limit: int | None, batch: int, **loading: Any) -> dict[str, Any]:
    """The harness's result for one model, with its `cut`. name, loading: as in `load_policy`."""
    import torch
    from lm_eval import evaluate

    policy = load_policy(name, **loading)
    chat = policy.template == "chat"
    if chat and not policy.tokenizer.chat_template:
        raise SeptError(f"model {name!r}: its tokenizer has no chat template; choose plain")
    torch.manual_seed(1234)
    tasks = find_tasks(names)
    for task in tasks["tasks"].values():
        wanted = (task.config.generation_kwargs or {}).get("max_gen_toks", 256)
        if task.OUTPUT_TYPE == "generate_until" and wanted >= policy.context:
            raise SeptError(
                f"task {task.task_name!r}: answers of {wanted} tokens exceed the {policy.context} of {name!r}"
            )
    harness = harness_model(policy, batch)
    options = {
        "limit": limit,
        "bootstrap_iters": 1000,
        "apply_chat_template": chat,
        "fewshot_as_multiturn": chat,
    }
    try:
        results: dict[str, Any] = evaluate(harness, tasks, **options)
    except torch.OutOfMemoryError:
        raise SeptError(f"model {name!r}: out of memory, take a --batch smaller than {batch}") from None
    if harness.cut:
        notice(f"model {name!r}: {harness.cut} prompts were cut on the left to fit {policy.context} tokens")
    return {**results, "cut": harness.cut}


def compare(
    model: str,
    trained: str,
    tasks: Sequence[str],
    limit: int | None = None,
    batch: int = 8,
    template: str = "plain",
    **loading: Any,
) -> dict[str, Any]:
    """Both models on the same questions: `rows` (see `rows_of`), prompts `cut`, versions, settings.

    template: plain or chat, for both. loading: dtype, device, trust_remote_code. SeptError for tasks that are
    unknown or cannot be loaded, for answers that do not fit, for models of different vocabularies.
    """
    if template not in ("plain", "chat"):
        raise SeptError(
            f"template {template!r}: general tasks are asked plain or through the chat template"
        )
    if (limit is not None and limit < 1) or batch < 1:
        raise SeptError(f"--limit {limit} --batch {batch}: must be at least 1")
    names = [f"{name}:{template}" for name in (model, trained)]
    find_tasks(tasks)  # what is wrong is said before hours of work, not in their middle
    vocabularies = [load_policy(name, **loading).tokenizer.get_vocab() for name in reversed(names)]
    if vocabularies[0] != vocabularies[1]:
        sizes = " and ".join(str(len(v)) for v in reversed(vocabularies))
        raise SeptError(
            f"models {model!r}, {trained!r}: their vocabularies differ ({sizes} tokens); --trained names "
            "what was trained from --model"
        )
    base, after = (ask(name, tasks, limit, batch, **loading) for name in names)
    settings = {"model": model, "trained": trained, "template": template, "tasks": [*tasks], "limit": limit}
    kept = {key: base[key] for key in ("versions", "n-shot")}
    return {**settings, **kept, "cut": [base["cut"], after["cut"]], "rows": [*rows_of(base, after)]}


def stored(run: Run, tasks: Sequence[str], limit: int | None) -> pd.DataFrame:
    """`rows_of` for a run of the results store and its base, computed once (the run must be finished)."""
    from importlib.metadata import version

    files = [f for place in map(_place, tasks) for f in sorted([place, *place.glob("*")]) if f.is_file()]
    key = [RESULTS_VERSION, run.key(), [*tasks], [f.read_text() for f in files], limit, version("lm-eval")]
    path = results_dir() / f"general-{digest(key)[:16]}" / "rows.csv"
    if not path.is_file():
        started = time.monotonic()
        result = compare(run.base, str(run_folder(run) / "final"), tasks, limit)
        write_json(path.with_name("general.json"), {**result, "provenance": environment()})
        write_text(path.with_name("seconds"), f"{time.monotonic() - started:.1f}")
        write_text(path, pd.DataFrame(result["rows"]).to_csv(index=False))
    note_cost([path.parent])
    return pd.read_csv(path)


def rows_of(base: dict[str, Any], trained: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per task or group and metric, from two results of `ask`.

    Keys: task, group (that it is part of, if that has rows), metric, questions; base, trained and delta =
    trained - base, each also _lo and _hi (95%); paired. In percent where both values lie in [0, 1]. Where the
    harness's value is a mean over questions, or over its tasks' means, intervals are bootstrapped over them and
    delta is paired; else they are 1.96 of its standard errors, and empty where it gives none.
    """
    answers, parts = [_answers(r) for r in (base, trained)], base["group_subtasks"]
    for name, values in base["results"].items():
        group = next((g for g, own in parts.items() if name in own and _metrics(base["results"][g])), "")
        for key in _metrics(values):
            both = [float(r["results"][name][key]) for r in (base, trained)]
            own = [a[(a["metric"] == key) & a["family"].isin(_leaves(name, parts))] for a in answers]
            tables = _meant(own, both)
            paired = bool(tables)
            if paired:
                tables.append(difference(tables[1], tables[0]))
                spans = [summarise([t]).loc["pass@1", ["value", "lo", "hi"]] / 100 for t in tables]
            else:
                given = [r["results"][name].get(key.replace(",", "_stderr,")) for r in (base, trained)]
                errors = [e if isinstance(e, float) else np.nan for e in given]
                known = zip(
                    [*both, both[1] - both[0]], [*errors, np.hypot(errors[0], errors[1])], strict=True
                )
                spans = [(m, m - 1.96 * e, m + 1.96 * e) for m, e in known]
            unit = 100 if all(0 <= v <= 1 for v in both) else 1
            row = {"task": name, "group": group, "metric": key.removesuffix(",none")}
            row["questions"] = len(tables[0]) if paired else values["sample_len"]
            for label, (middle, low, high) in zip(("base", "trained", "delta"), spans, strict=True):
                ends = {label: middle, f"{label}_lo": low, f"{label}_hi": high}
                row |= {key: round(unit * float(x), 6) for key, x in ends.items()}
            yield {**row, "paired": paired}


def _metrics(values: dict[str, Any]) -> list[str]:
    return [k for k, v in values.items() if "," in k and "_stderr," not in k and isinstance(v, NUMBER)]


def _leaves(name: str, parts: dict[str, list[str]]) -> list[str]:
    own = parts.get(name)
    return [leaf for part in own for leaf in _leaves(part, parts)] if own else [name]


def _answers(results: dict[str, Any]) -> pd.DataFrame:
    """Every number that the harness has for a single question: id, family (its task), metric, pass@1."""
    rows = [
        (f"{task}/{a['doc_id']}/{a['doc_hash']}", task, f"{metric},{a['filter']}", float(a[metric]))
        for task, own in results["samples"].items()
        for a in own
        for metric in a["metrics"]
        if isinstance(a[metric], NUMBER)
    ]
    return pd.DataFrame(rows, columns=["id", "family", "metric", "pass@1"])


def _meant(answers: list[pd.DataFrame], values: list[float]) -> list[pd.DataFrame]:
    """Both tables of answers as one family or one per task, whichever has `values` as its means, or none."""
    for whole in (True, False):
        tables = [(a.assign(family="") if whole else a).reset_index(drop=True) for a in answers]
        means = [family_means(t)["pass@1"] if len(t) else np.nan for t in tables]
        if np.allclose(means, values, rtol=0, atol=1e-9):
            return tables
    return []
