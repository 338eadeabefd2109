"""Ranks that were started with different options, code or versions end before anything is built."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.distributed.same_start import MAY_DIFFER, check_same_start, describe_start
from tests.test_pretrain import flags, start, write_dataset
from tests.training.faulty_run import ranks


def compare(starts: list[dict[str, str]]) -> list[str]:
    """What each rank is told; empty for one that may go on."""
    store, said = dist.HashStore(), [""] * len(starts)

    def check(rank: int) -> None:
        try:
            check_same_start(store, rank, len(starts), starts[rank])
        except ValueError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=check, args=(rank,)) for rank in range(len(starts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return said


def test_ranks_that_were_started_alike_go_on() -> None:
    assert compare([{"--lr": "0.001"}] * 3) == ["", "", ""]


def test_values_and_ranks_are_named_on_every_rank() -> None:
    common = {"--train-iters": "6", "the version of torch": "2.13.0"}
    said = compare([common | {"--lr": "0.001"}] * 2 + [common | {"--lr": "0.005", "--seed": "7"}])
    assert len(set(said)) == 1
    assert "--lr is 0.001 on ranks 0-1 and 0.005 on rank 2" in said[0]
    assert "--seed is not known on ranks 0-1 and 7 on rank 2" in said[0]
    assert "--train-iters" not in said[0] and "torch" not in said[0]


def test_many_differences_are_counted() -> None:
    said = compare([{f"--x{i:02}": "1" for i in range(20)}, {f"--x{i:02}": "2" for i in range(20)}])
    assert "--x07 is" in said[0] and "--x08" not in said[0] and "; and 12 more." in said[0]


def test_every_option_counts_but_those_of_a_node() -> None:
    base = describe_start(parse_pretrain(["--lr", "0.1"]))
    assert set(MAY_DIFFER).isdisjoint(base) and len(base) > 100
    assert {"--lr", "--seed", "--train-iters", "--fwpkm-inner-lr", "--save"} <= base.keys()
    assert base["the code of megatron_fwpkm"] and base["the version of torch"]
    changed = describe_start(parse_pretrain(["--lr", "0.2", "--num-threads", "3"]))
    assert [name for name in base if base[name] != changed[name]] == ["--lr"]


def test_an_invalid_pattern_is_refused_by_its_flag(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ranks are compared before options are, and that must not stumble over what options say."""
    for pattern, said in (("gdm", "gdm is not a token mixer; did you mean gdn?"), ("fa,,fa", "'' is no part of a")):
        assert start(flags("numbers", save=tmp_path / "run", layer_pattern=pattern)) == 1
        assert f"error: --layer-pattern {pattern}: {said}" in capfd.readouterr().err


@pytest.mark.slow
def test_two_nodes_with_different_learning_rates_do_not_train(tmp_path: Path) -> None:
    argv = flags(write_dataset(tmp_path / "numbers"), save=tmp_path / "run", lr=None, tensor_model_parallel_size=2)
    ended = ranks(argv, {}, tmp_path, own={0: ["--lr", "0.001"], 1: ["--lr", "0.005", "--train-iters", "4"]})
    assert [status for status, _ in ended] == [1, 1], ended
    errors = "".join(output for _, output in ended)
    assert errors.count("were started differently") == 1, errors
    assert "--lr is 0.001 on rank 0 and 0.005 on rank 1" in errors
    assert "--train-iters is 20 on rank 0 and 4 on rank 1" in errors
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
