r"""Measure long-context recall: hide facts (needles) in real text and ask for one of them. Example:

python tools/evaluate_needle.py --model runs/quickstart/hf --haystack novel.txt.gz --lengths 256 1024 4096 8192 \
    --depths 5 --samples 50 --needles 5 --workers 2 --output runs/needle

writes results.json, results.csv, heatmap.png, report.html and samples.jsonl. The same command continues a killed run.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_fwpkm.config import NeedleConfig
from megatron_fwpkm.config.cli import run_cli, tool_parser
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.needle.settings import CONTROL_MEANINGS, PROTOCOL_MEANINGS, NeedleSettings


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    add, defaults, needle = parser.add_argument, NeedleSettings("", (), (1,)), NeedleConfig()
    add("--model", required=True, metavar="DIR", help="exported folder, checkpoint or Hugging Face model")
    add("--haystack", required=True, nargs="+", metavar="FILE", help="text files to hide facts in, plain or gzip")
    add("--output", required=True, metavar="DIR", type=Path, help="folder for the results")
    add("--lengths", required=True, nargs="+", type=int, metavar="N", help="context lengths in tokens")
    counts = {"depths": "depths of the asked needle, from 0 to 100 %%", "needles": "facts per context, one is asked",
              "samples": "contexts per length, spread over the depths", "seed": "seed of the samples"}  # fmt: skip
    for name, text in counts.items():
        value = getattr(defaults, name)
        add(f"--{name}", type=int, default=value, metavar="N", help=f"{text} (default: {value})")
    add("--protocol", choices=list(PROTOCOL_MEANINGS), default=defaults.protocol,
        help=f"freeze the memory for the question, or keep writing to it (default: {defaults.protocol})")  # fmt: skip
    add("--controls", nargs="*", choices=list(CONTROL_MEANINGS), default=list(defaults.controls),
        help="never write to the memory; ask for a fact that is not in the context (default: both)")  # fmt: skip
    add("--needle-template", default=needle.template, metavar="TEXT", help=f"a fact (default: {needle.template!r})")
    for part, value in (("key", needle.key_words), ("value", needle.value_words)):
        text = f"number of words in a {part} (default: {value})"
        add(f"--needle-{part}-words", type=int, default=value, metavar="N", help=text)
    add("--model-name", default="", metavar="TEXT", help="name of the model in the report (default: from its folder)")
    add("--workers", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ...; auto selects cuda if available")
    add("--check-causality", action="store_true", help="also change a token; exit 1 if an earlier logit changes")
    add("--overwrite", action="store_true", help="discard the results in --output and measure again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the table and where the report is; 1 when the causality check fails."""
    args = build_parser().parse_args(argv)
    words = {"key_words": args.needle_key_words, "value_words": args.needle_value_words}
    needle = NeedleConfig(template=args.needle_template, **words)
    settings = NeedleSettings(
        args.model, tuple(args.haystack), tuple(args.lengths), args.depths, args.samples, args.needles, args.protocol,
        tuple(dict.fromkeys(args.controls)), needle, args.seed,
    )  # fmt: skip
    from megatron_fwpkm.evaluation.needle.early_checks import check_places

    check_places(settings, args.output, args.workers)  # before torch is imported
    from megatron_fwpkm.evaluation.needle.results import text_table
    from megatron_fwpkm.evaluation.needle.run import evaluate

    command = ("python", "tools/evaluate_needle.py", *(sys.argv[1:] if argv is None else argv))
    options = RunOptions(args.output, args.workers, args.device, args.overwrite, args.check_causality, command,
                         args.model_name)  # fmt: skip
    results = evaluate(settings, options)
    print(text_table(results), f"report: {args.output / 'report.html'}", sep="\n")
    passed = results.causality is None or results.causality.passed
    if not passed:
        print("error: the causality check failed: a token changed the logits of an earlier token", file=sys.stderr)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(run_cli(main))
