"""Preparing a corpus: every way of encoding against the tokenizer's library alone, a document at a time, in one run.

Each side runs in a process of its own, so that CPU seconds and peak memory are its own. Run as a module it is one such
side. Megatron-LM's tools are sides, too, where a checkout is given.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.hardware import peak_bytes
from benchmarks.report import ROOT, Report, provenance

SIDES = {
    "SentencePieceTokenizer": ("library", "none", "segments", "gigatoken"),
    "HuggingFaceTokenizer": ("library", "none", "gigatoken"),
    "TikTokenizer": ("library", "none", "gigatoken"),
}
"""By --tokenizer-type: the library alone, then tools/preprocess_data.py with each --accelerator."""
NAMES = {
    "SentencePieceTokenizer": "preprocess",
    "HuggingFaceTokenizer": "preprocess_byte_level",
    "TikTokenizer": "preprocess_ranks",
}
"""Of the reports."""
MEGATRON_SIDES = {
    "megatron": ("tools/preprocess_data.py", "--workers", "1"),
    "megatron-gigatoken": ("tools/preprocess_data_fast.py", "--use-gigatoken"),
}
"""Tools of Megatron-LM and the flags that only they have."""
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


@dataclass(frozen=True)
class Side:
    """One way of preparing a corpus."""

    name: str
    corpus: str
    tokenizer_type: str
    tokenizer_model: str
    prefix: str
    workers: int = 1
    megatron_python: str = ""
    """Python that runs Megatron-LM's tools."""
    megatron_lm: str = ""
    """Checkout of Megatron-LM."""

    @property
    def output(self) -> str:
        """Prefix of the dataset."""
        return f"{self.prefix}_text_document"


def measure_side(side: Side) -> dict[str, Any]:
    """Prepare the corpus one way in this process (Megatron-LM's tools in theirs) and hash the result."""
    start = time.monotonic()
    if side.name in MEGATRON_SIDES:
        _megatron_tool(side)
    elif side.name == "library":
        _library_alone(side)
    else:
        _own_tool(side)
    wall = time.monotonic() - start
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    in_children = side.name in MEGATRON_SIDES
    used = [children] if in_children else [own, children]
    peak = children.ru_maxrss * unit + (0 if in_children else peak_bytes("cpu"))
    hashes = {}
    for suffix in (".bin", ".idx"):
        with open(side.output + suffix, "rb") as stream:
            hashes[suffix] = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "wall_seconds": wall, "hashes": hashes, "peak_bytes": peak,
        "cpu_seconds": sum(each.ru_utime + each.ru_stime for each in used),
    }  # fmt: skip


def _own_tool(side: Side) -> None:
    from megatron_fwpkm.config import DataConfig
    from megatron_fwpkm.data.preprocess.run import PreprocessOptions, preprocess

    report = preprocess(
        PreprocessOptions(
            (side.corpus,),
            side.prefix,
            DataConfig(tokenizer_type=side.tokenizer_type, tokenizer_model=side.tokenizer_model),  # type: ignore[arg-type]
            append_eod=True,
            workers=side.workers,
            accelerator=side.name,  # type: ignore[arg-type]
        )
    )
    if report.accelerator not in (side.name, "the plain tokenizer" if side.name == "none" else side.name):
        raise RuntimeError(f"{side.name} cannot be used here: {report.accelerator} was")


def _megatron_tool(side: Side) -> None:
    tool, *flags = MEGATRON_SIDES[side.name]
    command = [
        side.megatron_python, str(Path(side.megatron_lm) / tool), *flags, "--input", side.corpus,
        "--output-prefix", side.prefix, "--tokenizer-type", side.tokenizer_type,
        "--tokenizer-model", side.tokenizer_model, "--append-eod",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"Megatron-LM's {tool} failed with exit code {result.returncode}:\n{result.stderr}")


