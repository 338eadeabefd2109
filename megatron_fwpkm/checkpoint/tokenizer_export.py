"""The tokenizer of a checkpoint in the form that Transformers loads offline, with the same ids for every text."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sentencepiece
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"
"""How SentencePiece writes a space inside a piece."""
CHECKED_TEXTS = 2000
"""Random texts that an export compares with SentencePiece before it trusts the conversion."""


def convert_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer copy of a checkpoint as a Transformers tokenizer.

    A literal `</s>` in a text stays text, as in training; nothing is added to a text. Ids are SentencePiece's for every
    text, but for one that spells the name of a byte or control piece exactly between two user-defined pieces.

    Args:
        path: a SentencePiece `.model`, a `tokenizer.json`, or a folder that holds one.

    Raises:
        ValueError: an unreadable file, or a SentencePiece model that cannot be converted exactly.
    """
    from transformers import PreTrainedTokenizerFast

    if path.is_dir():
        loaded = PreTrainedTokenizerFast.from_pretrained(path)
        loaded.split_special_tokens = True
        return loaded
    if path.suffix == ".json":
        return PreTrainedTokenizerFast(tokenizer_file=str(path), split_special_tokens=True)
    return _from_sentencepiece(path)


def save_tokenizer(path: Path, folder: Path) -> None:
    """Write the tokenizer at `path` (see :func:`convert_tokenizer`) into an export folder, with its source file."""
    convert_tokenizer(path).save_pretrained(folder)
    if path.suffix == ".model":
        shutil.copyfile(path, folder / "tokenizer.model")


def _from_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    import sentencepiece
    from transformers import PreTrainedTokenizerFast

    blob = path.read_bytes()
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    backend = _backend(blob, path)
    wrong = _first_difference(processor, backend)
    if wrong is not None:
        raise ValueError(
            f"{path} cannot be converted exactly: SentencePiece and its conversion split {wrong!r} differently; "
            "export with --no-tokenizer and use the SentencePiece file itself"
        )
    special = {"unk_token": processor.unk_id(), "bos_token": processor.bos_id(), "eos_token": processor.eos_id()}
    names = {name: processor.id_to_piece(token) for name, token in special.items() if token >= 0}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, split_special_tokens=True, clean_up_tokenization_spaces=False, **names
    )


def _backend(blob: bytes, path: Path) -> Tokenizer:
    """A BPE tokenizer with SentencePiece's pieces, merges, normalization and decoding."""
    from sentencepiece import sentencepiece_model_pb2 as schema
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from transformers.tokenization_utils_base import generate_merges

    model = schema.ModelProto.FromString(blob)
    if model.trainer_spec.model_type != schema.TrainerSpec.BPE:
        raise ValueError(f"{path} is a SentencePiece model of another kind than BPE; export with --no-tokenizer")
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


def _first_difference(processor: sentencepiece.SentencePieceProcessor, backend: Tokenizer) -> str | None:
    """A text on which the two disagree, or None: spelled from pieces and characters that are apt to go wrong."""
    draw = random.Random(0)
    named = [token for token in range(processor.get_piece_size()) if not _is_only_a_name(processor, token)]
    pieces = [processor.id_to_piece(token).replace(SPACE, " ") for token in named]
    parts = [*pieces, *"aeinorst  019.,'\n\t</>é漢😀", "  ", "\u00a0", SPACE]
    for _ in range(CHECKED_TEXTS):
        text = "".join(draw.choice(parts) for _ in range(draw.randint(1, 24)))
        ids = processor.encode(text)
        if backend.encode(text, add_special_tokens=False).ids != ids or backend.decode(ids) != processor.decode(ids):
            return text
    return None


def _is_only_a_name(processor: sentencepiece.SentencePieceProcessor, token: int) -> bool:
    """Whether the piece stands for something other than its spelling."""
    return processor.is_byte(token) or processor.is_control(token) or processor.is_unknown(token)
