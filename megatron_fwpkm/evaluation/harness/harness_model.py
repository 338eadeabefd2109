"""The model class `fwpkm` of lm-evaluation-harness: its Hugging Face class, but for what a memory changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from ...hf import FwPKMForCausalLM, FwPKMHFConfig
from .streaming import document_log_likelihoods


@register_model("fwpkm")
class FwPKMHarnessModel(HFLM):
    """An exported model in lm-evaluation-harness.

    A request has a memory of its own, whatever its neighbours in a batch are. `loglikelihood` and `generate_until` are
    the harness's own: they read the context and the answer as one text. `loglikelihood_rolling` reads a document of
    any length through one memory, which the next document does not see; the harness's own would begin anew every
    `max_length` tokens.

    Args:
        pretrained: folder of an export. Its model is that of this package; no code in the folder runs.
        memory: "on", "frozen" or "off", as `model.memory_mode`.
        segment: tokens of a call in `loglikelihood_rolling`; bounds its memory.
        **options: those of the harness's class `hf`. `max_length` is the longest text that attention sees, by default
            that of the model, or no limit where it has none.

    Raises:
        ValueError: a model of another kind, a mode or a segment that cannot be, or `batch_size=auto` with no limit.
    """

    _DEFAULT_MAX_LENGTH = 1 << 30  # a memory reads on; the harness's 2,048 would cut off what it could have read

    def __init__(self, pretrained: Any, *, memory: str = "on", segment: int = 2048, **options: Any) -> None:
        AutoConfig.register(FwPKMHFConfig.model_type, FwPKMHFConfig, exist_ok=True)
        AutoModelForCausalLM.register(FwPKMHFConfig, FwPKMForCausalLM, exist_ok=True)
        if segment < 1:
            raise ValueError(f"segment={segment} must be at least 1")
        super().__init__(pretrained, **{"backend": "causal", "trust_remote_code": False, **options})
        if not isinstance(self.model, FwPKMForCausalLM):
            raise ValueError(
                f"pretrained={pretrained} is a {type(self.model).__name__}, not a model of this package; use --model hf"
            )
        if self.batch_size == "auto" and self.max_length == self._DEFAULT_MAX_LENGTH:
            raise ValueError("batch_size=auto tries a text of max_length, which this model does not limit: set either")
        self.segment = segment
        self.model.memory_mode = memory
        self.model.model.memory_owner = self.model.generation_config.memory = "per-sequence"

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole documents, each read through a memory of its own.

        Args:
            requests: of the harness, each with a document as its only argument.
            disable_tqdm: show no progress.

        Returns:
            One number per request.
        """
        from tqdm import tqdm

        documents = [self.tok_encode(request.args[0]) for request in requests]
        order = sorted(range(len(documents)), key=lambda number: -len(documents[number]))  # neighbours of like length
        size = self._detect_batch_size() if self.batch_size == "auto" else self.batch_size
        found = [0.0] * len(documents)
        with tqdm(total=len(documents), disable=disable_tqdm or self.rank != 0, desc="Reading documents") as progress:
            for begin in range(0, len(order), size):
                chosen = order[begin : begin + size]
                values = document_log_likelihoods(
                    self.model, [documents[number] for number in chosen], self.prefix_token_id,
                    segment=self.segment, max_length=self.max_length,
                )  # fmt: skip
                for number, value in zip(chosen, values, strict=True):
                    found[number] = value
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, value)
                progress.update(len(chosen))
        return found
