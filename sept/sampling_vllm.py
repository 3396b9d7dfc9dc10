"""Drawing answers with vLLM, in the process and on the device that train.

A refresh hands the policy's tensors, one after the other, to `reload_weights` in this process: no file, no
second copy. Several ranks are processes of their own, so they read a file in a scratch folder instead.
vLLM's other way, weight transfer, is for a trainer in another process or on another device: CUDA cannot open
its own IPC handles, NCCL wants a device per rank. Either way the model has an *untied* head, because vLLM
may keep a packed copy of a tied one that a reload does not reach (its CPU build does) and go on drawing from
old weights in silence. The engine starts from random weights, so its first refresh proves the route: any
tensor that a refresh misses shows in the canary. On a GPU the engine sleeps while the model trains, its
weights in the host's memory meanwhile (sleep level 1), for an arm whose sampler stays behind.
"""

from __future__ import annotations

import copy
import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from .config import SeptError, digest, is_secret
from .loop import CANARY, StaleSamplerError
from .objectives import token_log_probs
from .policy import Policy, make_batch, merged, response_logits, whole
from .sampling import EngineError, Rollouts, check_request, collect

COLDEST = 0.01
"""vLLM silently raises any temperature between 0 and this."""


_holder: VllmEngine | None = None
"""The engine that runs. vLLM keeps global state, which the end of one engine destroys under another."""


