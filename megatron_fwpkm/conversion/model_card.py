"""The README of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.layer_kind import Role
from ..config.layer_kinds import kinds_in_use, layers_of
from ..hf import FwPKMForCausalLM
from ..hf.transformers_range import NEWEST, OLDEST

if TYPE_CHECKING:
    from ..checkpoint.checkpoint_reader import CheckpointContents

_CARD = """---
library_name: transformers
pipeline_tag: text-generation{tags}
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
* The sequences of a batch would write to one memory and read each other's text from it. Such a call is refused unless
  `memory="shared"` is set (in the call, in `model.config` or in `model.generation_config`), as in the paper.
  Otherwise, use one call per sequence, or the mode `"frozen"` or `"off"`.
"""


_DRAWN = """

The files do not contain that memory: loading draws it as the run drew it, and refuses to load where another release of
torch or another kind of CPU draws different numbers (`fwpkm_drawn_tables` in `config.json` has their hash)."""


def model_card(contents: CheckpointContents, model: FwPKMForCausalLM) -> str:
    """Markdown that says what the model is and how to use it; of memories only where it has one."""
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
        **_of_memories([kind.name for kind in kinds if kind.role is Role.MEMORY], model),
    )


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
