"""A product key memory token by token in dense float64, which notes every write: slow, and plain enough to be right."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Entry(NamedTuple):
    """A token wrote a slot."""

    token: int
    write: int
    step: float


class BruteForce:
    """The memory of one block along one text.

    Attributes:
        slots: by token, its slots by head, as it read them when it arrived.
        known: by token, the entries of every slot at that time, oldest first.
        entries: those of now.
    """

    def __init__(self, block: Any, hidden: Tensor) -> None:
        self.queries, self.targets, self.gates = (x[0].detach() for x in block.project(hidden))
        self.options, self.keys, self.values = block.streaming, block.sub_keys.clone(), block.values.clone()
        self.waiting: list[int] = []
        self.entries: dict[int, list[Entry]] = {}
        self.slots: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.known: list[dict[int, list[Entry]]] = []
        self.writes = 0

    def arrive(self, count: int) -> None:
        """Read the next tokens one at a time, and write every chunk when its last target is there."""
        for token in range(len(self.slots), len(self.slots) + count):
            slots, weights = self._read(token, self.keys)
            self.slots.append(slots)
            self.weights.append(weights.detach())
            self.known.append({slot: list(entries) for slot, entries in self.entries.items()})
            self.waiting.append(token)
            if len(self.waiting) == self.options.chunk_size + self.options.lookahead:
                self._write(self.options.chunk_size)

    def flush(self) -> None:
        """Write what waits and has a target."""
        if len(self.waiting) > self.options.lookahead:
            self._write(len(self.waiting) - self.options.lookahead)

    def _halves(self, token: int, keys: Tensor) -> Tensor:
        """Scores [H, 2, n] of the sub-keys."""
        query = self.queries[token].unflatten(1, (2, 1, -1))
        return -torch.log(1e-3 + (query - keys).square().sum(-1))

    def _read(self, token: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Slots [H, k] and weights [H, k], among all pairs of sub-keys."""
        first, second = self._halves(token, keys).unbind(1)
        pairs = (first.unsqueeze(2) + second.unsqueeze(1)).flatten(1)
        best = pairs.topk(self.options.topk, dim=1)
        return best.indices, best.values.flatten().softmax(0).view_as(best.values)

    def _write(self, count: int) -> None:
        tokens, options = self.waiting[:count], self.options
        reads = [self._read(token, self.keys) for token in tokens]
        readers = torch.stack([slots for slots, _ in reads]).flatten().bincount(minlength=len(self.values))
        changes = torch.zeros_like(self.values)
        for token, (slots, weights) in zip(tokens, reads, strict=True):
            read = (weights.unsqueeze(-1) * self.values[slots]).sum((0, 1))
            error = read - self.targets[token + options.lookahead]
            steps: dict[int, float] = {}
            for slot, weight in zip(slots.flatten().tolist(), weights.flatten().tolist(), strict=True):
                step = options.inner_lr * slots.numel() / int(readers[slot]) * weight * float(self.gates[token])
                changes[slot] -= step * error
                steps[slot] = steps.get(slot, 0.0) + step
            for slot, step in steps.items():
                self.entries.setdefault(slot, []).append(Entry(token, self.writes, step))
        self._move_keys(tokens)
        self.values += changes
        self.writes += 1
        self.waiting = self.waiting[count:]

    def _move_keys(self, tokens: list[int]) -> None:
        keys = self.keys.clone().requires_grad_()
        scores = torch.stack([self._halves(token, keys) for token in tokens])  # [W, H, 2, n]
        smallest = scores.topk(self.options.topk, dim=-1).values[..., -1:]
        mean = scores.masked_fill(scores < smallest, -math.inf).softmax(-1).mean((0, 1))
        loss = (mean * torch.log(mean + 1e-8)).sum()
        (gradient,) = torch.autograd.grad(loss, keys)
        self.keys -= self.options.key_lr * gradient
