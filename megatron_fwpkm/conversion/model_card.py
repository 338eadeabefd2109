"""The README of an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import __version__ as transformers_version

from ..config.layer_kind import Role
from ..config.layer_kinds import kinds_in_use, layers_of
from ..hf import FwPKMForCausalLM
from ..hf.transformers_range import NEWEST, OLDEST

if TYPE_CHECKING:
    from ..checkpoint.checkpoint_reader import CheckpointContents

_CARD = """---
library_name: transformers
pipeline_tag: text-generation{license_tag}{tags}
---

# {title}

A causal transformer. {summaries}

{parameters:,} trained parameters, {tables}hidden size {hidden}, {num_layers} layers, vocabulary size {vocabulary:,}.
Exported from iteration {iteration} of a megatron_fwpkm run with sequences of {length} tokens.{start}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
prompt = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))
```
{reading}
* A call with a cache streams: the logits do not depend on how a text is divided into calls. A call with
  `use_cache=False` computes exactly what training computes.
{memory}* Padding on either side does not change the results.{equal_lengths}
* Requires Transformers {oldest} to {newest}: older releases are refused, newer ones cause a warning.

## Training

{training}

## License

The code in this folder is that of megatron_fwpkm, under the Apache License 2.0 (`LICENSE`). {license}
"""
_READING = """
To read a document and ask about it later:

```python
document = tokenizer(open("document.txt").read(), return_tensors="pt")
cache = model.read(document.input_ids)  # the memory keeps the document; attention restarts
model.generate(**prompt, cache=cache, max_new_tokens=40)
cache.end_text()                        # before an unrelated prompt; the memory stays
```
"""
_MEMORY = """\
* `cache.flush_memory()` writes the tokens of an incomplete chunk; `cache.clone()` copies the memory; and
  `cache.reset_memory()` restores the initial memory.
* `model.memory_mode` is `"on"`, `"frozen"` (read, do not write) or `"off"` (read the initial memory).
* Every sequence of a batch has a memory of its own, and gives the same tokens as alone. `memory="shared"` (in the call,
  in `model.config` or in `model.generation_config`) gives all of them one, as in the paper.
* `cache.fork(8)` asks eight questions at once; `cache.save_pretrained(folder)` keeps what was read as a small file, and
  `type(cache).from_pretrained(folder, model)` brings it back.
"""


_NO_LICENSE = "No license of the weights was given."
_DRAWN = """

The files do not contain that memory: loading draws it as the run drew it, and refuses to load where another release of
torch or another kind of CPU draws different numbers (`fwpkm_drawn_tables` in `config.json` has their hash)."""


def model_card(contents: CheckpointContents, model: FwPKMForCausalLM, license: str | None = None) -> str:
    """Markdown that says what the model is and how to use it; of memories only where it has one.

    Args:
        contents: of the checkpoint.
        model: with or without numbers.
        license: of the weights, None where none is given.
    """
    config, trained = model.config, contents.config
    kinds = sorted(kinds_in_use(trained), key=lambda kind: kind.role is not Role.MEMORY)
    return _CARD.format(
        summaries=" ".join(filter(None, (kind.summary(trained, layers_of(trained, kind)) for kind in kinds))),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        iteration=contents.iteration,
        length=trained.model.seq_length,
        oldest=OLDEST,
        newest=NEWEST,
        training=_training(contents),
        license_tag="" if license is None else f"\nlicense: {license}",
        license=_NO_LICENSE if license is None else f"The weights are under: {license}.",
        **_of_memories([kind.name for kind in kinds if kind.role is Role.MEMORY], model),
    )


def _training(contents: CheckpointContents) -> str:
    """What the model was trained on, the last validation, and with which releases: what the checkpoint says of it."""
    data = contents.config.data
    blend = data.train_data_path or data.data_path
    names = ", ".join(f"`{Path(part).name}`" if _is_prefix(part) else part for part in blend)
    seen = f"{contents.consumed_tokens:,} tokens" if contents.consumed_tokens else "a number of tokens not recorded"
    lines = [f"* Data: {seen}" + (f" of {names}{' (weight, dataset)' if len(blend) > 1 else ''}." if names else ".")]
    if contents.validation is not None:
        loss, iteration = contents.validation["lm_loss"], contents.validation["iteration"]
        lines.append(f"* Evaluation: loss {loss:.4f} (nats per token) on the validation data at iteration {iteration}.")
    trained = "".join(f"{name} {number}, " for name, number in sorted(contents.versions.items()))
    exported = f"exported with torch {torch.__version__}, transformers {transformers_version}"
    lines.append(f"* Versions: {'trained with ' if trained else ''}{trained}{exported}.")
    return "\n".join(lines)


def _is_prefix(part: str) -> bool:
    """Whether a word of a blend is a dataset's prefix and not a weight."""
    try:
        float(part)
    except ValueError:
        return True
    return False


def _of_memories(names: list[str], model: FwPKMForCausalLM) -> dict[str, str]:
    """The parts of the card that are there for memories, by their places in it."""
    if not names:
        places = ("tags", "tables", "start", "reading", "memory", "equal_lengths")
        return {"title": "Language model", **dict.fromkeys(places, "")}
    start = "the initial memory" if model.config.fwpkm_memory == "initial" else "the memory at the end of training"
    return {
        "title": "Language model with fast weights",
        "tags": f"\ntags: [{', '.join([*names, 'fast-weights', 'long-context'])}]",
        "tables": f"{sum(buffer.numel() for buffer in model.buffers()):,} fast weights, ",
        "start": f" Every text\nstarts from {start}.{_DRAWN if model.config.fwpkm_drawn_tables else ''}",
        "reading": _READING,
        "memory": _MEMORY,
        "equal_lengths": " A shared memory requires rows of equal length.",
    }
