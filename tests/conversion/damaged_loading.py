"""Loads a damaged export as users do, and judges what comes of it: one clear line, or the right result."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, dynamic_module_utils

from megatron_fwpkm.conversion.bundle import AUTO_MAP, write_bundle
from megatron_fwpkm.conversion.export import hf_model_from_checkpoint
from megatron_fwpkm.hf import FwPKMForCausalLM
from tests.hf.builders import small_model, token_ids

from .export_damage import INDEX, WEIGHTS, Damage, damage

SECONDS = 20
"""A load takes 0.05 s."""
LAYOUTS = ("whole", "shards")
WAYS: dict[str, Callable[[Path], Any]] = {
    "auto": lambda folder: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32),
    "ours": lambda folder: FwPKMForCausalLM.from_pretrained(folder, dtype=torch.float32),
    "tools": lambda folder: hf_model_from_checkpoint(folder, tokenizer=False)[0],
}
"""As a user of Transformers, as one with the package, and as our tools."""


def write_exports(root: Path, subkeys: int, shard: str) -> None:
    """The same model in one file and in several.

    Args:
        root: a new folder for each is made there.
        subkeys: of its memory, whose table has their square of 48-byte rows.
        shard: largest size of a file of several.
    """
    model = small_model(dtype=torch.float32, fwpkm_num_subkeys=subkeys)
    model.config.auto_map = dict(AUTO_MAP)
    for name, largest in zip(LAYOUTS, ("1GB", shard), strict=True):
        model.save_pretrained(root / name, max_shard_size=largest)
        write_bundle(root / name)


def damaged_copy(root: Path, layout: str, done: list[Damage]) -> Path:
    """A folder beside the exports whose undamaged files are links to theirs."""
    folder = root / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in (root / layout).iterdir():
        os.link(file, folder / file.name)
    for one in done:
        damage(folder, one)
    return folder


@contextmanager
def limits(more_bytes: int) -> Iterator[None]:
    """What takes too long ends with TimeoutError, what takes too much address space with an error of its own."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not loaded after {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(folder: Path, way: str) -> Any:
    """The model that comes of loading a folder one way, or the error."""
    with limits(1 << 30):
        try:
            return WAYS[way](folder)
        except Exception as error:
            return error.with_traceback(None)


def fault(came: Any, folder: Path, way: str, undamaged: Path) -> str:
    """What is wrong with an outcome, or nothing.

    Transformers reads config.json before it comes to our code, and may refuse a damaged one with any error.
    """
    described = f"{way}: {type(came).__name__}: {came}"
    if isinstance(came, ValueError):
        return "" if "\n" not in str(came) and 10 < len(str(came)) < 2000 else described
    if isinstance(came, Exception):
        ends_it = isinstance(came, MemoryError | TimeoutError | SystemError) or "allocate" in str(came)
        theirs = not _same(folder / "config.json", undamaged / "config.json")
        theirs &= way == "auto" or not (folder / "config.json").is_file()
        return "" if theirs and not ends_it else described
    ids = token_ids(1, 12)
    with limits(1 << 30), torch.no_grad():
        found, wanted = (one(ids, return_dict=True).logits for one in (came, _as_stored(came, folder)))
    return "" if torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0)) else f"{way}: another result"


def _same(file: Path, other: Path) -> bool:
    return file.is_file() and file.read_bytes() == other.read_bytes()


def _as_stored(model: Any, folder: Path) -> FwPKMForCausalLM:
    """The model of the numbers that the files hold, read by safetensors alone.

    Where no number and no field of the configuration was changed, it is the undamaged model.
    """
    names = {WEIGHTS}
    if not (folder / WEIGHTS).is_file():
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    state: dict[str, Tensor] = {}
    for name in names:
        state |= load_file(folder / name)
    again = FwPKMForCausalLM(copy.deepcopy(model.config))
    missing, unexpected = again.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return again.eval()


def peak_above_base(action: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that an action takes at most beyond what the process had, mapped files included; and its result."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    result = action()
    return max(0, _status("VmHWM") - before), result


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def serve(connection: Connection, root: Path) -> None:
    """Load what a connection asks for until it is closed: (layout, damages), answered by way: (fault, bytes)."""
    torch.set_num_threads(1)
    dynamic_module_utils.HF_MODULES_CACHE = str(root / "modules")
    for layout in LAYOUTS * 2:  # what the first loads import and keep
        for way in WAYS:
            folder = damaged_copy(root, layout, [])
            assert not fault(outcome(folder, way), folder, way, root / layout)
    connection.send("ready")
    while True:
        try:
            layout, done = connection.recv()
        except EOFError:
            return
        folder, answer = damaged_copy(root, layout, done), {}
        for way in WAYS:
            peak, came = peak_above_base(partial(outcome, folder, way))
            answer[way] = fault(came, folder, way, root / layout), peak
            del came
        connection.send(answer)
