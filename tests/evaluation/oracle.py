"""A model whose recall is known: it goes on as the text did before, as far as memory and window reach.

It has the streaming interface of the Hugging Face model. The memory holds whole chunks (and what a flush writes), the
window the last tokens. What neither holds it cannot know, so every protocol and control has an answer one can work out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.tokenizers import build_tokenizer
from megatron_fwpkm.evaluation.model_loading import LoadedModel

CHUNK = 64
WINDOW = 16


@dataclass(frozen=True)
class OracleOptions:
    """Tokens between two writes."""

    chunk_size: int


class OracleCache:
    """Written tokens, waiting tokens and the window."""

    def __init__(self, window: int | None) -> None:
        self.options = OracleOptions(CHUNK)
        self.written: list[int] = []
        self.pending: list[int] = []
        self.window: list[int] = []
        self.layers = [SimpleNamespace(sliding_window=window) if window else SimpleNamespace()]
        self.memory = {0: SimpleNamespace(owners=[self])}

    def flush_memory(self) -> None:
        self.written += self.pending
        self.pending = []

    def end_text(self) -> None:
        self.flush_memory()
        self.window = []

    def clone(self) -> OracleCache:
        twin = OracleCache(getattr(self.layers[0], "sliding_window", None))
        twin.options = self.options
        twin.written, twin.pending, twin.window = list(self.written), list(self.pending), list(self.window)
        return twin


class OracleModel:
    """Induction over what is remembered."""

    def __init__(self, vocab_size: int, *, window: int | None = WINDOW, peeks: bool = False) -> None:
        self.config = SimpleNamespace(
            vocab_size=vocab_size, fwpkm_layers=[0], memory_layers=[0], to_dict=lambda: {"model_type": "oracle"}
        )
        self.memory_mode = "on"
        self.window = window
        self.peeks = peeks
        self.calls: list[tuple[int, str]] = []

    def new_cache(self) -> OracleCache:
        return OracleCache(self.window)

    def parameters(self):
        return iter([torch.zeros(1)])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.zeros(1)}

    def __call__(self, input_ids, past_key_values, use_cache, logits_to_keep=0):
        assert input_ids.shape[0] == 1 and use_cache
        tokens = input_ids[0].tolist()
        self.calls.append((len(tokens), self.memory_mode))
        logits = torch.zeros(1, len(tokens), self.config.vocab_size)
        for position, token in enumerate(tokens):
            past_key_values.window.append(token)
            if self.window:
                past_key_values.window = past_key_values.window[-self.window :]
            if self.memory_mode == "on":
                past_key_values.pending.append(token)
                if len(past_key_values.pending) == past_key_values.options.chunk_size:
                    past_key_values.flush_memory()
            if logits_to_keep == 0 or position == len(tokens) - 1:
                logits[0, position, self._predict(past_key_values)] = 1.0
            if self.peeks and position + 1 < len(tokens):
                logits[0, position, tokens[position + 1]] += 2.0
        return SimpleNamespace(logits=logits)

    def _predict(self, cache: OracleCache) -> int:
        recent = cache.window[-4:]
        memories = [cache.window] if self.memory_mode == "off" else [cache.window, cache.written]
        for length in range(len(recent), 1, -1):
            wanted = recent[-length:]
            for memory in memories:
                for start in range(len(memory) - length - 1, -1, -1):
                    if memory[start : start + length] == wanted:
                        return memory[start + length]
        return sum(recent) % self.config.vocab_size


def load_oracle(path: str, device: str) -> LoadedModel:
    """The oracle with the tokenizer in a folder."""
    file = str(Path(path) / "tokenizer.model")
    tokenizer = build_tokenizer(DataConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=file))
    return LoadedModel(OracleModel(tokenizer.vocab_size + 3), tokenizer)  # type: ignore[arg-type]


def fail_to_load(path: str, device: str) -> LoadedModel:
    """A loader that refuses."""
    raise ValueError(f"cannot load {path}")
