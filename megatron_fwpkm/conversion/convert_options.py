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
    """largest size of a file of weights, in KB, MB, GB or TB; a larger tensor has a file of its own"""
    license: Annotated[str | None, Metavar("NAME")] = None
    """licence of the weights for the model card, such as apache-2.0 (default: the card says that none was given; the
    code of the model is under Apache 2.0)"""
    tokenizer: bool = True
    """export the tokenizer"""
    overwrite: bool = False
    """replace an existing folder"""


@dataclass(frozen=True)
class ImportOptions:
    """What the command `import` is asked for."""

    checkpoint: Annotated[str, Metavar("DIR")]
    """folder with config.json and weights"""
    output: Annotated[str, Metavar("DIR")]
    """folder to write"""
    source: Annotated[Literal["hf", "sakana"] | None, Flag("--from")] = None
    """whose model it is: hf for an export of this package, which becomes a checkpoint for pretrain.py; sakana for what
    the authors of the FwPKM paper released, which becomes such an export (default: told by config.json)"""
    overwrite: bool = False
    """replace an existing folder, but not the checkpoints of a run"""
    config: Annotated[str | None, Metavar("FILE")] = None
    """hf: YAML file of pretrain.py with what an export does not tell: options of training, seed, tokenizer"""
    iteration: Annotated[int, AtLeast(0), Metavar("N")] = 0
    """hf: iteration at which pretraining continues; schedule and data go on from there"""
    consumed_samples: Annotated[int | None, AtLeast(0), Metavar("N")] = None
    """hf: sequences of the training data that are left out as read (default: --iteration times the global batch size
    of --config)"""
    make_vocab_size_divisible_by: Annotated[int | None, AtLeast(1), Metavar("N")] = None
    """hf: pad the vocabulary to a multiple of this times the tensor-parallel size (default: that of --config, or
    128)"""
    tensor_model_parallel_size: Annotated[int | None, AtLeast(1), Metavar("N")] = None
    """hf: tensor-parallel size for this padding; the checkpoint can be loaded in any layout (default: that of --config,
    or 1)"""
    write_scale: Literal["official", "consistent"] | None = None
    """sakana: arithmetic of reading with a cache: that of the authors' code, whose results depend on how a text is
    divided into calls (a text that is read token by token is hardly written), or that of this package, whose results
    do not (default: official)"""
    lookahead: Annotated[int | None, AtLeast(0), Metavar("N")] = None
    """sakana: lookahead that the memory was trained with (default: 1, that of the authors' code, which ignored the
    misspelled key of the released configurations)"""
    dtype: DType | None = None
    """sakana: data type of the weights; the fast weights stay float32 (default: float32)"""


ONLY_HF = ("config", "iteration", "consumed_samples", "make_vocab_size_divisible_by", "tensor_model_parallel_size")
"""Fields of `ImportOptions` that mean something for exports alone."""
ONLY_SAKANA = ("write_scale", "lookahead", "dtype")
"""The same for what the paper's authors released."""


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
