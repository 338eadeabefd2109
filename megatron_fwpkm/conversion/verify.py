"""Is an export the model that was trained? Both run on the same tokens; and the export runs in pieces and whole."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import ImplementationConfig, ParallelConfig
from ..config.memories import memory_kinds, memory_numbers
from ..hf import FwPKMForCausalLM
from .convert_options import StartingMemory
from .export import checkpoint_contents, hf_model_from_checkpoint
from .export_reading import read_export_config
from .exported_weights import fast_weights
from .near_ties import first_near_tie
from .special_tokens import special_tokens_fit
from .weight_files import DTYPES

if TYPE_CHECKING:
    from ..checkpoint.checkpoint_reader import CheckpointContents

EXACT_TOLERANCE = 1e-9
"""Of two computations of the same logits in float64."""
SAMPLE_TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of "
    "some one or other of their daughters."
)
"""Text for the tokenizer where --text gives none (Jane Austen, 1813)."""


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference of two sets of logits, relative to the largest logit if that exceeds 1."""

    name: str
    tokens: int
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within the tolerance."""
        return self.difference <= self.tolerance

    def row(self) -> str:
        """One line of the report."""
        verdict = "ok" if self.passed else "FAILED"
        return f"{self.name:<40} {self.tokens:>7} tokens   {self.difference:9.2e}   <= {self.tolerance:.0e}   {verdict}"


def verify(
    checkpoint: str | Path,
    export: str | Path,
    *,
    lengths: Sequence[int] | None = None,
    text: str | None = None,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> list[Check]:
    """Compare an export with its checkpoint. Megatron's parallel state must be initialised for one process.

    Logits of the Megatron model in its training arithmetic against those of the export without a cache, on random
    and on real tokens, in float64 (is it the same function?) and in float32 (as it is used); then the export streaming
    in pieces against one call, and its greedy `generate` against the logits. An export in half precision is compared
    after rounding the checkpoint's weights in the same way.

    In float32 the comparison ends where two sub-keys or slots are so nearly equally far that rounding decides which of
    them is read: from there on both models go their own, equally right, ways.

    Args:
        checkpoint: checkpoint folder, or a run's --save folder.
        export: folder written by `export`.
        lengths: tokens of the comparisons; default around the borders of chunks, up to the training length.
        text: real text; default a few sentences.
        tolerance: of the comparisons with Megatron.
        seed: of the random tokens.

    Returns:
        Every comparison, passed or not; `tokens` says how many were compared.

    Raises:
        ValueError: one of the two cannot be read, or they cannot belong together.
    """
    if not (Path(export) / "config.json").is_file():
        raise ValueError(f"{export} contains no config.json; set --export to an exported folder")
    config = read_export_config(Path(export))
    contents = checkpoint_contents(checkpoint, config.fwpkm_replica or 0)
    exported = config.fwpkm_iteration
    if exported not in (None, contents.iteration):
        raise ValueError(
            f"{export} was exported from iteration {exported}, but {contents.path} is iteration {contents.iteration}; "
            f"set --checkpoint to the folder iter_{exported:07d}, or export again"
        )
    model, tokenizer = hf_model_from_checkpoint(export)
    _check_kinship(contents, model)
    checks: list[Check] = []
    generator = torch.Generator().manual_seed(seed)
    chosen = _default_lengths(contents) if lengths is None else list(lengths)
    streams = [
        (f"random tokens, {length}", torch.randint(contents.vocab_size, (1, length), generator=generator))
        for length in chosen
    ]
    if tokenizer is not None:
        ids = tokenizer(text or SAMPLE_TEXT, return_tensors="pt").input_ids[:, : max(chosen)]
        streams.append(("real text", ids))
        fit = special_tokens_fit(contents, model.config, tokenizer)
        checks.append(Check("special tokens (BOS, EOS, padding)", ids.shape[1], 0.0 if fit else 1.0, 0.0))
    description = json.loads((Path(export) / "config.json").read_text(encoding="utf-8"))
    memory: StartingMemory = "trained" if model.config.fwpkm_memory == "trained" else "initial"
    rounding = DTYPES[description.get("dtype") or "float32"]
    exact = copy.deepcopy(model).double()
    for compute, tried in ((torch.float64, exact), (torch.float32, model)):
        forward = megatron_forward(contents, memory, rounding, compute)
        for name, ids in streams:
            single = compute == torch.float32
            compared = first_near_tie(exact, ids) if single else ids.shape[1]
            difference = _distance(forward(ids)[:, :compared], _plain(tried, ids)[:, :compared])
            label = f"Megatron, {str(compute).removeprefix('torch.')}, {name}"
            checks.append(Check(label, compared, difference, tolerance if single else EXACT_TOLERANCE))
    return [*checks, *_self_checks(exact, streams[-1][1])]


def exported_from(export: str | Path) -> str:
    """One line that says what an export is of: iteration, and fast weights.

    Raises:
        ValueError: its configuration cannot be read.
    """
    config = read_export_config(Path(export))
    iteration = "an unknown iteration" if config.fwpkm_iteration is None else f"iteration {config.fwpkm_iteration}"
    if not config.memory_layers:
        return f"export of {iteration}"
    of_replica = f" of replica {config.fwpkm_replica}" if config.fwpkm_replica is not None else ""
    where = "" if config.fwpkm_drawn_tables is None else ", which are drawn at loading"
    return f"export of {iteration}, {config.fwpkm_memory} fast weights{of_replica}{where}"


def megatron_forward(
    contents: CheckpointContents, memory: StartingMemory, rounding: torch.dtype, compute: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """The trained model as a function of tokens [1, T] to logits [1, T, vocab_size].

    Args:
        contents: of the checkpoint.
        memory: what every call starts from.
        rounding: the weights are rounded to this dtype first.
        compute: float32 or float64.

    Raises:
        ValueError: the weights do not fit the checkpoint's configuration.
    """
    from ..models.builder import build_model, memory_layers, preserve_fast_weights

    config = contents.config
    local = ImplementationConfig(transformer_impl="local")  # computes in float32 on any device
    training = replace(config.training, bf16=False)
    single = replace(config, parallel=ParallelConfig(), training=training, implementation=local)
    trained = build_model(single, contents.padded_vocab_size).eval()
    slow = {
        name: tensor.to(rounding).float() for name, tensor in contents.slow.items() if not name.endswith("_extra_state")
    }
    problems = trained.load_state_dict(slow, strict=False)
    missing = [name for name in problems.missing_keys if not name.endswith("_extra_state")]
    if missing or problems.unexpected_keys:
        raise ValueError(
            f"{contents.path} does not match its configuration: missing tensors {missing}, unexpected tensors "
            f"{problems.unexpected_keys}"
        )
    for layer in memory_layers(trained):
        tables = fast_weights(contents, layer.layer_number, memory)
        layer.load_fast_weights(layer.fast_weights().with_tables(tables, None))
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    trained.to(device, compute)
    for layer in memory_layers(trained):  # whose tables no conversion touches
        for name, table in layer.fast_weights().tables().items():
            setattr(layer, name, table.to(compute))

    def forward(ids: Tensor) -> Tensor:
        """Logits of [B, T] ids on the CPU, without the padded vocabulary."""
        positions = torch.arange(ids.shape[1], device=device).unsqueeze(0)
        with torch.no_grad(), preserve_fast_weights(trained):
            logits = trained(ids.to(device), positions, None)
        return logits[..., : contents.vocab_size].cpu()

    return forward


def _default_lengths(contents: CheckpointContents) -> list[int]:
    limit = contents.config.model.seq_length
    memories = [memory.options for memory in memory_kinds(contents.config)] or [contents.config.fwpkm]
    wanted = {1}
    for memory in memories:
        chunk = memory.chunk_size
        wanted |= {chunk, chunk + 1, 2 * chunk + memory.lookahead, min(5 * chunk + 3, max(limit, 2 * chunk + 1))}
    return sorted(wanted)


def _check_kinship(contents: CheckpointContents, model: FwPKMForCausalLM) -> None:
    config = contents.config
    ours = (config.model.num_layers, config.model.hidden_size, contents.vocab_size, len(memory_numbers(config)))
    hf = model.config
    theirs = (hf.num_hidden_layers, hf.hidden_size, hf.vocab_size, len(hf.memory_layers))
    if ours != theirs:
        raise ValueError(
            f"{contents.path} and the export are different models: (layers, hidden size, vocabulary size, memories) is "
            f"{ours} in the checkpoint and {theirs} in the export"
        )


def _plain(model: FwPKMForCausalLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def _self_checks(exact: FwPKMForCausalLM, ids: Tensor) -> list[Check]:
    """Streaming in pieces equals one call, and generate equals its logits; `exact` is in float64."""
    length = ids.shape[1]

    def streamed(cuts: Sequence[int]) -> Tensor:
        """Logits of the text, read in pieces between the cuts."""
        cache = exact.new_cache()
        with torch.no_grad():
            return torch.cat([exact(ids[:, a:b], past_key_values=cache).logits for a, b in pairwise(cuts)], 1)

    whole = streamed([0, length])
    cuts = sorted({0, 1, length // 3, length // 2 + 1, length})
    checks = [
        Check("streaming in pieces", length, _distance(streamed(cuts), whole), EXACT_TOLERANCE),
        Check("streaming token by token", length, _distance(streamed(range(length + 1)), whole), EXACT_TOLERANCE),
    ]
    mask = torch.ones_like(ids)
    generated = exact.generate(
        ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None
    )
    with torch.no_grad():
        chosen = exact(generated[:, :-1]).logits[:, length - 1 :].argmax(-1)
    wrong = (chosen != generated[:, length:]).float().mean().item()
    return [*checks, Check("generate() against the logits", generated.shape[1], wrong, 0.0)]


def _distance(left: Tensor, right: Tensor) -> float:
    if not right.numel():
        return 0.0
    scale = max(1.0, right.abs().max().item())
    difference = ((left - right).abs().max() / scale).item()
    return difference if difference == difference else float("inf")
