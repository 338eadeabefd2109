"""Which libraries a run takes and why: one record for each part, for the log, --dry-run and the doctor alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from ..config import PretrainConfig
from ..config.cuda_graph_rules import why_no_cuda_graphs
from ..config.deepspeed_options import zero_stage
from ..config.implementation_rules import why_no_engine_attention
from ..config.layer_kinds import LAYER_KINDS, kinds_in_use
from ..config.layer_pattern import layer_mixers, layer_windows
from ..config.library_rules import why_no_gradient_fusion
from .probes import FLASH_LINEAR_ATTENTION, GRADIENT_KERNEL, Finding

Findings = Mapping[str, Finding]

_NAMES = {
    "transformer_engine": "Transformer Engine",
    "apex": "NVIDIA's Apex",
    GRADIENT_KERNEL: GRADIENT_KERNEL,
    FLASH_LINEAR_ATTENTION: "flash-linear-attention",
}
_HOW_TO_GET = {
    "transformer_engine": "install the release for this CUDA version, or use NVIDIA's PyTorch image",
    "apex": "build it from source with APEX_CPP_EXT=1 APEX_CUDA_EXT=1, or use NVIDIA's PyTorch image",
    GRADIENT_KERNEL: "build Apex from source with APEX_CPP_EXT=1 APEX_CUDA_EXT=1, or use NVIDIA's PyTorch image",
    FLASH_LINEAR_ATTENTION: "pip install -e '.[fla]'",
}


@dataclass(frozen=True)
class Choice:
    """What a part of a run takes.

    Attributes:
        part: the part of a run.
        name: what it takes, as its option names it.
        shown: what it takes, for people.
        why: the reason.
        refusal: why the run cannot start, where its options ask for what is not to be had.
    """

    part: str
    name: str
    shown: str
    why: str
    refusal: str | None = None


def choose_libraries(config: PretrainConfig, found: Findings) -> list[Choice]:
    """All choices of a run with these options, on a machine with these findings."""
    linear = [choose_delta_rule(config, found)] if _has_linear_attention(config) else []
    return [
        choose_engine(config),
        choose_layers(config, found),
        choose_attention(config, found),
        *linear,
        choose_rope(config, found),
        choose_gradient_fusion(config, found),
        *([choose_cuda_graphs(config, found)] if _speaks_of_cuda_graphs(config, found) else []),
        choose_adam(config, found),
    ]


def choose_engine(config: PretrainConfig) -> Choice:
    """The library that owns gradients and optimizer."""
    if config.engine.engine == "deepspeed":
        return Choice("engine", "deepspeed", f"DeepSpeed, ZeRO stage {zero_stage(config)}", "--engine deepspeed")
    return Choice("engine", "megatron", "Megatron-Core", "--engine megatron")


def check_choices(choices: Iterable[Choice]) -> None:
    """Raise ValueError with every refusal among the choices."""
    refusals = [one.refusal for one in choices if one.refusal is not None]
    if refusals:
        raise ValueError("; ".join(refusals))


def describe(choices: Iterable[Choice]) -> list[str]:
    """A line for each choice, in columns."""
    return [f"{one.part:15} {one.shown:30} {one.why}" for one in choices]


def choose_layers(config: PretrainConfig, found: Findings) -> Choice:
    """The library of the linear layers and norms."""
    wanted = config.implementation.transformer_impl
    local = partial(Choice, "layers", "local", "Megatron-Core and this project")
    if wanted == "local":
        return local("--transformer-impl local")
    missing = _why_not("transformer_engine", found)
    engine = found["transformer_engine"]
    if missing is None and engine.status == "other version":
        missing = f"Transformer Engine {engine.version} is installed, but {engine.note}"
    if missing is None and config.implementation.fp8_format is not None:
        recipe = config.implementation.fp8_recipe
        fp8 = found.get(f"FP8 {recipe}")
        if fp8 is not None and not fp8.ok:
            missing = f"Transformer Engine does not compute --fp8-recipe {recipe} here ({fp8.note})"
    if missing is None:
        shown = f"Transformer Engine {engine.version}".rstrip()
        return Choice("layers", "transformer_engine", shown, f"--transformer-impl {wanted}")
    asking = f"--transformer-impl {wanted}" if wanted != "auto" else _other_flags_of_transformer_engine(config)
    if asking is None:
        return local(missing)
    return local(missing, f"{asking}: {missing}; {_HOW_TO_GET['transformer_engine']}, or remove the flag")


def choose_attention(config: PretrainConfig, found: Findings) -> Choice:
    """The library of core attention; `attention_of_layers` says it layer by layer."""
    wanted = config.implementation.attention_backend
    local = partial(Choice, "core attention", "local", "torch SDPA")
    if wanted == "local":
        return local("--attention-backend local")
    if not any(kind.core_attention for kind in kinds_in_use(config)):
        return local("no layer has it")
    if choose_layers(config, found).name == "local":
        return local("as the layers")
    obstacle = None if wanted == "te" else why_no_engine_attention(config)
    if obstacle is not None:
        return local(obstacle)
    by_layer = attention_of_layers(config, found)
    count, others = by_layer.count("te"), by_layer.count("local")
    if count == 0:
        return local("all of it has sliding windows")
    shown, why = "Transformer Engine", f"--attention-backend {wanted}"
    if others == 0:
        return Choice("core attention", "te", shown, why)
    where = f"in {count} of {len(by_layer)} layers, torch SDPA in {others} with windows"
    return Choice("core attention", "te", shown, f"{why}: {where}")


def attention_of_layers(config: PretrainConfig, found: Findings) -> tuple[str | None, ...]:
    """`te` or `local` for every layer of the model, None for those without core attention."""
    wanted, engine = config.implementation.attention_backend, choose_layers(config, found).name != "local"
    usable = engine and wanted != "local" and (wanted == "te" or why_no_engine_attention(config) is None)
    mixers, windows = layer_mixers(config.model), layer_windows(config.model)
    return tuple(
        None if not LAYER_KINDS[mixer].core_attention
        else "te" if usable and (wanted == "te" or window is None)
        else "local"
        for mixer, window in zip(mixers, windows, strict=True)
    )  # fmt: skip


def choose_delta_rule(config: PretrainConfig, found: Findings) -> Choice:
    """The library of linear attention's delta rule."""
    wanted = config.implementation.linear_attention_backend
    local = partial(Choice, "linear attention", "torch", "torch, by chunks")
    if wanted == "torch":
        return local("--linear-attention-backend torch")
    if not _has_linear_attention(config):
        return local("no layer has it")
    missing = _why_not(FLASH_LINEAR_ATTENTION, found)
    if missing is None:
        shown = f"flash-linear-attention {found[FLASH_LINEAR_ATTENTION].version}".rstrip()
        return Choice("linear attention", "fla", shown, f"--linear-attention-backend {wanted}")
    if wanted == "auto":
        return local(missing)
    how = _HOW_TO_GET[FLASH_LINEAR_ATTENTION]
    return local(missing, f"--linear-attention-backend fla: {missing}; {how} on a GPU machine, or use auto")


