"""The tensors of an imported checkpoint: the inverse of an export, whatever the kind, and refusals by name."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents, read_checkpoint
from megatron_fwpkm.checkpoint.manager import latest_checkpoint
from megatron_fwpkm.checkpoint.tensor_writer import PlannedTensor, RowPiece, whole, write_tensors
from megatron_fwpkm.conversion import import_weights
from megatron_fwpkm.conversion.convert_options import ImportOptions
from megatron_fwpkm.conversion.delta_net_transforms import Convolution, InProjection
from megatron_fwpkm.conversion.export import export
from megatron_fwpkm.conversion.import_source import import_model
from megatron_fwpkm.conversion.megatron_import import import_export
from megatron_fwpkm.conversion.weight_rules import (
    KIND_RULES,
    KIND_TABLES,
    LAYER_RULES,
    MODEL_RULES,
    GateAndUp,
    GroupedHeads,
    Same,
    Transform,
    Vocabulary,
    WeightShapes,
)
from tests.layers.megatron import initialize
from tests.quick_cases import examples

from ..checkpoint.contents import write_checkpoint

RULES = [*MODEL_RULES, *LAYER_RULES, *(rule for rules in KIND_RULES.values() for rule in rules)]


def rows_of(transform: Transform, shapes: WeightShapes, draw: Any) -> int:
    """Rows that a Megatron tensor of these sizes can have."""
    if isinstance(transform, Vocabulary):
        return shapes.padded_vocab_size
    if isinstance(transform, GroupedHeads):
        heads = shapes.queries_per_group * (2 if shapes.output_gate else 1) + 2
        return shapes.num_query_groups * heads * shapes.head_dim
    values = shapes.linear_value_heads // shapes.linear_key_heads
    width = draw(st.integers(1, 3))
    if isinstance(transform, InProjection):
        return shapes.linear_key_heads * (2 * shapes.linear_key_dim + 2 * values * width + 2 * values)
    if isinstance(transform, Convolution):
        return shapes.linear_key_heads * (2 * shapes.linear_key_dim + values * width)
    return 2 * width if isinstance(transform, GateAndUp) else width


@pytest.mark.parametrize("transform", {type(rule.transform): rule.transform for rule in RULES}.values(),
                         ids=lambda transform: type(transform).__name__)  # fmt: skip
@examples(10, 25)
@given(data=st.data())
def test_every_transform_has_an_inverse(transform: Transform, data: st.DataObject) -> None:
    """Bit for bit, NaNs and signed zeros included, at any sizes."""
    size = st.integers(1, 3)
    keys, vocabulary = data.draw(size), data.draw(st.integers(1, 5))
    shapes = WeightShapes(
        data.draw(size), data.draw(size), data.draw(size), vocabulary, vocabulary + data.draw(st.integers(0, 3)),
        data.draw(st.booleans()), keys, keys * data.draw(size), data.draw(size),
    )  # fmt: skip
    rows = rows_of(transform, shapes, data.draw)
    plain = isinstance(transform, Same | GateAndUp | GroupedHeads | InProjection)
    others = data.draw(st.sampled_from([(), (3,)])) if plain else (3,)
    bits = torch.randint(-(2**31), 2**31, (rows, *others), generator=torch.Generator().manual_seed(rows))
    tensor = bits.to(torch.int32).view(torch.float32)
    if isinstance(transform, Vocabulary):
        tensor[vocabulary:] = 0
    back = transform.to_megatron(transform.to_hf(tensor, shapes), shapes)
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


@examples(20, 50)
@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 10_000))
def test_padding_hardly_raises_a_loss(vocabulary: int, padding: int, seed: int) -> None:
    """By no more than log(1 + padding / vocabulary), however large the logits are."""
    draw = torch.Generator().manual_seed(seed)
    rows = 5 * torch.randn(vocabulary, 4, generator=draw, dtype=torch.float64) - 3
    pieces = (RowPiece(0, 2, lambda: rows[:2]), RowPiece(2, vocabulary - 2, lambda: rows[2:]))
    planned = import_weights._padded(PlannedTensor((vocabulary, 4), rows.dtype, pieces), vocabulary + padding)
    padded = torch.cat([piece.read() for piece in planned.pieces])
    assert padded.shape == planned.shape
    hidden = 10 * torch.randn(20, 4, generator=draw, dtype=torch.float64)
    risen = (hidden @ padded.t()).logsumexp(1) - (hidden @ rows.t()).logsumexp(1)
    assert risen.max() <= torch.tensor(1 + padding / vocabulary).log() + 1e-6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckpointContents, Path]:
    """A checkpoint's contents, and its export."""
    initialize()
    folder = tmp_path_factory.mktemp("source")
    write_checkpoint(folder / "run", 60, 64, None)
    return read_checkpoint(folder / "run"), export(folder / "run", folder / "hf", max_shard_size="20KB")


