"""What a dataset holds, and whether it is whole. Free of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...config.plot_style import SERIES, STYLE
from ..corpus.compression import needed_package
from ..tokenizers import Tokenizer
from .indexed_format import DatasetInfo, byte_offsets, dataset_paths, read_dataset_info

_HEADER_BYTES = 34
_BLOCK = 1 << 20
_BAR = 40


@dataclass
class Inspection:
    """Counts of a dataset and what is wrong with it."""

    info: DatasetInfo
    tokens: int
    quantiles: tuple[int, ...]
    """Tokens of the shortest, the 25 %, middle, 75 % and longest document."""
    histogram: list[tuple[int, int, int]]
    """Documents of at least and below so many tokens: low, high, count."""
    problems: list[str] = field(default_factory=list)
    checked: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for the table."""
        sidecar = self.info.sidecar or {}
        tokenizer = sidecar.get("tokenizer", {})
        shortest, low, middle, high, longest = self.quantiles
        return [
            ("dataset", self.info.prefix),
            ("documents", f"{self.info.documents:,}"),
            ("tokens", f"{self.tokens:,} ({self.info.dtype.name})"),
            ("document lengths", f"{shortest:,} / {low:,} / {middle:,} / {high:,} / {longest:,} at 0/25/50/75/100 %"),
            ("tokenizer", f"{tokenizer['type']}, {tokenizer['vocab_size']:,} ids" if tokenizer else "unknown"),
            ("source files", f"{len(sidecar.get('inputs', [])):,}"),
            ("skipped records", f"{sum(sidecar.get('skipped', {}).values()):,}"),
            ("checked", self.checked),
        ]

    def histogram_text(self) -> str:
        """Documents by length, a bar per power of two."""
        most = max((count for _, _, count in self.histogram), default=1)
        lines = ["  tokens per document"]
        for low, high, count in self.histogram:
            bar = "#" * max(1 if count else 0, round(_BAR * count / most))
            lines.append(f"  {low:>11,} - {high - 1:>11,}  {count:>12,}  {bar}")
        return "\n".join(lines)


def inspect_dataset(prefix: str, *, check_tokens: bool = False) -> Inspection:
    """Look at the whole index and, with `check_tokens`, at every token.

    Found are: truncation, a wrong dtype, offsets that are not the sum of the lengths, document marks that do not count
    up, ids outside the vocabulary, documents that lack the end-of-document token, and bytes other than those written.

    Raises:
        ValueError: a dataset that cannot be opened at all.
    """
    info = read_dataset_info(prefix)
    lengths = info.lengths
    tokens = info.tokens_between(0, info.documents)
    quantiles: tuple[int, ...] = (0,) * 5
    if len(lengths):
        quantiles = tuple(int(value) for value in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1.0]))
    found = Inspection(info, tokens, quantiles, _histogram(lengths))
    found.problems += index_problems(info)
    if not found.problems and check_tokens:
        found.problems += _token_problems(info)
    found.checked = "index" + (" and every token" if check_tokens else " only (--check reads every token)")
    return found


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    counts = np.zeros(32, np.int64)
    for begin in range(0, len(lengths), _BLOCK):
        exponents = np.frexp(np.maximum(lengths[begin : begin + _BLOCK], 0).astype(np.float64))[1]
        counts += np.bincount(exponents, minlength=32)[:32]
    filled = np.flatnonzero(counts)
    if not len(filled):
        return []
    span = range(int(filled[0]), int(filled[-1]) + 1)
    return [(1 << number >> 1, 1 << number, int(counts[number])) for number in span]


