"""The README of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.layer_kinds import kinds_in_use, layers_of
from ..hf import FwPKMForCausalLM
from ..hf.transformers_range import NEWEST, OLDEST

if TYPE_CHECKING:
    from ..checkpoint.checkpoint_reader import CheckpointContents

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [fwpkm, fast-weights, long-context]
---

# FwPKM language model

A causal transformer with a Fast-weight Product Key Memory (arXiv 2601.00671): a sparse table of {slots:,} slots before
the attention of layers {layers} (counted from 0), which is read for every token and rewritten by gradient descent after
every {chunk} tokens, in inference too. {summaries}

{parameters:,} trained parameters, {tables:,} numbers of memory, {hidden} wide, {num_layers} layers, {vocabulary:,}
pieces. Exported from iteration {iteration} of a megatron_fwpkm run with sequences of {length} tokens. Every text starts
from {start}.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
prompt = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))
```

To read a document and ask about it later:

```python
document = tokenizer(open("document.txt").read(), return_tensors="pt")
cache = model.read(document.input_ids)  # the document is in its memory; attention starts anew
model.generate(**prompt, cache=cache, max_new_tokens=40)
cache.end_text()                        # before a prompt that does not go on from the last one; the memory stays
```

* A call with a cache streams: however a text is cut into calls, the logits are the same. A call with `use_cache=False`
  is the arithmetic of training.
* `cache.flush_memory()` writes the tokens that wait for a full chunk; `cache.clone()` copies a memory,
  `cache.reset_memory()` puts the first one back.
* `model.memory_mode` is `"on"`, `"frozen"` (read, do not write) or `"off"` (read the memory of the start).
* Sequences of a batch would write one memory and read each other's text from it, so such a call is refused unless
  `memory="shared"` (of a call, `model.config` or `model.generation_config`) says that this is meant, as in the paper.
  Give each sequence a call of its own, or use `"frozen"` or `"off"`, which need nothing.
* Padding changes nothing, on either side. Only a shared memory needs rows of equal length.
* Made for Transformers {oldest} to {newest}: an older release is refused, a newer one is warned of.
"""


def model_card(contents: CheckpointContents, model: FwPKMForCausalLM) -> str:
    """Markdown that says what the model is and how to use it."""
    config = model.config
    trained = contents.config
    summaries = (kind.summary(trained, layers_of(trained, kind)) for kind in kinds_in_use(trained))
    start = "the memory before any write" if config.fwpkm_memory == "initial" else "the memory as training left it"
    return _CARD.format(
        slots=config.fwpkm_num_subkeys**2,
        layers=", ".join(map(str, config.fwpkm_layers)) or "none",
        chunk=config.fwpkm_chunk_size,
        summaries=" ".join(filter(None, summaries)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tables=sum(buffer.numel() for buffer in model.buffers()),
        hidden=config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        iteration=contents.iteration,
        length=contents.config.model.seq_length,
        start=start,
        oldest=OLDEST,
        newest=NEWEST,
    )
