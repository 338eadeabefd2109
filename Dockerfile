# Two images from one file:
#   docker build --target test  -t megatron-fwpkm:test  .      CPU: runs `make test`
#   docker build --target train -t megatron-fwpkm:train .      GPU: docker run --gpus all --shm-size=8g megatron-fwpkm:train --config ...
# The GPU image with another pair of NVIDIA's image and Megatron-Core (docs/engines.md):
#   docker build --target train --build-arg NGC_RELEASE=26.06 --build-arg MCORE=0.19.2 -t megatron-fwpkm:train .
ARG NGC_RELEASE=25.11

# ---- CPU: everything that needs no GPU ----
FROM python:3.11.14-slim-bookworm AS test

# make and git for the tests; gcc because some wheels build helpers at first use. Versions follow the pinned Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fwpkm

USER 1000
WORKDIR /home/fwpkm/megatron_fwpkm
# The environment first: it is kept while only the code changes.
COPY --chown=fwpkm:fwpkm pyproject.toml constraints.txt Makefile README.md LICENSE ./
COPY --chown=fwpkm:fwpkm tools/setup.sh tools/setup.sh
COPY --chown=fwpkm:fwpkm megatron_fwpkm/__init__.py megatron_fwpkm/__init__.py
RUN TORCH_PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" make setup
COPY --chown=fwpkm:fwpkm . .
CMD ["make", "test"]

# ---- GPU: NVIDIA's image brings torch 2.10, Triton, Transformer Engine 2.11 and Apex, built for each other ----
FROM nvcr.io/nvidia/pytorch:${NGC_RELEASE}-py3 AS train
ARG MCORE=0.16.1

# The image pins its own packages through PIP_CONSTRAINT and every package below must leave them alone: hence --no-deps for
# megatron-core (it would pull another torch) and for the project itself.
ENV PIP_CONSTRAINT="" \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/megatron_fwpkm
COPY constraints.txt ./
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python -m pip install --no-deps "megatron-core==${MCORE}" \
    && grep -E '^(huggingface_hub|protobuf|psutil|rich|safetensors|sentencepiece|tensorboard|tokenizers|transformers)==' constraints.txt > train.txt \
    && grep -vE '^(torch|triton|numpy|setuptools)==' constraints.txt > others.txt \
    && python -m pip install --constraint others.txt --requirement train.txt
COPY . .
RUN python -m pip install --no-deps --editable . \
    && useradd --create-home --uid 2000 fwpkm \
    && mkdir runs \
    && chown fwpkm:fwpkm runs

USER 2000
ENTRYPOINT ["bash", "examples/launch/single_node.sh"]