def index_problems(info: DatasetInfo) -> list[str]:
    """What is wrong with lengths, byte offsets and document marks, held against each other and the description."""
    documents, idx_path = info.documents, dataset_paths(info.prefix)[1]
    problems = list[str]()
    if not documents:
        return ["it contains no documents"]
    offsets = np.memmap(
        idx_path, np.int64, mode="r", offset=_HEADER_BYTES + 4 * documents, shape=(2 * documents + 1,)
    )  # fmt: skip
    expected_end = 0
    for begin in range(0, documents, _BLOCK):
        lengths = info.lengths[begin : begin + _BLOCK]
        if lengths.min() < 1:
            at = begin + int(np.argmin(lengths))
            problems.append(f"document {at} has {int(lengths.min())} tokens")
        expected, expected_end = byte_offsets(lengths, info.dtype.itemsize, expected_end)
        wrong = np.flatnonzero(offsets[begin : begin + len(lengths)] != expected)
        if len(wrong):
            at = begin + int(wrong[0])
            problems.append(
                f"the index says that document {at} begins at byte {int(offsets[at])}, but the documents before it end "
                f"at byte {int(expected[wrong[0]])}"
            )
            break
    for begin in range(documents, 2 * documents + 1, _BLOCK):
        marks = offsets[begin : begin + _BLOCK]
        if not np.array_equal(marks, np.arange(begin - documents, begin - documents + len(marks))):
            problems.append("the document marks are not consecutive")
            break
    told = info.sidecar or {}
    facts = {"dtype": info.dtype.name, "documents": documents, "tokens": info.tokens_between(0, documents)}
    differing = {name: value for name, value in facts.items() if told.get(name, value) != value}
    return problems + [f"the .idx has {name} {value}, the .json {told[name]}" for name, value in differing.items()]


def _token_problems(info: DatasetInfo) -> list[str]:
    """Every token against the description."""
    sidecar: dict[str, Any] = info.sidecar or {}
    digest, low, high = hashlib.sha256(), np.iinfo(np.int64).max, -1
    for tokens in _token_blocks(info):
        digest.update(tokens.tobytes())
        low, high = min(low, int(tokens.min())), max(high, int(tokens.max()))
    problems = list[str]()
    vocab_size = sidecar.get("tokenizer", {}).get("vocab_size")
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        wanted = "at least 0" if vocab_size is None else f"between 0 and {vocab_size - 1}"
        problems.append(f"token ids must be {wanted}, but range from {low} to {high}")
    if sidecar and digest.hexdigest() != sidecar["bin_sha256"]:
        problems.append("the .bin was modified: its SHA-256 differs from the one in the .json")
    if sidecar.get("options", {}).get("append_eod"):
        bin_file = np.memmap(dataset_paths(info.prefix)[0], info.dtype, mode="r")
        ends = np.cumsum(info.lengths, dtype=np.int64) - 1
        missing = int((bin_file[ends] != sidecar["tokenizer"].get("eod")).sum())
        if missing:
            problems.append(f"documents that do not end with the end-of-document token: {missing:,}")
    return problems


def _token_blocks(info: DatasetInfo) -> Iterator[np.ndarray]:
    with open(dataset_paths(info.prefix)[0], "rb") as stream:
        while len(tokens := np.fromfile(stream, info.dtype, 1 << 22)):
            yield tokens


def check_tokenizer(info: DatasetInfo, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a dataset that says it was made with another tokenizer."""
    made = (info.sidecar or {}).get("tokenizer")
    if made is not None and made["identity"] != tokenizer.identity:
        raise ValueError(
            f"{info.prefix} was made with a different tokenizer ({made['type']}, {made['vocab_size']} ids) than "
            f"--tokenizer-model {tokenizer.path}"
        )


def sample_documents(info: DatasetInfo, tokenizer: Tokenizer, count: int, seed: int = 1234) -> list[tuple[int, str]]:
    """Numbers and texts of `count` documents drawn with `seed`. Raises what `check_tokenizer` raises."""
    check_tokenizer(info, tokenizer)
    chosen = np.sort(np.random.default_rng(seed).choice(info.documents, min(count, info.documents), replace=False))
    bin_file = np.memmap(dataset_paths(info.prefix)[0], info.dtype, mode="r")
    texts = []
    for number in chosen.tolist():
        begin = info.tokens_between(0, number)
        texts.append((number, tokenizer.decode(bin_file[begin : begin + int(info.lengths[number])].tolist())))
    return texts


def write_histogram(found: Inspection, path: Path) -> None:
    """The length histogram as a picture. Raises ValueError when matplotlib is not installed."""
    needed_package("matplotlib", "--png")
    import matplotlib

    with matplotlib.rc_context(STYLE):
        draw_histogram(found).savefig(path)


def draw_histogram(found: Inspection) -> Any:
    """A bar for every range of lengths, a matplotlib figure; counts stand on a plain axis that begins with 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.28 * len(found.histogram)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{low:,} to {high - 1:,}" if high > low + 1 else f"{low:,}" for low, high, _ in found.histogram]
    bars = axes.barh(labels, [count for _, _, count in found.histogram], height=0.8, color=SERIES[0])
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=3)
    axes.set(xlabel="documents", ylabel="tokens per document", title=Path(found.info.prefix).name)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    return figure
