"""What is installed and works together, which implementation each part of a run uses and why, and what to mend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from ..config import PretrainConfig
from ..config.megatron_releases import megatron_for_python
from ..libraries.choices import Choice, choose_libraries, describe
from ..libraries.probes import GRADIENT_KERNEL, SUPPORTED_PYTHONS, Environment, Finding, numbers, quick_survey, survey

Findings = dict[str, Finding]


@dataclass(frozen=True)
class Problem:
    """Something that should be mended."""

    what: str
    advice: str
    blocks_training: bool


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor says."""

    findings: list[Finding]
    choices: list[Choice]
    problems: list[Problem]

    @property
    def can_train(self) -> bool:
        """Whether pretrain.py can run here."""
        return not any(problem.blocks_training for problem in self.problems)

    def to_json(self) -> str:
        """The diagnosis for programs."""
        return json.dumps({"can_train": self.can_train, **asdict(self)}, indent=2)


def examine(environment: Environment | None = None) -> Diagnosis:
    """Look at this machine; takes the time of importing torch and Megatron."""
    found = survey(environment or Environment())
    return Diagnosis(list(found.values()), list(_choices(found)), list(_problems(found)))


def examine_quickly(environment: Environment | None = None) -> Diagnosis:
    """What a container asks every few minutes: are supported versions there, and does torch still find its GPU?"""
    found = quick_survey(environment or Environment())
    problems = [*_foundations(found), *_megatron(found), *_tokenizers_and_exports(found)]
    return Diagnosis(list(found.values()), [], problems)


