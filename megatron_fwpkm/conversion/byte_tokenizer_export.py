"""Tokenizers over bytes (tiktoken ranks, and the bytes themselves) as backends of the package tokenizers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config.tiktoken_file import TiktokenVocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tiktoken_backend(vocabulary: TiktokenVocabulary) -> Tokenizer:
    """A BPE tokenizer with the ids of `vocabulary`.

    Of all neighbours that join to a piece, tiktoken merges the ones with the lowest rank, leftmost first; BPE merges
    listed pairs in the order of the list, which holds every split of every piece by rank. That a piece may be listed
    with several splits makes no difference: nothing outside a piece takes part in the merges inside it, so when it is
    due, its bytes have been merged into the same two halves wherever it stands. Pieces that merges do not lead to are
    found as whole words only, as in tiktoken.

    Raises:
        ValueError: a special token that a text could spell; this form knows tokens by their spelling.
    """
    from tokenizers import Regex, pre_tokenizers

    special = vocabulary.special_ids()
    pieces, merges = _spelled(vocabulary.piece_ids())
    backend = _backend(pieces | special, merges, list(special))
    split = pre_tokenizers.Split(Regex(vocabulary.pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
    backend.model.ignore_merges = any(len(backend.model.tokenize(piece)) > 1 for piece in pieces)
    for name, number in special.items():
        text = backend.decoder.decode([name])
        if name in pieces or number in backend.encode(text, add_special_tokens=False).ids:
            raise ValueError(
                f"--tiktoken-special-tokens {name}: a text can contain this string, which a Transformers tokenizer "
                "cannot tell from the token itself; export with --no-tokenizer and use the file of ranks"
            )
    return backend


def byte_backend() -> Tokenizer:
    """The bytes of UTF-8 are the ids; 256 is named `</s>` and 257 `<s>`."""
    pieces, merges = _spelled({bytes([byte]): byte for byte in range(256)})
    return _backend(pieces | {"</s>": 256, "<s>": 257}, merges, ["</s>", "<s>"])


def class_difference(pattern: str) -> str | None:
    """A character class in `pattern` that tiktoken and tokenizers take for different characters, None if there is none.

    Each library has the Unicode tables of its release. Compared are the planes that have letters.
    """
    import tiktoken
    from tokenizers import Regex, pre_tokenizers

    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200)]))
    single = {bytes([byte]): byte for byte in range(256)}
    for kind in sorted(set(re.findall(r"\\p\{\w+\}|\\s", pattern))):
        encoding = tiktoken.Encoding(kind, pat_str=f"{kind}+", mergeable_ranks=single, special_tokens={})
        found = pre_tokenizers.Split(Regex(f"{kind}+"), "removed", invert=True).pre_tokenize_str(text)
        if bytes(encoding.encode_ordinary(text)).decode() != "".join(piece for piece, _ in found):
            return kind
    return None


def _spelled(ids: Mapping[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of the pieces, each byte spelled as a character, and the splits of all pieces in order of id."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        """Takes ranks instead of a file: the library caches files by name, and knows one form only."""

        load_tiktoken_bpe: Any = staticmethod(dict)

    found: tuple[dict[str, int], list[tuple[str, str]]] = Converter().extract_vocab_merges_from_model(ids)
    return found


def _backend(vocabulary: dict[str, int], merges: list[tuple[str, str]], special: list[str]) -> Tokenizer:
    """BPE over the bytes of a whole text."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    backend = Tokenizer(BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    backend.encode_special_tokens = True
    return backend
