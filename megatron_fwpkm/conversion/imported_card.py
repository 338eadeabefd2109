"""The README of a folder that was imported."""

from __future__ import annotations

from collections.abc import Sequence

from ..hf import FwPKMForCausalLM
from ..hf.mlp_fields import STATIC_MEMORY
from ..hf.transformers_range import NEWEST, OLDEST

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [fwpkm, fast-weights, long-context]
---

# FwPKM language model

A checkpoint that the authors of "Fast-weight Product Key Memory" (arXiv 2601.00671) released, with the code of
megatron_fwpkm. It has {layers} layers (token mixers: {mixers}), hidden size {hidden}, vocabulary size {vocabulary:,},
{parameters:,} trained parameters and {tables:,} fast weights. Counted from 0, layers with

- a fast-weight memory, which the model reads for every token and updates after every {chunk} tokens, in inference too:
  {memories}
- a static product key memory in the place of the MLP: {static}

With `fwpkm_write_scale` in `config.json` being `{scale}`, {consequence}.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)  # this folder
```

Every sequence of a batch has a memory of its own; `memory="shared"` gives all of them one, as in the paper. Requires
Transformers {oldest} to {newest}.
"""
_CONSEQUENCES = {
    "official": "a call with a cache computes what the authors' code\n"
    "computes: how a text is divided into calls changes the result, and a text that is read token by token is\n"
    "hardly written",
    "consistent": "the result does not depend on how a text is divided into calls; it is not that of the authors' code",
}


def imported_card(model: FwPKMForCausalLM) -> str:
    """Markdown that says what the model is, where it is from, and how to use it."""
    config = model.config
    static = [layer for layer, mlp in enumerate(config.mlps) if mlp == STATIC_MEMORY]
    return _CARD.format(
        layers=config.num_hidden_layers,
        mixers=", ".join(config.token_mixers),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tables=sum(buffer.numel() for buffer in model.buffers()),
        memories=_numbers(config.fwpkm_layers),
        static=_numbers(static),
        chunk=config.fwpkm_chunk_size,
        scale=config.fwpkm_write_scale,
        consequence=_CONSEQUENCES[config.fwpkm_write_scale],
        oldest=OLDEST,
        newest=NEWEST,
    )


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "(none)"
