"""A causal language model with its tokenizer: loading, saving, and log-probs at a temperature."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import SeptError, notice
from .durable import writing
from .prompts import checked, render

BASES = Path(__file__).parent / "data" / "bases"


@dataclass
class Policy:
    """A model, its tokenizer, and a version that counts optimizer steps."""

    model: Any
    tokenizer: Any
    name: str
    """What it was loaded from; for people, never for keys."""
    version: int = 0
    vocab: int | None = None
    """Tokens that exist, where the model has more rows than that (a padded vocabulary); else None.
    Logits end there: for the loss, every engine and the margins alike."""
    compute: torch.dtype = torch.float32
    """What matrix products run in: bfloat16 on a GPU, whatever the weights are stored in."""
    revision: str | None = None
    """Commit of a hub model."""
    run: Any = lambda compute, *arguments: compute(*arguments)
    """run(f, ...) is f(...) with the weights in place: sharded ones are gathered for it."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All end-of-sequence ids: the generation config may name several."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        ids = self.model.config.eos_token_id if ids is None else ids
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)

    @property
    def pad_id(self) -> int:
        """Padding id; any id will do, since padded positions are masked everywhere."""
        pad = self.tokenizer.pad_token_id
        return self.eos_ids[0] if pad is None else int(pad)

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return int(self.model.config.max_position_embeddings)

    def autocast(self) -> torch.autocast:
        """Context in which the model computes in `compute`."""
        lower = self.compute != torch.float32
        return torch.autocast(self.model.device.type, self.compute if lower else None, enabled=lower)

    def summary(self) -> str:
        """One line for people: kind, size, precision, place."""
        weight = next(self.model.parameters())
        size = sum(p.numel() for p in self.model.parameters())
        parts = [self.model.config.model_type, f"{size:,} parameters"]
        parts.append(f"{str(weight.dtype)[6:]} weights, {str(self.compute)[6:]} compute")
        cuda = weight.device.type == "cuda"
        parts.append(f"on {torch.cuda.get_device_name(weight.device) if cuda else weight.device.type}")
        parts += [f"vocabulary {self.vocab:,} (padding masked)"] if self.vocab else []
        parts += [f"commit {self.revision}"] if self.revision else []
        return f"model {self.name}: {', '.join(parts)}"

    @property
    def template(self) -> str:
        """Name of the prompt template (`sept.prompts`); the model's config carries it to its checkpoints."""
        return getattr(self.model.config, "sept_template", None) or "plain"

    def shown(self, text: str) -> str:
        """A question as the model sees it, special tokens included."""
        return self.tokenizer.decode(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Prompt ids of a question in its template; plain: behind a beginning-of-sequence token, if any."""
        if self.template != "plain":  # which holds its own special tokens: none may come twice
            rendered = render(self.template, text, self.tokenizer)
            if ids := self.tokenizer(rendered, add_special_tokens=False)["input_ids"]:
                return ids
            raise SeptError(f"model {self.name!r}: its tokenizer makes no tokens of {rendered[:60]!r}")
        ids = self.tokenizer(text, add_special_tokens=True)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if bos is not None and (not ids or ids[0] != bos):
            ids = [bos, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response ids without special tokens: for grading and for people, never for training."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def resolve(name: str) -> str:
    """A shipped base's folder for its name, else the name itself (path or hub id)."""
    return str(BASES / name) if "/" not in name and (BASES / name / "config.json").is_file() else name


def with_template(name: str) -> tuple[str, str]:
    """A model's name without the `:TEMPLATE` behind it, and that template, empty where there is none."""
    place, _, asked = ("", "", "") if Path(name).is_dir() else name.rpartition(":")
    return (place, checked(asked)) if place else (name, "")


def load_policy(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Policy:
    """Load a shipped base, a local folder or a hub model (`owner/name`, or `owner/name@revision`).

    name may end in `:TEMPLATE`, its prompt template. By default that is the one it was trained with here,
    else `chat` where the tokenizer has a chat template, else `plain`.
    float32 master weights by default; on a GPU matrix products run in bfloat16. device `auto`: a GPU if
    there is one; models of under 50 M parameters stay on the CPU. Safetensors only, and no code of the
    repository unless `trust_remote_code` asks for it. SeptError, one line, if it is missing, damaged,
    incomplete, not a causal language model, or has fewer embeddings than its tokenizer has tokens.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.hub import cached_file, extract_commit_hash

    place, asked = with_template(name)
    path = resolve(place)
    if not Path(path).is_dir():
        path, _, given = path.partition("@")
        revision = given or revision
        if path.count("/") != 1 or path.startswith((".", "/", "~")):
            raise SeptError(
                f"model {name!r}: no such folder, shipped base ({_bases()}) or hub id owner/name"
            )
    if device not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:\d+", device):
        raise SeptError(f"device {device!r}: unknown, choose auto, cpu, cuda or cuda:0, cuda:1, ...")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SeptError(f"device {device!r}: there is no GPU that torch can use; choose cpu or auto")
    if (number := int(device.partition(":")[2] or 0)) and number >= torch.cuda.device_count():
        raise SeptError(
            f"device {device!r}: GPUs are counted from 0 and there are {torch.cuda.device_count()}"
        )
    if trust_remote_code:
        warnings.warn(f"model {name!r}: Python code of {path!r} may run with your rights", stacklevel=2)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    pickles = [p.name for p in Path(path).glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    if pickles and not [*Path(path).glob("*.safetensors")]:
        raise SeptError(
            f"model {name!r}: its weights are in {min(pickles)}, which is a program that loading would run; "
            "only safetensors are read, ask its publisher for them"
        )
    try:
        # Everything from the very commit that is found now, even if a branch moves meanwhile.
        commit = extract_commit_hash(cached_file(path, "config.json", revision=revision), None)
        options["revision"] = commit or revision
        config = AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise SeptError(
                f"model {name!r}: needs Python code of its own repository; read it, then --trust-remote-code"
            ) from None
        raise SeptError(
            f"model {name!r}: cannot read its config ({_line(error)}); needed are config.json, *.safetensors "
            "and the tokenizer's files"
        ) from None
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        model, report = loaded
    except ValueError as error:
        raise SeptError(f"model {name!r}: not a causal language model ({_line(error)})") from None
    except Exception as error:  # safetensors raises a type of its own
        raise SeptError(
            f"model {name!r}: cannot be loaded, perhaps truncated; fetch it again ({_line(error)})"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
            raise ValueError("it has no tokens; is tokenizer.json there?")
    except Exception as error:  # tokenizers raises types of its own
        raise SeptError(
            f"model {name!r}: its tokenizer cannot be loaded; fetch its files again ({_line(error)})"
        ) from None
    if report["missing_keys"]:  # transformers would fill them with random numbers
        absent = sorted(report["missing_keys"])[0]
        raise SeptError(f"model {name!r}: tensor {absent!r} is missing from its weights; fetch it again")
    policy = Policy(model, tokenizer, place, revision=commit)
    if tokenizer.eos_token_id is None and config.eos_token_id is None:
        raise SeptError(f"model {name!r}: names no end-of-sequence token; set eos_token_id in its config")
    tokens = 1 + max(*tokenizer.get_vocab().values(), *policy.eos_ids)
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens > rows:
        raise SeptError(
            f"model {name!r}: tokenizer has {tokens} tokens, model only {rows} embeddings; "
            "use the tokenizer that belongs to it"
        )
    policy.vocab = tokens if tokens < rows else None
    if device == "auto":
        large = sum(p.numel() for p in model.parameters()) > 50_000_000
        device = "cuda" if large and torch.cuda.is_available() else "cpu"
    policy.model = model.to(device).eval()
    policy.compute = dtype if device == "cpu" else torch.bfloat16
    trained_with = getattr(config, "sept_template", None)
    if template := asked or trained_with or ("chat" if tokenizer.chat_template else ""):
        model.config.sept_template = template
    if trained_with not in (None, policy.template):
        notice(f"model {place!r} was trained with template {trained_with}, not with {policy.template}")
    return policy


def _bases() -> str:
    return ", ".join(sorted(p.name for p in BASES.glob("*") if (p / "config.json").is_file()))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:160] + ("..." if len(text) > 160 else "")


def merged(model: Any) -> Any:
    """The model itself, or a copy with its LoRA adapters folded in."""
    if not hasattr(model, "merge_and_unload"):
        return model
    import copy

    return copy.deepcopy(model).merge_and_unload()


@torch.no_grad()
def full_state(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the state dict once (safetensors refuses the aliases of tied weights), whole.

    Sharded ones are gathered one at a time, on all ranks together.
    """
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            yield name, whole(value.detach())


def whole(value: Any) -> Tensor:
    """A tensor itself, or of a shard (DTensor) all of it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def save_policy(
    policy: Policy, folder: Path, also: Callable[[Path], None] | None = None, write: bool = True
) -> None:
    """Write model and tokenizer in Hugging Face form, and what `also` adds, all of it or nothing.

    Where the model is sharded all ranks call this, and one of them writes.
    """
    from transformers import GenerationConfig

    model = merged(policy.model)
    state = {k: v.to("cpu", copy=True) for k, v in full_state(model) if write}
    if not write:
        return
    own, model.generation_config = model.generation_config, GenerationConfig()
    with writing(folder) as temporary:
        try:  # many hub models' own contradicts itself (do_sample=False, temperature=0.6): out as it came
            model.save_pretrained(temporary, state_dict=state)
            own.to_json_file(temporary / "generation_config.json", keys_to_pop=["compile_config"])
        finally:
            model.generation_config = own
        policy.tokenizer.save_pretrained(temporary)
        if also is not None:
            also(temporary)


def fingerprint(policy: Policy) -> str:
    """SHA-256 over everything of a checkpoint that changes numbers.

    Weights (names, shapes, dtypes, bytes), model config, end-of-sequence ids and vocabulary.
    """
    model = policy.model
    config = model.config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    described = [config, policy.eos_ids, sorted(policy.tokenizer.get_vocab().items())]
    described += [] if policy.template == "plain" else [policy.tokenizer.chat_template]
    out = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for key, value in sorted(model.state_dict().items()):
        out.update(json.dumps([key, list(value.shape), str(value.dtype)]).encode())
        out.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


@dataclass
class Batch:
    """B prompt-and-response sequences, padded, with the response's place in them."""

    ids: Tensor
    """[B, L] int64."""
    attention: Tensor
    """[B, L] int64, 0 on padding."""
    positions: Tensor
    """[B, L] int64: position ids, counted from each row's first real token."""
    tokens: Tensor
    """[B, T] int64: response tokens, end-of-sequence included, 0 behind it."""
    mask: Tensor
    """[B, T] bool: response tokens."""
    sources: Tensor
    """[B, T] int64: the place in [0, L) whose logits predict each response token, one before it."""


def make_batch(
    prompts: Sequence[Sequence[int]],
    tokens: Tensor,
    lengths: Tensor,
    pad_id: int = 0,
    left: bool = False,
    device: str | torch.device = "cpu",
) -> Batch:
    """Pad prompts and responses (tokens [B, T], lengths [B]) together, on the right by default."""
    B, T = tokens.shape[0], int(lengths.max())
    totals = [len(p) + int(n) for p, n in zip(prompts, lengths, strict=True)]
    L = max(totals)
    ids = torch.full((B, L), pad_id)
    attention = torch.zeros(B, L, dtype=torch.long)
    starts = torch.zeros(B, dtype=torch.long)
    for i, (prompt, total) in enumerate(zip(prompts, totals, strict=True)):
        begin = L - total if left else 0
        ids[i, begin : begin + total] = torch.cat([torch.tensor(prompt), tokens[i, : lengths[i]]])
        attention[i, begin : begin + total] = 1
        starts[i] = begin + len(prompt)
    mask = torch.arange(T) < lengths[:, None]
    sources = (starts[:, None] + torch.arange(T) - 1).clamp_max(L - 1)
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    parts = (ids, attention, positions, tokens[:, :T] * mask, mask, sources)
    return Batch(*(part.to(device) for part in parts))


def response_logits(model: Any, batch: Batch, vocab: int | None = None) -> Tensor:
    """Logits that predict each response token: [B, T, V] (rows behind a response's end are arbitrary).

    vocab: a policy's `vocab`; rows of a padded vocabulary are left out.
    """
    logits = model(
        input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.positions, use_cache=False
    ).logits[..., :vocab]
    return logits.gather(1, batch.sources[..., None].expand(-1, -1, logits.shape[-1]))


def response_states(model: Any, batch: Batch) -> Tensor:
    """Last hidden states where `response_logits` has logits, padding left out: [response tokens, hidden]."""
    states = (
        _causal(model)
        .base_model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
        )
        .last_hidden_state
    )
    return states.gather(1, batch.sources[..., None].expand(-1, -1, states.shape[-1]))[batch.mask]


@torch.no_grad()
def output_layer(policy: Policy) -> torch.nn.Linear | None:
    """The output layer if logits are the product of its weight with the last hidden states.

    None if there is more to it: a bias, a soft cap, a scale. The model itself is asked, on two tokens.
    """
    model = _causal(policy.model)
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return None
    ids = torch.full((1, 2), policy.eos_ids[0], device=head.weight.device)

    def same() -> bool:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return torch.equal(head(states), model(input_ids=ids, use_cache=False).logits)

    with policy.autocast():
        return head if policy.run(same) else None


def _causal(model: Any) -> Any:
    """The language model under LoRA adapters, if there are any."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
