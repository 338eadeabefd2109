"""Ask a model about what it has read, and keep what it has learned. Examples:

python tools/chat.py --model runs/mine/hf --read book.txt
python tools/chat.py --model runs/mine/hf --memory book
echo "The code young sister" | python tools/chat.py --model runs/mine/hf --memory book

The model is an exported folder or a checkpoint (the --save folder of a run). It continues every line that is typed or
comes from standard input; /help lists the commands, among them /read, /save and /show. Ctrl-C stops an answer.
Where lines come from a file or pipe, the exit status is 1 if one of them failed.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Callable, Iterator, Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.text_generation import ChatOptions
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), ChatOptions)


def typed_lines(prompt: Callable[[], str]) -> Iterator[str]:
    """Lines that are typed at a prompt, or those of standard input, to their end."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  (history and editing of lines)

    while True:
        try:
            yield input(prompt())
        except KeyboardInterrupt:
            print("  (/quit or Ctrl-D ends the session)")
        except EOFError:
            print()
            return


def main(argv: Sequence[str] | None = None) -> int:
    """Read what is given, then obey lines; answers go to standard output."""
    parser = build_parser()
    args = parse_tool(parser, ChatOptions, argv)
    if args.temperature < 0:
        parser.error(f"--temperature {args.temperature} must be at least 0")
    import torch

    from megatron_fwpkm.conversion.export import load_for_text
    from megatron_fwpkm.evaluation.chat.commands import read_file, run_lines
    from megatron_fwpkm.evaluation.chat.session import Session
    from megatron_fwpkm.hf.generation import Sampling, read_text

    for path in args.read:  # before the model is loaded, which takes longer
        read_text(path)
    model, tokenizer = load_for_text(args.model, args.device)
    torch.manual_seed(args.seed)
    sampling = Sampling.of(args)
    session = Session(model, tokenizer, sampling)
    if args.memory:
        session.load(args.memory)
    for path in args.read:
        read_file(session, path)
    failed = run_lines(session, typed_lines(lambda: f"{session.current}> "))
    return 1 if failed and not sys.stdin.isatty() else 0  # a script sees it, a person has seen it


if __name__ == "__main__":
    sys.exit(run_cli(main))
