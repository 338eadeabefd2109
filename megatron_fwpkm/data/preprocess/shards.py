"""The parts of a corpus that several machines have prepared, joined to what one would have written. Free of torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..indexed.indexed_format import dataset_paths, naming, read_dataset_info
from ..indexed.merge_and_split import CopyReport, merge
from ..output_prefix import check_output_prefix
from ..tokenizers import Tokenizer, build_tokenizer
from .preprocess_options import PreprocessOptions


def shards_of(options: PreprocessOptions) -> list[PreprocessOptions]:
    """The same options for each of the --num-shards parts."""
    return [replace(options, shard_id=number, merge_shards=False) for number in range(options.num_shards)]


def merge_shards(options: PreprocessOptions) -> CopyReport:
    """Join the parts of every dataset in order, and their quarantines. With `options.resume`, datasets that have been
    joined before are left as they are.

    Raises:
        ValueError: parts that are missing or not finished, made with another tokenizer, other options or inputs than
            these, or an existing output.
    """
    check_output_prefix(options.output_prefix)
    tokenizer = build_tokenizer(options.data)
    parts = shards_of(options)
    _check_complete(parts)
    whole = replace(options, num_shards=1, shard_id=None)
    outputs = list[tuple[str, int, int]]()
    for number, (key, output) in enumerate(zip(whole.keys, whole.prefixes, strict=True)):
        inputs = [part.prefixes[number] for part in parts]
        for prefix in inputs:
            _check_made_so(prefix, options, key, tokenizer)
        if options.resume and (done := _joined_before(output, inputs)) is not None:
            outputs.append(done)
        else:
            outputs += merge(inputs, output, overwrite=options.overwrite).outputs
    if options.on_error == "quarantine":
        _join_quarantines(parts, whole.quarantine_path)
    return CopyReport(tuple(outputs), duplicates=0)


def _check_complete(parts: list[PreprocessOptions]) -> None:
    missing = [part for part in parts if any(not path.exists() for path in _files(part))]
    if not missing:
        return
    begun = [part.shard for part in missing if part.journal_path.exists()]
    numbers = ", ".join(str(part.shard) for part in missing)
    raise ValueError(
        f"of the {len(parts)} shards of {parts[0].output_prefix}, {len(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} missing: {numbers}"
        + (f" ({', '.join(map(str, begun))} begun and not finished)" if begun else "")
        + f"; run --shard-id {missing[0].shard} --resume{'' if len(missing) == 1 else ' and so on'}, then merge again"
    )


def _files(part: PreprocessOptions) -> Iterator[Path]:
    for prefix in part.prefixes:
        yield from dataset_paths(prefix)


def _check_made_so(prefix: str, options: PreprocessOptions, key: str, tokenizer: Tokenizer) -> None:
    """Refuse a part that another command has made."""
    sidecar = read_dataset_info(prefix).sidecar or {}
    made = sidecar.get("options", {}) | {"tokenizer": sidecar.get("tokenizer", {}).get("identity", "unknown")}
    for name, value in (options.recorded(key) | {"tokenizer": tokenizer.identity}).items():
        if made.get(name) != value and name != "on_error":
            raise ValueError(
                f"{prefix} was made with {name.replace('_', '-')} {made.get(name)}, but this command has {value}; give "
                "the flags of the shards, or make it again with --overwrite"
            )


def _joined_before(output: str, inputs: list[str]) -> tuple[str, int, int] | None:
    """Prefix, documents and tokens of a dataset that an earlier call has joined from these parts, None without."""
    if not all(path.exists() for path in dataset_paths(output)):
        return None
    info, parts = read_dataset_info(output), [read_dataset_info(prefix) for prefix in inputs]
    sidecar = info.sidecar or {}
    if sidecar.get("made_from", {}).get("merged") != inputs:
        return None
    tokens = sum((part.sidecar or {})["tokens"] for part in parts)
    if (info.documents, sidecar["tokens"]) != (sum(part.documents for part in parts), tokens):
        return None
    return output, info.documents, tokens


def _join_quarantines(parts: list[PreprocessOptions], output: Path) -> None:
    partial = output.with_name(output.name + ".partial")
    with naming(partial), open(partial, "wb") as stream:
        for part in parts:
            with open(part.quarantine_path, "rb") as source:
                shutil.copyfileobj(source, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, output)