def imported(folder: Path, target: Path, **options: Any) -> CheckpointContents:
    return read_checkpoint(import_export(ImportOptions(str(folder), str(target), **options)))


@pytest.mark.parametrize("piece_bytes", [*(pytest.param(size, marks=pytest.mark.slow) for size in (1, 500)), 1 << 23])
def test_an_export_in_several_files_comes_back(
    source: tuple[CheckpointContents, Path], piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the pieces are that are read at a time."""
    monkeypatch.setattr(import_weights, "PIECE_BYTES", piece_bytes)
    before, folder = source
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    found = imported(folder, tmp_path / "run", make_vocab_size_divisible_by=64)
    assert (found.vocab_size, found.padded_vocab_size) == (60, 64)
    assert found.slow.keys() == before.slow.keys()
    for name, tensor in before.slow.items():
        rows = 60 if name.startswith(("embedding", "output")) else tensor.shape[0]
        assert torch.equal(found.slow[name][:rows], tensor[:rows]), name
        assert found.slow[name].shape == tensor.shape
    assert all(torch.equal(found.fast[2].tables[name], table) for name, table in before.fast[2].tables.items())
    assert latest_checkpoint(tmp_path / "run") == found.path


@pytest.mark.parametrize("piece_bytes", [pytest.param(1, marks=pytest.mark.slow), 1500])
def test_heads_of_every_kind_come_back_group_after_group(
    piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of attention with gates and of a gated delta net, a piece of which has one or two groups of heads."""
    monkeypatch.setattr(import_weights, "PIECE_BYTES", piece_bytes)
    flags = (
        "--layer-pattern gdn,fa --window-size none --attention-output-gate --add-bias-linear --linear-num-key-heads 4 "
        "--linear-num-value-heads 8 --linear-key-head-dim 6 --linear-value-head-dim 5 "
        "--untie-embeddings-and-output-weights"
    )
    write_checkpoint(tmp_path / "run", 64, 64, None, flags.split())
    before = read_checkpoint(tmp_path / "run")
    found = imported(export(tmp_path / "run", tmp_path / "hf"), tmp_path / "other", make_vocab_size_divisible_by=64)
    assert found.slow.keys() == before.slow.keys()
    assert [name for name in before.slow if not torch.equal(found.slow[name], before.slow[name])] == []


@pytest.mark.slow
def test_an_import_can_be_exported_again(source: tuple[CheckpointContents, Path], tmp_path: Path) -> None:
    """To the same tensors."""
    found = imported(source[1], tmp_path / "run", tensor_model_parallel_size=2)
    assert found.padded_vocab_size == 256
    again = load_file(export(tmp_path / "run", tmp_path / "hf", fast_weights="trained") / "model.safetensors")
    for file in source[1].glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert torch.equal(again.pop(name), tensor)
    assert not again


def damaged(source: Path, target: Path, **changes: Tensor | None) -> Path:
    """A copy of an export in one file with other tensors; None leaves one out."""
    tensors = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    changed = {**tensors, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_everything_that_does_not_fit_is_listed_at_once(
    source: tuple[CheckpointContents, Path], tmp_path: Path
) -> None:
    layer, memory = "model__layers__0", "model__layers__1__memory"
    folder = damaged(
        source[1], tmp_path / "hf",
        **{
            "vision__weight": torch.zeros(1), "audio__bias": torch.zeros(1),
            f"{layer}__self_attn__k_proj__weight": None, "model__norm__weight": torch.zeros(31),
            f"{memory}__values": torch.zeros(64, 16, dtype=torch.bfloat16),
            f"{layer}__mlp__down_proj__weight": torch.zeros(32, 48, dtype=torch.int8),
            f"{layer}__mlp__up_proj__weight": torch.zeros(48, 32, dtype=torch.bfloat16),
        },
    )  # fmt: skip
    with pytest.raises(ValueError) as refused:
        imported(folder, tmp_path / "run")
    assert str(refused.value) == (
        f"{folder}: tensors that are not part of this model: audio.bias, vision.weight; "
        "missing tensors: model.layers.0.self_attn.k_proj.weight; "
        "wrong shapes: model.norm.weight has [31], but config.json makes it [32]; "
        "wrong dtypes: model.layers.0.mlp.down_proj.weight is I8, not F32, BF16, F16, "
        "model.layers.1.memory.values is BF16, not F32; "
        "tensors of one Megatron tensor in several dtypes: decoder.layers.0.mlp.linear_fc1.weight"
    )
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".*"))


