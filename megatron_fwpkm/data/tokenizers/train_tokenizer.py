"""Train a SentencePiece BPE tokenizer: every text can be written (byte fallback), every digit is its own piece,
deterministic.

The work of tools/train_tokenizer.py. Free of torch.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...config import DataConfig
from ...config.tool_options import Flag, Metavar
from ..corpus.input_files import STDIN, CorpusFile, corpus_blocks, open_corpus
from ..corpus.json_keys import check_json_keys
from ..corpus.records import BadRecord, Record, records
from ..output_prefix import check_output_prefix
from ..progress_report import ProgressReport
from .build import build_tokenizer
from .sentencepiece_tokenizer import SentencePieceTokenizer

MAX_SENTENCE = 4000
"""Bytes of the longest piece of text handed to SentencePiece, which drops longer ones silently."""
REPORT_BYTES = 8 << 20
"""Text that the closing report is measured on."""
_MOST_PIECES = 1 << 24
"""More than any tokenizer has; SentencePiece sets a place aside for each before it looks at the text."""

Normalization = Literal["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"]


@dataclass(frozen=True)
class TokenizerOptions:
    """What tools/train_tokenizer.py is asked for; names as its flags."""

    inputs: Annotated[tuple[str, ...], Flag("--input"), Metavar("PATH")]
    """files, patterns or folders; jsonl, JSON arrays, txt or parquet; plain, gzip, bzip2, xz or zstd"""
    output_prefix: Annotated[str, Metavar("PREFIX")]
    """writes PREFIX.model and PREFIX.vocab"""
    vocab_size: int
    """vocabulary size, including special tokens"""
    character_coverage: Annotated[float, Metavar("SHARE")] = 0.9995
    """fraction of the corpus's characters that get a piece; the rest are encoded as bytes"""
    extra_pieces: Annotated[tuple[str, ...], Metavar("PIECE")] = ()
    """strings that always become one piece"""
    json_keys: Annotated[tuple[str, ...], Flag("--json-keys", ("--json-key",)), Metavar("KEY")] = ("text",)
    """JSON keys of the text; the tokenizer learns from all of them; a.b is key b inside a; 'text|body' is the first of
    these keys that holds text"""
    normalization: Normalization = "identity"
    """identity keeps every character; the others change characters and merge white space"""
    sample_fraction: Annotated[float, Metavar("SHARE")] = 1.0
    """fraction of the documents to train on, chosen by hash; for corpora larger than memory"""
    on_error: Literal["fail", "skip"] = "fail"
    """what to do with a bad record: stop, or skip it"""
    overwrite: bool = False
    """replace an existing tokenizer"""
    pad_token: bool = True
    """add a <pad> token with id 3, for batches of exported models; no document contains it"""

    @property
    def control_pieces(self) -> tuple[str, ...]:
        """The first pieces, which no text can spell."""
        return ("<unk>", "<s>", "</s>", "<pad>")[: 3 + self.pad_token]


