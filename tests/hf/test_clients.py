"""What others build on Transformers' models, with an export as it is loaded: Trainer, PEFT, accelerate."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    dynamic_module_utils,
)

from megatron_fwpkm.conversion.bundle import AUTO_MAP, write_bundle
from tests.tools.test_generate_text import words

from .builders import small_model, token_ids

pytestmark = pytest.mark.slow
EVERYWHERE = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
"""A device map without the layer of the memory."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An export whose weights are small enough to be trained; its code is not copied into the user's cache."""
    path, modules = tmp_path_factory.mktemp("export"), str(tmp_path_factory.mktemp("modules"))
    model = small_model(dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)
    model.config.auto_map = dict(AUTO_MAP)
    model.save_pretrained(path)
    write_bundle(path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
        yield path
    sys.path[:] = [path for path in sys.path if path != modules]
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def loaded(folder: Path, **options: Any) -> PreTrainedModel:
    """The export in float32, by the code that it carries."""
    options = {"trust_remote_code": True, "dtype": torch.float32} | options
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **options)
    assert type(model).__module__.startswith("transformers_modules.")
    return model


def trainer(model: PreTrainedModel, out: Path, **options: Any) -> Trainer:
    """20 steps on texts of several lengths, which the tokenizer's own collator pads."""
    tokenizer = words()
    tokenizer.pad_token = "w00"
    texts = [{"input_ids": [3 + (row + place) % 7 for place in range(9 + 3 * (row % 5))]} for row in range(32)]
    arguments = TrainingArguments(
        str(out), max_steps=20, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, save_steps=10,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=0, **options,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return Trainer(model=model, args=arguments, train_dataset=texts, eval_dataset=texts, data_collator=collator)


def losses(made: Trainer) -> list[float]:
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def test_trainer_trains_the_slow_weights_and_resumes(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = trainer(model, tmp_path / "first")
    first.train()
    found = losses(first)
    assert len(found) == 20 and found[-1] < 0.6 * found[0]
    assert first.evaluate()["eval_loss"] < 0.6 * found[0]
    tables = {name for name, _ in model.named_buffers()}
    assert tables == {"model.layers.1.memory.sub_keys", "model.layers.1.memory.values"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in tables), name
    again = trainer(loaded(folder), tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-10"))
    assert losses(again)[-10:] == pytest.approx(found[-10:], rel=1e-6)
    for name, tensor in again.model.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_trains_alike(folder: Path, tmp_path: Path) -> None:
    plain, less = trainer(loaded(folder), tmp_path), trainer(loaded(folder), tmp_path, gradient_checkpointing=True)
    ids, mask = token_ids(3, 30), torch.ones(3, 30, dtype=torch.long)
    mask[1, 20:] = mask[2, :7] = 0
    gradients, times = [], []
    for made in (plain, less):
        made.train()
        made.model.zero_grad()
        runs: list[bool] = []
        made.model.model.layers[1].memory.query_proj.register_forward_hook(lambda *_, runs=runs: runs.append(True))
        made.model(ids, attention_mask=mask, labels=ids).loss.backward()
        times.append(len(runs))
        gradients.append({name: parameter.grad for name, parameter in made.model.named_parameters()})
    assert times == [1, 2]
    assert losses(less) == losses(plain)
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj", "query_proj", "value_proj", "output_proj"]])
def test_lora_is_trained_saved_and_merged(modules: Any, folder: Path, tmp_path: Path) -> None:
    import peft

    ids = token_ids(2, 30)
    with torch.no_grad():
        before = loaded(folder)(ids).logits
    model = peft.get_peft_model(
        loaded(folder), peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=modules)
    ).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert any("memory.query_proj.lora_A" in name for name, _ in model.named_parameters())
    optimizer, found = torch.optim.AdamW(parameters, 1e-2), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < found[0]
    model.eval().save_pretrained(tmp_path / "adapter")
    other = peft.PeftModel.from_pretrained(loaded(folder), tmp_path / "adapter")
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert not torch.allclose(expected, before, atol=1e-3)
        assert torch.equal(other(input_ids=ids).logits, expected)
        text = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(merged.generate(ids, max_new_tokens=5, do_sample=False), text)
        merged.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(loaded(tmp_path / "merged")(ids).logits, merged(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("places", ["auto", "cpu", "disk", "disk for the memory"])
def test_accelerate_places_the_model(places: str, folder: Path, tmp_path: Path) -> None:
    """Wherever the slow weights are kept between calls."""
    maps = {"disk": {"": "disk"}, "disk for the memory": EVERYWHERE | {"model.layers.1": "disk"}}
    options = {"offload_folder": str(tmp_path)} if places in maps else {}
    model, expected, ids = (
        loaded(folder, device_map=maps.get(places, places), **options),
        loaded(folder),
        token_ids(2, 30),
    )
    kept = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    assert bool(kept) == (places in maps)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
        assert torch.equal(model(ids, use_cache=False).logits, expected(ids, use_cache=False).logits)
    asked = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, **asked), expected.generate(ids, **asked))


def test_tables_that_are_offloaded_cannot_stream(folder: Path, tmp_path: Path) -> None:
    from accelerate import disk_offload

    model, expected, ids = loaded(folder), loaded(folder), token_ids(2, 30)
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"), offload_buffers=True)
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, expected(ids, use_cache=False).logits)
        with pytest.raises(ValueError, match="load the model with offload_buffers=False, or call it with use_cache"):
            model(ids)