def test_a_tensor_without_a_rule_is_named(
    source: tuple[CheckpointContents, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that a future model has and no rule maps."""
    monkeypatch.setitem(KIND_RULES, "swiglu", KIND_RULES["swiglu"][:1])
    with pytest.raises(ValueError, match="without a conversion rule: model.layers.0.mlp.down_proj.weight, model"):
        imported(source[1], tmp_path / "run")


def test_a_number_that_is_none_is_refused_and_leaves_nothing(
    source: tuple[CheckpointContents, Path], tmp_path: Path
) -> None:
    values = torch.zeros(64, 16)
    values[63, 15] = torch.nan
    folder = damaged(source[1], tmp_path / "hf", model__layers__1__memory__values=values)
    with pytest.raises(ValueError, match="model.safetensors: model.layers.1.memory.values contains NaN or infinite"):
        imported(folder, tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}
    large = torch.full((64, 16), 3e38)  # whose sum is none that float32 has
    imported(damaged(source[1], tmp_path / "large", model__layers__1__memory__values=large), tmp_path / "run")


def test_another_model_is_refused_by_its_name(source: tuple[CheckpointContents, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="model of another kind: model_type in config.json is 'llama', not 'fwpkm'"):
        import_model(ImportOptions(str(tmp_path), str(tmp_path / "run")))
    with pytest.raises(ValueError, match=f"--checkpoint {tmp_path / 'none'} is not a folder"):
        import_model(ImportOptions(str(tmp_path / "none"), str(tmp_path / "run")))
    with pytest.raises(ValueError, match="--write-scale, --lookahead have no effect with --from hf"):
        import_model(ImportOptions(str(source[1]), str(tmp_path / "run"), write_scale="official", lookahead=2))
    with pytest.raises(ValueError, match="--iteration has no effect with --from sakana"):
        import_model(ImportOptions(str(source[1]), str(tmp_path / "run"), "sakana", iteration=2))


def test_a_run_is_never_replaced(source: tuple[CheckpointContents, Path], tmp_path: Path) -> None:
    target = tmp_path / "run"
    imported(source[1], target)
    with pytest.raises(ValueError, match="already exists; give another --output, or use --overwrite"):
        imported(source[1], target)
    assert imported(source[1], target, overwrite=True, iteration=3, consumed_samples=5).iteration == 3
    write_checkpoint(tmp_path / "mine", 60, 64, None)
    with pytest.raises(ValueError, match="mine contains iter_0000007, a checkpoint of a run, which --overwrite does"):
        imported(source[1], tmp_path / "mine", overwrite=True)
    (run,) = (tmp_path / "mine").glob("iter_*")
    for place in (run, tmp_path):  # the checkpoint itself, and what contains the --save folder
        with pytest.raises(ValueError, match=f"{place} contains iter_0000007, a checkpoint of a run"):
            imported(source[1], place, overwrite=True)
        with pytest.raises(ValueError, match=f"{place} contains iter_0000007, a checkpoint of a run"):
            export(source[0].path, place, overwrite=True)
    assert run.is_dir()
    copy = tmp_path / "copies" / "hf"
    shutil.copytree(source[1], copy)
    for place in (copy, copy.parent):
        with pytest.raises(ValueError, match=f"{place} contains --checkpoint {copy}, which would be replaced"):
            imported(copy, place, overwrite=True)


def test_an_iteration_needs_a_data_position(source: tuple[CheckpointContents, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--iteration 3 needs --consumed-samples"):
        imported(source[1], tmp_path / "run", iteration=3)


def test_half_precision_is_kept(source: tuple[CheckpointContents, Path], tmp_path: Path) -> None:
    export(source[0].path, tmp_path / "hf", dtype="bfloat16")
    found = imported(tmp_path / "hf", tmp_path / "run")
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    assert torch.equal(found.slow[name], source[0].slow[name].bfloat16())
    assert torch.equal(found.fast[2].tables["values"], source[0].fast[2].tables["values"])


def test_an_export_without_fast_weights_tells_the_seed(
    source: tuple[CheckpointContents, Path], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "seed5", 60, 64, None, ["--seed", "5", "--fwpkm-table-dtype", "bf16"])
    folder = export(tmp_path / "seed5", tmp_path / "hf", fast_weights="none")
    found = imported(folder, tmp_path / "run")
    assert (found.config.training.seed, found.config.fwpkm.table_dtype) == (5, "bf16")
    made = KIND_TABLES["fwpkm"](found.config, 2)
    assert all(torch.equal(found.fast[2].tables[name], table.float()) for name, table in made.items())
    config = json.loads((folder / "config.json").read_text())
    config["fwpkm_drawn_tables"]["sha256"] = 64 * "0"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="draws other initial fast weights than the machine that made the export"):
        imported(folder, tmp_path / "other")


def test_one_piece_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Torch's writer would keep the last one of every tensor."""
    alive: list[int] = []

    def written(size: int) -> None:
        """Count pieces that have their numbers, of 12 each."""
        tensors = [found for found in gc.get_objects() if type(found) is Tensor]
        alive.append(sum(tensor.untyped_storage().size() == 48 for tensor in tensors if not tensor.is_meta))

    planned = {f"t{number}": whole((3, 4), torch.float32, lambda: torch.ones(3, 4)) for number in range(6)}
    write_tensors(tmp_path / "x", planned, written)
    assert len(alive) == 6 and max(alive) - min(alive) <= 2


def test_a_piece_of_the_wrong_size_is_our_bug(tmp_path: Path) -> None:
    wrong = PlannedTensor((2, 2), torch.float32, (RowPiece(0, 2, lambda: torch.zeros(3, 2)),))
    with pytest.raises(AssertionError, match="a"):
        write_tensors(tmp_path / "x", {"a": wrong})


@pytest.mark.parametrize(
    "flags", [(), pytest.param(("--fwmlp-layer-numbers", "1", "--fwmlp-chunk-size", "8"), marks=pytest.mark.slow)]
)
def test_the_seed_of_an_initial_memory_is_compared(
    flags: Sequence[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a table that the seed draws: the biases of a fast-weight MLP begin as zeros."""
    initialize()
    write_checkpoint(tmp_path / "source", 60, 64, None, flags)
    folder = export(tmp_path / "source", tmp_path / "hf", fast_weights="initial")
    imported(folder, tmp_path / "run")
    assert "initial memory" not in caplog.text
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 5\nlog-dir: runs/theirs\nsave: runs/theirs/checkpoints\n")
    other = imported(folder, tmp_path / "other", config=str(file)).config
    assert other.logging.log_dir is None and other.checkpoint.save is None, "another run begins"
    assert "an initial memory that is not that of --seed 5: --fwpkm-reset step or document" in caplog.text


@pytest.mark.parametrize(
    "flags", [("--fwpkm-owner", "sequence", "--fwpkm-reset", "step"), ("--fwpkm-reset", "document")]
)
def test_a_memory_that_ends_with_its_text_is_never_trained(flags: Sequence[str], tmp_path: Path) -> None:
    initialize()
    write_checkpoint(tmp_path / "run", 60, 64, None, flags)
    with pytest.raises(ValueError, match="--fast-weights trained: the memory of layer 2 ended with every sequence or"):
        export(tmp_path / "run", tmp_path / "hf", fast_weights="trained")
    assert not (tmp_path / "hf").exists() and export(tmp_path / "run", tmp_path / "hf")
