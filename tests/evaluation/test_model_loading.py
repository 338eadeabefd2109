"""What tells one loaded model from another."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.evaluation.model_loading import LoadedModel
from tests.evaluation.oracle import OracleModel


def test_a_model_of_other_weights_or_first_token_is_another(tokenizer):
    """So that records of one are not taken for those of the other."""
    model = OracleModel(tokenizer.vocab_size)
    plain, begun = (LoadedModel(model, tokenizer, bos).identity() for bos in (None, 1))
    assert plain.keys() == {"weights", "tokenizer"} and begun == plain | {"bos": 1}
    assert plain == LoadedModel(OracleModel(tokenizer.vocab_size), tokenizer).identity()
    model.state_dict = lambda: {"weight": torch.ones(1)}
    assert LoadedModel(model, tokenizer).identity()["weights"] != plain["weights"]


def test_a_stretched_model_is_another_one(tiny_model, tokenizer, monkeypatch: pytest.MonkeyPatch):
    """Its weights are the same, its records are not."""
    plain = LoadedModel(tiny_model, tokenizer).identity()
    monkeypatch.setattr(tiny_model.config, "yarn_factor", 4.0)
    assert LoadedModel(tiny_model, tokenizer).identity() == plain | {"yarn_factor": 4.0}
