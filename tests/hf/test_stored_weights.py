"""What a folder says about its weights is checked before anything is read, opened or allocated for it."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_fwpkm.hf import FwPKMForCausalLM
from megatron_fwpkm.hf.stored_weights import read_header

from .builders import small_model, token_ids

NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file and in shards of 5 kB, without the code, which the package has."""
    root = tmp_path_factory.mktemp("exports")
    model = small_model(dtype=torch.float32)
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "shards", max_shard_size="5KB")
    return root


@pytest.fixture
def folder(exports: Path, tmp_path: Path) -> Path:
    """A copy of the model in one file."""
    return copied(exports / "whole", tmp_path)


@pytest.fixture
def shards(exports: Path, tmp_path: Path) -> Path:
    """A copy of the model in shards."""
    return copied(exports / "shards", tmp_path)


def copied(source: Path, target: Path) -> Path:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What asks for more than 2 GB ends in an error, not in a slow machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a file and leave its numbers."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        FwPKMForCausalLM.from_pretrained(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_an_undamaged_folder_loads(folder: Path, exports: Path) -> None:
    ids = token_ids(1, 12)
    with torch.no_grad():
        first, second = (FwPKMForCausalLM.from_pretrained(one)(ids).logits for one in (folder, exports / "shards"))
    assert torch.equal(first, second)


def _entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[NORM].update(changes)


