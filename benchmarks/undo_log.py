"""What the forms of --fwpkm-undo-log and --fwpkm-table-dtype cost: three memories, forward one after the other, then
backward, as in a model with three memory layers. Every form in a process of its own, on one CPU thread. Example:

    python -m benchmarks.undo_log --tokens 32768
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

MEMORIES, NUM_SUBKEYS, WIDTH, TOPK, CHUNK = 3, 512, 512, 8, 512
"""The paper's shape."""
FORMS = [("fp32", "fp32"), ("fp32", "bf16"), ("fp32", "recompute"), ("bf16", "fp32"), ("bf16", "recompute")]
TRAFFIC = ("spread", "skewed")
"""Which slots are read: all alike, or a few again and again (slot numbers of each half by Zipf's law)."""


def measure(tokens: int, traffic: str, table_dtype: str, undo_log: str) -> dict[str, float]:
    """One training step on one sequence of `tokens`.

    Returns:
        GiB of the tables, saved for backward, and at the peak of the process; CPU seconds.
    """
    import torch

    from megatron_fwpkm.ops import FastWeightState, fast_weight_memory_, make_rounding

    torch.set_num_threads(1)
    torch.manual_seed(0)
    chances = torch.ones(NUM_SUBKEYS) if traffic == "spread" else 1 / torch.arange(1.0, NUM_SUBKEYS + 1)
    targets = torch.randn(1, tokens, WIDTH).requires_grad_()
    states, queries = [], []
    for number in range(MEMORIES):
        values = torch.empty(NUM_SUBKEYS**2, WIDTH, dtype=torch.bfloat16 if table_dtype == "bf16" else torch.float32)
        sub_keys = torch.empty(1, 2, NUM_SUBKEYS, WIDTH // 2).uniform_(-1, 1).mul_(WIDTH**-0.5)
        rounding = make_rounding(number) if table_dtype == "bf16" else None
        states.append(FastWeightState(sub_keys, values.normal_(0, WIDTH**-0.5), None, rounding))
        halves = [sub_keys[0, half][chances.multinomial(tokens, replacement=True)] for half in (0, 1)]
        near = torch.cat(halves, 1) + 0.01 * torch.randn(tokens, WIDTH)
        queries.append(near.view(1, tokens, 1, WIDTH).requires_grad_())
    saved: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        """Count the storage of a tensor that autograd saves."""
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    begin, loss = time.process_time(), torch.zeros(())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        for state, query in zip(states, queries, strict=True):
            # As in a model whose memory is never reset, nobody keeps the log that undoes a call.
            output = fast_weight_memory_(query, targets, None, state, topk=TOPK, chunk_size=CHUNK, undo_log=undo_log)
            loss = loss + output.retrieved.sum()
            del output
    loss.backward()
    tables = sum(state.values.numel() * state.values.itemsize for state in states)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    inputs = sum(x.numel() * 4 for x in (targets, *queries))
    return {
        "tables": tables / 2**30,
        "saved": (sum(saved.values()) - inputs) / 2**30,
        "peak": peak / 2**30,
        "seconds": time.process_time() - begin,
    }


def main() -> None:
    """Print a table of all forms, or measure one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="length of the sequence (default 4096)")
    parser.add_argument("form", nargs="*", metavar="FORM", help="measure only this: reads, table, undo log")
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure(arguments.tokens, *arguments.form)))
        return
    names = ("tables", "saved", "peak", "seconds")
    print("| reads | table | undo log | tables, GiB | saved for backward, GiB | peak of process, GiB | CPU seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for traffic in TRAFFIC:
        for form in FORMS:
            command = [sys.executable, "-m", "benchmarks.undo_log", "--tokens", str(arguments.tokens), traffic, *form]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"| {traffic} | {form[0]} | {form[1]} |", *(f"{found[name]:.2f} |" for name in names), flush=True)


if __name__ == "__main__":
    main()
