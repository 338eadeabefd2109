"""The options of tools/preprocess_data.py. Quick to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ...config import DataConfig
from ...config.field_metadata import TOKENIZER, AtLeast
from ...config.tool_options import Flag, Metavar, Only
from ..corpus.json_keys import dataset_name
from ..corpus.records import BadBytes, TxtDocuments
from ..encoders import Accelerator

ControlTokens = Literal["text", "parse", "fail"]
OnError = Literal["fail", "skip", "quarantine"]


@dataclass(frozen=True)
class PreprocessOptions:
    """What tools/preprocess_data.py is asked for; names as its flags."""

    inputs: Annotated[tuple[str, ...], Flag("--input"), Metavar("PATH")]
    """files, patterns, folders or -; jsonl, JSON arrays, txt or parquet; plain, gzip, bzip2, xz or zstd"""
    output_prefix: Annotated[str, Metavar("PREFIX")]
    """writes PREFIX_KEY_document.{bin,idx,json}"""
    data: Annotated[DataConfig, Only(TOKENIZER)]
    json_keys: Annotated[tuple[str, ...], Flag("--json-keys", ("--json-key",)), Metavar("KEY")] = ("text",)
    """JSON keys of the text; each makes a dataset, named after the (first) key; a.b is key b inside a; 'text|body' is
    the first of these keys that holds text"""
    append_eod: bool = False
    """append EOD to every document"""
    workers: int = 1
    """number of tokenizing processes; the output does not depend on it"""
    on_error: OnError = "fail"
    """what to do with a bad record: stop, skip it, or skip it and keep it in PREFIX_quarantine.jsonl"""
    txt_documents: TxtDocuments = "file"
    """what counts as one document in txt files; blank lines separate paragraphs"""
    overwrite: bool = False
    """replace existing datasets"""
    prepend_bos: bool = False
    """prepend BOS to every document"""
    control_tokens: ControlTokens = "text"
    """treat a control token in the text, such as </s>, as text, as the token, or as a bad record"""
    bad_bytes: BadBytes = "reject"
    """invalid UTF-8 and NUL: reject the record, replace them with U+FFFD, or drop them"""
    blend_keys: bool = False
    """write one dataset with the documents of all keys, record by record"""
    accelerator: Accelerator = "auto"
    """faster tokenization, checked to give the same tokens; auto selects the fastest available"""
    verify: int = 0
    """read N documents back and compare them with their text"""
    resume: bool = False
    """continue an interrupted run of the same command"""
    shard_id: Annotated[int | None, Metavar("I")] = None
    """which of the --num-shards parts this run makes, counted from 0 (default: the only one)"""
    num_shards: int = 1
    """split the input into N similar parts, one run each; --merge-shards joins them"""
    merge_shards: bool = False
    """join the --num-shards parts, made with the same flags, into the datasets that one run would have written"""
    ray_address: Annotated[str | None, Metavar("ADDRESS")] = None
    """make the --num-shards parts on a Ray cluster, and join them: HOST:PORT, auto (the one of this node), or local
    (one that is started on this machine)"""
    shard_retries: Annotated[int | None, AtLeast(0)] = None
    """with --ray-address, how often a part is continued whose process or node was lost (default: 3 times)"""

    @property
    def retries(self) -> int:
        """How often a lost part is continued."""
        return 3 if self.shard_retries is None else self.shard_retries

    @property
    def shard(self) -> int:
        """Which part of the input this run makes."""
        return self.shard_id or 0

    @property
    def shard_prefix(self) -> str:
        """The output prefix of this shard."""
        shard = f"-{self.shard:05d}-of-{self.num_shards:05d}" if self.num_shards > 1 else ""
        return self.output_prefix + shard

    def prefix(self, name: str) -> str:
        """Prefix of the dataset of one key, named as Megatron-LM names it."""
        return f"{self.shard_prefix}_{name}_document"

    @property
    def prefixes(self) -> list[str]:
        """Prefixes of all datasets."""
        names = list(map(dataset_name, self.json_keys))
        return [self.prefix("_".join(names))] if self.blend_keys else [*map(self.prefix, names)]

    @property
    def keys(self) -> list[str]:
        """The JSON keys of each dataset, in the order of `prefixes`."""
        return [" ".join(self.json_keys)] if self.blend_keys else list(self.json_keys)

    def recorded(self, key: str) -> dict[str, Any]:
        """What the description of the dataset of one key tells of the options."""
        return {
            "json_key": key, "append_eod": self.append_eod, "prepend_bos": self.prepend_bos,
            "control_tokens": self.control_tokens, "bad_bytes": self.bad_bytes, "on_error": self.on_error,
            "txt_documents": self.txt_documents,
        }  # fmt: skip

    @property
    def quarantine_path(self) -> Path:
        """Where --on-error quarantine puts bad records."""
        return Path(f"{self.shard_prefix}_quarantine.jsonl")

    @property
    def journal_path(self) -> Path:
        """What --resume goes by."""
        return Path(f"{self.shard_prefix}_journal.json")