def require_gpu(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis of a machine that is of no use without a GPU."""
    cuda = next(one for one in diagnosis.findings if one.name == "CUDA")
    if cuda.status != "absent":
        return diagnosis
    problem = Problem(
        "torch finds no GPU, and --require-gpu was given",
        "check nvidia-smi; a container needs --gpus all when it starts, and one that has lost its GPUs a restart",
        True,
    )
    return replace(diagnosis, problems=[*diagnosis.problems, problem])


def render(diagnosis: Diagnosis) -> str:
    """One screen of text."""
    lines = ["Installed"]
    marks = {"ok": "ok", "absent": "-", "broken": "BROKEN", "other version": "VERSION", "foreign": "FOREIGN"}
    for one in diagnosis.findings:
        version = one.version or ("not installed" if one.status == "absent" and not one.note else "")
        lines.append(f"  {marks[one.status]:8} {one.name:30} {version:13} {one.note}".rstrip())
    if diagnosis.choices:
        lines += ["", "A run here will use"]
        lines += [f"  {line}" for line in describe(diagnosis.choices)]
    lines += ["", "Problems" if diagnosis.problems else "No problems."]
    for problem in diagnosis.problems:
        weight = "blocks training" if problem.blocks_training else "note"
        lines += [f"  [{weight}] {problem.what}", f"      {problem.advice}"]
    lines += ["", "Training can run here." if diagnosis.can_train else "Training cannot run here until this is fixed."]
    return "\n".join(lines)


def _choices(found: Findings) -> Iterator[Choice]:
    """What pretrain.py takes with its defaults; `auto` options are told by their flag."""
    gpu = found["CUDA"].ok
    yield from choose_libraries(PretrainConfig(), found)
    yield _memory(found)
    yield Choice("norms", "local", "RMSNorm of this project", "works with sequence parallelism, needs no fused library")
    backend = "nccl" if gpu and found["nccl"].ok else "gloo"
    why = "CUDA is available" if backend == "nccl" else "CUDA is available, but NCCL is not" if gpu else "no CUDA"
    yield Choice("communication", backend, backend, f"--distributed-backend auto: {why}")
    device = "GPU" if gpu else "CPU"
    yield Choice("device", device, device, found["CUDA"].note or "torch finds no GPU")


def _memory(found: Findings) -> Choice:
    gpu, triton = found["CUDA"].ok, found["triton"]
    if gpu and triton.ok:
        why = "--fwpkm-implementation auto: only the rows in use, in GPU kernels"
        return Choice("memory", "triton", "triton", why)
    missing = f"triton is {triton.status}" if gpu else "no CUDA"
    why = f"--fwpkm-implementation auto: only the rows in use, in torch; {missing}"
    return Choice("memory", "sparse", "sparse", why)


def _problems(found: Findings) -> Iterator[Problem]:
    yield from _foundations(found)
    yield from _megatron(found)
    yield from _fused_libraries(found)
    yield from _tokenizers_and_exports(found)
    if found["deepspeed"].status == "broken":
        yield Problem(
            f"DeepSpeed does not import ({found['deepspeed'].note})",
            "only --engine deepspeed needs it: pip uninstall deepspeed, or repair it",
            False,
        )


def _tokenizers_and_exports(found: Findings) -> Iterator[Problem]:
    yield from _package(found["sentencepiece"], "SentencePiece tokenizers", blocks=True)
    yield from _package(found["safetensors"], "exports", blocks=False)
    yield from _package(found["transformers"], "export and generation in Hugging Face format", blocks=False)


def _foundations(found: Findings) -> Iterator[Problem]:
    python, torch, cuda = found["python"], found["torch"], found["CUDA"]
    if not python.ok:
        names = " and ".join(".".join(map(str, version)) for version in SUPPORTED_PYTHONS)
        yield Problem(
            f"Python {python.version} is not supported", f"use Python {names}: make setup PYTHON=python3.12", True
        )
    if not torch.ok:
        state = torch.note or "not installed"
        yield Problem(
            f"torch {torch.version}: {state}".replace(" :", ":"),
            "make setup installs the version of constraints.txt",
            True,
        )
        return
    if cuda.status == "broken":
        yield Problem(f"CUDA fails: {cuda.note}", "check nvidia-smi and whether the driver supports torch's CUDA", True)
    elif not cuda.ok and cuda.version:
        yield Problem(
            f"torch is built for CUDA {cuda.version} but finds no GPU, so runs use the CPU",
            "on a GPU machine: check nvidia-smi, CUDA_VISIBLE_DEVICES and the driver",
            False,
        )
    if cuda.ok and not found["nccl"].ok:
        advice = "install a torch build with NCCL; gloo copies tensors through host memory"
        yield Problem("a GPU is available but NCCL is not", advice, False)
    if not found["gloo"].ok and not (cuda.ok and found["nccl"].ok):
        yield Problem("torch has neither gloo nor a usable NCCL", "install an official torch build", True)


def _megatron(found: Findings) -> Iterator[Problem]:
    megatron, helper = found["megatron-core"], found.get("dataset helper")
    wanted = megatron_for_python(numbers(found["python"].version))
    if not megatron.ok:
        state = megatron.note or "not installed"
        yield Problem(
            f"megatron-core {megatron.version}: {state}".replace(" :", ":"),
            f"make setup, or pip install --no-deps megatron-core=={wanted}",
            True,
        )
    elif helper is not None and not helper.ok:
        yield Problem(
            f"megatron-core's compiled dataset helper is missing ({helper.note})",
            f"install a wheel: pip install --no-deps --force-reinstall megatron-core=={wanted}",
            True,
        )


def _fused_libraries(found: Findings) -> Iterator[Problem]:
    """None of them stops a run: what does not work is hidden from megatron-core."""
    engine, apex, kernel = found["transformer_engine"], found["apex"], found[GRADIENT_KERNEL]
    if engine.status == "broken":
        yield Problem(
            f"Transformer Engine is installed but does not import ({engine.note}); runs do not use it",
            "pip uninstall transformer_engine transformer_engine_torch, or install the release for this CUDA version",
            False,
        )
    elif engine.status == "other version":
        yield Problem(
            f"Transformer Engine {engine.version}: {engine.note}", "install 2.11, the version tested with it", False
        )
    if apex.status == "foreign":
        yield Problem(
            f"the package apex {apex.version} is not NVIDIA's; runs do not use it",
            "pip uninstall apex; NVIDIA's is built from source and is in its PyTorch images",
            False,
        )
    for name, one in (("apex", apex), (GRADIENT_KERNEL, kernel)):
        if one.status == "broken":
            yield Problem(
                f"{name} is installed but does not work ({one.note}); runs do not use it",
                "pip uninstall apex, or build it for this torch",
                False,
            )


def _package(found: Finding, use: str, *, blocks: bool) -> Iterator[Problem]:
    if not found.ok:
        state = "not installed" if found.status == "absent" else found.status
        yield Problem(
            f"{found.name} is {state}{f' ({found.note})' if found.note else ''}, but needed for {use}",
            f"make setup, or pip install {found.name}",
            blocks,
        )
