"""What a Hugging Face `tokenizer.json` must be so that gigatoken gives its tokens. Free of torch.

Gigatoken ignores much of what it does not know, so everything that decides tokens is looked at here; what is not on
these lists is refused by its name.
"""

from __future__ import annotations

import json
import re
from typing import Any

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_SIGNS, _SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

SPLITS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": "|".join((_CONTRACTIONS, _LETTERS, r"\p{N}{1,3}", _SIGNS, _SPACES)),
    "qwen2": "|".join((_CONTRACTIONS, _LETTERS, r"\p{N}", _SIGNS, _SPACES)),
    "o200k": "|".join((*(f"{cased}{_CONTRACTIONS}?" for cased in _CASED), r"\p{N}{1,3}", _SIGNS_AND_SLASHES, _SPACES)),
    "nemotron": "|".join((*_CASED, r"\p{N}", _SIGNS_AND_SLASHES, _SPACES)),
}
"""The regular expressions whose words gigatoken cuts as Hugging Face does, by the models that they are known from."""
_PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTE_SPELLING = {byte: chr(byte) for byte in _PRINTED} | {
    byte: chr(256 + number) for number, byte in enumerate(sorted(set(range(256)).difference(_PRINTED)))
}
"""The characters by which a vocabulary spells the bytes."""
_BYTE_CHARACTERS = set(BYTE_SPELLING.values())
NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_EVERYTHING = (("Isolated", False), ("Removed", True))
"""Behavior and invert of a split that keeps every match as a word; the regular expressions above match all text."""


_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_PIECE = rb'"(?:[!#-\[\]-~]++|\\["\\]|\xc2[\xa1-\xac\xae-\xbf]|[\xc3\xc4][\x80-\xbf]|\xc5[\x80-\x83])*+"'
"""A string of _BYTE_CHARACTERS."""
_MERGE = rb"(?:%b|\[\s*%b\s*,\s*%b\s*\])" % ((_STRING,) * 3)
_VOCAB = re.compile(rb'"vocab"\s*:\s*(\{(?:\s*%b\s*:\s*\d++\s*,?)*+\s*\})' % _PIECE)
_MERGES = re.compile(rb'"merges"\s*:\s*(\[(?:\s*%b\s*,?)*+\s*\])' % _MERGE)


