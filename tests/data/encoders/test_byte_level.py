"""Byte-level BPE by gigatoken: the ids of tokenizers and tiktoken, or the plain tokenizer with the reason."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.encoders import acceleration, byte_level_encoder, gigatoken_library
from megatron_fwpkm.data.encoders.acceleration import PROBES, build_encoder, choose_accelerator
from megatron_fwpkm.data.encoders.byte_level_encoder import ByteLevelEncoder
from megatron_fwpkm.data.encoders.gigatoken_library import GIGATOKEN_VERSION
from megatron_fwpkm.data.encoders.tokenizer_json import SPLITS, check_tokenizer_json, split_tables, text_tokens
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer
from tests.quick_cases import examples

from ..conftest import novel
from ..preprocess.test_preprocess import jsonl, run

try:
    INSTALLED = importlib.metadata.version("gigatoken") == GIGATOKEN_VERSION
except importlib.metadata.PackageNotFoundError:
    INSTALLED = False
needs_gigatoken = pytest.mark.skipif(not INSTALLED, reason=f"gigatoken {GIGATOKEN_VERSION} (extra `fast`) is missing")

CORNERS = "a's qvz I'LL we'Re 'sir 12345 x9 \u4f60\u597d\u3042 \U0001f600 e\u0301 \u00c5B\u01c5 !?/\n /\r\n  \t z "
TEXT = st.one_of(
    st.text(st.sampled_from(CORNERS + "\x01\x00\u2028\u0085\u017f\u212b<think></s>\U00010400\U0001d400"), max_size=40),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.integers(0, 50_000).map(lambda at: novel(60_000)[at : at + 200]),
)


def trained(folder: Path, scheme: str, normalizer: str | None = None) -> Path:
    """A folder of a byte-level BPE of 1,200 pieces, with words of signs, spaces and other scripts."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=scheme == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=scheme == "gpt2")
    splits = [] if scheme == "gpt2" else [pre_tokenizers.Split(Regex(SPLITS[scheme]), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])  # type: ignore[assignment]
    if normalizer:
        tokenizer.normalizer = getattr(tokenizers.normalizers, normalizer)()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([novel(40_000), (CORNERS + CORNERS[::-1]) * 30], trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder


def hugging_face(folder: Path) -> Tokenizer:
    return build_tokenizer(DataConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder)))


def ranks(folder: Path, pattern: Any) -> Tokenizer:
    """Ranks of pieces that reach wherever a pattern lets them."""
    pytest.importorskip("tiktoken", reason="the extra `data` is not installed")
    pieces = [bytes([byte]) for byte in range(256)]
    words = (
        "'s",
        "heHe",
        "'ll",
        "'re",
        "'si",
        " t",
        "he",
        " the",
        "12",
        "99",
        " a",
        " w",
        "\n\n",
        "  ",
        "!?",
        "/\n",
        "\u4f60",
    )
    pieces += dict.fromkeys(word.encode()[:end] for word in words for end in range(2, len(word.encode()) + 1))
    pieces += [b" qvz", b"ough"]  # no two pieces make these
    path = folder / f"{pattern}.tiktoken"
    path.write_text("".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces)))
    return build_tokenizer(
        DataConfig(tokenizer_type="TikTokenizer", tokenizer_model=str(path), tiktoken_pattern=pattern)
    )


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """A tokenizer for each regular expression, each normal form, and each pattern of ranks."""
    at = tmp_path_factory.mktemp("byte-level")
    forms = {"qwen2": "NFC", "nemotron": "NFKD"}
    found = [hugging_face(trained(at / scheme, scheme, forms.get(scheme))) for scheme in SPLITS]
    return [*found, ranks(at, "v1"), ranks(at, "v2")]


@pytest.fixture(scope="module")
def gpt2(every_kind: list[Tokenizer]) -> Tokenizer:
    return every_kind[0]


@pytest.fixture(scope="module")
def both_ways(every_kind: list[Tokenizer]) -> list[tuple[Path | None, Any, Any]]:
    """For each tokenizer its path, the fast way and the plain way."""
    fast, plain = acceleration._BUILDERS["gigatoken"], build_encoder
    return [(tokenizer.path, fast(tokenizer), plain(tokenizer, "none")) for tokenizer in every_kind]


