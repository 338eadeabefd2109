# Two images from one file:
#   docker build --target test  -t megatron-fwpkm:test  .      CPU: runs `make test`
#   docker build --target train -t megatron-fwpkm:train .      GPU: docker run --gpus all --shm-size=8g megatron-fwpkm:train --config ...
# The GPU image with another pair of NVIDIA's image and Megatron-Core (docs/engines.md):
#   docker build --target train --build-arg NGC_IMAGE=nvcr.io/nvidia/pytorch:26.06-py3 --build-arg MCORE=0.19.2 -t megatron-fwpkm:train .
# Without Docker and without a registry, `bash tools/container/build_test_stage.sh` executes the stage `test` (docs/cluster.md).
#
# The images are pinned by tag and by the digest of their multi-platform index: the tag is for the reader, the digest decides.
# To move to another tag, ask for its digest and write it here:
#   docker buildx imagetools inspect --format '{{.Manifest.Digest}}' python:3.11.14-slim-bookworm
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG NGC_IMAGE=nvcr.io/nvidia/pytorch:25.11-py3@sha256:417cbf33f87b5378849df37983552cd1f8bc8b62fe1ceabe004de816a55dff21

# ---- CPU: everything that needs no GPU ----
FROM ${PYTHON_IMAGE} AS test
ARG TORCH_PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

# make and git for the tests; gcc because some wheels build helpers at first use. Versions follow the pinned Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fwpkm \
    && install --directory --owner=fwpkm --group=fwpkm /home/fwpkm/megatron_fwpkm

USER 1000
WORKDIR /home/fwpkm/megatron_fwpkm
ENV PIP_NO_CACHE_DIR=1
# The environment first: its layer is kept until the packages change. The project's metadata ask for a README; any will do here.
COPY --chown=fwpkm:fwpkm pyproject.toml constraints.txt Makefile LICENSE ./
COPY --chown=fwpkm:fwpkm tools/setup.sh tools/setup.sh
COPY --chown=fwpkm:fwpkm megatron_fwpkm/__init__.py megatron_fwpkm/__init__.py
RUN touch README.md && make setup
COPY --chown=fwpkm:fwpkm . .
HEALTHCHECK --interval=5m --timeout=60s --start-period=1m CMD [".venv/bin/python", "tools/doctor.py", "--quick"]
CMD ["make", "test"]

# ---- GPU: NVIDIA's image brings torch 2.10, Triton, Transformer Engine 2.11 and Apex, built for each other ----
FROM ${NGC_IMAGE} AS train
ARG MCORE=0.16.1

# The image pins its own packages through PIP_CONSTRAINT and every package below must leave them alone: hence --no-deps for
# megatron-core (it would pull another torch) and for the project itself. DeepSpeed's compiled operations are not used.
ENV PIP_CONSTRAINT="" \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    DS_BUILD_OPS=0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN useradd --create-home --uid 2000 fwpkm \
    && install --directory --owner=fwpkm --group=fwpkm /opt/megatron_fwpkm /opt/megatron_fwpkm/runs
WORKDIR /opt/megatron_fwpkm
COPY constraints.txt ./
RUN python -m pip install --no-deps "megatron-core==${MCORE}" \
    && grep -E '^(deepspeed|huggingface_hub|matplotlib|protobuf|psutil|rich|safetensors|sentencepiece|tensorboard|tokenizers|tqdm|transformers)==' constraints.txt > /tmp/train.txt \
    && grep -vE '^(torch|triton|numpy|setuptools)==' constraints.txt > /tmp/others.txt \
    && python -m pip install --no-build-isolation --constraint /tmp/others.txt --requirement /tmp/train.txt
COPY --chown=fwpkm:fwpkm . .
RUN python -m pip install --no-deps --editable .

USER 2000
# Docker says "unhealthy" when the packages no longer go together, or when the container has lost its GPUs.
HEALTHCHECK --interval=5m --timeout=60s --start-period=2m CMD ["python", "tools/doctor.py", "--quick", "--require-gpu"]
ENTRYPOINT ["bash", "examples/launch/single_node.sh"]
