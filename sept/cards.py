"""The model card of a trained model: README.md, drawn from sept.json beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .config import ARM_NAMES, SeptError, shipped_text
from .provenance import environment, read_json, write_json, write_text

SCORES = ("pass@1", "pass@8", "pass@32", "AVG")


def begin_card(folder: Path, run: Path, rounds: int) -> None:
    """Write sept.json and README.md into `folder` from the config.json of the run folder `run`."""
    record = json.loads((run / "config.json").read_text())
    kept = ("model", "revision", "template", "name", "problems", "config", "identity")
    _write(folder, {**{k: record.get(k) for k in kept}, "rounds": rounds, "provenance": environment()})


def require_card(folder: Path) -> None:
    """SeptError where there is no card to add to."""
    if not (folder / "sept.json").is_file():
        raise SeptError(
            f"--card: {str(folder)!r} holds no sept.json; only models of `sept train` have cards"
        )


def add_scores(folder: Path, scores: dict[str, Any]) -> None:
    """Add a score, as `sept eval --json` writes it, to a model's card; it replaces an earlier one like it."""
    card = read_json(folder / "sept.json", "leave --card out, or train again")
    same = ("problems", "template", "temperature", "n", "seed")
    others = [s for s in card.get("scores", []) if any(s.get(k) != scores.get(k) for k in same)]
    _write(folder, {**card, "scores": [*others, scores]})


def _write(folder: Path, card: dict[str, Any]) -> None:
    write_json(folder / "sept.json", card)
    write_text(folder / "README.md", render(card))


def render(card: dict[str, Any]) -> str:
    """README.md of a card: metadata that the hub reads, then what was done to which base, then scores."""
    base, at = card["model"], card["revision"]
    base = base.partition("@")[0] if at else Path(base).name  # a path says nothing elsewhere
    config = card["config"]
    arm = ARM_NAMES.get(card["name"]) or card["name"] or config["objective"]
    head = [*([f"base_model: {base}"] if at else []), "library_name: transformers"]
    rows = []
    for s in card.get("scores", []):
        cells = (
            f"{s[m]['value']:.1f} [{s[m]['lo']:.1f}, {s[m]['hi']:.1f}]" if m in s else "" for m in SCORES
        )
        name = Path(s["problems"]).name
        rows.append(f"| {name} ({s['questions']}) | {s['temperature']} | {s['n']} | {' | '.join(cells)} |")
    rows = rows or [f"| not measured yet: `sept eval --card` |{' |' * (2 + len(SCORES))}"]
    shown = {"head": "\n".join(head), "base": base, "at": f" at commit {at}" if at else "", "arm": arm}
    shown |= {"provenance": card["provenance"], "rounds": card["rounds"], "rows": "\n".join(rows)}
    shown |= {
        "problems": Path(card["problems"]).name,
        "config": config,
        "settings": json.dumps(config, indent=1),
    }
    return shipped_text("model_card.md").format(**shown)