def _has_linear_attention(config: PretrainConfig) -> bool:
    return any(FLASH_LINEAR_ATTENTION in kind.libraries for kind in kinds_in_use(config))


def choose_rope(config: PretrainConfig, found: Findings) -> Choice:
    """Whether RoPE is applied in one kernel."""
    wanted = config.implementation.rope_fusion
    off = partial(Choice, "RoPE", "off", "Megatron-Core")
    if wanted is False:
        return off("--no-rope-fusion")
    if choose_layers(config, found).name == "local":
        return off("as the layers")
    if config.model.rope_type == "yarn":
        return off("--rope-type yarn scales the cosines")
    if config.data.reset_position_ids:
        return off("--reset-position-ids gives every sequence positions of its own")
    return Choice("RoPE", "on", "Transformer Engine", "--rope-fusion" if wanted else "as the layers")


def _other_flags_of_transformer_engine(config: PretrainConfig) -> str | None:
    """The flags that need Transformer Engine where --transformer-impl leaves it open; None for none."""
    chosen = config.implementation
    given = {
        f"--fp8-format {chosen.fp8_format}": chosen.fp8_format is not None,
        "--attention-backend te": chosen.attention_backend == "te",
        "--rope-fusion": chosen.rope_fusion is True,
    }
    return " and ".join(flag for flag, asks in given.items() if asks) or None