class VllmEngine:
    """vLLM as a sampler, one at a time: starting another ends this one.

    Keyword options are settings of `vllm.LLM`, such as tensor_parallel_size.
    sleep: give the device's memory back after every call (on a GPU), for a training between the calls.
    The random numbers of an answer depend on (seed, draw, key, sample) alone. Its logits may depend in
    their last bits on what else is in the batch, so a near tie may fall differently in other company.
    """

    def __init__(self, sleep: bool = True, **options: Any) -> None:
        self.version = -1
        self.on_gpu = torch.cuda.is_available()
        self.sleeps = sleep and self.on_gpu
        self.options = options
        self.llm: Any = None
        self.asleep = False
        self.scratch = tempfile.TemporaryDirectory(prefix="sept-vllm-")

    def refresh(self, policy: Policy) -> None:
        """Take over the weights; StaleSamplerError unless the engine's log-probs are then the policy's."""
        if self.llm is None:
            c, wide = policy.model.config, getattr(policy.model.config, "head_dim", None)
            if c.model_type == "qwen2" and wide and wide * c.num_attention_heads != c.hidden_size:
                raise SeptError(
                    f"engine vllm makes qwen2 heads hidden_size / num_attention_heads wide, model "
                    f"{policy.name!r} has head_dim {wide}: use engine transformers"
                )
            _write_config(policy, Path(self.scratch.name))
            self.eos, self.context = policy.eos_ids, self.options.get("max_model_len", policy.context)
            self.llm = self._start(str(policy.compute).removeprefix("torch."))
        self._load(policy)
        gap, limit = self._gap(policy), CANARY / 10 if policy.compute == torch.float32 else 100 * CANARY
        if not gap <= limit:
            raise StaleSamplerError(
                f"engine vllm, refreshed to weights version {policy.version}: its log-probs of probe answers "
                f"differ from the policy's by {gap:.1e} nats a token (limit {limit:.0e}); the engine's "
                "copy is stale or wrong"
            )
        self.version = policy.version
        from tqdm import tqdm

        tqdm.write(f"vllm: weights version {policy.version}, canary {gap:.1e} nats (limit {limit:.0e})")

    def _start(self, dtype: str) -> Any:
        # Read by vLLM when it is imported or started. In one process there is one device context.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM, TokensPrompt

        fixed = {
            "model": self.scratch.name,
            "load_format": "dummy",
            "dtype": dtype,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",  # nothing of the checkpoint's own
            "skip_tokenizer_init": True,
            "enable_sleep_mode": self.sleeps,
        }
        # On a GPU the trained model needs its share; on a CPU nothing is compiled, and 1 GiB is plenty.
        place = {"gpu_memory_utilization": 0.3} if self.on_gpu else {"kv_cache_memory_bytes": 2**30}
        settings = {
            "max_model_len": self.context,
            "enforce_eager": not self.on_gpu,
            **place,
            **self.options,
        }
        if "RANK" in os.environ:  # torchrun's processes are there: one engine in each of them
            fixed["distributed_executor_backend"] = "external_launcher"
            if self.options.get("tensor_parallel_size", 1) != 1:
                raise SeptError(
                    "tensor_parallel_size: under torchrun each rank has an engine of its own, of 1"
                )
        taken = sorted(set(fixed) & set(self.options))
        if taken:
            raise SeptError(f"engine setting {taken[0]!r}: the engine sets it itself, leave it out")
        global _holder
        if _holder is not None:
            _holder.close()
        _holder = self
        try:
            llm = LLM(**fixed, use_tqdm_on_load=False, **settings)
            one = TokensPrompt(prompt_token_ids=[0])  # some limits show at the first token only
            llm.generate([one], _params(1.0, 1, 0, self.eos), use_tqdm=False)
        except Exception as error:  # of many types; the remedy is always another setting
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            shown = {k: v for k, v in settings.items() if not is_secret(k)}
            raise SeptError(f"engine vllm cannot start with {shown}: {reason}") from error
        return llm

    def close(self) -> None:
        """End vLLM and free what it holds; a refresh would start it again."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
            gc.collect()

    def _wake(self) -> None:
        if self.asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up()
            self.asleep = False

    def _load(self, policy: Policy) -> None:
        """Load the policy's weights into the engine, which is awake afterwards."""
        self._wake()
        if self.llm.llm_engine.vllm_config.parallel_config.distributed_executor_backend != "mp":
            source: dict[str, Any] = {"weights_iterator": _untied(policy)}
        else:
            source = {"weights_path": self.scratch.name}
            state = {name: value.to("cpu", copy=True) for name, value in _untied(policy)}
            save_file(state, Path(self.scratch.name) / "model.safetensors")
            self.llm.collective_rpc(
                "update_config", args=({"load_config": {"load_format": "safetensors"}},)
            )
        with self._at_work():
            self.llm.collective_rpc("reload_weights", kwargs=source)
        self.llm.reset_prefix_cache()  # what it holds was computed with the old weights

    @staticmethod
    @contextmanager
    def _at_work() -> Iterator[None]:
        """EngineError, whatever vLLM dies of."""
        try:
            yield
        except Exception as error:  # of many types: a dead process, a device out of memory
            raise EngineError(" ".join(str(error).split())[:300] or type(error).__name__) from error

    @torch.no_grad()
    def _gap(self, policy: Policy) -> float:
        """Mean difference between the log-probs that engine and policy give to probe answers, nats a token.

        The probe prompts fill a block of the prefix cache, so that a stale cache shows as well.
        """
        length = max(1, min(160, self.context - 8))
        rows = policy.vocab or len(policy.tokenizer)
        random = np.random.default_rng(0).integers(0, rows, (4, length)).tolist()
        drawn = self._draw(random, ["probe"] * 4, 1, 0.6, 8, 0, 0)
        device = next(policy.model.parameters()).device
        batch = make_batch(random, drawn.tokens, drawn.lengths, policy.pad_id, device=device)
        with policy.autocast():
            logits = policy.run(response_logits, policy.model, batch, policy.vocab)
        gaps = (token_log_probs(logits, batch.tokens, 0.6).cpu() - drawn.log_probs).abs()
        return gaps[batch.mask.cpu()].mean().item()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[str],
        n: int,
        tau: float,
        max_new_tokens: int,
        seed: int,
        draw: int = 0,
    ) -> Rollouts:
        """n answers to each prompt, token ids in and out, from the whole softmax."""
        longest = max(map(len, prompts), default=0)
        check_request(prompts, n, tau, longest + max_new_tokens, self.context)
        assert self.llm is not None, "refresh the engine before sampling"
        if 0 < tau < COLDEST:
            raise SeptError(f"temperature {tau}: vLLM draws at 0 or from {COLDEST} on; use another engine")
        self._wake()
        rollouts = self._draw(prompts, keys, n, tau, max_new_tokens, seed, draw)
        if self.sleeps:
            self.llm.sleep(level=1)
            self.asleep = True
        return rollouts

    def _draw(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[str],
        n: int,
        tau: float,
        max_new_tokens: int,
        seed: int,
        draw: int,
    ) -> Rollouts:
        from vllm import TokensPrompt

        # One request per answer with a seed of its own; the prefix cache shares a prompt's prefill.
        seeds = [int(digest([seed, draw, key, sample])[:15], 16) for key in keys for sample in range(n)]
        params = [_params(tau, max_new_tokens, number, self.eos) for number in seeds]
        requests = [TokensPrompt(prompt_token_ids=list(p)) for p in prompts for _ in range(n)]
        with self._at_work():
            answers = [r.outputs[0] for r in self.llm.generate(requests, params, use_tqdm=False)]
        width = max(len(a.token_ids) for a in answers)
        tokens = torch.zeros(len(answers), width, dtype=torch.long)
        log_probs = torch.zeros(len(answers), width)
        for i, answer in enumerate(answers):
            ids = list(answer.token_ids)
            if len(ids) < max_new_tokens and (not ids or ids[-1] not in self.eos):
                raise SeptError(
                    f"engine vllm cut answer {i} after {len(ids)} tokens ({answer.finish_reason}); "
                    "look at the engine's settings"
                )
            tokens[i, : len(ids)] = torch.tensor(ids)
            scores = [step[token].logprob for step, token in zip(answer.logprobs, ids, strict=True)]
            log_probs[i, : len(ids)] = torch.tensor(scores)
        return collect(prompts, n, tokens, log_probs, self.eos, tau, self.version)


def _params(tau: float, max_new_tokens: int, seed: int, eos: Sequence[int]) -> Any:
    """One answer from the whole softmax at tau."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=tau,
        top_k=-1,
        top_p=1.0,
        min_p=0.0,
        seed=seed,
        max_tokens=max_new_tokens,
        stop_token_ids=list(eos),
        ignore_eos=True,  # of vLLM's own; ours stand in the line above
        logprobs=0,  # the drawn token's
        detokenize=False,
    )


def _write_config(policy: Policy, folder: Path) -> None:
    """The config of the model that the engine starts: head untied, padded vocabulary cut off."""
    config = copy.deepcopy(policy.model.config)
    config.tie_word_embeddings, config.vocab_size = False, policy.vocab or config.vocab_size
    config.save_pretrained(folder)


def _untied(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """That model's tensors by name, in what the policy computes in."""
    model = merged(policy.model)
    tensors = model.state_dict(keep_vars=True)  # of a sharded model the shards, from here on
    ends = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, value in tensors.items():
        tensor = whole(value.detach())
        yield name, (tensor[: policy.vocab] if id(value) in ends else tensor).to(policy.compute)
