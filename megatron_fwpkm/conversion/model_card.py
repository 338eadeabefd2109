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

A causal transformer with a Fast-weight Product Key Memory (arXiv 2601.00671), a sparse memory of {slots:,} slots before
the attention of layers {layers} (counted from 0). The model reads the memory for every token and updates it by gradient
descent after every {chunk} tokens, in inference too. {summaries}

{parameters:,} trained parameters, {tables:,} fast weights, hidden size {hidden}, {num_layers} layers, vocabulary size
{vocabulary:,}. Exported from iteration {iteration} of a megatron_fwpkm run with sequences of {length} tokens. Every
text starts from {start}.

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
cache = model.read(document.input_ids)  # the memory keeps the document; attention restarts
model.generate(**prompt, cache=cache, max_new_tokens=40)
cache.end_text()                        # before an unrelated prompt; the memory stays
```

* A call with a cache streams: the logits do not depend on how a text is divided into calls. A call with
  `use_cache=False` computes exactly what training computes.
* `cache.flush_memory()` writes the tokens of an incomplete chunk; `cache.clone()` copies the memory; and
  `cache.reset_memory()` restores the initial memory.
* `model.memory_mode` is `"on"`, `"frozen"` (read, do not write) or `"off"` (read the initial memory).
* The sequences of a batch would write to one memory and read each other's text from it. Such a call is refused unless
  `memory="shared"` is set (in the call, in `model.config` or in `model.generation_config`), as in the paper.
  Otherwise, use one call per sequence, or the mode `"frozen"` or `"off"`.
* Padding on either side does not change the results. A shared memory requires rows of equal length.
* Requires Transformers {oldest} to {newest}: older releases are refused, newer ones cause a warning.
"""


def model_card(contents: CheckpointContents, model: FwPKMForCausalLM) -> str:
    """Markdown that says what the model is and how to use it."""
    config = model.config
    trained = contents.config
    summaries = (kind.summary(trained, layers_of(trained, kind)) for kind in kinds_in_use(trained))
    start = "the initial memory" if config.fwpkm_memory == "initial" else "the memory at the end of training"
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
