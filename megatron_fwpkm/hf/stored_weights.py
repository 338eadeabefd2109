"""What the safetensors files of a folder hold, told from their headers and their index alone. Ships inside exports.

Nothing is believed: Transformers would allocate what a header or an index asks for, and open what it names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from .json_files import AGAIN, MOST_JSON, check_inside, parse_object, read_json_object

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
    "C64": 8,
}  # fmt: skip
"""Bytes of a number of every dtype of safetensors that has whole bytes."""
MOST_DIMENSIONS = 8
_SHARD_NAME = re.compile(r"[^/\\:\x00-\x1f]{1,200}\.safetensors")
_OF_A_MESH = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
"""Files of a distributed save, which Transformers reads in the place of all others."""


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def stored_tensors(folder: Path, options: Mapping[str, Any]) -> dict[str, Stored]:
    """Every tensor that Transformers is about to read from a folder.

    Args:
        folder: a local folder; for anything else the answer is empty.
        options: keyword arguments of `from_pretrained`: which files are read depends on them.

    Raises:
        ValueError: a file is damaged or missing, or leads out of the folder.
    """
    folder = folder / options.get("subfolder", "")
    if not folder.is_dir():
        return {}
    whole, index = (
        folder / _variant(name, options.get("variant")) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
    if whole.is_file():
        check_inside(folder, whole)
        return read_header(whole)
    return _indexed(folder, index) if index.is_file() else {}


def check_weight_files(folder: Path, options: Mapping[str, Any]) -> None:
    """Check that Transformers finds safetensors files in a folder, and no others in their place.

    Args:
        folder: a local folder; for anything else nothing is checked.
        options: keyword arguments of `from_pretrained`.

    Raises:
        ValueError: there are none, or other files would be read.
    """
    if options.get("use_safetensors") is False:
        raise ValueError("use_safetensors=False is not supported: torch files may contain code and are not read")
    folder = folder / options.get("subfolder", "")
    if not folder.is_dir() or (folder / ADAPTER_CONFIG_NAME).is_file() or options.get("gguf_file"):
        return
    for file in folder.iterdir():
        if _OF_A_MESH.match(file.name):
            raise ValueError(
                f"{file} is part of a distributed save and would be read instead of the weights; remove it"
            )
    wanted = [_variant(name, options.get("variant")) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)]
    if any((folder / name).is_file() for name in wanted):
        return
    torch_files = [name for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if (folder / name).is_file()]
    because = f"; {torch_files[0]} is not read, because torch files may contain code" if torch_files else f"; {AGAIN}"
    raise ValueError(f"{folder} contains no file named {wanted[0]} or {wanted[1]}{because}")


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, whose header is checked in full.

    Raises:
        ValueError: the file is cut short, or is none, or its header does not describe its bytes.
    """
    size = file.stat().st_size
    most = max(MOST_JSON, size // 16)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length < 2:
            raise ValueError(f"{file} has {size:,} bytes and is not a safetensors file; {AGAIN}")
        if 8 + length > size:
            raise ValueError(
                f"{file} is truncated: it has {size:,} bytes, but its header alone needs {8 + length:,}; {AGAIN}"
            )
        if length > most:
            raise ValueError(
                f"{file} is damaged: its header has {length:,} bytes, but at most {most:,} are expected; {AGAIN}"
            )
        text = stream.read(length)
    try:
        entries = parse_object(text)
        _check_metadata(entries.pop("__metadata__", {}))
        spans = {name: _span(name, entry) for name, entry in entries.items()}
        end = _check_contiguous(spans)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged: its header is not that of a safetensors file ({error}); {AGAIN}"
        ) from error
    if 8 + length + end != size:
        raise ValueError(
            f"{file} has {size:,} bytes instead of {8 + length + end:,}: it is truncated or damaged; {AGAIN}"
        )
    return {name: Stored(file, entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ must contain texts")
    if metadata.get("format", "pt") != "pt":
        raise ValueError(f"the format in __metadata__ is {metadata['format'][:100]!r}, not 'pt'")


def _span(name: str, entry: object) -> tuple[int, int]:
    """Where the bytes of a tensor begin and end, counted from the end of the header."""
    name = name[:100]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"{name!r} has the unknown dtype {str(dtype)[:100]!r}")
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name!r} has the shape {str(shape)[:100]}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name!r} has the offsets {str(offsets)[:100]}")
    begin, end = offsets
    needed = math.prod(shape) * DTYPE_BYTES[dtype]
    if needed != end - begin:
        raise ValueError(f"{name!r} has {end - begin:,} bytes, but its shape {shape} of {dtype} needs {needed:,}")
    return begin, end


def _are_sizes(value: object) -> bool:
    """Whether it is a list of whole numbers that a file can hold."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 62 for size in value)


def _check_contiguous(spans: Mapping[str, tuple[int, int]]) -> int:
    """The end of the last tensor, after a check that each begins where another ends."""
    reached = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != reached:
            raise ValueError(f"{name[:100]!r} begins at byte {begin:,}, but the tensor before it ends at {reached:,}")
        reached = end
    return reached


def _indexed(folder: Path, index: Path) -> dict[str, Stored]:
    """The tensors of the files that an index names."""
    named, total = _read_index(folder, index)
    headers: dict[str, dict[str, Stored]] = {}
    for shard in dict.fromkeys(named.values()):
        if not (folder / shard).is_file():
            raise ValueError(f"{folder / shard} is missing, but {index.name} lists it; {AGAIN}")
        check_inside(folder, folder / shard)
        headers[shard] = read_header(folder / shard)
    for name, shard in named.items():
        if name not in headers[shard]:
            raise ValueError(f"{folder / shard} does not contain {name}, but {index.name} lists it there; {AGAIN}")
    for shard, name in ((shard, name) for shard, tensors in headers.items() for name in tensors):
        if named.get(name) != shard:
            raise ValueError(f"{folder / shard} contains {name}, but {index.name} lists it elsewhere; {AGAIN}")
    stored = {name: tensor for tensors in headers.values() for name, tensor in tensors.items()}
    found = sum(tensor.bytes for tensor in stored.values())
    if total is not None and total != found:
        raise ValueError(
            f"{index} is damaged: its total_size is {str(total)[:100]}, but the files hold {found:,} bytes; {AGAIN}"
        )
    return stored


def _read_index(folder: Path, index: Path) -> tuple[dict[str, str], object]:
    """The file of every tensor, a plain name, and the bytes of all tensors, where the index tells."""
    check_inside(folder, index)
    shards_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file())
    content = read_json_object(index, max(MOST_JSON, shards_bytes // 16))
    named, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(named, dict) or not named or not isinstance(metadata, dict):
        raise ValueError(f"{index} is damaged: it is not a JSON index of weights; {AGAIN}")
    for name, shard in named.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise ValueError(
                f"{index} is damaged: it lists {name[:100]} in {str(shard)[:100]!r}, which is not the name of a "
                f"safetensors file in the same folder; {AGAIN}"
            )
    return named, metadata.get("total_size")


def _variant(name: str, variant: str | None) -> str:
    """`model.fp16.safetensors`: as Transformers names the file of a variant."""
    stem, _, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"
