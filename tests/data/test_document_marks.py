"""What the datasets of a run say of the tokens around documents, together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.document_marks import bos_doubt, document_marks


@pytest.fixture
def prefixes(tmp_path: Path) -> dict[str, str]:
    """Four descriptions: with BOS, without, one that does not say, and none at all."""
    said: dict[str, dict[str, Any]] = {
        "with": {"options": {"prepend_bos": True, "append_eod": True}},
        "again": {"options": {"prepend_bos": True, "append_eod": False}},
        "without": {"options": {"prepend_bos": False, "append_eod": True}},
        "silent": {},
    }
    for name, content in said.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {name: str(tmp_path / name) for name in (*said, "absent")}


def blend(prefixes: dict[str, str], *names: str) -> DataConfig:
    words = [prefixes[names[0]]] if len(names) == 1 else [word for name in names for word in ("0.5", prefixes[name])]
    return DataConfig(data_path=tuple(words))


def test_all_datasets_must_say_the_same(prefixes: dict[str, str]) -> None:
    for names, bos, eod in (
        (("with",), True, True),
        (("without",), False, True),
        (("with", "again"), True, None),
        (("with", "without"), None, True),
        (("with", "silent"), None, None),
        (("absent",), None, None),
    ):
        found = document_marks(blend(prefixes, *names))
        assert found == {"prepend_bos": bos, "append_eod": eod}
    apart = DataConfig(train_data_path=(prefixes["with"],), valid_data_path=(prefixes["without"],))
    assert document_marks(apart)["prepend_bos"] is True
    assert document_marks(DataConfig()) == {"prepend_bos": None, "append_eod": None}


def test_doubts_name_the_datasets(prefixes: dict[str, str]) -> None:
    assert bos_doubt(blend(prefixes, "with", "again")) is None and bos_doubt(blend(prefixes, "without")) is None
    differ = bos_doubt(blend(prefixes, "with", "without"))
    assert differ == (
        f"documents of {prefixes['with']} begin with BOS, those of {prefixes['without']} do not, so the tokenizer of "
        "an export adds none to a text; prepare all of them with --prepend-bos, or none"
    )
    silent = bos_doubt(blend(prefixes, "with", "absent"))
    assert silent is not None and silent.startswith(f"{prefixes['absent']}: nothing says whether documents begin with")
