"""vLLM as a peer, in an environment of its own: started once, then asked for runs over its standard input.

Run by run.py as `python peer_vllm.py MODEL_FOLDER`. A line in is [prompts of token ids, tokens per answer,
temperature]; a line out is [tokens drawn, seconds]. The first line out says the version.
"""

import contextlib
import json
import os
import sys
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        import vllm

        llm = vllm.LLM(sys.argv[1], dtype="float32", max_model_len=256, max_num_seqs=512, seed=0)
    print(json.dumps(vllm.__version__), flush=True)
    for line in sys.stdin:
        prompts, length, tau = json.loads(line)
        settings = vllm.SamplingParams(
            temperature=tau, top_k=0, top_p=1.0, max_tokens=length, ignore_eos=True, detokenize=False
        )
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            out = llm.generate([{"prompt_token_ids": p} for p in prompts], settings, use_tqdm=False)
        took = time.perf_counter() - started
        print(json.dumps([sum(len(o.outputs[0].token_ids) for o in out), took]), flush=True)


if __name__ == "__main__":
    main()