def choose_gradient_fusion(config: PretrainConfig, found: Findings) -> Choice:
    """Whether linear layers add their weight gradients to the gradient buffer within the matrix product."""
    wanted = config.training.gradient_accumulation_fusion
    choice = partial(Choice, "gradient fusion")
    off = partial(choice, "off", "off")
    if wanted == "off":
        return off("--gradient-accumulation-fusion off")
    obstacle = why_no_gradient_fusion(config)
    if obstacle is not None:  # with `on` the configuration has been refused
        return off(obstacle)
    missing = _why_not(GRADIENT_KERNEL, found)
    if missing is None:
        return choice("on", f"on, {GRADIENT_KERNEL}", f"--gradient-accumulation-fusion {wanted}: Apex's kernel is here")
    if wanted == "auto":
        return off(missing)
    return off(missing, f"--gradient-accumulation-fusion on: {missing}; {_HOW_TO_GET[GRADIENT_KERNEL]}, or use auto")


def choose_cuda_graphs(config: PretrainConfig, found: Findings) -> Choice:
    """Whether the memory layers are trained in CUDA graphs, as far as it is known before they are built."""
    wanted = config.fwpkm.cuda_graph
    choice = partial(Choice, "CUDA graphs")
    off = partial(choice, "off", "off")
    if wanted == "off":
        return off("--fwpkm-cuda-graph off")
    obstacle = why_no_cuda_graphs(config)
    if obstacle is not None:  # with `on` the configuration has been refused
        return off(obstacle)
    obstacle = None if found["CUDA"].ok else "CUDA is not available"
    if choose_gradient_fusion(config, found).name == "on":
        obstacle = "gradient accumulation fusion adds gradients within backward"
    if obstacle is None:
        return choice("on", "on, of the memories", f"--fwpkm-cuda-graph {wanted}")
    return off(obstacle, f"--fwpkm-cuda-graph on: {obstacle}; use auto or off" if wanted == "on" else None)


def _speaks_of_cuda_graphs(config: PretrainConfig, found: Findings) -> bool:
    """`auto` is silent where there is no GPU."""
    return config.fwpkm.cuda_graph == "on" or (config.fwpkm.cuda_graph == "auto" and found["CUDA"].ok)


def choose_adam(config: PretrainConfig, found: Findings) -> Choice:
    """The implementation of AdamW for the slow weights: the first that is here, or the one that is asked for."""
    wanted = config.optimizer.adam_implementation
    fused = {"transformer_engine": "Transformer Engine FusedAdam", "apex": "Apex FusedAdam"}
    torch = partial(Choice, "optimizer", "torch", "torch AdamW")
    if wanted == "torch":
        return torch("--adam-implementation torch")
    if config.engine.engine == "deepspeed":  # another one has been refused
        return torch("--engine deepspeed")
    missing = {name: _why_not(name, found) for name in fused}
    if wanted != "auto":
        reason = missing[wanted]
        if reason is None:
            return Choice("optimizer", wanted, fused[wanted], f"--adam-implementation {wanted}")
        return torch(reason, f"--adam-implementation {wanted}: {reason}; {_HOW_TO_GET[wanted]}, or use auto")
    for name, reason in missing.items():
        if reason is None:
            why = missing["transformer_engine"] or "--adam-implementation auto: the first choice"
            return Choice("optimizer", name, fused[name], why)
    if all(found[name].status == "absent" for name in fused):
        return torch("neither Transformer Engine nor Apex is installed")
    return torch("; ".join(str(reason) for reason in missing.values()))


def _why_not(name: str, found: Findings) -> str | None:
    """Why a library cannot be used here, None where it can."""
    one, shown = found[name], _NAMES[name]
    if one.status == "absent":
        return f"{shown} is not installed"
    if one.status == "broken":
        return f"{shown} is installed but does not work ({one.note})"
    if one.status == "foreign":
        return f"the package {name} is not NVIDIA's"
    return None if found["CUDA"].ok else f"{shown} needs CUDA, which is not available"
