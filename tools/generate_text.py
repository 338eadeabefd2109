"""Continue a text with a model and its memory. Examples:

python tools/generate_text.py --model runs/mine/hf --prompt "It is a truth universally acknowledged"
python tools/generate_text.py --model runs/mine/hf --remember notes.txt --prompt "The code of" --max-new-tokens 5

The model is an exported folder or a checkpoint (the --save folder of a run). --remember reads documents into the memory
first, in order. The documents, the prompt and the answer share one memory; no other text is written to it.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.text_generation import GenerateOptions
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), GenerateOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Read, remember and write; the new text goes to standard output as it is generated."""
    parser = build_parser()
    args = parse_tool(parser, GenerateOptions, argv)
    if args.temperature < 0:
        parser.error(f"--temperature {args.temperature} must be at least 0")
    if args.memory == "off" and args.remember:
        parser.error("--memory off does not read what --remember writes; remove one of them, or use --memory frozen")
    import torch
    from transformers import TextStreamer

    from megatron_fwpkm.conversion.export import load_for_text
    from megatron_fwpkm.hf.generation import Sampling, continue_text, read_text, remember

    documents = [(file, read_text(file)) for file in args.remember]
    prompt = read_text(args.prompt_file) if args.prompt_file else args.prompt
    if prompt is None:
        prompt = sys.stdin.read()
    if not prompt:
        raise ValueError("the prompt is empty; give --prompt, --prompt-file or text on standard input")
    model, tokenizer = load_for_text(args.model, args.device)
    cache = model.new_cache()
    for file, text in documents:
        count = remember(model, tokenizer, text, cache)
        print(f"remembered {file}: {count} token{'s' * (count != 1)}", file=sys.stderr)
    model.memory_mode = args.memory
    torch.manual_seed(args.seed)
    sampling = Sampling.of(args)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    continue_text(model, tokenizer, prompt, sampling, cache, streamer)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
