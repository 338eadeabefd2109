"""The streaming memory token by token, from DESIGN 2.1 to 2.4 alone: no chunks, no schedule, no autograd, no speed."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.ops.cases import Case


class Simulation:
    """Reads one token of one sequence at a time and writes when chunk_size (query, target) pairs are complete."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.topk, self.chunk_size = case.options["topk"], case.options["chunk_size"]
        self.lookahead = case.options.get("lookahead", 1)
        self.inner_lr = case.options.get("inner_lr", 1.0)
        self.key_lr = self.inner_lr * case.options.get("addressing_weight", 1.0)
        self.dot_product = case.options.get("score", "idw") == "dot_product"
        self.sub_keys, self.values = case.state.sub_keys.clone(), case.state.values.clone()
        self.heads, _, self.num_subkeys, _ = self.sub_keys.shape

    def half(self, query: Tensor, head: int, half: int) -> tuple[list[int], Tensor]:
        """The kept sub-keys of one half of one query and their scores."""
        keys = self.sub_keys[head, half]
        part = query[head].view(2, -1)[half]
        scores = keys @ part if self.dot_product else -torch.log(1e-3 + (part - keys).square().sum(-1))
        kept = sorted(range(self.num_subkeys), key=lambda j: (-scores[j].item(), j))[: self.topk]
        return kept, scores[kept]

    def read(self, query: Tensor) -> tuple[list[int], Tensor]:
        """Slots of all heads and their weights."""
        slots: list[int] = []
        best: list[Tensor] = []
        for head in range(self.heads):
            (first, first_scores), (second, second_scores) = (self.half(query, head, p) for p in (0, 1))
            pairs = [
                (first_scores[i] + second_scores[j], a * self.num_subkeys + b)
                for i, a in enumerate(first)
                for j, b in enumerate(second)
            ]
            pairs.sort(key=lambda pair: (-pair[0].item(), pair[1]))
            slots += [slot for _, slot in pairs[: self.topk]]
            best += [score for score, _ in pairs[: self.topk]]
        return slots, torch.stack(best).softmax(0)

    def run(self) -> Tensor:
        """Reads of all tokens, [B, T, value_dim]; the tables are then those after the text."""
        case = self.case
        batch, tokens = case.queries.shape[:2]
        retrieved = torch.zeros_like(case.targets)
        waiting = 0
        for token in range(tokens):
            for sequence in range(batch):
                slots, weights = self.read(case.queries[sequence, token])
                retrieved[sequence, token] = weights @ self.values[slots]
            if token + 1 - waiting == self.chunk_size + self.lookahead:
                self.write(waiting, waiting + self.chunk_size)
                waiting += self.chunk_size
        return retrieved

    def write(self, start: int, stop: int) -> None:
        """Write tokens [start, stop) of all sequences."""
        case = self.case
        batch = case.queries.shape[0]
        where = [(sequence, token) for sequence in range(batch) for token in range(start, stop)]
        reads = {place: self.read(case.queries[place]) for place in where}
        mask = torch.ones(case.queries.shape[:2]) if case.mask is None else case.mask
        samples = sum(int(mask[place] > 0) for place in where)
        counts = [0] * self.values.shape[0]
        for slots, _ in reads.values():
            for slot in slots:
                counts[slot] += 1
        change = torch.zeros_like(self.values)
        for (sequence, token), (slots, weights) in reads.items():
            error = weights @ self.values[slots] - case.targets[sequence, token + self.lookahead]
            gate = 1.0 if case.gates is None else case.gates[sequence, token]
            for slot, weight in zip(slots, weights, strict=True):
                change[slot] += weight * gate * mask[sequence, token] * error / max(1, counts[slot])
        scale = self.inner_lr * self.heads * self.topk * samples / (batch * (stop - start))
        moved = self.moved_keys([case.queries[place] for place in where])
        self.values -= scale * change
        self.sub_keys = moved

    def moved_keys(self, queries: list[Tensor]) -> Tensor:
        """The sub-keys after one step of the addressing loss, by the formula of DESIGN 2.3."""
        readers = len(queries) * self.heads
        moved = self.sub_keys.clone()
        for half in (0, 1):
            rows = []
            mean = self.values.new_zeros(self.num_subkeys)
            for query in queries:
                for head in range(self.heads):
                    kept, scores = self.half(query, head, half)
                    probabilities = scores.softmax(0)
                    mean[kept] += probabilities / readers
                    rows.append((query[head].view(2, -1)[half], head, kept, probabilities))
            slope = torch.log(mean + 1e-8) + mean / (mean + 1e-8)
            for part, head, kept, probabilities in rows:
                expected = probabilities @ slope[kept]
                for j, p in zip(kept, probabilities, strict=True):
                    key = self.sub_keys[head, half, j]
                    distance = 1e-3 + (part - key).square().sum()
                    along = part if self.dot_product else 2 * (part - key) / distance
                    moved[head, half, j] -= self.key_lr / readers * p * (slope[j] - expected) * along
        return moved
