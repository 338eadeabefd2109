"""Rules between the options of corpus, tokenizer and needles."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .data import MOST_NUMBERS, TOKENIZERS_WITHOUT_FILE, DataConfig
from .pretrain import PretrainConfig


def data_problems(config: PretrainConfig) -> Iterator[str]:
    """Violated rules of the data, a sentence each."""
    yield from _paths(config)
    yield from _splits(config)
    yield from _tokenizer(config)
    yield from _needles(config)


def _paths(config: PretrainConfig) -> Iterator[str]:
    data, training = config.data, config.training
    apart = {
        "--train-data-path": data.train_data_path,
        "--valid-data-path": data.valid_data_path,
        "--test-data-path": data.test_data_path,
    }
    given = [flag for flag, paths in apart.items() if paths]
    if data.data_path and given:
        yield f"--data-path and {' '.join(given)} are mutually exclusive: give one corpus for --split, or one per split"
    elif given and not data.train_data_path:
        yield f"{' '.join(given)} requires --train-data-path"
    elif not given and not data.data_path and not training.dry_run:
        yield "no training data: give --data-path PREFIX (made by tools/preprocess_data.py) or --train-data-path"
    for flag, paths in {"--data-path": data.data_path, **apart}.items():
        yield from _blend(flag, paths)


def _splits(config: PretrainConfig) -> Iterator[str]:
    data, training = config.data, config.training
    shares = _shares(data.split)
    if shares is None:
        yield (
            f"--split {data.split} is malformed: write the shares of training, validation and test as three numbers "
            "like 969,30,1, the first above 0"
        )
    elif data.data_path and training.eval_iters and not shares[1]:
        yield (
            f"--split {data.split} leaves no validation documents for --eval-iters {training.eval_iters}: give them a "
            "share, or use --eval-iters 0"
        )
    if data.train_data_path and not data.valid_data_path and training.eval_iters:
        yield (
            f"--eval-iters {training.eval_iters} requires --valid-data-path with --train-data-path: add it, or use "
            "--eval-iters 0"
        )


def _tokenizer(config: PretrainConfig) -> Iterator[str]:
    data = config.data
    if data.tokenizer_type == "NullTokenizer":
        if data.vocab_size is None:
            yield "--tokenizer-type NullTokenizer requires --vocab-size"
        elif data.vocab_size > MOST_NUMBERS:
            yield f"--vocab-size {data.vocab_size} must be at most {MOST_NUMBERS}: ids are 32-bit integers"
    elif data.tokenizer_type not in TOKENIZERS_WITHOUT_FILE and not (data.tokenizer_model or config.training.dry_run):
        yield f"--tokenizer-type {data.tokenizer_type} requires --tokenizer-model"
    yield from idle_tiktoken_options(data)


def idle_tiktoken_options(data: DataConfig) -> Iterator[str]:
    """Options that do nothing with the type of tokenizer, a sentence each."""
    kind = data.tokenizer_type
    for name in ("tiktoken_pattern", "tiktoken_num_special_tokens", "tiktoken_special_tokens"):
        value = getattr(data, name)
        if kind != "TikTokenizer" and value != getattr(DataConfig(), name):
            told = " ".join(value) if isinstance(value, tuple) else value
            yield (
                f"--{name.replace('_', '-')} {told} has no effect with --tokenizer-type {kind}: remove it, or use "
                "--tokenizer-type TikTokenizer"
            )


def _blend(flag: str, paths: tuple[str, ...]) -> Iterator[str]:
    """A path alone, or WEIGHT PREFIX pairs."""
    if len(paths) < 2:
        return
    pairs = list(zip(paths[::2], paths[1::2], strict=False))
    if len(paths) % 2 or not all(_is_weight(weight) for weight, _ in pairs):
        yield (
            f"{flag} {' '.join(paths)}: several corpora are a blend, written as pairs WEIGHT PREFIX with weights above "
            "0, like 0.7 books 0.3 web"
        )


def _is_weight(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _shares(split: str) -> list[float] | None:
    try:
        shares = [float(part) for part in split.split(",")]
    except ValueError:
        return None
    sound = len(shares) == 3 and all(math.isfinite(share) and share >= 0 for share in shares) and shares[0] > 0
    return shares if sound else None


def _needles(config: PretrainConfig) -> Iterator[str]:
    needle = config.needle
    if not needle.fraction:
        return
    counts = {part: needle.template.count(part) for part in ("{key}", "{value}")}
    if counts != {"{key}": 1, "{value}": 1} or needle.template.index("{key}") > needle.template.index("{value}"):
        yield (
            f"--needle-template {needle.template!r} must contain {{key}} once and {{value}} once after it, because "
            "the key asks for the value"
        )
