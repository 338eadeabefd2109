"""An export passes one tensor at a time into files that Transformers names, of the replica that is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents, read_checkpoint
from megatron_fwpkm.checkpoint.record import read_record, write_record
from megatron_fwpkm.checkpoint.store_layout import StoreDescription
from megatron_fwpkm.conversion import export as export_module
from megatron_fwpkm.conversion import hf_folder
from megatron_fwpkm.conversion.export import export, hf_model
from megatron_fwpkm.conversion.exported_weights import exported_weights
from megatron_fwpkm.conversion.verify import exported_from, verify
from megatron_fwpkm.conversion.weight_files import stored_form, write_weights
from tests.checkpoint.contents import contents_of, write_checkpoint
from tests.layers.megatron import initialize, tiny

ROOT = Path(__file__).resolve().parents[2]
EXPORT = """
import sys
sys.argv = ["convert_checkpoint.py", *sys.argv[1:]]
sys.path.insert(0, "tools")
import convert_checkpoint
convert_checkpoint.main()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
MB = 1e6


@pytest.fixture(autouse=True)
def parallel_state() -> None:
    """Megatron's models need it."""
    initialize()


@pytest.mark.parametrize("size", ["5GB", "20KB", "6KB", "0MB"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("untied", [False, True])
def test_files_are_those_of_save_pretrained(size: str, dtype: str, untied: bool, tmp_path: Path) -> None:
    model = {"untie_embeddings_and_output_weights": untied, "add_bias_linear": True}
    contents = contents_of(tiny(model=model, layer_numbers=(2,)), 60, 64)
    whole = hf_model(contents, dtype=dtype, fast_weights="trained")
    whole.save_pretrained(tmp_path / "whole", max_shard_size=size)
    (tmp_path / "parts").mkdir()
    empty = hf_folder.empty_model(whole.config)
    parts = exported_weights(contents, empty, "trained")
    write_weights(empty, stored_form(empty, dtype), parts, tmp_path / "parts", "here", size)
    expected = {file.name for file in (tmp_path / "whole").glob("model*")}
    assert {file.name for file in (tmp_path / "parts").iterdir()} == expected
    assert len(expected) == 1 if size == "5GB" else len(expected) > 3
    for name in expected:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


class Counted(dict[str, torch.Tensor]):
    """Notes what is looked up."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read.append(name)
        return super().__getitem__(name)


def test_no_tensor_is_read_before_all_names_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every tensor once, but for those whose parts go into two files."""
    contents = contents_of(tiny(), 60, 64)
    slow = Counted(dict(contents.slow))
    monkeypatch.setattr(export_module, "checkpoint_contents", lambda path, replica: replace(contents, slow=slow))
    export("checkpoint", tmp_path / "hf", tokenizer=False)
    assert sorted(slow.read) == sorted(slow.keys() - {name for name in slow if name.endswith("_extra_state")})
    slow.read.clear()
    export("checkpoint", tmp_path / "small", tokenizer=False, max_shard_size="9KB")
    twice = {name for name in slow.read if slow.read.count(name) > 1}
    assert twice and all("linear_qkv" in name or "linear_fc1" in name for name in twice)
    slow.read.clear()
    slow["rotary.inv_freq"] = slow["decoder.layers.9.mixer.weight"] = torch.zeros(1)
    del slow["decoder.final_layernorm.weight"], slow["decoder.layers.0.mlp.linear_fc1.weight"]
    with pytest.raises(ValueError, match="conversion rule: decoder.layers.9.mixer.weight, rotary.inv_freq; miss") as e:
        export("checkpoint", tmp_path / "none", tokenizer=False)
    for name in ("layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight", "model.norm.weight"):
        assert name in str(e.value)
    assert not slow.read and {path.name for path in tmp_path.iterdir()} == {"hf", "small"}


def test_a_folder_is_no_model_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed can clean nothing up: config.json comes last, and the name later still."""
    contents = contents_of(tiny(), 60, 64)
    monkeypatch.setattr(export_module, "checkpoint_contents", lambda path, replica: contents)
    seen: list[set[str]] = []

    def write_bundle(folder: Path, kinds: Any) -> None:
        assert {path.name for path in tmp_path.iterdir()} == {".hf.partial"}
        seen.append({path.name for path in folder.iterdir()})

    monkeypatch.setattr(hf_folder, "write_bundle", write_bundle)
    folder = export("checkpoint", tmp_path / "hf", tokenizer=False)
    assert seen[0] >= {"model.safetensors", "README.md"} and "config.json" not in seen[0]
    assert (folder / "config.json").is_file()


@pytest.mark.parametrize("size", ["5", "5 apples", "GB", "5GiB"])
def test_a_size_that_is_none_is_refused(size: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", 60, 64, None)
    with pytest.raises(ValueError, match=f"--max-shard-size {size} is not a size such as 500MB or 5GB"):
        export(tmp_path / "run", tmp_path / "hf", max_shard_size=size)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def replicas(root: Path, saved: tuple[int, ...], total: int, equal: bool = False) -> CheckpointContents:
    """A checkpoint with the memories of some replicas, whose values are their numbers."""
    contents = write_checkpoint(root, 60, 64, None)
    folder = root / "iter_0000007"
    tables = contents.fast[2].tables
    dcp.save(
        {f"layer2/replica{r}/{name}": torch.full_like(tables[name], float(r)) for r in saved for name in tables},
        checkpoint_id=folder / "fast_weights",
    )
    StoreDescription(total, 1, 1, saved, equal).write(folder / "fast_weights")
    write_record(folder, read_record_unchecked(folder))
    return contents


def read_record_unchecked(folder: Path) -> Any:
    """The record, although files have changed."""
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"files": {}}))
    return read_record(folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is.*to save in")
def test_the_replica_that_is_asked_for(tmp_path: Path) -> None:
    replicas(tmp_path / "run", (0, 2), 4)
    for replica in (0, 2):
        folder = export(tmp_path / "run", tmp_path / f"hf{replica}", replica=replica, fast_weights="trained")
        assert load_file(folder / "model.safetensors")["model.layers.1.memory.values"].unique().tolist() == [replica]
        assert exported_from(folder) == f"export of iteration 7, trained fast weights of replica {replica}"
    assert all(check.passed for check in verify(tmp_path / "run", folder, lengths=[33]))
    with pytest.raises(ValueError, match="--replica 1: of the 4 replicas of the run it has those of 0, 2 "):
        export(tmp_path / "run", tmp_path / "hf", replica=1, fast_weights="trained")
    with pytest.raises(ValueError, match="--replica 4 does not exist: .* a run with 4 replicas, numbers 0 to 3"):
        export(tmp_path / "run", tmp_path / "hf", replica=4, fast_weights="trained")
    with pytest.raises(ValueError, match="--replica 2 chooses among trained .* the initial ones; add --fast"):
        export(tmp_path / "run", tmp_path / "hf", replica=2, fast_weights="initial")


@pytest.mark.filterwarnings("ignore:torch.distributed is.*to save in")
def test_equal_replicas_are_saved_once(tmp_path: Path) -> None:
    replicas(tmp_path / "run", (0,), 3, equal=True)
    assert not read_checkpoint(tmp_path / "run", 2).fast[2].tables["values"].any()
    with pytest.raises(ValueError, match="--replica 3 does not exist: .* a run with 3 replicas, numbers 0 to 2"):
        read_checkpoint(tmp_path / "run", 3)


def test_a_tensor_that_is_gone_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", 60, 64, None)
    contents = read_checkpoint(tmp_path / "run")
    for file in (tmp_path / "run" / "iter_0000007" / "model").glob("*.distcp"):
        file.unlink()
    with pytest.raises(ValueError, match="model is damaged or was deleted in the meantime: .*weight cannot be read"):
        hf_model(contents)


@pytest.mark.slow
def test_a_killed_export_leaves_no_export(tmp_path: Path) -> None:
    """Killed when the weights are written and the rest is not: nothing has the name, or would be loaded."""
    write_checkpoint(tmp_path / "run", 60, 64, None)
    words = ["export", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "hf")]
    killed = "import os, signal; from megatron_fwpkm.conversion import hf_folder\n"
    killed += "hf_folder.write_bundle = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", killed + EXPORT, *words], cwd=ROOT, env=environment, timeout=100)
    assert done.returncode == -9
    assert {path.name for path in tmp_path.iterdir()} == {"run", ".hf.partial"}
    assert (tmp_path / ".hf.partial" / "model.safetensors").is_file()
    assert not (tmp_path / ".hf.partial" / "config.json").exists()
    export(tmp_path / "run", tmp_path / "hf")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "hf"}


def peak(*words: object) -> int:
    """Bytes of a process that exports, at its highest."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", EXPORT, "export", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    ("size", "fast_weights"), [("10MB", "trained"), ("100MB", "trained"), ("100MB", "initial"), ("5GB", "initial")]
)
def test_peak_memory(size: str, fast_weights: str, tmp_path: Path) -> None:
    """A model of 202 MB with three tables of 67 MB: at most the largest file and 1.3 times the largest tensor."""
    flags = "--num-layers 3 --fwpkm-layer-numbers 1 2 3 --fwpkm-num-subkeys 256 --fwpkm-value-dim 256".split()
    write_checkpoint(tmp_path / "large", 60, 64, None, flags)
    write_checkpoint(tmp_path / "tiny", 60, 64, None)
    base = peak("--checkpoint", tmp_path / "tiny", "--output", tmp_path / "a")
    chosen = ("--max-shard-size", size, "--fast-weights", fast_weights)
    more = peak("--checkpoint", tmp_path / "large", "--output", tmp_path / "b", *chosen) - base
    largest_file = max(file.stat().st_size for file in (tmp_path / "b").glob("*.safetensors"))
    largest_tensor = 256**2 * 256 * 4
    share = (more - largest_file) / largest_tensor
    print(f"{size}, {fast_weights}: {more / MB:.0f} MB beyond {base / MB:.0f} MB, file {largest_file / MB:.0f} MB + "
          f"{share:.2f} of the largest tensor")  # fmt: skip
    assert share <= 1.3
