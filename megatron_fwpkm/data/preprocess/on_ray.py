"""The shards of a corpus made on a Ray cluster, and joined. Free of torch."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..corpus.compression import needed_package
from ..corpus.input_files import STDIN
from ..indexed.indexed_format import dataset_paths
from ..indexed.merge_and_split import CopyReport
from .preprocess_options import PreprocessOptions
from .run import preprocess
from .shards import merge_shards, shards_of

_LOCAL_OBJECT_STORE = 100 << 20
"""Bytes; the shards go to disk, and only their counts to Ray."""

_ANSWER_SECONDS = 10.0


def preprocess_on_ray(options: PreprocessOptions) -> CopyReport:
    """Make every shard in a task of its own, on any node of `options.ray_address`, and join them here. Nodes need this
    package at the same version and all paths. A shard whose process or node is lost is made again, from where it was.

    Raises:
        ValueError: the cluster cannot be reached or has no node with `options.workers` CPUs, shards are left over from
            another run, or shards failed; the others are kept.
    """
    ray = needed_package("ray", "--ray-address")
    options = _anywhere(options)
    _check_outputs(options)
    _connect(ray, options.ray_address or "local")
    try:
        _check_size(ray, options.workers)
        failed = _make_all(ray, options)
    finally:
        ray.shutdown()
    if failed:
        told = "; ".join(f"shard {shard}: {reason}" for shard, reason in sorted(failed.items()))
        raise ValueError(
            f"{len(failed)} of {options.num_shards} shards failed: {told}. The others are complete: run the same "
            "command with --resume to make only these again"
        )
    return merge_shards(options)


def make_shard(options: PreprocessOptions) -> tuple[int, int]:
    """Documents and tokens of one shard, continued where an earlier attempt was killed."""
    report = preprocess(replace(options, resume=True))
    return report.documents, sum(report.tokens)


def _make_all(ray: Any, options: PreprocessOptions) -> dict[int, str]:
    """Run every shard to its end; returns those that failed, and why."""
    # Only what was killed is tried again: an error with a reason would come again.
    task = ray.remote(num_cpus=options.workers, max_retries=options.retries, retry_exceptions=False)(make_shard)
    running = {task.remote(part): part.shard for part in shards_of(options)}
    failed = dict[int, str]()
    while running:
        (ref,), _ = ray.wait(list(running), num_returns=1)
        shard = running.pop(ref)
        try:
            documents, tokens = ray.get(ref)
            told = f"{documents:,} documents, {tokens:,} tokens"
        except ray.exceptions.RayTaskError as error:
            failed[shard] = told = str(error.cause)
        except ray.exceptions.RayError:
            failed[shard] = told = f"its process was killed {options.retries + 1} times"
        left = f"{options.num_shards - len(running)} of {options.num_shards} shards ended"
        print(f"shard {shard}: {told} ({left})", file=sys.stderr, flush=True)
    return failed


def _connect(ray: Any, address: str) -> None:
    host, found, port = address.rpartition(":")
    if found and port.isdigit():  # Ray itself waits for minutes
        try:
            socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"--ray-address {address} cannot be reached ({error}); give the address that `ray start --head` printed"
            ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here reports to anyone
    local = {"include_dashboard": False, "object_store_memory": _LOCAL_OBJECT_STORE} if address == "local" else {}
    try:
        ray.init(address=address, logging_level="warning", **local)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ValueError(
            f"--ray-address {address}: no Ray cluster answers ({str(error).splitlines()[0]}); start one with "
            "`ray start --head`, or use local"
        ) from error


def _check_size(ray: Any, workers: int) -> None:
    """Refuse tasks that no node could ever run: Ray would wait for such a node without end."""
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if workers > largest:
        raise ValueError(
            f"--workers {workers} is more than any node of the Ray cluster has CPUs; the largest has {largest:g}"
        )


def _anywhere(options: PreprocessOptions) -> PreprocessOptions:
    """The options with paths that do not depend on the folder in which a task runs."""
    if STDIN in options.inputs:
        raise ValueError("--input - cannot be split into shards; write it to a file first")
    data = options.data
    if data.tokenizer_model is not None:
        data = replace(data, tokenizer_model=os.path.abspath(data.tokenizer_model))
    inputs = tuple(map(os.path.abspath, options.inputs))
    return replace(options, data=data, inputs=inputs, output_prefix=os.path.abspath(options.output_prefix))


def _check_outputs(options: PreprocessOptions) -> None:
    """Refuse what merging would refuse, before the work and not after it; with --overwrite, remove old shards."""
    whole = replace(options, num_shards=1, shard_id=None)
    found = _existing(whole)
    if found and not (options.resume or options.overwrite):
        raise ValueError(f"{found[0]} already exists; give another --output-prefix, or use --overwrite to replace it")
    left_over = [path for part in shards_of(options) for path in _existing(part)]
    if left_over and not (options.resume or options.overwrite):
        raise ValueError(f"{left_over[0]} belongs to an earlier run: --resume continues it, --overwrite starts over")
    if options.overwrite and not options.resume:
        for path in left_over:
            path.unlink()


def _existing(options: PreprocessOptions) -> list[Path]:
    paths = [path for prefix in options.prefixes for path in dataset_paths(prefix)]
    return [path for path in (*paths, options.journal_path, options.quarantine_path) if path.exists()]