def split_tables(raw: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    """The contents of a tokenizer.json without vocabulary and merges, and these two as JSON.

    As Python objects they take ten times the memory, of which much is not given back, and half the time of loading. A
    vocabulary with pieces that are not spelled by byte characters loses these: gigatoken would take them for the bytes
    of a text.
    """
    vocab, merges = _VOCAB.search(raw), _MERGES.search(raw)
    if vocab is None or merges is None:  # such pieces, another model, or another way of writing
        description = json.loads(raw)
        model = description["model"]
        pieces = model["vocab"] if isinstance(model.get("vocab"), dict) else {}
        pieces = {piece: number for piece, number in pieces.items() if _BYTE_CHARACTERS.issuperset(piece)}
        tables = json.dumps(pieces, ensure_ascii=False).encode(), json.dumps(model.get("merges") or []).encode()
        description["model"] = {name: value for name, value in model.items() if name not in ("vocab", "merges")}
        return description, *tables
    rest, end = b"", 0
    for table in sorted((vocab, merges), key=re.Match.start):
        rest, end = rest + raw[end : table.start(1)] + b"null", table.end(1)
    narrow = (table[1].replace(b"  ", b"") for table in (vocab, merges))  # no piece has two spaces
    return json.loads(rest + raw[end:]), *narrow


def check_tokenizer_json(description: dict[str, Any], vocab: bytes) -> None:
    """Raises ValueError for what gigatoken would not encode as Hugging Face's library does, by its name."""
    for name in ("truncation", "padding"):
        if description.get(name):
            raise ValueError(f"the tokenizer has {name}, which is not supported")
    normal_form(description)
    _check_pre_tokenizer(description.get("pre_tokenizer"))
    _check_post_processor(description.get("post_processor"))
    _check_model(description["model"], vocab)


def normal_form(description: dict[str, Any]) -> str | None:
    """The Unicode normal form that texts are brought to, None without. Raises ValueError for other normalizers."""
    normalizer = description.get("normalizer")
    if normalizer is None or (normalizer["type"] == "Sequence" and not normalizer["normalizers"]):
        return None
    if normalizer["type"] == "Sequence" and len(normalizer["normalizers"]) == 1:
        normalizer = normalizer["normalizers"][0]
    if normalizer["type"] not in NORMAL_FORMS:
        raise ValueError(f"normalizer {normalizer['type']} is not supported")
    return str(normalizer["type"])


def text_tokens(description: dict[str, Any]) -> list[str]:
    """Added tokens that are found in a text, as control tokens are not. Raises ValueError where most texts have one."""
    found = [str(token["content"]) for token in description.get("added_tokens") or () if not token.get("special")]
    if common := [content for content in found if not content.strip() or len(content) < 3]:
        raise ValueError(f"added token {common[0]!r} is not supported: most texts have it")
    return found


def gigatoken_json(description: dict[str, Any], vocab: bytes, merges: bytes) -> bytes:
    """The description for texts that are normalized and have no added token."""
    steps = _steps(description["pre_tokenizer"], "pretokenizers")
    pre_tokenizer = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    ignore_merges = b"true" if description["model"].get("ignore_merges") else b"false"
    return b'{"pre_tokenizer":%b,"model":{"type":"BPE","ignore_merges":%b,"vocab":%b,"merges":%b}}' % (
        json.dumps(pre_tokenizer).encode(), ignore_merges, vocab, merges
    )  # fmt: skip


def ranks_json(pieces: list[bytes], split: str) -> dict[str, Any]:
    """The description of tiktoken's ranks: a word that is a piece is its token, and of others any two neighbours that
    make a piece are merged, the lowest rank first."""
    spelled = [piece.decode("latin1").translate(BYTE_SPELLING) for piece in pieces]
    vocab = {piece: rank for rank, piece in enumerate(spelled)}
    merges = [
        (piece[:at], piece[at:])
        for piece in spelled
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    steps = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": True},
    }


def _check_pre_tokenizer(pre_tokenizer: dict[str, Any] | None) -> None:
    steps = _steps(pre_tokenizer, "pretokenizers")
    kinds = [step["type"] for step in steps]
    if unknown := [kind for kind in kinds if kind not in ("Split", "ByteLevel")]:
        raise ValueError(f"pre-tokenizer {unknown[0]} is not supported")
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise ValueError(
            f"the pre-tokenizer is {', '.join(kinds) or 'missing'}; only ByteLevel, with at most one Split before it, "
            "is supported"
        )
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space", True):
        raise ValueError("pre-tokenizer ByteLevel with add_prefix_space is not supported")
    if byte_level.get("use_regex", True) != (len(steps) == 1):
        raise ValueError("pre-tokenizer ByteLevel must split by its regular expression when it is alone, and only then")
    for split in steps[:-1]:
        if (split.get("behavior"), bool(split.get("invert"))) not in _EVERYTHING:
            raise ValueError(f"pre-tokenizer Split with behavior {split.get('behavior')} is not supported")
        pattern = split.get("pattern", {})
        if pattern.get("Regex") not in SPLITS.values():
            raise ValueError(
                f"the pre-tokenizer cuts words by {pattern.get('Regex', pattern)!r}; only the regular expressions of "
                f"{', '.join(SPLITS)} are supported"
            )


def _check_post_processor(post_processor: dict[str, Any] | None) -> None:
    known = ("ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing")
    for step in _steps(post_processor, "processors"):
        if step["type"] not in known:
            raise ValueError(f"post-processor {step['type']} is not supported")


def _check_model(model: dict[str, Any], vocab: bytes) -> None:
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"the model is {model['type']}, not BPE")
    for name in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"the model has {name}, which is not supported")
    if missing := sum(not _has_piece(vocab, byte) for byte in _BYTE_CHARACTERS):
        raise ValueError(f"the vocabulary has no piece for {missing} of the 256 bytes")


def _has_piece(vocab: bytes, piece: str) -> bool:
    """Whether a vocabulary as JSON has a piece: a name, and not the end of one with a quotation mark in it."""
    name = re.escape(json.dumps(piece, ensure_ascii=False).encode())
    return re.search(rb"[{,]\s*" + name + rb"\s*:", vocab) is not None


def _steps(component: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for part in component[name] for step in _steps(part, name)]
