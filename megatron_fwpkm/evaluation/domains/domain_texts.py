"""The texts of domains as tokens: a part to adapt to, and a part that is held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...data.tokenizers import Tokenizer
from ..text_files import read_text_file
from .domain_settings import Domain, DomainSettings

FLAG = "--domain"


@dataclass(frozen=True)
class DomainTexts:
    """The documents of a domain; each begins with BOS where the model's documents do."""

    name: str
    adapt: tuple[np.ndarray, ...]
    """int64 [N] each."""
    held_out: tuple[np.ndarray, ...]
    """int64 [N] each, with N at least 2."""

    @property
    def adapt_tokens(self) -> int:
        """Tokens that are read when the domain is adapted to, once."""
        return sum(map(len, self.adapt))


def load_domains(settings: DomainSettings, tokenizer: Tokenizer, bos: int | None) -> list[DomainTexts]:
    """Read, tokenize and divide the texts: of every document the end is held out.

    Raises:
        ValueError: a file cannot be read, or a domain has too few tokens for its two parts.
    """
    return [_load(settings, domain, tokenizer, bos) for domain in settings.domains]


def _load(settings: DomainSettings, domain: Domain, tokenizer: Tokenizer, bos: int | None) -> DomainTexts:
    begin = np.asarray([] if bos is None else [bos], dtype=np.int64)
    adapt, held_out = [], []
    for path in domain.files:
        ids = np.asarray(tokenizer.encode(read_text_file(FLAG, path)), dtype=np.int64)
        border = round(len(ids) * (1 - settings.held_out))
        adapt.append(ids[:border])
        held_out.append(ids[border:])
    adapt, held_out = _first(adapt, settings.adapt_tokens), _first(held_out, settings.held_out_tokens)
    measured = [np.concatenate([begin, ids]) for ids in held_out]
    read = tuple(np.concatenate([begin, ids]) for ids in adapt if len(ids))
    predicted = tuple(tokens for tokens in measured if len(tokens) > 1)
    if not read or not predicted:
        raise ValueError(
            f"{FLAG} {domain.name} has too little text for --held-out {settings.held_out}: "
            f"{sum(map(len, adapt))} tokens to adapt to and {sum(map(len, held_out))} to measure"
        )
    return DomainTexts(domain.name, read, predicted)


def _first(documents: list[np.ndarray], most: int | None) -> list[np.ndarray]:
    """The documents up to so many tokens of all together."""
    if most is None:
        return documents
    kept = []
    for document in documents:
        kept.append(document[:most])
        most -= len(kept[-1])
    return kept