@needs_gigatoken
@examples(40, 120)
@given(texts=st.lists(TEXT, max_size=4))
def test_the_same_tokens(both_ways: list[tuple[Path | None, Any, Any]], texts: list[str]) -> None:
    for path, encode, plain in both_ways:
        assert encode(texts) == plain(texts), path


@needs_gigatoken
def test_the_same_tokens_where_words_end(every_kind: list[Tokenizer], both_ways: list[Any]) -> None:
    texts = [*PROBES, CORNERS, *(f"{a}{b}{c}" for a in " \n'1a!" for b in CORNERS for c in " \r9sL?")]
    for path, encode, plain in both_ways:
        assert encode(texts) == plain(texts), path
    for tokenizer in every_kind:
        chosen, _, told = choose_accelerator(tokenizer, "auto")
        assert (chosen, told) == ("gigatoken", ""), tokenizer.path


@needs_gigatoken
def test_the_library_gets_no_added_token_and_no_rare_letter(every_kind: list[Tokenizer]) -> None:
    qwen, v1 = ByteLevelEncoder(every_kind[2]), ByteLevelEncoder(every_kind[-2])  # type: ignore[arg-type]
    assert qwen._prepare("a </s>") == b"a </s>" and qwen._prepare("e\u0301 \U0001f600") == "\u00e9 \U0001f600".encode()
    assert qwen._prepare("x<think>") is None and qwen._prepare("\U00011de0") is None
    assert v1._prepare("it's") == b"it\x01s" and v1._prepare("\x01") is None and v1._prepare("\U00010400") is None
    nfkd = ByteLevelEncoder(every_kind[4])  # type: ignore[arg-type]
    assert nfkd._prepare("\uff1cthink>") is None


