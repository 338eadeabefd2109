"""What an export carries of this package: all that its model imports, flat, and nothing else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from megatron_fwpkm.conversion import bundle
from megatron_fwpkm.conversion.bundle import bundled_files, write_bundle

OUTSIDE = {"numpy", "torch", "transformers", "safetensors", *sys.stdlib_module_names}


def test_every_import_of_the_bundle_is_answered() -> None:
    files = bundled_files()
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in OUTSIDE for alias in node.names), name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] in OUTSIDE, f"{name} imports {node.module}"
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and f"{node.module}.py" in files, f"{name} imports {node.module}"
    for entry in bundle.AUTO_MAP.values():
        module, _, thing = entry.partition(".")
        assert f"class {thing}(" in files[f"{module}.py"]


def test_files_are_those_of_the_package_but_for_the_names_in_imports(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    plain = (tmp_path / "fast_weight_memory_plain.py").read_text()
    source = (bundle.PACKAGE / "ops" / "fast_weight_memory" / "plain.py").read_text()
    changed = [pair for pair in zip(plain.splitlines(), source.splitlines(), strict=True) if pair[0] != pair[1]]
    assert ("from .undo_log import UndoLog", "from ..undo_log import UndoLog") in changed
    assert all(ours.startswith("from .") for ours, _ in changed)
    assert {path.name for path in tmp_path.iterdir()} == {"LICENSE", *bundled_files()}


def test_the_bundle_has_plain_and_no_other_way_to_compute_the_memory() -> None:
    names = set(bundled_files())
    assert {"fast_weight_memory_plain.py", "memory_block.py", "implementations.py"} <= names
    assert not [name for name in names if any(word in name for word in ("sparse", "triton", "reference", "chain"))]
    assert len(names) == 59


def package_of(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_imports_are_followed_and_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "hf/model.py": "from __future__ import annotations\n\nfrom ..ops.thing.deep import (\n    a,\n)\n",
        "ops/thing/deep.py": "from ..base import x\n\na = x\n",
        "ops/base.py": "x = 1\n",
        "ops/unused.py": "y = 1\n",
    }
    monkeypatch.setattr(bundle, "PACKAGE", package_of(tmp_path, files))
    monkeypatch.setattr(bundle, "ENTRIES", ("hf/model.py",))
    assert bundled_files() == {
        "base.py": "x = 1\n",
        "model.py": "from __future__ import annotations\n\nfrom .thing_deep import (\n    a,\n)\n",
        "thing_deep.py": "from .base import x\n\na = x\n",
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"hf/model.py": "from ..ops import a\n", "ops/__init__.py": ""}, "model.py:1 imports of a folder"),
        ({"hf/model.py": "from ..ops.model import a\n", "ops/model.py": ""}, "two modules of the bundle have the name"),
    ],
)
def test_what_cannot_be_flattened_is_said(
    files: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "PACKAGE", package_of(tmp_path, files))
    monkeypatch.setattr(bundle, "ENTRIES", ("hf/model.py",))
    with pytest.raises(AssertionError, match=message):
        bundled_files()
