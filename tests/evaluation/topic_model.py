"""A model whose losses are known: it expects the letters of the topics in its memory, all of them alike.

Tokens are bytes. A topic is a set of letters; the memory holds the topics that were read last, as many as it has room
for, and attention nothing. With K letters in the remembered topics a letter of them has loss log(K e^b + 256 - K) - b,
any other byte log(K e^b + 256 - K), where b is the boost.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer
from megatron_fwpkm.evaluation.model_loading import LoadedModel, ModelFacts

TOPICS = {"adg": 0, "beh": 1, "cf": 2}
"""The letter after one of the first topic is of the second: the causality check changes what is remembered."""
BOOST = 3.0


def byte_tokenizer() -> Tokenizer:
    return build_tokenizer(DataConfig(tokenizer_type="ByteLevelTokenizer"))


def facts(has_memory: bool = True) -> ModelFacts:
    return ModelFacts(byte_tokenizer(), None, has_memory, None)


class TopicCache:
    """The topics that were read, the last one at the end."""

    def __init__(self, known: list[int] | None = None) -> None:
        self.known = known or []

    def clone(self) -> TopicCache:
        return TopicCache(list(self.known))

    def end_text(self) -> None:
        """Nothing waits."""

    flush_memory = end_text


class TopicModel:
    """See the module; with `room` for so many topics."""

    def __init__(self, room: int = 2, boost: float = BOOST) -> None:
        self.config = SimpleNamespace(memory_layers=[0], to_dict=lambda: {"model_type": "topics"})
        self.memory_mode = "on"
        self.room, self.boost = room, boost
        self.vocabulary = byte_tokenizer().vocab_size
        self.topic_of = torch.full((self.vocabulary,), -1)
        for letters, topic in TOPICS.items():
            for letter in letters.encode():
                self.topic_of[byte_tokenizer().encode(chr(letter))[0]] = topic
        self.read_tokens = 0

    def new_cache(self) -> TopicCache:
        return TopicCache()

    def parameters(self):
        return iter([torch.zeros(1)])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.tensor([float(self.room), self.boost])}

    def __call__(self, input_ids, past_key_values, use_cache, logits_to_keep=0):
        rows, known = [], past_key_values.known
        for token in input_ids[0].tolist():
            topic = int(self.topic_of[token])
            if self.memory_mode == "on" and topic >= 0:
                known[:] = [*(one for one in known if one != topic), topic][-self.room :]
            seen = [] if self.memory_mode == "off" else known
            expected = torch.isin(self.topic_of, torch.tensor(seen, dtype=torch.int64))
            rows.append(self.boost * expected.double())
        self.read_tokens += len(rows)
        return SimpleNamespace(logits=torch.stack(rows)[-logits_to_keep:][None])

    def loss(self, letters: str, known: tuple[str, ...]) -> float:
        """Of a letter of a topic, with these topics in the memory."""
        size = sum(map(len, known))
        total = math.log(size * math.exp(self.boost) + self.vocabulary - size)
        return total - self.boost * (letters in known)


def load_topics(path: str, device: str) -> LoadedModel:
    """The model with room for two topics, wherever."""
    return LoadedModel(TopicModel(), byte_tokenizer())  # type: ignore[arg-type]