def _library_alone(side: Side) -> None:
    """What every tool must do at least: parse, encode, write."""
    import numpy as np

    from megatron_fwpkm.config import DataConfig
    from megatron_fwpkm.data.indexed.indexed_format import token_dtype, write_index
    from megatron_fwpkm.data.tokenizers import build_tokenizer

    data = DataConfig(tokenizer_type=side.tokenizer_type, tokenizer_model=side.tokenizer_model)  # type: ignore[arg-type]
    tokenizer = build_tokenizer(data)
    dtype, lengths = token_dtype(tokenizer.vocab_size), array("i")
    with open(side.corpus, "rb") as lines, open(f"{side.output}.bin", "wb") as stream:
        for line in lines:
            ids = [*tokenizer.encode(json.loads(line)["text"]), tokenizer.eod]
            stream.write(np.array(ids, dtype).tobytes())
            lengths.append(len(ids))
    with open(f"{side.output}.idx", "wb") as stream:
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
            for name, workers in _runs(arguments, megabytes):
                print(f"{megabytes} MB, {name}, workers {workers} ...", file=sys.stderr, flush=True)
                prefix = Path(folder).resolve() / f"{name}-{workers}"
                side = Side(
                    name, str(corpus.resolve()), arguments.tokenizer_type, str(arguments.tokenizer_model.resolve()),
                    str(prefix), workers, str(arguments.megatron_python.absolute()),
                    str((arguments.megatron_lm or ROOT).absolute()),
                )  # fmt: skip
                found = _in_own_process(side)
                first = first or found
                sides[f"{megabytes} MB, {name}, {workers}"] = found
                if found["hashes"] != first["hashes"] and name not in MEGATRON_SIDES:
                    raise RuntimeError(f"no speed-up is reported: {name} wrote other bytes than the library alone")
                rows.append(_row(megabytes, name, workers, found, first))
                for path in Path(folder).glob(f"{name}-{workers}*"):
                    path.unlink()
    notes = [
        f"{'; '.join(corpora)}, of documentation; {arguments.tokenizer_type} of {arguments.tokenizer_model.name}. "
        "`library` is the tokenizer's library alone (parse, encode a document, write); none, segments and gigatoken "
        "are tools/preprocess_data.py with that --accelerator, all checks on; `megatron` and `megatron-gigatoken` are "
        "Megatron-LM's tools/preprocess_data.py and tools/preprocess_data_fast.py. CPU seconds are of the whole "
        "process with its workers, start-up and self-check included; wall seconds begin after our imports, but "
        "before Megatron-LM's; peak is that of the process plus its largest worker. Every .bin and .idx of ours is "
        "byte-identical to that of the library alone; those of Megatron-LM's tools where it says so (they may add a "
        "BOS, or turn the text of a control token into one).",
    ]
    header = [
        "MB",
        "way",
        "workers",
        "CPU seconds",
        "wall seconds",
        "peak MB",
        "faster, CPU",
        "faster, wall",
        "same bytes",
    ]
    data = {"corpora": corpora, "load": os.getloadavg(), "sides": sides}
    return Report(NAMES[arguments.tokenizer_type], "Preparing a corpus", notes, header, rows, data, provenance(command))


def _runs(arguments: argparse.Namespace, megabytes: int) -> list[tuple[str, int]]:
    """Names of sides and their workers."""
    sides = SIDES[arguments.tokenizer_type]
    runs = [(side, 1) for side in sides]
    if arguments.megatron_lm is not None:
        fast = arguments.tokenizer_type == "HuggingFaceTokenizer"  # of others it writes other bytes, or nothing
        runs += [(side, 1) for side in MEGATRON_SIDES if fast or side == "megatron"]
    if megabytes == arguments.megabytes[0]:
        runs += [(side, workers) for workers in arguments.workers for side in sides[2:]]
    return runs


def _row(megabytes: int, side: str, workers: int, found: dict[str, Any], first: dict[str, Any]) -> list[str]:
    return [
        str(megabytes), side, str(workers), f"{found['cpu_seconds']:.1f}", f"{found['wall_seconds']:.1f}",
        f"{found['peak_bytes'] / 1e6:.0f}", f"{first['cpu_seconds'] / found['cpu_seconds']:.1f}x",
        f"{first['wall_seconds'] / found['wall_seconds']:.1f}x",
        "yes" if found["hashes"] == first["hashes"] else "no",
    ]  # fmt: skip


def _in_own_process(side: Side) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.preprocess", json.dumps(asdict(side))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{side.name} failed with exit code {result.returncode}:\n{result.stderr}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--text", type=Path, required=True, help="folder of text, such as unpacked documentation")
    parser.add_argument("--tokenizer-model", type=Path, required=True, help="model, or folder with a tokenizer.json")
    parser.add_argument(
        "--tokenizer-type", choices=sorted(SIDES), default="SentencePieceTokenizer",
        help="kind of the tokenizer (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--megatron-lm", type=Path, help="checkout of Megatron-LM, whose tools are measured, too")
    parser.add_argument(
        "--megatron-python", type=Path, default=Path(sys.executable),
        help="Python of the environment that runs them (default: this one)",
    )  # fmt: skip
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
    print(json.dumps(measure_side(Side(**json.loads(sys.argv[1])))))
