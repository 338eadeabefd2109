"""How fast an export reads a long text on one core, and what its cache and its process grow by.

The text is read once, through the interface that evaluations use. At every length the CPU time so far is noted, and
what the cache holds; then it is cloned, as for a question, and the clone reads one more chunk, which copies what the
memory has touched.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from benchmarks.hardware import peak_bytes
from benchmarks.report import ROOT, Goal, Report, add_output_argument, provenance

GOAL_TOKENS, GOAL_SECONDS = 131_072, 6.0
MIB = 1 << 20


def read(folder: str, lengths: list[int], texts: list[str]) -> list[dict[str, Any]]:
    """Read the texts, one after the other and again from the first, up to every one of the ascending lengths.

    Returns:
        Per length: tokens, CPU seconds, touched rows, bytes of the cache and of the process, milliseconds of a clone.
    """
    import numpy as np
    import torch

    from megatron_fwpkm.evaluation.model_loading import load_model
    from megatron_fwpkm.evaluation.text_files import read_text_file
    from megatron_fwpkm.evaluation.text_model import SEGMENT, text_model

    torch.set_num_threads(1)
    loaded = load_model(folder, "cpu")
    tokens = np.concatenate([np.asarray(loaded.tokenizer.encode(read_text_file("--texts", text))) for text in texts])
    reader, found, seconds, position = text_model(loaded.model), list[dict[str, Any]](), 0.0, 0
    with torch.inference_mode():
        reader.read(np.resize(tokens, SEGMENT), reader.new_cache())  # what only a first call does
        cache = reader.new_cache()
        for length in lengths:
            print(f"{length} tokens ...", file=sys.stderr, flush=True)
            begin = time.process_time()
            while position < length:
                stop = min(position + SEGMENT, length)
                reader.read(np.take(tokens, range(position, stop), mode="wrap"), cache)
                position = stop
            seconds += time.process_time() - begin
            peak = peak_bytes("cpu")
            begin = time.process_time()
            reader.read(tokens[:SEGMENT], reader.clone(cache))
            cloned = time.process_time() - begin
            begin = time.process_time()
            reader.read(tokens[:SEGMENT], reader.new_cache())
            alone = time.process_time() - begin
            overlays = [memory.state.overlay for memory in getattr(cache, "memory", {}).values()]
            rows = sum(len(overlay) for overlay in overlays if overlay is not None)
            found.append({"tokens": length, "seconds": seconds, "rows": rows, "cache_bytes": cache.nbytes,
                          "peak_bytes": peak, "clone_milliseconds": 1e3 * (cloned - alone)})  # fmt: skip
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    corpus = sorted(str(file) for file in (ROOT / "examples" / "quickstart" / "corpus").glob("*.txt.gz"))
    parser.add_argument("--model", default="runs/quickstart/hf", help="an export (default: runs/quickstart/hf)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32_768, GOAL_TOKENS, 524_288, 1_048_576],
                        help="lengths of the text (default: 32768 131072 524288 1048576)")  # fmt: skip
    parser.add_argument("--texts", nargs="+", default=corpus, help="text files (default: the quickstart's corpus)")
    parser.add_argument("--repeats", type=int, default=1, help="readings, of which the fastest counts (default: 1)")
    add_output_argument(parser)


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Measure as the parsed arguments say.

    Raises:
        RuntimeError: the model or a text cannot be read.
    """
    try:
        runs = [read(arguments.model, sorted(arguments.tokens), arguments.texts) for _ in range(arguments.repeats)]
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    best = [min(same, key=lambda row: row["seconds"]) for same in zip(*runs, strict=True)]
    rows = [
        [f"{row['tokens']:,}", f"{row['seconds']:.2f}", f"{row['tokens'] / row['seconds']:,.0f}", f"{row['rows']:,}",
         f"{row['cache_bytes'] / MIB:.1f}", f"{row['peak_bytes'] / MIB:.0f}", f"{row['clone_milliseconds']:.0f}"]
        for row in best
    ]  # fmt: skip
    goals = [
        Goal(f"{GOAL_TOKENS:,} tokens on one core", f"{row['seconds']:.2f} s", "at most 6 s",
             row["seconds"] <= GOAL_SECONDS)
        for row in best if row["tokens"] == GOAL_TOKENS
    ]  # fmt: skip
    notes = [
        "One text through one cache, memory on, one thread, CPU seconds since its beginning. The cache is what a "
        "sequence has of its own: touched rows, waiting tokens, windows of attention. The peak is that of the process, "
        "with its libraries, the model and the encoded text.",
        "`clone`: a clone of the cache reads 4,096 tokens, less what a new cache takes for these.",
    ]
    header = ["tokens", "CPU s", "tokens/s", "touched rows", "cache MiB", "peak MiB", "clone ms"]
    title = "Reading a long text on one core"
    return Report("reading", title, notes, header, rows, {"runs": runs}, provenance(command), goals=goals)
