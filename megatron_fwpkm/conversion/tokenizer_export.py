"""The tokenizer of a checkpoint in the form that Transformers loads offline, with the same ids for every text."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DataConfig
from ..config.tiktoken_file import read_tiktoken_file
from .byte_tokenizer_export import byte_backend, class_difference, tiktoken_backend
from .special_tokens import name_pad_token

if TYPE_CHECKING:
    import sentencepiece
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"
"""How SentencePiece writes a space inside a piece."""
CHECKED_TEXTS = 2000
"""Random texts that an export compares with the tokenizer of training before it trusts the conversion."""


def convert_tokenizer(path: Path | None, data: DataConfig, *, add_bos: bool = False) -> PreTrainedTokenizerFast | None:
    """Load the tokenizer copy of a checkpoint as a Transformers tokenizer; None for a NullTokenizer.

    A literal `</s>` in a text stays text, as in training. Ids are those of training for every text; with SentencePiece
    but for one that spells the name of a byte or control piece exactly between two user-defined pieces. Nothing is
    added to a text but BOS with `add_bos`; whatever a Hugging Face tokenizer itself would add is taken out, for
    training never added it. It has a pad token, an own one or one that no text needs (`choose_pad`).

    Args:
        path: a SentencePiece `.model`, a `tokenizer.json`, a folder that holds one, or tiktoken ranks; None for a kind
            without a file.
        data: the kind, and what it needs beside the file.
        add_bos: begin every text with BOS, as the documents of training did.

    Raises:
        ValueError: an unreadable file, or one that cannot be converted exactly.
    """
    tokenizer = _converted(path, data)
    if tokenizer is None:
        return None
    if add_bos and tokenizer.bos_token is None:
        raise ValueError(f"{path} has no BOS token, but the training documents began with one (--prepend-bos)")
    added = tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids
    if add_bos or added:
        tokenizer._add_eos_token = False
        tokenizer.add_bos_token = add_bos
    name_pad_token(tokenizer, bos_occurs=add_bos)
    return tokenizer


def _converted(path: Path | None, data: DataConfig) -> PreTrainedTokenizerFast | None:
    if data.tokenizer_type == "ByteLevelTokenizer":
        return _wrapped(byte_backend(), bos_token="<s>", eos_token="</s>")
    if path is None:
        return None
    if data.tokenizer_type == "TikTokenizer":
        return _from_tiktoken(path, data)
    return _from_sentencepiece(path) if data.tokenizer_type == "SentencePieceTokenizer" else _taken_over(path)


def save_tokenizer(
    path: Path | None, data: DataConfig, folder: Path, *, add_bos: bool = False
) -> PreTrainedTokenizerFast | None:
    """Write what `convert_tokenizer` makes of its arguments into an export folder, a SentencePiece file too;
    returns it."""
    converted = convert_tokenizer(path, data, add_bos=add_bos)
    if converted is not None:
        converted.save_pretrained(folder)
    if path is not None and data.tokenizer_type == "SentencePieceTokenizer":
        shutil.copyfile(path, folder / "tokenizer.model")
    return converted


def _wrapped(backend: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, split_special_tokens=True, clean_up_tokenization_spaces=False, **names
    )


def _taken_over(path: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    if path.is_dir():
        loaded = PreTrainedTokenizerFast.from_pretrained(path)
        loaded.split_special_tokens = True
        return loaded
    return PreTrainedTokenizerFast(tokenizer_file=str(path), split_special_tokens=True)


def _from_tiktoken(path: Path, data: DataConfig) -> PreTrainedTokenizerFast:
    try:
        import tiktoken
    except ImportError as error:
        raise ValueError(
            "converting a TikTokenizer requires the package tiktoken, which is not installed: pip install tiktoken"
        ) from error
    vocabulary = read_tiktoken_file(path, data)
    backend = tiktoken_backend(vocabulary)
    if (kind := class_difference(vocabulary.pattern)) is not None:
        raise ValueError(
            f"{path} cannot be converted exactly: tiktoken {version('tiktoken')} and tokenizers "
            f"{version('tokenizers')} have different Unicode tables for {kind}; install releases that agree, or export "
            "with --no-tokenizer"
        )
    special = vocabulary.special_ids()
    encoding = tiktoken.Encoding(
        path.stem, pat_str=vocabulary.pattern, mergeable_ranks=vocabulary.piece_ids(), special_tokens=special
    )
    parts = [*special, *(piece.decode("utf-8", "ignore") for piece in vocabulary.pieces)]
    _check_alike(path, parts, encoding.encode_ordinary, encoding.decode, backend)
    return _wrapped(backend, eos_token="</s>", **({"bos_token": "<s>"} if "<s>" in special else {}))


def _from_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    import sentencepiece

    blob = path.read_bytes()
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    backend = _backend(blob, path)
    named = [token for token in range(processor.get_piece_size()) if not _is_only_a_name(processor, token)]
    pieces = [processor.id_to_piece(token).replace(SPACE, " ") for token in named]
    _check_alike(path, pieces, processor.encode, processor.decode, backend)
    special = {
        "unk_token": processor.unk_id(), "bos_token": processor.bos_id(), "eos_token": processor.eos_id(),
        "pad_token": processor.pad_id(),
    }  # fmt: skip
    names = {name: processor.id_to_piece(token) for name, token in special.items() if token >= 0}
    return _wrapped(backend, **names)


def _backend(blob: bytes, path: Path) -> Tokenizer:
    """A BPE tokenizer with SentencePiece's pieces, merges, normalization and decoding."""
    from sentencepiece import sentencepiece_model_pb2 as schema
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from transformers.tokenization_utils_base import generate_merges

    model = schema.ModelProto.FromString(blob)
    if model.trainer_spec.model_type != schema.TrainerSpec.BPE:
        raise ValueError(
            f"{path} is not a BPE model, the only kind of SentencePiece model that can be converted; export with "
            "--no-tokenizer"
        )
    kinds = schema.ModelProto.SentencePiece
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces}
    # Control, unknown, byte and user-defined pieces never come out of merges, whatever the text spells.
    unmerged = [piece.piece for piece in model.pieces if piece.type != kinds.NORMAL]
    unknown = next(piece.piece for piece in model.pieces if piece.type == kinds.UNKNOWN)
    defined = sorted((piece.piece for piece in model.pieces if piece.type == kinds.USER_DEFINED), key=len, reverse=True)
    merges = generate_merges(vocabulary, scores, unmerged)
    backend = Tokenizer(
        BPE(
            vocabulary, merges, unk_token=unknown, fuse_unk=True, ignore_merges=bool(defined),
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )  # fmt: skip
    backend.normalizer = normalizers.Sequence(_normalizers(model.normalizer_spec))
    if defined:
        # Cut out first and then looked up whole: no merges lead to them.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, defined))), "isolated")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        if model.normalizer_spec.add_dummy_prefix
        else [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [piece.piece for piece in model.pieces if piece.type in (kinds.CONTROL, kinds.UNKNOWN)]
    backend.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    backend.encode_special_tokens = True
    return backend


def _normalizers(spec: Any) -> list[Any]:
    """SentencePiece's normalization, step by step."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _check_alike(
    path: Path,
    pieces: Sequence[str],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    backend: Tokenizer,
) -> None:
    """Raise ValueError if the two disagree on a text spelled from pieces and characters that are apt to go wrong."""
    draw = random.Random(0)
    apt = [*"aeinorst  019.,'\n\t</>é漢😀", "  ", "\u00a0", SPACE]
    for _ in range(CHECKED_TEXTS):
        text = "".join(draw.choice(draw.choice([pieces, apt])) for _ in range(draw.randint(1, 24)))
        ids = encode(text)
        if backend.encode(text, add_special_tokens=False).ids != ids or backend.decode(ids) != decode(ids):
            raise ValueError(
                f"{path} cannot be converted exactly: the original and the converted tokenizer split {text!r} "
                "differently; export with --no-tokenizer and use the file itself"
            )


def _is_only_a_name(processor: sentencepiece.SentencePieceProcessor, token: int) -> bool:
    """Whether the piece stands for something other than its spelling."""
    return processor.is_byte(token) or processor.is_control(token) or processor.is_unknown(token)