@dataclass(frozen=True)
class TokenizerReport:
    """What came out, measured on the first REPORT_BYTES of the corpus."""

    model: Path
    vocab_size: int
    text_bytes: int
    tokens: int
    words: int
    byte_pieces: int
    line_ends: int
    """Byte pieces that are a line end or a tab: no character that the vocabulary lacks."""
    whole_words: int
    skipped: Counter[str]
    """Bad records by reason."""

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for the closing table."""
        skipped = [(f"  {reason}", f"{count:,}") for reason, count in sorted(self.skipped.items())]
        tokens = max(self.tokens, 1)
        return [
            ("pieces", f"{self.vocab_size:,}"),
            ("bytes per token", f"{self.text_bytes / max(self.tokens, 1):.3f}"),
            ("fertility", f"{self.tokens / max(self.words, 1):.3f} tokens per word"),
            ("byte fallback", f"{100 * (self.byte_pieces - self.line_ends) / tokens:.2f} % of tokens"),
            ("line ends, tabs", f"{100 * self.line_ends / tokens:.2f} % of tokens (also encoded as bytes)"),
            ("whole words", f"{self.whole_words:,} (lower case, four letters or more)"),
            ("skipped records", f"{sum(self.skipped.values()):,}"),
            *skipped,
            ("model", str(self.model)),
        ]


def train_tokenizer(options: TokenizerOptions, progress: ProgressReport | None = None) -> TokenizerReport:
    """Train, write PREFIX.model and PREFIX.vocab (a piece per line, for reading), and measure.

    Ids: 0 `<unk>`, 1 `<s>`, 2 `</s>` (end of document), 3 `<pad>` (for batches of exported models; no document has it,
    and without `pad_token` it is left out), then extra pieces, 256 bytes, merged pieces, characters. With normalization
    "identity" decoding gives back the text, white space included.

    Raises:
        ValueError: wrong options, missing inputs, existing output, bad records, an empty corpus, a vocabulary larger
            than the corpus can fill (tells the largest possible) or smaller than its characters.
        OSError: a file that cannot be read.
    """
    _check(options)
    model, vocabulary = Path(f"{options.output_prefix}.model"), Path(f"{options.output_prefix}.vocab")
    for path in (model, vocabulary):
        if path.exists() and not options.overwrite:
            raise ValueError(f"{path} already exists; give another --output-prefix, or use --overwrite to replace it")
    files = open_corpus(options.inputs, "paragraph")
    if any(file.path == STDIN for file in files):
        raise ValueError("--input - cannot be read twice, as the report requires; write it to a file first")
    progress = progress or ProgressReport(sum(file.size for file in files))
    reader = _Reader(options, files, progress)
    blob = _train(options, reader)
    try:
        model.parent.mkdir(parents=True, exist_ok=True)
        _replace(model, blob)
    except OSError as error:
        raise ValueError(f"cannot write {model} (--output-prefix): {error.strerror}") from error
    tokenizer = build_tokenizer(DataConfig(tokenizer_model=str(model)))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    _replace(vocabulary, "".join(f"{token}\t{piece}\n" for token, piece in enumerate(pieces)).encode("utf-8"))
    return _measure(options, files, tokenizer, reader.skipped)


class _Reader:
    """The corpus as sentences, counting what was left out."""

    def __init__(self, options: TokenizerOptions, files: list[CorpusFile], progress: ProgressReport) -> None:
        self.skipped = Counter[str]()
        self.sentences = 0
        self._options = options
        self._files = files
        self._progress = progress

    def __iter__(self) -> Iterator[str]:
        text_bytes = 0
        for block in corpus_blocks(self._files, self._options.json_keys):
            for record in records(block, self._options.json_keys):
                if isinstance(record, BadRecord):
                    self._note(record)
                    continue
                for text in _texts(record):
                    if _sampled(text, self._options.sample_fraction):
                        for sentence in _sentences(text):
                            self.sentences += 1
                            yield sentence
            text_bytes += len(block.data or b"")
            self._progress.update(block.consumed, text_bytes)
        self._progress.close()

    def _note(self, bad: BadRecord) -> None:
        if bad.reason == "empty document":  # white space at the end of a file
            return
        if self._options.on_error == "fail":
            raise ValueError(f"{bad}; use --on-error skip to leave out such records")
        self.skipped[bad.reason] += 1


def _texts(record: Record) -> Iterable[str]:
    """The texts of all keys; a text file has the same one under each, which counts once."""
    return dict.fromkeys(record.texts)


def _sampled(text: str, fraction: float) -> bool:
    """Whether a document belongs to the sample: by its hash, so the same ones in any order and any file."""
    if fraction >= 1:
        return True
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _sentences(text: str) -> Iterator[str]:
    """Lines, cut at spaces where longer than MAX_SENTENCE bytes: no piece joins over white space, so nothing is
    lost."""
    for line in text.splitlines():
        # NUL ends a sentence inside SentencePiece, and lone surrogates cannot be written as UTF-8
        data = line.replace("\0", " ").encode("utf-8", "replace")
        begin = 0
        while begin < len(data):
            end = len(data)
            if end - begin > MAX_SENTENCE:
                space = data.rfind(b" ", begin + 1, begin + MAX_SENTENCE)
                end = space if space > 0 else begin + MAX_SENTENCE
                while data[end] & 0xC0 == 0x80:  # never inside a character
                    end -= 1
            sentence = data[begin:end].decode("utf-8")
            begin = end + (data[end : end + 1] == b" ")
            if sentence.strip():
                yield sentence


def _check(options: TokenizerOptions) -> None:
    check_output_prefix(options.output_prefix)
    check_json_keys(options.json_keys)
    if not 0 < options.character_coverage <= 1:
        raise ValueError(f"--character-coverage {options.character_coverage} must be greater than 0 and at most 1")
    if not 0 < options.sample_fraction <= 1:
        raise ValueError(f"--sample-fraction {options.sample_fraction} must be greater than 0 and at most 1")
    if options.vocab_size > _MOST_PIECES:
        raise ValueError(
            f"--vocab-size {options.vocab_size} must be at most {_MOST_PIECES}; typical values are 1000 to 300000"
        )
    control = options.control_pieces
    smallest = len(control) + 256 + len(options.extra_pieces)
    if options.vocab_size <= smallest:
        raise ValueError(
            f"--vocab-size {options.vocab_size} must be greater than {smallest}, the number of control pieces "
            f"({len(control)}), bytes (256) and --extra-pieces ({len(options.extra_pieces)})"
        )
    for piece in options.extra_pieces:
        known = piece in control or options.extra_pieces.count(piece) > 1
        if known or piece.split() != [piece]:  # SentencePiece never finds a piece with a space in text
            raise ValueError(
                f"--extra-pieces {piece!r}: every piece must be unique, not empty, and without white space"
            )


def _train(options: TokenizerOptions, reader: _Reader) -> bytes:
    import sentencepiece

    blob = io.BytesIO()
    failure: list[ValueError | OSError] = []

    def guarded() -> Iterator[str]:
        """The sentences, with an error of the reader kept for later."""
        # an exception of the iterator ends the training and comes out of the C++ code as an unreadable RuntimeError
        try:
            yield from reader
        except (ValueError, OSError) as error:
            failure.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=guarded(),
            model_writer=blob,
            model_type="bpe",
            vocab_size=options.vocab_size,
            character_coverage=options.character_coverage,
            user_defined_symbols=list(options.extra_pieces),
            normalization_rule_name=options.normalization,
            remove_extra_whitespaces=options.normalization != "identity",
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3 if options.pad_token else -1,
            max_sentence_length=2 * MAX_SENTENCE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, options, failure, reader) from error
    if failure:
        raise failure[0]
    return blob.getvalue()


def _explained(
    error: RuntimeError, options: TokenizerOptions, failure: list[ValueError | OSError], reader: _Reader
) -> ValueError | OSError:
    if failure:
        return failure[0]
    if reader.sentences == 0:
        return ValueError("--input contains no text to train on")
    message = str(error)
    if found := re.search(r"Vocabulary size too high \(\d+\).*<= (\d+)", message):
        return ValueError(
            f"--vocab-size {options.vocab_size} is too large for this corpus; the largest possible value is {found[1]}"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return ValueError(
            f"--vocab-size {options.vocab_size} is smaller than the {found[1]} pieces that single characters and "
            f"bytes need; raise it, or lower --character-coverage {options.character_coverage}"
        )
    return ValueError(f"SentencePiece failed: {message}")


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _measure(
    options: TokenizerOptions, files: list[CorpusFile], tokenizer: SentencePieceTokenizer, skipped: Counter[str]
) -> TokenizerReport:
    text_bytes = tokens = words = byte_pieces = line_ends = 0
    white = [tokenizer.pieces().index(f"<0x{byte:02X}>") for byte in b"\n\r\t"]
    texts = (
        text
        for block in corpus_blocks(files, options.json_keys)
        for record in records(block, options.json_keys)
        if not isinstance(record, BadRecord)
        for text in _texts(record)
    )
    for text in texts:
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids = tokenizer.encode(text)
        tokens += len(ids)
        byte_pieces += sum(map(tokenizer.is_byte, ids))
        line_ends += sum(map(ids.count, white))
        words += len(text.split())
        text_bytes += len(text.encode("utf-8"))
        if text_bytes >= REPORT_BYTES:
            break
    assert tokenizer.path is not None
    return TokenizerReport(
        tokenizer.path,
        tokenizer.vocab_size,
        text_bytes,
        tokens,
        words,
        byte_pieces,
        line_ends,
        len(tokenizer.whole_words()),
        skipped,
    )
