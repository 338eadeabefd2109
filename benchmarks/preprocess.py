"""Preparing a corpus: every way of encoding against SentencePiece alone, a document at a time, in one run.

Each side runs in a process of its own, so that CPU seconds and peak memory are its own. Run as a module it is one such
side.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, Report, provenance

SIDES = ("sentencepiece", "none", "segments", "gigatoken")
"""The library alone, then tools/preprocess_data.py with each --accelerator."""
_DOCUMENT = 2500
_SUFFIXES = (".html", ".txt", ".rst")
_MARKUP = re.compile(r"<(script|style).*?</\1>|<[^>]+>", re.DOTALL)


def build_corpus(folder: Path, path: Path, size: int) -> tuple[int, int]:
    """Write `size` bytes of JSON Lines: the text of all .html, .txt and .rst files (.gz too) below `folder` in order of
    name, without markup, cut into documents of 2,500 characters. Returns documents and bytes.

    Raises:
        RuntimeError: the folder holds too little.
    """
    files = sorted(at for at in folder.rglob("*") if at.name.removesuffix(".gz").endswith(_SUFFIXES) and at.is_file())
    documents = written = 0
    with open(path, "wb") as stream:
        for file in files:
            raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            text = raw.decode("utf-8", "replace")
            if file.name.removesuffix(".gz").endswith(".html"):
                text = html.unescape(_MARKUP.sub("", text))
            for begin in range(0, len(text), _DOCUMENT):
                if (part := text[begin : begin + _DOCUMENT]).strip():
                    line = json.dumps({"text": part}, ensure_ascii=False).encode() + b"\n"
                    written, documents = written + stream.write(line), documents + 1
                if written >= size:
                    return documents, written
    raise RuntimeError(f"--text {folder} holds {written:,} bytes of text, less than --megabytes asks for")


def measure_side(side: str, corpus: str, model: str, prefix: str, workers: int) -> dict[str, Any]:
    """Prepare the corpus one way in this process and hash the result."""
    from megatron_fwpkm.config import DataConfig
    from megatron_fwpkm.data.indexed.indexed_format import dataset_paths
    from megatron_fwpkm.data.preprocess.run import PreprocessOptions, preprocess

    start = time.monotonic()
    output = f"{prefix}_text_document"
    if side == "sentencepiece":
        _library_alone(corpus, model, output)
    else:
        report = preprocess(
            PreprocessOptions(
                (corpus,),
                prefix,
                DataConfig(tokenizer_model=model),
                append_eod=True,
                workers=workers,
                accelerator=side,  # type: ignore[arg-type]
            )  # fmt: skip
        )
        if report.accelerator not in (side, "the plain tokenizer" if side == "none" else side):
            raise RuntimeError(f"{side} cannot be used here: {report.accelerator} was")
    wall = time.monotonic() - start
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    hashes = {}
    for path in dataset_paths(output)[:2]:
        with open(path, "rb") as stream:
            hashes[path.suffix] = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "wall_seconds": wall, "hashes": hashes, "peak_bytes": (own.ru_maxrss + children.ru_maxrss) * unit,
        "cpu_seconds": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
    }  # fmt: skip


def _library_alone(corpus: str, model: str, output: str) -> None:
    """What every tool must do at least: parse, encode, write."""
    import numpy as np
    import sentencepiece

    from megatron_fwpkm.data.indexed.indexed_format import token_dtype, write_index

    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    dtype, end, lengths = token_dtype(processor.get_piece_size()), processor.eos_id(), array("i")
    with open(corpus, "rb") as lines, open(f"{output}.bin", "wb") as stream:
        for line in lines:
            ids = processor.encode(json.loads(line)["text"])
            ids.append(end)
            stream.write(np.array(ids, dtype).tobytes())
            lengths.append(len(ids))
    with open(f"{output}.idx", "wb") as stream:
        write_index(stream, dtype, np.asarray(lengths))


def measure(arguments: argparse.Namespace, command: str) -> Report:
    """Measure all sides, refusing to compare what is not byte-identical.

    Raises:
        RuntimeError: a side failed or wrote other bytes.
    """
    rows = list[list[str]]()
    sides: dict[str, dict[str, Any]] = {}
    corpora = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for megabytes in arguments.megabytes:
            corpus = Path(folder) / f"{megabytes}.jsonl"
            documents, size = build_corpus(arguments.text, corpus, megabytes * 1_000_000)
            corpora.append(f"{size / 1e6:.0f} MB of JSON Lines, {documents:,} documents")
            first: dict[str, Any] | None = None
            runs = [(side, 1) for side in SIDES]
            if megabytes == arguments.megabytes[0]:
                runs += [(side, workers) for workers in arguments.workers for side in SIDES[-2:]]
            for side, workers in runs:
                print(f"{megabytes} MB, {side}, workers {workers} ...", file=sys.stderr, flush=True)
                prefix = Path(folder).resolve() / f"{side}-{workers}"
                found = _in_own_process(side, corpus.resolve(), arguments.tokenizer_model.resolve(), prefix, workers)
                first = first or found
                sides[f"{megabytes} MB, {side}, {workers}"] = found
                if found["hashes"] != first["hashes"]:
                    raise RuntimeError(f"no speed-up is reported: {side} wrote other bytes than sentencepiece alone")
                rows.append(_row(megabytes, side, workers, found, first))
                for path in Path(folder).glob(f"{side}-{workers}*"):
                    path.unlink()
    notes = [
        f"{'; '.join(corpora)}, of documentation. `sentencepiece` is the library alone (parse, encode a document, "
        "write); the others are tools/preprocess_data.py with that --accelerator, all checks on. CPU seconds are of "
        "the whole process with its workers, start-up and self-check included; wall seconds begin after the imports; "
        "peak is that of the process plus its largest worker. Every .bin and .idx is byte-identical to that of "
        "sentencepiece.",
    ]
    header = ["MB", "way", "workers", "CPU seconds", "wall seconds", "peak MB", "faster, CPU", "faster, wall"]
    data = {"corpora": corpora, "load": os.getloadavg(), "sides": sides}
    return Report("preprocess", "Preparing a corpus", notes, header, rows, data, provenance(command))


def _row(megabytes: int, side: str, workers: int, found: dict[str, Any], first: dict[str, Any]) -> list[str]:
    return [
        str(megabytes), side, str(workers), f"{found['cpu_seconds']:.1f}", f"{found['wall_seconds']:.1f}",
        f"{found['peak_bytes'] / 1e6:.0f}", f"{first['cpu_seconds'] / found['cpu_seconds']:.1f}x",
        f"{first['wall_seconds'] / found['wall_seconds']:.1f}x",
    ]  # fmt: skip


def _in_own_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.preprocess", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{arguments[0]} failed with exit code {result.returncode}:\n{result.stderr}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--text", type=Path, required=True, help="folder of text, such as unpacked documentation")
    parser.add_argument("--tokenizer-model", type=Path, required=True, help="SentencePiece BPE model")
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[100], help="size of the corpus, or several (default: 100)"
    )
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="also measure the fast ways with so many")
    parser.add_argument("--scratch", type=Path, help="folder for the corpus and its datasets (default: the system's)")
    parser.add_argument("--repeats", type=int, default=1, choices=[1], help="one run of each side")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON and Markdown report"
    )


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Measure as the parsed arguments say."""
    return measure(arguments, command)


if __name__ == "__main__":
    _, side_name, corpus_path, model_path, output_prefix, count = sys.argv
    print(json.dumps(measure_side(side_name, corpus_path, model_path, output_prefix, int(count))))
