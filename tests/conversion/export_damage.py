"""What can happen to the files of an export, as strategies of hypothesis, and how it is done to a folder."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_FILES = ["config.json", "generation_config.json", INDEX]
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "U8", "BOOL", "C64", "F4", "f32", "", "X"]
FIELDS = ["quantization_config", "transformers_weights", "attn_implementation", "is_encoder_decoder", "dtype",
          "torch_dtype", "return_dict", "layer_types", "rope_parameters", "id2label", "num_labels", "fusion_config",
          "per_layer_config", "sub_configs", "name_or_path", "output_attentions", "problem_type", "fwpkm_layers",
          "num_hidden_layers", "token_mixers", "vocab_size", "max_length", "cache_implementation", "suppress_tokens",
          "watermarking_config", "compile_config", "eos_token_id", "num_beams", "transformers_version"]  # fmt: skip
"""Fields of a configuration that a damage may add; a damage of a value finds those that are there by itself."""
NAMES = ["../whole/model.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "pytorch_model.bin",
         "config.json", "x" * 300, "x\0.safetensors", "model-00001-of-00099.safetensors", WEIGHTS]  # fmt: skip
TEXTS = ["", "{", "[]", "{}", "null", "[" * 100_000, '{"a":' * 5_000, "\x00" * 64, '{"a": 1e999}', "\ufeff{}"]
numbers = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 10**6, 10**9, 10**12, 2**31, 2**62, 2**63, 2**64, 10**400, -(2**63)]),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.5, 1e300, float("nan"), float("inf"), -0.0]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.sampled_from(NAMES[:9] + DTYPES), st.text(max_size=6))
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@dataclass(frozen=True)
class Damage:
    """One thing that happens to a folder; `picks` choose among what the folder has."""

    kind: str
    picks: tuple[int, ...]
    value: Any = None


picks = st.tuples(*(st.integers(0, 10**6) for _ in range(3)))


def _damage(kind: str, value: st.SearchStrategy[Any] = st.none()) -> st.SearchStrategy[Damage]:  # noqa: B008
    return st.builds(Damage, st.just(kind), picks, value)


damages = st.one_of(
    _damage("cut"),
    _damage("append", st.binary(min_size=1, max_size=16)),
    _damage("flip", st.integers(1, 255)),
    _damage("flip in header", st.integers(1, 255)),
    _damage("header length", st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])),
    _damage("header value", values),
    _damage("offsets", st.lists(numbers, max_size=3)),
    _damage("shape", st.lists(numbers, max_size=5)),
    _damage("dtype", st.sampled_from(DTYPES)),
    _damage("exchange entries"),
    _damage("drop entry"),
    _damage("rename entry", st.sampled_from(["x", "model.norm.weight", "lm_head.weight", "__metadata__", ""])),
    _damage("repeat entry"),
    _damage("json value", values),
    _damage("json value", values),
    _damage("json removal"),
    _damage("config field", st.tuples(st.sampled_from(FIELDS), values)),
    _damage("shard name", st.sampled_from(NAMES)),
    _damage("text", st.sampled_from(TEXTS)),
    _damage("remove"),
    _damage("folder"),
    _damage("link"),
    _damage("exchange files"),
)


def damage(folder: Path, done: Damage) -> None:
    """Do it; what an earlier damage made impossible is left."""
    try:
        _KINDS[done.kind](folder, done)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, RecursionError, ArithmeticError,
            struct.error):  # fmt: skip
        pass


def put(file: Path, content: bytes) -> None:
    """Write a file anew: it may share its bytes with the undamaged export."""
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def _files(folder: Path) -> list[Path]:
    """The files that may be damaged, but not the code. A device, to which one may have become a link, has no end."""
    return sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors") and file.is_file())


def _tensors(folder: Path, done: Damage) -> Path:
    files = [file for file in _files(folder) if file.suffix == ".safetensors"]
    return files[done.picks[0] % len(files)]


def _cut(folder: Path, done: Damage) -> None:
    file = _files(folder)[done.picks[0] % len(_files(folder))]
    raw = file.read_bytes()
    put(file, raw[: done.picks[1] % len(raw)])


def _append(folder: Path, done: Damage) -> None:
    file = _files(folder)[done.picks[0] % len(_files(folder))]
    put(file, file.read_bytes() + done.value)


def _flip(folder: Path, done: Damage) -> None:
    file = _files(folder)[done.picks[0] % len(_files(folder))]
    raw = bytearray(file.read_bytes())
    raw[done.picks[1] * len(raw) // (10**6 + 1)] ^= done.value
    put(file, bytes(raw))


def _flip_in_header(folder: Path, done: Damage) -> None:
    file = _tensors(folder, done)
    raw = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    raw[done.picks[1] % (8 + length)] ^= done.value
    put(file, bytes(raw))


def _header_length(folder: Path, done: Damage) -> None:
    file = _tensors(folder, done)
    put(file, struct.pack("<Q", done.value) + file.read_bytes()[8:])


def _in_header(change: Callable[[dict[str, Any], list[str], Damage], object]) -> Callable[[Path, Damage], None]:
    """A damage of a header, whose numbers stay where they are."""

    def changed(folder: Path, done: Damage) -> None:
        file = _tensors(folder, done)
        raw = file.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header, [name for name in header if name != "__metadata__"], done)
        text = json.dumps(header).encode()
        put(file, struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return changed


def _entry(header: dict[str, Any], names: list[str], done: Damage) -> dict[str, Any]:
    found: dict[str, Any] = header[names[done.picks[1] % len(names)]]
    return found


def _exchange_entries(header: dict[str, Any], names: list[str], done: Damage) -> None:
    first, second = (names[pick % len(names)] for pick in done.picks[1:])
    header[first], header[second] = header[second], header[first]


def _rename_entry(header: dict[str, Any], names: list[str], done: Damage) -> None:
    header[done.value] = header.pop(names[done.picks[1] % len(names)])


def _repeat_entry(folder: Path, done: Damage) -> None:
    file = _tensors(folder, done)
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    name, entry = list(header.items())[done.picks[1] % len(header)]
    text = raw[8 : 8 + length].rstrip()[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}".encode()
    put(file, struct.pack("<Q", len(text)) + text + raw[8 + length :])


def _json_value(folder: Path, done: Damage) -> None:
    files = [folder / name for name in JSON_FILES if (folder / name).is_file()]
    file = files[done.picks[0] % len(files)]
    content = json.loads(file.read_text())
    places = list(_places(content))
    holder, key = places[done.picks[1] % len(places)]
    if done.kind == "json removal":
        del holder[key]
    else:
        holder[key] = done.value
    put(file, json.dumps(content).encode())


def _places(content: Any) -> Any:
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])


def _config_field(folder: Path, done: Damage) -> None:
    file = folder / JSON_FILES[done.picks[0] % 2]
    field, value = done.value
    put(file, json.dumps(json.loads(file.read_text()) | {field: copy.deepcopy(value)}).encode())


def _shard_name(folder: Path, done: Damage) -> None:
    """All of a shard's tensors, or one of them, are said to be elsewhere."""
    content = json.loads((folder / INDEX).read_text())
    named = content["weight_map"]
    first = list(named)[done.picks[1] % len(named)]
    for name in [first] if done.picks[2] % 2 else [one for one in named if named[one] == named[first]]:
        named[name] = done.value
    put(folder / INDEX, json.dumps(content).encode())