@needs_gigatoken
def test_words_that_are_pieces_and_cased_words(tmp_path: Path, every_kind: list[Tokenizer]) -> None:
    """What only `ignore_merges` makes one token, and where v1 and v2 cut differently."""
    v1, v2 = every_kind[-2:]
    for tokenizer in (v1, v2):
        assert len(tokenizer.encode(" qvz")) == 1
        assert ByteLevelEncoder(tokenizer)([" qvz heHE thE/\n"]) == build_encoder(tokenizer, "none")(
            [" qvz heHE thE/\n"]
        )  # type: ignore[arg-type]
    assert v1.encode("/\n") != v2.encode("/\n") or v1.encode("heHe") != v2.encode("heHe")
    folder = trained(tmp_path / "llama3", "llama3")
    description = json.loads((folder / "tokenizer.json").read_text())
    description["model"]["merges"] = description["model"]["merges"][:50]  # the pieces behind are words or nothing
    (folder / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = hugging_face(folder)
    assert len(tokenizer.encode(" Walter")) == 1
    texts = [novel(4_000), " Walter Walters"]
    assert ByteLevelEncoder(tokenizer)(texts) == build_encoder(tokenizer, "none")(texts)  # type: ignore[arg-type]


@needs_gigatoken
def test_long_words_take_no_time(gpt2: Tokenizer) -> None:
    encode, plain = acceleration._BUILDERS["gigatoken"](gpt2), build_encoder(gpt2, "none")
    words = ["x" * 300_000, novel(90_000).replace(" ", "").replace("\n", ""), " " * 300_000, "\u4f60" * 90_000]
    begin = time.process_time()
    found = encode(words)
    assert time.process_time() - begin < 5
    assert found == plain(words)


@needs_gigatoken
def test_memory_is_bounded(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is loaded anew before its cache has grown by more than it may, and the tokens stay the same."""
    monkeypatch.setattr(gigatoken_library, "_LEAST_TEXT_PER_LOAD", 100_000)
    monkeypatch.setattr(byte_level_encoder, "_CACHE_BYTES", 4_000_000)
    encode, plain = ByteLevelEncoder(gpt2), build_encoder(gpt2, "none")  # type: ignore[arg-type]
    loads, load = [], encode._encode._load
    encode._encode._load = lambda: loads.append(1) or load()
    before = gigatoken_library._resident_bytes()
    for block in range(20):
        numbers = range(block * 20_000, (block + 1) * 20_000)
        texts = [" ".join(f"{number * 7919:x}q" for number in numbers[at : at + 2000]) for at in range(0, 20_000, 2000)]
        found = encode(texts)
    assert found == plain(texts) and loads
    assert gigatoken_library._resident_bytes() - before < 40_000_000


@needs_gigatoken
@pytest.mark.parametrize("number", [2, -1])
def test_whole_runs_write_the_same_bytes_and_faults_are_found(
    tmp_path: Path, every_kind: list[Tokenizer], number: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokenizer = every_kind[number]
    parts = [part + " <think>" * (len(part) % 3) for part in novel(40_000).split("\n\n") if part.strip()]
    source, outputs = jsonl(tmp_path / "a.jsonl", [*parts, CORNERS]), []
    data = DataConfig(tokenizer_type=tokenizer.kind, tokenizer_model=str(tokenizer.path))  # type: ignore[arg-type]

    def written(accelerator: str) -> str:
        report = run(tmp_path, None, source, data=data, accelerator=accelerator, overwrite=True, append_eod=True)
        outputs.append([Path(f"{report.prefixes[0]}.{suffix}").read_bytes() for suffix in ("bin", "idx", "json")])
        return report.accelerator

    assert [written("auto"), written("none")] == ["gigatoken", "the plain tokenizer"]
    right = ByteLevelEncoder._bytes
    monkeypatch.setattr(ByteLevelEncoder, "_bytes", lambda self, ids: right(self, ids[::-1] if len(ids) > 60 else ids))
    capsys.readouterr()
    assert written("auto") == "the plain tokenizer"
    assert "its tokens differ from the plain tokenizer's" in capsys.readouterr().err
    assert outputs[0] == outputs[1] == outputs[2]


def described() -> dict[str, Any]:
    letters = pre_tokenizers.ByteLevel.alphabet()
    split = {"type": "Split", "pattern": {"Regex": SPLITS["qwen2"]}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "normalizer": None, "post_processor": None, "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {"type": "BPE", "vocab": {letter: number for number, letter in enumerate(letters)}, "merges": []},
    }  # fmt: skip


def step(number: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda held: held["pre_tokenizer"]["pretokenizers"][number].update(changes)


REFUSED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the tokenizer has truncation": lambda held: held.update(truncation={"max_length": 9}),
    "the tokenizer has padding": lambda held: held.update(padding={"strategy": "BatchLongest"}),
    "normalizer Lowercase": lambda held: held.update(normalizer={"type": "Lowercase"}),
    "normalizer Sequence": lambda held: held.update(
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}
    ),
    "pre-tokenizer Digits": step(0, type="Digits"),
    "the pre-tokenizer is missing; only ByteLevel": lambda held: held.update(pre_tokenizer=None),
    "with add_prefix_space": step(1, add_prefix_space=True),
    "must split by its regular expression": step(1, use_regex=True),
    "Split with behavior Removed": step(0, behavior="Removed"),
    r"the pre-tokenizer cuts words by '\\\\w\+'; only the regular .* gpt2": step(0, pattern={"Regex": r"\w+"}),
    r"cuts words by \{'String': ' '\}; only": step(0, pattern={"String": " "}),
    r"the pre-tokenizer is Split, Split, ByteLevel; only ByteLevel, with at most one Split": lambda held: (
        held["pre_tokenizer"]["pretokenizers"].insert(0, held["pre_tokenizer"]["pretokenizers"][0])
    ),
    "post-processor Odd": lambda held: held.update(post_processor={"type": "Odd"}),
    "the model is Unigram": lambda held: held["model"].update(type="Unigram"),
    "the model has dropout": lambda held: held["model"].update(dropout=0.1),
    "the model has byte_fallback": lambda held: held["model"].update(byte_fallback=True),
    "the model has end_of_word_suffix": lambda held: held["model"].update(end_of_word_suffix="</w>"),
    "no piece for 1 of the 256 bytes": lambda held: held["model"]["vocab"].pop("a"),
    "no piece for 1 of the 256 ": lambda held: held["model"]["vocab"].update({'"a': held["model"]["vocab"].pop("a")}),
}  # fmt: skip


@pytest.mark.parametrize("told", REFUSED)
def test_what_cannot_be_exact_is_refused_by_name(told: str) -> None:
    def check(description: dict[str, Any]) -> None:
        check_tokenizer_json(*split_tables(json.dumps(description, ensure_ascii=False).encode())[:2])

    check(described())
    description = described()
    REFUSED[told](description)
    with pytest.raises(ValueError, match=told):
        check(description)


QWEN_3_5, KIMI_K2 = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"[\p{Han}]+"
"""What these models cut words by, in part."""


@pytest.mark.parametrize("part", [QWEN_3_5, KIMI_K2])
def test_models_that_cut_other_words_are_told_by_what(part: str) -> None:
    description = described()
    step(0, pattern={"Regex": f"{part}|{SPLITS['qwen2']}"})(description)
    with pytest.raises(ValueError) as told:
        check_tokenizer_json(description, b"")
    assert repr(part)[1:-1] in str(told.value) and "qwen2" in str(told.value)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("odd", [{}, {"<\uff5cx\uff5c>": 301, " ": 302}])
def test_tables_are_taken_out_of_the_text(indent: int | None, pairs: bool, escaped: bool, odd: dict[str, int]) -> None:
    """In every way of writing them, and with pieces that look like JSON; what is no word of bytes is left out."""
    description = described()
    model = description["model"]
    names = [{"content": 'a "vocab": {"b": 1}, "merges": ["c d"]', "special": True}]
    description = {**description, "added_tokens": names, "behind": {"vocab": {"id": "vocab"}, "merges": 1}}
    model["vocab"] |= {'"}': 256, "\\": 257, '":{"': 258, "[],": 259, '\\"': 260}
    merges = [("[", "]"), ('"', "}"), ("\u0120", "t"), ("\\", '"')]
    model["merges"] = [list(pair) if pairs else " ".join(pair) for pair in merges]
    written = json.dumps(description | {"model": model | {"vocab": model["vocab"] | odd}}, indent=indent,
                         ensure_ascii=escaped)  # fmt: skip
    rest, vocab, found = split_tables(written.encode())
    assert json.loads(vocab) == model["vocab"] and json.loads(found) == model["merges"]
    assert rest["added_tokens"] == names and rest["behind"]["merges"] == 1 and rest["model"]["type"] == "BPE"
    assert ("vocab" in rest["model"]) == (not odd and not escaped)  # null: it was never an object of Python
    assert not rest["model"].get("vocab") and not rest["model"].get("merges")


def test_added_tokens_of_most_texts_are_refused_by_name() -> None:
    tokens = [{"content": "<s>", "special": True}, {"content": "<think>", "special": False}]
    assert text_tokens({"added_tokens": tokens}) == ["<think>"]
    for content in ("    ", "a"):
        with pytest.raises(ValueError, match=f"added token '{content}' is not supported: most texts have it"):
            text_tokens({"added_tokens": [*tokens, {"content": content, "special": False}]})


@pytest.mark.parametrize("found, told", [
    (None, "not installed (pip install gigatoken==0.10.0)"),
    ("0.11.0", "version 0.11.0 is installed, but only 0.10.0 is supported"),
])  # fmt: skip
def test_without_the_package_the_plain_tokenizer_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: str | None, told: str
) -> None:
    def version(name: str) -> str:
        assert name == "gigatoken"
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    for module in [name for name in sys.modules if name.split(".")[0] == "gigatoken"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gigatoken", None)  # an import fails
    folder = trained(tmp_path / "gpt2", "gpt2")
    data = DataConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder))
    report = run(tmp_path, None, jsonl(tmp_path / "a.jsonl", ["One two"]), data=data)
    assert report.accelerator == "the plain tokenizer"
    notice = f"note: --accelerator auto: gigatoken: {told}; using the plain tokenizer"
    assert notice in capsys.readouterr().err.splitlines()


@needs_gigatoken
def test_auto_says_why_it_is_not_faster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path / "lower", "llama3", "Lowercase")
    data = DataConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder))
    report = run(tmp_path, None, jsonl(tmp_path / "a.jsonl", ["One two"]), data=data)
    assert report.accelerator == "the plain tokenizer"
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: --accelerator")]
    assert told == [
        "note: --accelerator auto: gigatoken: normalizer Lowercase is not supported; using the plain tokenizer"
    ]
