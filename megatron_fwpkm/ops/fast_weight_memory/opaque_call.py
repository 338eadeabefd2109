"""The memory as one operator of `torch.compile`, which neither looks into it nor breaks the graph around it.

What a call decides on the host (which rows are in use, what a piece writes) cannot be traced. So `torch.library` gets
an operator with a fake implementation, which knows all shapes, and with a backward, an operator, too. An operator
saves nothing but tensors whose shapes are known: its backward repeats the call and differentiates that. Ships inside
exports.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..state import FastWeightOutput, FastWeightState, PendingTokens
from .memory_call import Call
from .options import MemoryOptions

_GIVEN = ("queries", "targets", "gates", "mask")
_OPTIONS = tuple(option.name for option in fields(MemoryOptions))


class OpaqueCall:
    """Reading and writing a memory as an operator. Both functions leave the state that they are given as it is.

    Args:
        name: of the operator, `namespace::name`; an operator of this name is replaced.
        read_and_write: takes queries, targets, gates, mask, state and options by these names.
        write_pending: takes state and options, and writes the pending tokens; for calls without queries.
    """

    def __init__(
        self,
        name: str,
        read_and_write: Callable[..., FastWeightOutput],
        write_pending: Callable[..., FastWeightOutput],
    ) -> None:
        self._read_and_write, self._write_pending = read_and_write, write_pending
        schema = "(Tensor[] tensors, str spec, bool[] wants) -> Tensor[]"
        forward = torch.library.custom_op(name, self._forward, mutates_args=(), schema=schema)
        forward.register_fake(_fake_forward)
        forward.register_autograd(self._differentiate, setup_context=_save)
        schema = "(Tensor[] tensors, str spec, bool[] wants, Tensor reads, Tensor slot_weights) -> Tensor[]"
        backward = torch.library.custom_op(f"{name}_backward", self._backward, mutates_args=(), schema=schema)
        backward.register_fake(_fake_backward)
        # The packets, which the compiler takes as they are.
        namespace, _, short = name.partition("::")
        self.operator = getattr(getattr(torch.ops, namespace), short)
        self._backward_operator = getattr(getattr(torch.ops, namespace), f"{short}_backward")

    def __call__(
        self,
        queries: Tensor | None,
        targets: Tensor | None,
        gates: Tensor | None,
        mask: Tensor | None,
        state: FastWeightState,
        options: MemoryOptions,
    ) -> FastWeightOutput:
        """As the functions; this is what the compiler traces.

        Raises:
            ValueError: the state has an overlay, which grows with what is read.
        """
        if state.overlay is not None:
            raise ValueError(
                "torch.compile cannot trace a memory with an overlay: call it outside of the compiled part "
                "(torch.compiler.disable), or pass a state with a whole table"
            )
        given = _by_name(queries, targets, gates, mask, state)
        wants = [torch.is_grad_enabled() and tensor.requires_grad for tensor in given.values()]
        found = self.operator(list(given.values()), _spec(options, tuple(given)), wants)
        retrieved, slots, weights, *constant = found
        losses, addressing, sub_keys, values, rounding, *pending = [tensor.detach() for tensor in constant]
        waiting = [tensor if tensor.numel() else None for tensor in pending]
        after = FastWeightState(
            sub_keys if sub_keys.numel() else state.sub_keys.detach(),
            values if values.numel() else state.values.detach(),
            None if waiting[0] is None else PendingTokens(*waiting),  # type: ignore[arg-type]
            rounding if rounding.numel() else None,
        )
        return FastWeightOutput(retrieved, slots, weights, losses, addressing, after)

    def in_place(
        self, queries: Any, targets: Any, gates: Any, mask: Any, state: FastWeightState, options: MemoryOptions
    ) -> FastWeightOutput:
        """The same with the tables of `state` as they are afterwards; there is no undo log."""
        before = state
        if torch.is_grad_enabled():  # backward repeats the call
            before = replace(state, sub_keys=state.sub_keys.clone(), values=state.values.clone())
        output = self(queries, targets, gates, mask, before, options)
        state.sub_keys.copy_(output.state.sub_keys)
        state.values.copy_(output.state.values)
        if state.rounding is not None and output.state.rounding is not None:
            state.rounding.copy_(output.state.rounding)
        after = FastWeightState(state.sub_keys, state.values, output.state.pending, state.rounding)
        return replace(output, state=after)

    def _run(self, tensors: list[Tensor], spec: str) -> FastWeightOutput:
        named, state, options = _parse(tensors, spec)
        if "queries" not in named:
            return self._write_pending(state=state, options=options)
        return self._read_and_write(**{name: named.get(name) for name in _GIVEN}, state=state, options=options)

    def _forward(self, tensors: list[Tensor], spec: str, wants: list[bool]) -> list[Tensor]:
        output = self._run(tensors, spec)
        _, before, _ = _parse(tensors, spec)
        after, nothing = output.state, output.retrieved.new_empty
        tables = [
            nothing(0) if new.data_ptr() == old.data_ptr() else new
            for new, old in ((after.sub_keys, before.sub_keys), (after.values, before.values))
        ]
        rounding = nothing(0) if after.rounding is None else after.rounding.clone()
        fields = [None] * 4 if after.pending is None else list(vars(after.pending).values())
        waiting = [nothing(0) if field is None else field.clone() for field in fields]
        losses = output.memorization_loss, output.addressing_loss
        found = [output.retrieved, output.slot_indices, output.slot_weights, *losses, *tables, rounding, *waiting]
        return [tensor.contiguous() for tensor in found]

    def _differentiate(self, ctx: Any, gradients: list[Tensor]) -> tuple[list[Tensor | None], None, None]:
        tensors, spec, wants = ctx.saved_tensors, ctx.spec, ctx.wants
        found = iter(self._backward_operator(list(tensors), spec, wants, gradients[0], gradients[2]))
        return [next(found) if wanted else None for wanted in wants], None, None

    def _backward(
        self, tensors: list[Tensor], spec: str, wants: list[bool], reads: Tensor, slot_weights: Tensor
    ) -> list[Tensor]:
        inside, outside = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        # An operator runs where autograd does not record.
        with torch._C._ForceDispatchKeyGuard(inside, outside - outside), torch.enable_grad():
            leaves = [x.detach().requires_grad_(wanted) for x, wanted in zip(tensors, wants, strict=True)]
            output = self._run(leaves, spec)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            outputs, gradients = (output.retrieved, output.slot_weights), (reads, slot_weights)
            found = torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
        return [
            torch.zeros_like(leaf) if x is None else x.clone().contiguous()
            for x, leaf in zip(found, wanted, strict=True)
        ]


def _by_name(
    queries: Tensor | None, targets: Tensor | None, gates: Tensor | None, mask: Tensor | None, state: FastWeightState
) -> dict[str, Tensor]:
    """What a call is given, without what is missing."""
    given = {"queries": queries, "targets": targets, "gates": gates, "mask": mask}
    given |= {"sub_keys": state.sub_keys, "values": state.values, "rounding": state.rounding}
    pending = state.pending
    if pending is not None:
        given |= {"pending queries": pending.queries, "pending targets": pending.targets}
        given |= {"pending gates": pending.gates, "pending mask": pending.mask}
    return {name: tensor for name, tensor in given.items() if tensor is not None}


def _spec(options: MemoryOptions, names: tuple[str, ...]) -> str:
    """Options, and the names of the tensors, as the operator takes them; the compiler knows the `repr` of constants."""
    return repr((tuple(getattr(options, name) for name in _OPTIONS), names))


def _parse(tensors: list[Tensor], spec: str) -> tuple[dict[str, Tensor], FastWeightState, MemoryOptions]:
    """Tensors by name, the state that they make, and the options."""
    values, names = ast.literal_eval(spec)
    named = dict(zip(names, tensors, strict=True))
    waiting = [named.get(f"pending {name}") for name in _GIVEN]
    pending = None if waiting[0] is None else PendingTokens(*waiting)  # type: ignore[arg-type]
    state = FastWeightState(named["sub_keys"], named["values"], pending, named.get("rounding"))
    return named, state, MemoryOptions(**dict(zip(_OPTIONS, values, strict=True)))


def _fake_forward(tensors: list[Tensor], spec: str, wants: list[bool]) -> list[Tensor]:
    named, state, options = _parse(tensors, spec)
    if "queries" in named:
        tokens = named["queries"], named["targets"], named.get("gates"), named.get("mask")
        call = Call.of_tokens(*tokens, state, options)
    else:
        call = Call.of_pending(state, options)
    stream, pieces = call.stream, call.pieces
    batch, _, heads, _ = stream.queries.shape
    new, reads = stream.queries.new_empty, sum(piece.stop - piece.emit_start for piece in pieces)
    written, updates = sum(p.num_written for p in pieces), sum(p.key_stop > p.start for p in pieces)
    pending = stream.tail(call.waiting) if pieces else state.pending
    fields = [None] * 4 if pending is None else list(vars(pending).values())
    return [
        new(batch, reads, state.values.shape[1]),
        new(batch, reads, heads, options.topk, dtype=torch.int64),
        new(batch, reads, heads, options.topk),
        new(batch, written),
        new(updates),
        torch.empty_like(state.sub_keys) if updates and options.key_lr else new(0),
        torch.empty_like(state.values) if written and options.inner_lr else new(0),
        new(0) if state.rounding is None else torch.empty_like(state.rounding),
        *(new(0) if field is None else new(field.shape) for field in fields),
    ]


def _fake_backward(
    tensors: list[Tensor], spec: str, wants: list[bool], reads: Tensor, slot_weights: Tensor
) -> list[Tensor]:
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor, wanted in zip(tensors, wants, strict=True)
        if wanted
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ctx.spec, ctx.wants = inputs
    ctx.save_for_backward(*tensors)
