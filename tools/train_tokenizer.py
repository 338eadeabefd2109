"""Train a SentencePiece BPE tokenizer with byte fallback and split digits. Example:

python tools/train_tokenizer.py --input books.jsonl.gz notes.txt --vocab-size 32000 --output-prefix data/tokenizer

writes data/tokenizer.model and data/tokenizer.vocab.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.data.progress_report import table
from megatron_fwpkm.data.tokenizers.train_tokenizer import TokenizerOptions, train_tokenizer


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), TokenizerOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Train a tokenizer and print a report."""
    report = train_tokenizer(parse_tool(build_parser(), TokenizerOptions, argv))
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
