"""Serve many sessions with one model in one process, and measure it.

Every session reads its own part of a text into its own memory. Then all of them answer together, in one batch per
round; after a round a quarter of the sessions leaves, and as many new ones read their parts and join.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Session:
    """One user: the document [1, T] and the cache that has read it, questions of [1, t] and their answers."""

    document: Tensor
    cache: Any
    questions: list[Tensor] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    nbytes: int = 0


@dataclass
class Row:
    """What was measured with so many sessions at once; sizes in bytes, speeds in tokens per second."""

    sessions: int
    bytes_mean: int
    bytes_max: int
    table_bytes: int
    read_tokens_per_second: float
    decode_tokens_per_second: float
    per_session: float


def answer(model: Any, questions: list[Tensor], cache: Any, new_tokens: int) -> list[list[int]]:
    """Greedy answers to questions [1, t], one for each sequence of the cache, padded on the left to one batch."""
    length = max(question.shape[1] for question in questions)
    ids = torch.cat([torch.nn.functional.pad(one, (length - one.shape[1], 0)) for one in questions])
    mask = torch.stack([torch.arange(length) >= length - one.shape[1] for one in questions]).long()
    exactly = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    found = model.generate(ids, attention_mask=mask, cache=cache, **exactly)
    return [row[length:].tolist() for row in found]


def ask_together(model: Any, active: list[Session], new_tokens: int, number: int, clock: Callable[[], float]) -> float:
    """One round: every session asks with the words at a place of its document. Returns the seconds of the batch."""
    for index, one in enumerate(active):
        one.questions.append(one.document[:, 8 * number : 8 * number + 8 + index % 5])
    start = clock()
    joined = type(active[0].cache).join([one.cache for one in active])
    answers = answer(model, [one.questions[-1] for one in active], joined, new_tokens)
    caches = joined.split()
    seconds = clock() - start
    for one, cache, words in zip(active, caches, answers, strict=True):
        one.cache, one.nbytes = cache, cache.nbytes  # with its attention and the tokens that wait
        one.answers.append(words)
        cache.end_text()
    return seconds


def check_alone(model: Any, one: Session, new_tokens: int) -> None:
    """Answer the questions of a session again without the others; raises ValueError where a token differs."""
    cache = model.read(one.document)
    for question, words in zip(one.questions, one.answers, strict=True):
        if answer(model, [question], cache, new_tokens) != [words]:
            raise ValueError("a session answers otherwise alone than beside others; compare in float64 (--check)")
        cache.end_text()


def measure(model: Any, ids: Tensor, sessions: int, args: argparse.Namespace) -> tuple[Row, list[Session]]:
    """Serve so many sessions at once; the documents are pieces of `ids` [N], which begins anew at its end."""
    clock = time.process_time if args.seconds == "cpu" else time.perf_counter
    seconds = {"read": 0.0, "decode": 0.0}
    everyone: list[Session] = []

    def join() -> Session:
        places = torch.arange(args.read_tokens) + len(everyone) * args.read_tokens
        document, start = ids[places % len(ids)].unsqueeze(0), clock()
        everyone.append(Session(document, model.read(document)))
        seconds["read"] += clock() - start
        return everyone[-1]

    active = [join() for _ in range(sessions)]
    for number in range(args.rounds):
        if number:
            leaving = sessions // 4
            active = active[leaving:] + [join() for _ in range(leaving)]
        seconds["decode"] += ask_together(model, active, args.new_tokens, number, clock)
    for one in everyone if args.check else []:
        check_alone(model, one, args.new_tokens)
    sizes = [one.nbytes for one in active]
    tables = [memory.owners[0].initial.tables() for memory in active[0].cache.memory.values()]
    whole = sum(table.nbytes for of_layer in tables for table in of_layer.values())
    speed = sessions * args.rounds * args.new_tokens / seconds["decode"]
    read = len(everyone) * args.read_tokens / seconds["read"]
    return Row(sessions, sum(sizes) // sessions, max(sizes), whole, read, speed, speed / sessions), everyone


def random_model() -> Any:
    """A model of the quickstart's sizes with random weights: its speed and sizes are real, its answers are not."""
    from megatron_fwpkm.hf import FwPKMForCausalLM, FwPKMHFConfig

    torch.manual_seed(0)
    sizes = dict(vocab_size=1024, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
    windows = dict(num_key_value_heads=2, attention_windows=[4, 32, 32], tie_word_embeddings=False, fwpkm_layers=[1])
    table = dict(fwpkm_num_subkeys=256, fwpkm_key_dim=64, fwpkm_value_dim=96, fwpkm_topk=8, fwpkm_chunk_size=64)
    model = FwPKMForCausalLM(FwPKMHFConfig(**sizes, **windows, **table, fwpkm_addressing_weight=0.1))
    return model.apply(lambda part: part.weight.data.mul_(5) if isinstance(part, torch.nn.Linear) else None).eval()


def load(args: argparse.Namespace) -> tuple[Any, Tensor]:
    """The model and the tokens [N] of the text; those of a random model are the text's bytes.

    Raises:
        ValueError: the text or the model cannot be read.
    """
    try:
        data = Path(args.text).read_bytes()
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        text.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"--text {args.text} is not UTF-8 text, plain or gzip: {error}") from error
    if not text:
        raise ValueError(f"--text {args.text} is empty")
    if args.random:
        return random_model(), torch.tensor(list(text))
    if not (Path(args.model) / "config.json").is_file():
        raise ValueError(f"--model {args.model} is not the folder of an exported model (nothing is downloaded)")
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    ids = tokenizer(text.decode("utf-8"), add_special_tokens=False).input_ids
    return AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True).eval(), torch.tensor(ids)


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag that is an integer from `least` on."""

    def integer(word: str) -> int:
        if int(word) < least:
            raise argparse.ArgumentTypeError(f"{word} must be at least {least}")
        return int(word)

    return integer


def warn_of_repetition(tokens: int, sessions: int, args: argparse.Namespace) -> None:
    """Say on standard error where a text is too short for every session to have a part of its own."""
    needed = (sessions + sessions // 4 * (args.rounds - 1)) * args.read_tokens
    if tokens < needed:
        print(f"{sessions} sessions read {needed:,} tokens, but the text has {tokens:,}: parts are read again",
              file=sys.stderr)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder of an exported model; its code is run (trust_remote_code)")
    source.add_argument("--random", action="store_true", help="a random model of the quickstart's sizes instead")
    parts = "UTF-8 text, plain or gzip; sessions read consecutive parts, again from its beginning where it is too short"
    parser.add_argument("--text", required=True, help=parts)
    numbers = [1, 4, 16, 64]
    parser.add_argument("--sessions", type=at_least(1), nargs="+", default=numbers, help="sessions at once, per row")
    parser.add_argument("--read-tokens", type=at_least(64), default=1024, help="tokens that a session reads")
    parser.add_argument("--new-tokens", type=at_least(1), default=32, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, choices=range(1, 7), default=2, help="questions per session")
    parser.add_argument("--threads", type=at_least(1), default=1, help="threads of torch")
    clocks = "seconds are those of the clock, or the CPU's (one thread on a busy machine)"
    parser.add_argument("--seconds", choices=["wall", "cpu"], default="wall", help=clocks)
    parser.add_argument("--check", action="store_true", help="compute in float64 and compare with sessions alone")
    parser.add_argument("--output", help="file for the table: .json, or CSV with any other ending")
    return parser


def main(argv: list[str] | None = None) -> list[Row]:
    """Measure a row for every number of sessions, print and save them; returns them."""
    parser = build_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        model, ids = load(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    model = model.double() if args.check else model
    rows = []
    print("| sessions | KiB each: mean | max | of a whole table | read tokens/s | decode tokens/s | per session |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for sessions in args.sessions:
        warn_of_repetition(len(ids), sessions, args)
        row, _ = measure(model, ids, sessions, args)
        rows.append(row)
        speeds = f"{row.read_tokens_per_second:,.0f} | {row.decode_tokens_per_second:,.0f} | {row.per_session:,.1f}"
        sizes = f"{row.bytes_mean / 1024:,.0f} | {row.bytes_max / 1024:,.0f} | {row.bytes_mean / row.table_bytes:.1%}"
        print(f"| {sessions} | {sizes} | {speeds} |", flush=True)
    if args.check:
        print("every answer equals that of the session alone")
    if args.output:
        path = Path(args.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            if path.suffix == ".json":
                json.dump([asdict(row) for row in rows], file, indent=1)
            else:
                writer = csv.DictWriter(file, list(asdict(rows[0])))
                writer.writeheader()
                writer.writerows(asdict(row) for row in rows)
    return rows


if __name__ == "__main__":
    main()
