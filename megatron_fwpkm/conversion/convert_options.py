"""The options of tools/convert_checkpoint.py. Quick to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..config.field_metadata import Above, AtLeast
from ..config.tool_options import Flag, Metavar

StartingMemory = Literal["initial", "trained"]
"""Which memory a model starts every text from."""
FastWeights = Literal["initial", "trained", "none"]
"""Which fast weights the files of an export contain."""
DType = Literal["float32", "bfloat16", "float16"]
"""What the weights of a Hugging Face folder are stored in."""


@dataclass(frozen=True)
class ExportOptions:
    """What the command `export` is asked for: the arguments of `export`."""

    checkpoint: Annotated[str, Metavar("DIR")]
    """checkpoint or --save folder of a run"""
    output: Annotated[str, Metavar("DIR")]
    """folder to write"""
    dtype: DType = "float32"
    """data type of the weights; the fast weights stay float32"""
    fast_weights: FastWeights | None = None
    """fast weights that every text starts from: those before any write, or those at the end of training; none leaves
    those before any write out of the files, and they are drawn again when the model is loaded (default: trained for
    runs with --fwpkm-reset never, else initial)"""
    replica: Annotated[int, AtLeast(0)] = 0
    """data-parallel replica whose trained fast weights are exported"""
    max_shard_size: Annotated[str, Metavar("SIZE")] = "5GB"
    """largest size of a file of weights, in KB, MB, GB or TB"""
    tokenizer: bool = True
    """export the tokenizer"""
    overwrite: bool = False
    """replace an existing folder"""


@dataclass(frozen=True)
class ImportOptions:
    """What the command `import` is asked for."""

    source: Annotated[Literal["sakana"], Flag("--from")]
    """whose format the checkpoint has: sakana for what the authors of the FwPKM paper released"""
    checkpoint: Annotated[str, Metavar("DIR")]
    """folder with config.json and weights"""
    output: Annotated[str, Metavar("DIR")]
    """folder to write"""
    write_scale: Literal["official", "consistent"] = "official"
    """arithmetic of reading with a cache: that of the authors' code, whose results depend on how a text is divided into
    calls (a text that is read token by token is hardly written), or that of this package, whose results do not"""
    lookahead: Annotated[int | None, AtLeast(0), Metavar("N")] = None
    """lookahead that the memory was trained with (default: 1, that of the authors' code, which ignored the misspelled
    key of the released configurations)"""
    dtype: DType = "float32"
    """data type of the weights; the fast weights stay float32"""
    overwrite: bool = False
    """replace an existing folder"""


@dataclass(frozen=True)
class VerifyOptions:
    """What the command `verify` is asked for."""

    checkpoint: Annotated[str, Metavar("DIR")]
    """checkpoint or --save folder of a run"""
    export: Annotated[str, Metavar("DIR")]
    """exported folder"""
    lengths: Annotated[tuple[int, ...], AtLeast(1)] = ()
    """lengths, in tokens, of the compared inputs (default: around multiples of the chunk size)"""
    text: Annotated[str | None, Metavar("FILE")] = None
    """file with text to compare on (default: a few sentences)"""
    tolerance: Annotated[float, Above(0)] = 1e-5
    """largest accepted difference from Megatron's logits, in float32"""
    seed: int = 0
    """random seed of the tokens"""