def _text(folder: Path, done: Damage) -> None:
    put(_files(folder)[done.picks[0] % len(_files(folder))], done.value.encode())


def _remove(folder: Path, done: Damage) -> None:
    _files(folder)[done.picks[0] % len(_files(folder))].unlink()


def _folder(folder: Path, done: Damage) -> None:
    file = _files(folder)[done.picks[0] % len(_files(folder))]
    file.unlink()
    file.mkdir()


def _link(folder: Path, done: Damage) -> None:
    """To itself, to a device, to nothing, or to what another folder has."""
    file = _files(folder)[done.picks[0] % len(_files(folder))]
    file.unlink()
    file.symlink_to([file.name, os.devnull, "nothing", "/dev/zero", f"../whole/{file.name}"][done.picks[1] % 5])


def _exchange_files(folder: Path, done: Damage) -> None:
    files = _files(folder)
    first, second = (files[pick % len(files)] for pick in done.picks[:2])
    one, other = first.read_bytes(), second.read_bytes()
    put(first, other)
    put(second, one)


_KINDS: dict[str, Callable[[Path, Damage], None]] = {
    "cut": _cut,
    "append": _append,
    "flip": _flip,
    "flip in header": _flip_in_header,
    "header length": _header_length,
    "header value": _in_header(
        lambda header, names, done: header.update({names[done.picks[1] % len(names)]: done.value})
    ),
    "offsets": _in_header(lambda header, names, done: _entry(header, names, done).update(data_offsets=done.value)),
    "shape": _in_header(lambda header, names, done: _entry(header, names, done).update(shape=done.value)),
    "dtype": _in_header(lambda header, names, done: _entry(header, names, done).update(dtype=done.value)),
    "exchange entries": _in_header(_exchange_entries),
    "drop entry": _in_header(lambda header, names, done: header.pop(names[done.picks[1] % len(names)])),
    "rename entry": _in_header(_rename_entry),
    "repeat entry": _repeat_entry,
    "json value": _json_value,
    "json removal": _json_value,
    "config field": _config_field,
    "shard name": _shard_name,
    "text": _text,
    "remove": _remove,
    "folder": _folder,
    "link": _link,
    "exchange files": _exchange_files,
}
