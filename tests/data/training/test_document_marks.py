"""What the datasets of a run say of the tokens around documents, together."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.tokenizers import build_tokenizer
from megatron_fwpkm.data.training.datasets import build_datasets
from megatron_fwpkm.data.training.document_marks import bos_doubt, document_marks

from ..conftest import WriteDataset
from .test_datasets import NULL, configuration, numbered


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
        "an export does not add it to a text; prepare all of them with --prepend-bos, or none"
    )
    silent = bos_doubt(blend(prefixes, "with", "absent"))
    assert silent is not None and silent.startswith(f"{prefixes['absent']}: it is unknown whether documents begin with")


def test_a_mask_behind_tokens_that_were_not_written_is_refused(
    write_dataset: WriteDataset, caplog: pytest.LogCaptureFixture
) -> None:
    null = build_tokenizer(NULL)
    logging.getLogger("megatron_fwpkm").propagate = True
    prefixes = [write_dataset(name, numbered(10), null) for name in ("without", "with", "parsed")]
    for prefix, eods, control in zip(prefixes, (0, 10, 0), ("text", "text", "parse"), strict=True):
        sidecar = json.loads(Path(f"{prefix}.json").read_text())
        Path(f"{prefix}.json").write_text(json.dumps(sidecar | {"eods": eods, "options": {"control_tokens": control}}))
    blends = [prefixes[:1], ["1", prefixes[0], "1", prefixes[1]], prefixes[2:]]
    first, *others = (
        configuration(
            dataclasses.replace(NULL, data_path=tuple(words), split="1,0,0", eod_mask_loss=True), eval_iters=0
        )
        for words in blends
    )
    with pytest.raises(ValueError, match="--eod-mask-loss has no effect: .*/without .*--append-eod"):
        build_datasets(first, null)
    told = []
    for config in (dataclasses.replace(first, data=dataclasses.replace(first.data, eod_mask_loss=False)), *others):
        caplog.clear()
        build_datasets(config, null)
        told.append([message for message in caplog.messages if "--eod-mask-loss" in message])
    assert [len(messages) for messages in told] == [0, 1, 0]
    assert f"on part of the data: {prefixes[0]} was prepared without end-of-document tokens" in told[1][0]
