"""The fast-weight MLP as its equations say, in torch autograd: the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .mlp_call import Computed, MLPCall
from .mlp_state import FastMLPWeights


def run_reference(call: MLPCall) -> Computed:
    """Run all pieces of a call: every write differentiates the mean loss, with a graph of its own for the outer one."""
    stream, means, weights = call.stream, call.window_means(), call.state.weights
    write_weights, outer = stream.write_weights(), torch.is_grad_enabled()
    returned, losses = [], [means.new_zeros(len(means), 0)]
    for piece in call.pieces:
        with torch.enable_grad():
            if not outer or not weights.gate_weight.requires_grad:
                weights = FastMLPWeights(*(weight.detach().requires_grad_() for weight in weights))
            reads = read_mlp(stream.queries[:, piece.start : piece.stop], weights)
            if piece.num_written:
                written = slice(piece.start, piece.write_stop)
                errors = reads[:, : piece.num_written] - means[:, written]
                squares = write_weights[:, written].unsqueeze(-1) * errors.square()
                losses.append(squares.mean(-1).detach())
                gradients = torch.autograd.grad(squares.mean(), weights, create_graph=outer, retain_graph=True)
                steps = (call.options.inner_lr * gradient for gradient in gradients)
                weights = FastMLPWeights(*map(torch.sub, weights, steps))
        first = piece.emit_start - piece.start
        returned.append((reads if outer else reads.detach())[:, first:])
    return Computed(torch.cat(returned, 1), torch.cat(losses, 1), weights)


def read_mlp(queries: Tensor, weights: FastMLPWeights) -> Tensor:
    """down(silu(gate(q)) * up(q)) of queries [..., key_dim]."""
    gate = F.linear(queries, weights.gate_weight, weights.gate_bias)
    up = F.linear(queries, weights.up_weight, weights.up_bias)
    return F.linear(F.silu(gate) * up, weights.down_weight, weights.down_bias)
