"""The folder an export leaves: complete, self-contained, with the tokenizer's own ids, and never half written."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.conversion import export as export_module
from megatron_fwpkm.conversion.bundle import bundled_files
from megatron_fwpkm.conversion.export import export, hf_model_from_checkpoint, load_for_text
from megatron_fwpkm.conversion.tokenizer_export import convert_tokenizer
from tests.layers.megatron import initialize

from ..checkpoint.contents import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
LONELY = """
import os
import re
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("megatron", "megatron_fwpkm"):
            raise ImportError(f"{name} is not on this machine")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
ids = tokenizer("It is a truth universally acknowledged", return_tensors="pt")
cache = model.new_cache()
with torch.no_grad():
    logits = model(**ids, past_key_values=cache).logits
generated = model.generate(**ids, max_new_tokens=20, do_sample=False)
model.save_pretrained(out)
tokenizer.save_pretrained(out)
again = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(again(**ids).logits, logits)
torch.save([ids.input_ids, logits, generated], out + "/results.pt")

# The commands of the model card, as they stand there.
os.chdir(folder)
open("document.txt", "w").write("She was all attention. " * 40)
for block in re.findall("```python\\n(.*?)```", open("README.md").read(), re.DOTALL):
    exec(block)
values = cache.memory[1].state.whole_values()
assert values.ne(model.model.layers[1].memory.values).any() and values.grad_fn is None
"""


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with byte fallback and split digits that keeps white space."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(novel(), **IDENTITY))
    return path


def novel() -> list[str]:
    with gzip.open(ROOT / "examples/quickstart/corpus/northanger_abbey.txt.gz", "rt", encoding="utf-8") as stream:
        return [line for line in stream.read().splitlines()[:3000] if line.strip()]


def train(lines: list[str], **options: object) -> bytes:
    blob = io.BytesIO()
    arguments = dict(
        model_type="bpe", vocab_size=500, byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=blob, **(arguments | options))
    return blob.getvalue()


def converted(path: Path, kind: Any = "SentencePieceTokenizer") -> PreTrainedTokenizerFast:
    found = convert_tokenizer(path, DataConfig(tokenizer_type=kind))
    assert found is not None
    return found


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A run's --save folder."""
    initialize()
    root = tmp_path_factory.mktemp("run")
    write_checkpoint(root, 500, 512, tokenizer_file)
    return root