def _first(header: dict[str, Any]) -> Any:
    return min((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "negative offsets": (_entry(data_offsets=[-64, 0]), r"has the offsets \[-64, 0\]"),
    "offsets in reverse": (_entry(data_offsets=[64, 0]), r"has the offsets \[64, 0\]"),
    "three offsets": (_entry(data_offsets=[0, 0, 64]), "has the offsets"),
    "huge offsets": (_entry(data_offsets=[2**63, 2**63 + 64]), "has the offsets"),
    "offsets of text": (_entry(data_offsets="0-64"), "has the offsets"),
    "negative shape": (_entry(shape=[-1, -16]), r"has the shape \[-1, -16\]"),
    "shape bomb": (_entry(shape=[1 << 61, 4]), r"has 64 bytes, but its shape \[2305843009213693952, 4\] of F32 needs"),
    "many dimensions": (_entry(shape=[1] * 5000 + [16]), r"has the shape \[1, 1,"),
    "fraction": (_entry(shape=[16.0]), r"has the shape \[16.0\]"),
    "truth": (_entry(shape=[True, 16]), "has the shape"),
    "no shape": (_entry(shape=None), "has the shape None"),
    "other dtype": (_entry(dtype="F64"), r"has 64 bytes, but its shape \[16\] of F64 needs 128"),
    "unknown dtype": (_entry(dtype="F128"), "has the unknown dtype 'F128'"),
    "dtype of a list": (_entry(dtype=["F32"]), "has the unknown dtype"),
    "one more field": (_entry(code="x"), "must have dtype, shape and data_offsets"),
    "entry of text": (lambda header: header.update({NORM: "x"}), "must have dtype, shape and data_offsets"),
    "overlap": (
        lambda header: header[NORM].update(data_offsets=[4, 68]), "begins at byte .*, but the tensor before it ends at",
    ),
    "hole": (lambda header: header.pop(_first(header)), "begins at byte .*, but the tensor before it ends at 0"),
    "metadata": (lambda header: header.update(__metadata__={"format": 3}), "__metadata__ must contain texts"),
    "format": (lambda header: header.update(__metadata__={"format": "tf"}), "format in __metadata__ is 'tf', not 'pt'"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_describe_its_file_is_refused(name: str, folder: Path) -> None:
    change, message = HEADERS[name]
    rewrite(folder / "model.safetensors", change)
    refused(folder, f"model.safetensors is damaged: its header is not that of a safetensors file .*{message}")


def test_a_tensor_that_occurs_twice_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"model.layers.0.input_layernorm.weight"', f'"{NORM}"'.encode())
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    refused(folder, f"is damaged: .*'{NORM}' occurs twice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b"\xff\xfe{}", "can't decode"),
        (b" []", "it is a list"),
    ],
)
def test_a_header_of_other_json_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=f"its header is not that of a safetensors file .*{message}"):
        read_header(file)


@pytest.mark.parametrize("length", [1 << 20, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_that_claims_to_be_long_is_not_read(length: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + bytes(1000))
    with pytest.raises(ValueError, match="is truncated: it has 1,008 bytes, but its header alone needs"):
        read_header(file)
    file.write_bytes((9 << 20).to_bytes(8, "little") + bytes(10 << 20))  # parsed, it takes many times as much
    with pytest.raises(ValueError, match="its header has 9,437,184 bytes, but at most 1,048,576 are expected"):
        read_header(file)


SHARD_NAMES = ["../whole/model.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "..\\x.safetensors", 3, None,
               "C:x.safetensors", "x\0.safetensors", "pytorch_model.bin", "x" * 300 + ".safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", SHARD_NAMES)
def test_an_index_names_files_of_its_folder_only(name: object, shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    for tensor, shard in index["weight_map"].items():
        if shard.startswith("model-00001"):
            index["weight_map"][tensor] = name
    (shards / INDEX).write_text(json.dumps(index))
    refused(shards, "index.json is damaged: it lists .* which is not the name of a safetensors file in the same folder")


@pytest.mark.parametrize("size", [0, -1, 10**30, "many", 1.5, [1]])
def test_an_index_tells_the_size_of_its_files(size: object, shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    (shards / INDEX).write_text(json.dumps(index | {"metadata": {"total_size": size}}))
    refused(shards, "index.json is damaged: its total_size is .*, but the files hold .* bytes")
    (shards / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))
    refused(shards, "index.json is damaged: it is not a JSON index of weights")


def test_a_tensor_is_in_one_shard(shards: Path) -> None:
    """In another one, too, or in one whose index does not tell."""
    index = json.loads((shards / INDEX).read_text())
    file = shards / next(iter(index["weight_map"].values()))
    listed = [name for name, shard in index["weight_map"].items() if shard == file.name]
    other = next(name for name, shard in index["weight_map"].items() if shard != file.name)
    rewrite(file, lambda header: header.update({other: header.pop(listed[0])}))
    changed = {name: shard for name, shard in index["weight_map"].items() if name != listed[0]}
    (shards / INDEX).write_text(json.dumps(index | {"weight_map": changed}))
    refused(shards, f"{file.name} contains {other}, but {INDEX} lists it elsewhere")


def test_links_out_of_the_folder_are_refused(folder: Path, shards: Path, tmp_path: Path, exports: Path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).unlink()
        (folder / name).symlink_to(exports / "whole" / name)
        refused(folder, f"{name} is a link to .*, which is outside of the folder; copy the file into the folder")
        (folder / name).unlink()
        (folder / name).write_bytes((exports / "whole" / name).read_bytes())


def test_the_cache_of_the_hub_may_have_links(exports: Path, tmp_path: Path) -> None:
    """As `snapshot_download` lays files out."""
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    for number, file in enumerate((exports / "shards").iterdir()):
        blob = tmp_path / "blobs" / str(number)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert FwPKMForCausalLM.from_pretrained(snapshot).config.vocab_size == 64
    (tmp_path / "link").symlink_to(snapshot)
    assert FwPKMForCausalLM.from_pretrained(tmp_path / "link").config.vocab_size == 64


BOMBS = [
    ({"vocab_size": 10**10}, "embed_tokens.weight has shape"),
    ({"vocab_size": 10**12}, "would need"),
    ({"intermediate_size": 10**9}, "has shape"),
    ({"fwpkm_num_subkeys": 100_000}, "has shape"),
    ({"fwpkm_num_subkeys": 10**6}, "would need"),
    ({"fwpkm_layers": [0, 1]}, "missing"),
    ({"num_hidden_layers": 9_000, "token_mixers": ["swa"] * 9_000, "mlps": ["swiglu"] * 9_000,
      "attention_windows": [6] * 9_000}, "it holds 2 layers, but this configuration needs 9000"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000 must be"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BOMBS)))
def test_a_configuration_does_not_allocate_what_the_files_do_not_hold(
    case: int, folder: Path, little_memory: None
) -> None:
    changes, message = BOMBS[case]
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))
    refused(folder, message)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"model_type": "fwpkm", "rope_theta": NaN}', "NaN is not a number of JSON"),
        ('{"model_type": "fwpkm", "eos_token_id": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"x": "' + "x" * (1 << 20) + '"}', "it has 1,048,585 bytes, but at most 1,048,576 are expected"),
        ('{"use_cache": true, "use_cache": false}', "'use_cache' occurs twice"),
    ],
)
def test_json_that_is_none_is_refused(name: str, text: str, message: str, folder: Path) -> None:
    (folder / name).write_text(text)
    refused(folder, f"{name} is damaged: .*{message}")


def test_no_other_file_is_read(folder: Path) -> None:
    """Neither a torch file, nor what config.json or a name in the folder puts in the place of the weights."""
    content = json.loads((folder / "config.json").read_text())
    whole = folder / "model.safetensors"
    for field, value in {"transformers_weights": "other.safetensors", "attn_implementation": "someone/kernel"}.items():
        (folder / "config.json").write_text(json.dumps(content | {field: value}))
        refused(folder, f"config.json: {field}='{value}' is not supported; remove the field")
    (folder / "config.json").write_text(json.dumps(content))
    shard = folder / "shard-00000-model-00001-of-00001.safetensors"
    save_file({"x": torch.ones(1)}, shard)
    refused(folder, "shard-00000-.* is part of a distributed save and would be read instead of the weights")
    shard.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert FwPKMForCausalLM.from_pretrained(folder).config.vocab_size == 64
    with pytest.raises(ValueError, match="use_safetensors=False is not supported: torch files may contain code"):
        FwPKMForCausalLM.from_pretrained(folder, use_safetensors=False)
    whole.unlink()
    refused(folder, "no file named model.safetensors .*; pytorch_model.bin is not read, because torch files may")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "contains no file named model.safetensors or model.safetensors.index.json; copy the folder again")


@pytest.mark.parametrize(
    "change",
    [
        {"eos_token_id": "x"},
        {"eos_token_id": [1, -1]},
        {"pad_token_id": 64},
        {"bos_token_id": 10**30},
        {"max_length": 1.5},
        {"num_beams": True},
        {"temperature": "hot"},
    ],
)
def test_generation_settings_of_the_wrong_kind_are_refused(change: dict[str, object], folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(folder, f"generation_config.json is damaged: {next(iter(change))}=.* is no")
