"""A kind of token mixer from outside the package: it registers itself, and everything that a model can do works.

The mixer is a gated decay of the running mean. Its part for Transformers is a module of its own, running_mean_hf.py,
for an export ships it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, dynamic_module_utils

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.config.checkpoint_size import checkpoint_bytes
from megatron_fwpkm.config.derived import ShardedCount
from megatron_fwpkm.config.layer_kind import LAYER_KINDS, LayerKind, Role, register_layer_kind
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.parameter_counts import num_parameters
from megatron_fwpkm.conversion.export import export
from megatron_fwpkm.conversion.verify import verify
from megatron_fwpkm.conversion.weight_rules import KIND_RULES, Rule, Same, register_rules
from megatron_fwpkm.hf.kind_modules import KIND_MODULES
from megatron_fwpkm.models.kind_specs import KIND_SPECS, register_spec
from megatron_fwpkm.training.dry_run import dry_run
from megatron_fwpkm.training.memory_estimate import estimate_memory
from tests.layers.megatron import initialize
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import NUMBERS, flags, losses, start, write_dataset

KIND = "running_mean"


class RunningMean(MegatronModule):
    """out(m), with m_t = d_t * m_(t-1) + (1 - d_t) * value(x_t) and d_t = sigmoid(decay(x_t)) per channel."""

    def __init__(self, config: Any, layer_number: int, **groups: Any) -> None:
        super().__init__(config)
        width, options = config.hidden_size, {"config": config, "bias": False}
        column: dict[str, Any] = {"init_method": config.init_method, "gather_output": False, **options}
        self.decay_proj = ColumnParallelLinear(width, width, **column)
        self.value_proj = ColumnParallelLinear(width, width, **column)
        self.out_proj = RowParallelLinear(
            width, width, init_method=config.output_layer_init_method, input_is_parallel=True, skip_bias_add=True,
            **options,
        )  # fmt: skip

    def forward(self, hidden: Tensor, **unused: Any) -> tuple[Tensor, None]:
        """Map [s, b, hidden] to the same."""
        decays, values = torch.sigmoid(self.decay_proj(hidden)[0]), self.value_proj(hidden)[0]
        means = [torch.zeros_like(values[0])]
        for decay, value in zip(decays, values, strict=True):
            means.append(decay * means[-1] + (1 - decay) * value)
        return self.out_proj(torch.stack(means[1:]))[0], None


def register() -> None:
    """The mixer's rows in the four tables."""
    register_layer_kind(
        LayerKind(
            KIND, Role.MIXER, KIND,
            parameters=lambda config: ShardedCount(sharded=3 * config.model.hidden_size**2),
            activation_bytes=lambda config: ShardedCount(sharded=20 * config.model.hidden_size),
            reach=lambda config, number: "all tokens before, fading",
            summary=lambda config, numbers: f"A fading mean of the text mixes the tokens of {len(numbers)} layer.",
            divided=lambda config: {"--hidden-size": config.model.hidden_size},
        )
    )  # fmt: skip
    register_spec(KIND, lambda config, number: ModuleSpec(module=RunningMean))
    place = "decoder.layers.{layer}.self_attention", "model.layers.{layer}.running_mean"
    rules = (Rule(f"{place[0]}.{part}.weight", (f"{place[1]}.{part}.weight",), Same())
             for part in ("decay_proj", "value_proj", "out_proj"))  # fmt: skip
    register_rules(KIND, tuple(rules))
    from tests.models import running_mean_hf  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The mixer is there for this file only; Transformers copies and imports the code of exports into a folder."""
    folder = str(tmp_path_factory.mktemp("modules"))
    register()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
        yield
    tables: tuple[dict[str, Any], ...] = (LAYER_KINDS, KIND_SPECS, KIND_RULES, KIND_MODULES)
    for table in tables:
        del table[KIND]
    sys.path[:] = [path for path in sys.path if path != folder]
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
    del sys.modules["tests.models.running_mean_hf"]


def train(rank: int, world_size: int, argv: list[str]) -> int:
    """pretrain.py on one of several ranks."""
    register()
    return start(argv)


def check_unequal_rows(model: Any, ids: Tensor) -> None:
    """What follows two texts of unequal length is what follows each alone."""
    rows = torch.cat([ids, torch.cat([torch.zeros_like(ids[:, :4]), ids[:, :5]], 1)])  # the second one is shorter
    mask = torch.ones_like(rows)
    mask[1, :4] = 0
    read = model(rows, attention_mask=mask, use_cache=True)
    mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    after = model(ids[:, :1].expand(2, 1), attention_mask=mask, past_key_values=read.past_key_values).logits
    for row, length in zip(after, (9, 5), strict=True):
        alone = model(torch.cat([ids[:, :length], ids[:, :1]], 1)).logits
        assert torch.allclose(row[-1], alone[0, -1], atol=1e-5)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_everything_that_a_model_can_do(ranks: int, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "numbers")
    chosen = {"layer_pattern": f"{KIND},fa", "train_iters": 4, "log_interval": 1, "eval_iters": 0}
    chosen |= {"use_distributed_optimizer": True}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(flags(data, **chosen, save=whole)) == 0

    begun = flags(data, **chosen, save=cut, exit_interval=2, tensor_model_parallel_size=ranks)
    assert (run_distributed(train, 2, begun) if ranks == 2 else [start(begun)]) == [0] * ranks
    assert start(flags(data, **chosen, save=cut, resume=True)) == 0
    expected, found = (losses(folder.parent / folder.name) for folder in (whole, cut))
    assert found.keys() == expected.keys() == {1, 2, 3, 4}
    assert all(found[step] == pytest.approx(expected[step], rel=3e-3) for step in expected)

    config = parse_pretrain(begun).config
    stored = read_checkpoint(cut)
    slow = {name: tensor for name, tensor in stored.slow.items() if not name.endswith("_extra_state")}
    count = sum(tensor.numel() for tensor in slow.values())
    padding = (stored.padded_vocab_size - 64) * 32  # TP2 may pad further than TP1
    assert num_parameters(parse_pretrain(flags(data, **chosen)).config, NUMBERS + 1) == count - padding
    assert checkpoint_bytes(config, NUMBERS + 1, ranks).weights == 4 * num_parameters(config, NUMBERS + 1)
    console = Console(file=io.StringIO(), width=140)
    dry_run(parse_pretrain([*begun, "--dry-run"]), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{KIND}: all tokens before, fading" in said and "fa: all tokens before" in said
    row = next(line.split() for line in said.splitlines() if line.startswith(KIND))
    assert row[1:] == [f"{3 * 32**2 + 32:,}", f"{3 * 32**2 // ranks + 32:,}"]
    plain = parse_pretrain(flags(data, **chosen | {"layer_pattern": "fa"})).config
    mixed = parse_pretrain(flags(data, **chosen)).config
    tokens = config.training.micro_batch_size * config.model.seq_length
    attention, mean = ((LAYER_KINDS[kind].activation_bytes(mixed).sharded) for kind in ("fa", KIND))
    assert mean == 20 * 32 != attention
    change = estimate_memory(mixed, 61, 1).activations - estimate_memory(plain, 61, 1).activations
    assert change == tokens * (mean - attention)

    initialize()
    folder = export(cut, tmp_path / "hf")
    checks = verify(cut, folder, lengths=[1, 19])
    assert all(check.passed for check in checks), "\n".join(check.row() for check in checks)
    assert "A fading mean of the text mixes the tokens of 1 layer." in (folder / "README.md").read_text()
    assert (folder / "running_mean_hf.py").is_file()

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model.model.layers[0].running_mean).__module__.startswith("transformers_modules.")
    ids = torch.randint(NUMBERS, (1, 9), generator=torch.Generator().manual_seed(1))
    written = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(written[:, 9:], model(written[:, :-1]).logits[:, 8:].argmax(-1))
    model.memory_mode = "frozen"
    check_unequal_rows(model, ids)
