"""Finished datasets joined, split and freed of duplicates, document by document. Free of torch."""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..output_prefix import check_output_prefix
from .indexed_format import DatasetInfo, IndexedWriter, dataset_paths, read_dataset_info, rename_all
from .inspection import index_problems

COPY_BYTES = 1 << 25
"""Tokens in memory at a time (or one document, where that is larger)."""
_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class CopyReport:
    """What merging or splitting wrote."""

    outputs: tuple[tuple[str, int, int], ...]
    """Prefix, documents, tokens."""
    duplicates: int

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for the closing table."""
        rows = [(prefix, f"{documents:,} documents, {tokens:,} tokens") for prefix, documents, tokens in self.outputs]
        return [*rows, ("duplicates left out", f"{self.duplicates:,}")]


def expand_prefixes(names: Sequence[str]) -> list[str]:
    """Dataset prefixes of prefixes, file names and patterns, in order.

    Raises:
        ValueError: a pattern without a match, a dataset named twice, or no name at all.
    """
    prefixes = list[str]()
    for name in names:
        found = [name]
        if glob.has_magic(name):
            ending = "" if name.endswith(".idx") else ".idx"
            found = sorted(glob.glob(name + ending, recursive=True))
            if not found:
                raise ValueError(f"--input {name} matches no dataset")
        prefixes += [path[:-4] if path.endswith((".idx", ".bin")) else path for path in found]
    if not prefixes:
        raise ValueError("--input names no dataset")
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise ValueError(f"--input names {prefix} twice; give it once (weights belong in --data-path)")
    return prefixes


def merge(
    inputs: Sequence[str], output_prefix: str, *, deduplicate: bool = False, overwrite: bool = False
) -> CopyReport:
    """One dataset with the documents of all inputs, in order. Shards of one run give, byte for byte, the .bin and .idx
    of the run without shards.

    Raises:
        ValueError: inputs missing or damaged, made with different tokenizers or dtypes, shards that are not all of
            their run or in another order, or an existing output.
    """
    check_output_prefix(output_prefix)
    infos = _compatible(inputs, [output_prefix])
    _check_shards(infos)
    seen = set[bytes]() if deduplicate else None
    with IndexedWriter(output_prefix, infos[0].dtype, overwrite=overwrite) as writer:
        duplicates = 0
        for info in infos:
            for tokens, lengths in _pieces(info):
                if seen is not None:
                    keep = _first_times(tokens, lengths, seen)
                    duplicates += int(len(keep) - keep.sum())
                    tokens, lengths = _chosen(tokens, lengths, keep)
                writer.append(tokens.tobytes(), lengths)
        about = {"merged": [info.prefix for info in infos], "deduplicated": deduplicate}
        rename_all(_prepared(writer, infos, about))
        return CopyReport(((writer.prefix, writer.documents, writer.tokens),), duplicates)


def split(
    input_prefix: str,
    output_prefix: str,
    shares: Sequence[float],
    *,
    seed: int = 1234,
    deduplicate: bool = False,
    overwrite: bool = False,
) -> CopyReport:
    """Datasets PREFIX_train, _valid and _test of whole documents, drawn without order and written in order. Shares are
    met to one document; a share of 0 writes nothing.

    Raises:
        ValueError: shares that are no shares, a part that would be empty, a missing or damaged input, existing output.
    """
    if len(shares) != 3 or not all(0 <= share < float("inf") for share in shares) or sum(shares) <= 0:
        raise ValueError(f"--shares {','.join(f'{share:g}' for share in shares)} must be three shares such as 98,1,1")
    check_output_prefix(output_prefix)
    info = _compatible([input_prefix], [f"{output_prefix}_{name}" for name in _SPLITS])[0]
    parts = _assignment(info, shares, seed)
    seen = set[bytes]() if deduplicate else None
    duplicates = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(IndexedWriter(f"{output_prefix}_{name}", info.dtype, overwrite=overwrite))
            if share else None
            for name, share in zip(_SPLITS, shares, strict=True)
        ]  # fmt: skip
        document = 0
        for tokens, lengths in _pieces(info):
            keep = np.ones(len(lengths), bool) if seen is None else _first_times(tokens, lengths, seen)
            duplicates += int(len(keep) - keep.sum())
            part = parts[document : document + len(lengths)]
            document += len(lengths)
            for number, writer in enumerate(writers):
                if writer is not None:
                    chosen, chosen_lengths = _chosen(tokens, lengths, keep & (part == number))
                    writer.append(chosen.tobytes(), chosen_lengths)
        renames, outputs = [], []
        for name, writer in zip(_SPLITS, writers, strict=True):
            if writer is None:
                continue
            about = {
                "split": name, "of": info.prefix, "shares": list(shares), "seed": seed, "deduplicated": deduplicate
            }  # fmt: skip
            renames += _prepared(writer, [info], about)
            outputs.append((writer.prefix, writer.documents, writer.tokens))
            if writer.documents == 0:
                raise ValueError(
                    f"--shares leaves no documents for {name} (the input has {info.documents}); raise its share or set "
                    f"it to 0"
                )
        rename_all(renames)
    return CopyReport(tuple(outputs), duplicates)


def _assignment(info: DatasetInfo, shares: Sequence[float], seed: int) -> np.ndarray:
    """The part, 0 to 2, of every document: a byte each."""
    edges = np.rint(np.cumsum([0.0, *shares]) / sum(shares) * info.documents).astype(np.int64)
    parts = np.zeros(info.documents, np.uint8)
    for number in range(3):
        parts[edges[number] : edges[number + 1]] = number
    np.random.default_rng(seed).shuffle(parts)
    return parts


def _compatible(inputs: Sequence[str], outputs: Sequence[str]) -> list[DatasetInfo]:
    prefixes = expand_prefixes(inputs)
    for output in outputs:
        if dataset_paths(output)[0].resolve() in {dataset_paths(prefix)[0].resolve() for prefix in prefixes}:
            raise ValueError(f"--output-prefix would overwrite the input {output}; give another")
    infos = [read_dataset_info(prefix) for prefix in prefixes]
    first = infos[0]
    for info in infos:
        if info.documents and (problems := index_problems(info)):  # or documents would be cut at wrong places
            raise ValueError(f"{info.prefix} is damaged: {problems[0]}; prepare it again")
    for info in infos[1:]:
        if info.dtype != first.dtype:
            raise ValueError(
                f"{info.prefix} has dtype {info.dtype.name} and {first.prefix} has {first.dtype.name}, so their "
                f"tokenizers differ; prepare both with the same tokenizer"
            )
        made, of_first = ((it.sidecar or {}).get("tokenizer", {}).get("identity") for it in (info, first))
        if made != of_first and None in (made, of_first):
            silent, other = (info, first) if made is None else (first, info)
            raise ValueError(
                f"{silent.prefix} has no description ({dataset_paths(silent.prefix)[2].name}), so its tokenizer "
                f"cannot be compared with that of {other.prefix}; put its .json beside it, or prepare it again"
            )
        if made != of_first:
            raise ValueError(
                f"{info.prefix} and {first.prefix} were made with different tokenizers ({_tokenizer(info)} and "
                f"{_tokenizer(first)}); prepare both with the same one"
            )
    return infos


def _tokenizer(info: DatasetInfo) -> str:
    made = (info.sidecar or {})["tokenizer"]
    return f"{made.get('type', 'a tokenizer')} {made['identity'][:12]} of {made.get('vocab_size', '?')} ids"


def _check_shards(infos: Sequence[DatasetInfo]) -> None:
    """Refuse parts of a run among which one is missing: its documents would be lost without a word."""
    shards = [(info.sidecar or {}).get("shard") for info in infos]
    for number, shard in enumerate(shards):
        if shard is None:
            continue
        at, count = shard
        if shards[number - at : number - at + count] != [[i, count] for i in range(count)] or at > number:
            absent = [i for i in range(count) if [i, count] not in shards]
            raise ValueError(
                f"{infos[number].prefix} is shard {at} of {count} (--num-shards), but --input does not name all "
                f"{count} shards one after another and in order"
                + (f": missing: {', '.join(map(str, absent))}; make them, or add them to --input" if absent else "")
            )
        first = infos[number - at]
        made, of_first = (_run_of(info) for info in (infos[number], first))
        other = [name for name in made if made[name] != of_first.get(name)]
        if other:
            raise ValueError(
                f"{infos[number].prefix} and {first.prefix} are not shards of the same run: "
                f"{other[0].replace('_', '-')} is {made[other[0]]} in one and {of_first.get(other[0])} in the other; "
                f"make one of them again"
            )


def _run_of(info: DatasetInfo) -> dict[str, Any]:
    """What the shards of a run have in common: its options and its inputs."""
    sidecar = info.sidecar or {}
    options = {name: value for name, value in sidecar.get("options", {}).items() if name != "on_error"}
    return options | {"the input": sidecar.get("corpus", "unknown")}


def _pieces(info: DatasetInfo) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and lengths of as many documents at a time as fit COPY_BYTES."""
    room = max(1, COPY_BYTES // info.dtype.itemsize)
    with open(dataset_paths(info.prefix)[0], "rb") as stream:
        begin = 0
        while begin < info.documents:
            lengths = np.array(info.lengths[begin : begin + (1 << 20)])
            fitting = int(np.searchsorted(np.cumsum(lengths, dtype=np.int64), room, side="right"))
            lengths = lengths[: max(1, fitting)]
            begin += len(lengths)
            yield np.fromfile(stream, info.dtype, int(lengths.sum(dtype=np.int64))), lengths


def _first_times(tokens: np.ndarray, lengths: np.ndarray, seen: set[bytes]) -> np.ndarray:
    """Which documents have tokens that were not in `seen`; they are put there, 16 bytes of BLAKE2 each."""
    first = np.zeros(len(lengths), bool)
    end = 0
    for number, length in enumerate(lengths.tolist()):
        begin, end = end, end + length
        digest = hashlib.blake2b(tokens[begin:end].tobytes(), digest_size=16).digest()
        first[number] = digest not in seen
        seen.add(digest)
    return first


def _chosen(tokens: np.ndarray, lengths: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (tokens, lengths) if keep.all() else (tokens[np.repeat(keep, lengths)], lengths[keep])


def _prepared(writer: IndexedWriter, infos: Sequence[DatasetInfo], about: dict[str, Any]) -> list[tuple[Path, Path]]:
    """The renames that publish `writer`, described by the inputs' descriptions. Inputs of other tools have none, and
    then neither has the output: a guess about the tokenizer would be worse. Options in which they differ are left
    out."""
    sidecars = [info.sidecar for info in infos if info.sidecar is not None]
    if not sidecars:
        return [(partial, final) for partial, final in writer.prepare({}) if final.suffix != ".json"]
    skipped = Counter[str]()
    for sidecar in sidecars:
        skipped.update(sidecar.get("skipped", {}))
    options = {
        name: value
        for name, value in sidecars[0].get("options", {}).items()
        if all(sidecar.get("options", {}).get(name) == value for sidecar in sidecars)
    }
    inputs = [file for sidecar in sidecars for file in sidecar.get("inputs", [])]
    described = {
        "tokenizer": sidecars[0]["tokenizer"], "options": options, "inputs": inputs, "skipped": dict(skipped),
        "made_from": about,
    }  # fmt: skip
    if options.get("append_eod"):
        described["eods"] = writer.documents
    elif all(sidecar.get("eods") == 0 for sidecar in sidecars):
        described["eods"] = 0
    return writer.prepare(described)