def test_an_export_needs_nothing_of_this_package(checkpoint: Path, tmp_path: Path) -> None:
    folder = export(checkpoint, tmp_path / "hf")
    expected = set(bundled_files()) | {
        "LICENSE", "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "all may be read by the same people"
    assert {path.name for path in folder.iterdir()} == expected
    assert all((folder / name).read_text() == text for name, text in bundled_files().items())
    (tmp_path / "again").mkdir()
    script = tmp_path / "lonely.py"
    script.write_text(LONELY)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # sums are cut, and rounded, as here
    command = [sys.executable, str(script), str(folder), str(tmp_path / "again")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    ids, logits, generated = torch.load(tmp_path / "again" / "results.pt")
    model, tokenizer = hf_model_from_checkpoint(checkpoint)
    assert tokenizer is not None and tokenizer("It is a truth universally acknowledged").input_ids == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    assert generated.shape == (1, ids.shape[1] + 20) or generated[0, -1] == 2


def test_an_export_and_its_checkpoint_load_alike(checkpoint: Path, tmp_path: Path) -> None:
    folder = export(checkpoint, tmp_path / "hf")
    (first, encoder), (second, other) = hf_model_from_checkpoint(checkpoint), hf_model_from_checkpoint(folder)
    assert encoder is not None and other is not None
    assert encoder("a 17 b").input_ids == other("a 17 b").input_ids
    second_state = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second_state[name]), name
    differing = {"_name_or_path", "auto_map", "dtype", "transformers_version"}
    ours, theirs = (
        {key: value for key, value in model.config.to_dict().items() if key not in differing}
        for model in (first, second)
    )
    assert ours == theirs
    assert (second.generation_config.eos_token_id, second.generation_config.pad_token_id) == (2, 0)
    assert json.loads((folder / "config.json").read_text())["fwpkm_memory"] == "trained"
    card = (folder / "README.md").read_text()
    assert "Requires Transformers 5.17 to 5.24" in card
    assert "64 slots before" in card and "windows of 16 tokens" in card and "the memory at the end of training" in card


def test_half_precision_on_disk(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = export(checkpoint, tmp_path / "hf", dtype="bfloat16", fast_weights="initial")
    tensors = load_file(folder / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    assert kinds["model.embed_tokens.weight"] == torch.bfloat16 and "lm_head.weight" not in kinds
    assert kinds["model.layers.1.memory.values"] == kinds["model.layers.1.memory.sub_keys"] == torch.float32


def random_texts(processor: sentencepiece.SentencePieceProcessor, count: int, spelled: bool) -> list[str]:
    """Texts from pieces and awkward characters; `spelled` names bytes and control pieces in them too."""
    draw = random.Random(7)
    pieces = [processor.id_to_piece(token).replace("\u2581", " ") for token in range(processor.get_piece_size())]
    if not spelled:
        pieces = pieces[3:4] + pieces[260:]
    alphabet = [*"abcdehinorstu ABZ 0123456789  \t\n\r.,;'\"-()<>/_|é漢😀ﬁ", "\u00a0", "\u3000", "\u2581", "\x00"]
    special = [
        "",
        " ",
        "   ",
        "  two  spaces ",
        "</s>",
        "<s> a </s>",
        "<unk>",
        "<0x41>",
        "12345 6.78",
        "\n\n a",
        "<sep>",
    ]
    sources = [pieces, alphabet, special] if spelled else [pieces, alphabet]
    texts = list(special)
    for _ in range(count):
        source = draw.choice(sources)
        texts.append("".join(draw.choice(source) for _ in range(draw.randint(0, 40))))
    return texts


@pytest.mark.parametrize(
    "options",
    [IDENTITY, {"normalization_rule_name": "nmt_nfkc"}, IDENTITY | {"user_defined_symbols": ["<sep>", "ing"]}],
    ids=["identity", "nmt_nfkc", "user-defined"],
)
def test_the_exported_tokenizer_is_sentencepiece(options: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(train(novel(), **options))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    converted(file).save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (loaded.eos_token_id, loaded.bos_token_id, len(loaded)) == (2, 1, processor.get_piece_size())
    for text in random_texts(processor, 3000, spelled="user_defined_symbols" not in options):
        ids = processor.encode(text)
        assert loaded(text).input_ids == ids, repr(text)
        assert loaded.decode(ids) == processor.decode(ids), repr(text)
    assert loaded.decode([*processor.encode("the end"), 2], skip_special_tokens=True) == "the end"


def test_what_cannot_be_converted_is_said(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage = tmp_path / "garbage.model"
    garbage.write_bytes(b"no model")
    with pytest.raises(ValueError, match="garbage.model is not a SentencePiece model"):
        converted(garbage)
    unigram = tmp_path / "unigram.model"
    unigram.write_bytes(
        train(["one two three four five six"] * 9, model_type="unigram", vocab_size=290, hard_vocab_limit=False)
    )
    with pytest.raises(ValueError, match="unigram.model is not a BPE model, the only kind of SentencePiece"):
        converted(unigram)
    from megatron_fwpkm.conversion import tokenizer_export

    monkeypatch.setattr(tokenizer_export, "_normalizers", lambda spec: [])
    with pytest.raises(ValueError, match="cannot be converted exactly: .* --no-tokenizer"):
        converted(tokenizer_file)


def test_hugging_face_tokenizers_are_taken_over(tokenizer_file: Path, tmp_path: Path) -> None:
    converted(tokenizer_file).save_pretrained(tmp_path / "tokenizer")
    for source in (tmp_path / "tokenizer", tmp_path / "tokenizer" / "tokenizer.json"):
        loaded = converted(source, "HuggingFaceTokenizer")
        assert loaded("a</s> b").input_ids == converted(tokenizer_file)("a</s> b").input_ids


def test_a_failed_export_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "hf"
    export(checkpoint, target)
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="hf already exists; give another --output, or use --overwrite"):
        export(checkpoint, target)

    def broken(*arguments: object) -> str:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(export_module, "model_card", broken)
        with pytest.raises(OSError, match="the disk is full"):
            export(checkpoint, target, fast_weights="initial", overwrite=True)
    assert (target / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    export(checkpoint, target, fast_weights="initial", overwrite=True, tokenizer=False)
    assert (target / "model.safetensors").read_bytes() != before and not (target / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_sources_that_are_no_model(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a folder; use .* or, for a model, an exported folder"):
        hf_model_from_checkpoint(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="contains a Hugging Face model of another kind: .*, not 'fwpkm'"):
        hf_model_from_checkpoint(tmp_path)
    folder = export(checkpoint, tmp_path / "hf", tokenizer=False)
    assert hf_model_from_checkpoint(folder)[1] is None
    with pytest.raises(ValueError, match="contains no tokenizer to read and write text with; export"):
        load_for_text(folder)
    with pytest.raises(ValueError, match="--device nonsense is not available"):
        load_for_text(folder, "nonsense")


def test_a_run_with_numbers_for_text_has_no_tokenizer(tmp_path: Path) -> None:
    initialize()
    write_checkpoint(tmp_path / "run", 60, 64, None)
    folder = export(tmp_path / "run", tmp_path / "hf")
    assert not list(folder.glob("tokenizer*"))
    model, tokenizer = hf_model_from_checkpoint(tmp_path / "run")
    assert tokenizer is None and model.config.eos_token_id is None
