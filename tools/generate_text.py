"""Continue a text with a model and its memory. Examples:

python tools/generate_text.py --model runs/mine/hf --prompt "It is a truth universally acknowledged"
python tools/generate_text.py --model runs/mine/hf --remember notes.txt --prompt "The code of" --max-new-tokens 5

The model is an exported folder or a checkpoint (the --save folder of a run). --remember reads documents into the memory
first, in order. The documents, the prompt and the answer share one memory, which no other text is written to.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import fraction, non_negative_int, positive_float, positive_int, run_cli, tool_parser


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="exported folder, checkpoint or --save folder of a run")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue (default: standard input)")
    prompt.add_argument("--prompt-file", metavar="FILE", help="file with the text to continue")
    add("--remember", nargs="+", default=[], metavar="FILE", help="documents to read first, in this order")
    add("--memory", choices=["on", "frozen", "off"], default="on",
        help="on: read and write; frozen: read what was remembered, but do not write prompt or answer; off: use "
        "the initial memory and never write (default: on)")  # fmt: skip
    add("--max-new-tokens", type=positive_int, default=100, metavar="N", help="most tokens to generate (default: 100)")
    add("--temperature", type=float, default=0.0, metavar="X",
        help="sampling temperature; 0 is greedy decoding (default: 0)")  # fmt: skip
    add("--top-k", type=non_negative_int, default=0, metavar="N", help="sample from the N likeliest tokens; 0 for all")
    add("--top-p", type=fraction, default=1.0, metavar="P", help="nucleus sampling: probability mass (default: 1)")
    add("--repetition-penalty", type=positive_float, default=1.0, metavar="X", help="above 1: penalise repetition")
    add("--seed", type=int, default=0, metavar="N", help="random seed of sampling (default: 0)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ...; auto selects cuda if available")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read, remember and write; the new text goes to standard output as it comes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.temperature < 0:
        parser.error(f"--temperature {args.temperature} must be 0 or more")
    if args.memory == "off" and args.remember:
        parser.error("--memory off never reads what --remember writes: leave one out, or use --memory frozen")
    import torch
    from transformers import TextStreamer

    from megatron_fwpkm.conversion.export import load_for_text
    from megatron_fwpkm.hf.generation import Sampling, continue_text, read_text, remember

    documents = [(file, read_text(file)) for file in args.remember]
    prompt = read_text(args.prompt_file) if args.prompt_file else args.prompt
    if prompt is None:
        prompt = sys.stdin.read()
    if not prompt:
        raise ValueError("the prompt is empty: give --prompt, --prompt-file or text on standard input")
    model, tokenizer = load_for_text(args.model, args.device)
    cache = model.new_cache()
    for file, text in documents:
        print(f"remembered {file}: {remember(model, tokenizer, text, cache)} tokens", file=sys.stderr)
    model.memory_mode = args.memory
    torch.manual_seed(args.seed)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    continue_text(model, tokenizer, prompt, sampling, cache, streamer)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
