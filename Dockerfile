# sept with vLLM on NVIDIA GPUs. Build in a checkout, with nothing but the files named below:
#   docker build -t sept .
#   docker run --rm --gpus all sept doctor
#   docker run --rm --gpus all --shm-size 16g -v "$PWD/runs:/runs" -v sept-cache:/cache sept train ... --out /runs/my-run
# The base has the CUDA that the pinned torch is built for. It is the one with compilers: Triton and FlashInfer
# compile kernels when they first meet a model.
FROM nvidia/cuda:13.0.3-devel-ubuntu24.04

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 TOKENIZERS_PARALLELISM=false

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.12 python3.12-venv python3.12-dev gcc g++ git \
 && rm -rf /var/lib/apt/lists/*

# Whoever runs it is no root; results and the cache of models and kernels lie on volumes of that user.
RUN useradd --create-home --uid 10001 sept && mkdir -p /app/src /runs /cache && chown -R sept /app /runs /cache
USER sept
ENV VIRTUAL_ENV=/app/venv PATH=/app/venv/bin:$PATH HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache
RUN python3.12 -m venv /app/venv

# What is large and changes seldom comes first: a change of the code does not fetch gigabytes again.
WORKDIR /app/src
COPY --chown=sept constraints.txt ./
RUN pip install -c constraints.txt torch==2.13.0
RUN pip install -c constraints.txt vllm==0.32.0

COPY --chown=sept pyproject.toml README.md LICENSE ./
COPY --chown=sept sept ./sept
RUN pip install -c constraints.txt ".[vllm,eval,lora,track]"

WORKDIR /runs
ENTRYPOINT ["sept"]
CMD ["doctor"]
