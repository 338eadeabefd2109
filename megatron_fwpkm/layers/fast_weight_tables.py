"""Where a memory's fast weights live: guarded buffers that are reset, preserved and loaded as a whole (DESIGN 2.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from ..config.derived import num_slots
from ..ops import FastWeightState, PendingTokens, ResetJournal, UndoLog, make_rounding
from ..ops.initialization import derived_seed, initial_sub_keys, initial_values

_TABLES = ("sub_keys", "values")


class FastWeightTables(MegatronModule):
    """A module that owns one memory's tables, as buffers outside state dict, optimizer and DDP.

    `.half()`, `.bfloat16()`, `.to(dtype)` and Float16Module move the tables between devices but never cast them:
    sub-keys are float32, values as `--fwpkm-table-dtype` says. How bfloat16 values are rounded depends on the seed,
    the layer and the number of writes so far, which a checkpoint holds and `preserve_fast_weights` puts back.

    Args:
        config: the transformer configuration, with `fwpkm` and `init_seed`.
        layer_number: counted from 1 over the whole model; the initial memory depends on it.
        rows: which rows of every list of sub-keys this rank holds.
        columns: which columns of the values table this rank holds.
    """

    sub_keys: Tensor
    values: Tensor
    rounding: Tensor | None

    def __init__(self, config, layer_number: int, rows: slice, columns: slice) -> None:  # type: ignore[no-untyped-def]
        super().__init__(config)
        self.layer_number = layer_number
        self.rows, self.columns = rows, columns
        self.pending: PendingTokens | None = None
        self._journal: ResetJournal | None = None
        self._touched = torch.zeros(0, dtype=torch.bool)
        self._preserving: list[ResetJournal] = []
        for name, table in zip(_TABLES, self._initial_tables(), strict=True):
            self.register_buffer(name, table, persistent=False)
        rounding = None
        if config.fwpkm.table_dtype == "bf16":
            rounding = make_rounding(derived_seed(config.init_seed, "rounding", layer_number), columns.start or 0)
        self.register_buffer("rounding", rounding, persistent=False)
        self._mark_untouched()

    def fast_weights(self) -> FastWeightState:
        """The tables themselves (not copies: they change with the next forward) and the tokens that wait."""
        return FastWeightState(self.sub_keys, self.values, self.pending, self.rounding)

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tables of all ranks that share them, by name, and that of one token's target as `target`."""
        sizes = self.config.fwpkm
        return {
            "sub_keys": (sizes.num_heads, 2, sizes.num_subkeys, sizes.key_dim // 2),
            "values": (num_slots(sizes), sizes.value_dim),
            "target": (sizes.value_dim,),
        }

    @property
    def target_width(self) -> int:
        """Columns of a waiting token's target on this rank."""
        return self.values.shape[1]

    def load_fast_weights(self, state: FastWeightState) -> None:
        """Copy `state` into the tables, for example from a checkpoint. `reset` still means the initial memory.

        Args:
            state: this rank's rows of the sub-keys and columns of the values; of its rounding the seed and the number
                of writes are taken over.

        Raises:
            ValueError: a table has another shape than this memory's.
        """
        for name in _TABLES:
            old, new = getattr(self, name), getattr(state, name)
            if old.shape != new.shape:
                raise ValueError(
                    f"the fast weights of layer {self.layer_number} do not fit: {name} has shape {list(new.shape)}, "
                    f"but this memory has {list(old.shape)}; use the saved --fwpkm- sizes and layout"
                )
        self._record_everything()
        with torch.no_grad():
            self.sub_keys.copy_(state.sub_keys)
            self.values.copy_(state.values)
            if self.rounding is not None and state.rounding is not None:
                self.rounding[:2] = state.rounding[:2]
        self.pending = state.pending
        self._find_touched()

    def reset(self) -> None:
        """Put the initial memory back, bit for bit, and forget waiting tokens. Cheap when few slots were written."""
        self.pending = None
        if self._journal is None:
            self._record_everything()
            with torch.no_grad():
                for name, table in zip(_TABLES, self._initial_tables(), strict=True):
                    getattr(self, name).copy_(table)
            self._mark_untouched()
            return
        if self._preserving:
            changed = self._journal.slots()
            self._preserving[-1].record_rows(changed, self.values[changed])
            self._preserving[-1].record_sub_keys(self.sub_keys)
        self._journal.restore_(self.values, self.sub_keys)
        self._touched.zero_()

    @contextmanager
    def preserve_fast_weights(self, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Undo bit for bit at exit whatever is written, reset or loaded inside, unless `keep` then says that it stays.

        May be nested; only the outermost may keep.
        """
        outer = self.pending, self._journal, self._touched
        rounding = None if self.rounding is None else self.rounding.clone()
        # Inside, both go on as copies, because a reset empties them.
        self._journal = None if self._journal is None else self._journal.fork()
        self._touched = self._touched.clone()
        self._preserving.append(self._new_journal())
        try:
            yield
        finally:
            journal = self._preserving.pop()
            kept = keep()
            assert not kept or not self._preserving, "what is kept would be missing in the outer journal"
            if not kept:
                journal.restore_(self.values, self.sub_keys)
                self.pending, self._journal, self._touched = outer
                if self.rounding is not None and rounding is not None:
                    self.rounding.copy_(rounding)

    def wrote_only_finite(self) -> bool:
        """Whether everything written since the innermost `preserve_fast_weights` began is finite; waits for a GPU."""
        written = self.values[self._preserving[-1].slots()]
        return bool(torch.isfinite(written).all() & torch.isfinite(self.sub_keys).all())

    def coverage(self) -> float:
        """Share of the slots that differ from the initial memory because they were written."""
        return self.coverage_on_device().item()

    def coverage_on_device(self) -> Tensor:
        """The same as a float64 scalar; the host does not wait for it."""
        return self._touched.sum().double() / self._touched.numel()

    def _record(self, log: UndoLog) -> None:
        """Remember what one call of the memory overwrote."""
        self._mark_touched(log)
        if self._journal is not None:
            self._journal.record(log)
        if self._preserving:
            self._preserving[-1].record(log)

    def _mark_touched(self, log: UndoLog) -> None:
        """Count the slots that one call overwrote as touched."""
        if log.rows:
            self._touched.index_fill_(0, torch.cat(log.rows), True)

    def _new_journal(self) -> ResetJournal:
        """A journal with room for what a step can touch."""
        return ResetJournal(self.values.shape[0], self.values.device, room=self.config.journal_rows)

    def _mark_untouched(self) -> None:
        """Begin anew: the tables are the initial ones."""
        self._touched = torch.zeros(self.values.shape[0], dtype=torch.bool, device=self.values.device)
        # Old values cost as much as the rows they belong to. A memory that is never reset would end up stored twice,
        # so there a reset draws the whole initial memory again.
        self._journal = None if self.config.fwpkm.reset == "never" else self._new_journal()

    def _find_touched(self) -> None:
        """Compare the tables with the initial ones, where their history is not known."""
        self._mark_untouched()
        sub_keys, values = (table.to(self.values.device) for table in self._initial_tables())
        self._touched = (self.values != values).any(1)
        if self._journal is not None:
            rows = self._touched.nonzero().squeeze(1)
            self._journal.record_rows(rows, values[rows])
            self._journal.record_sub_keys(sub_keys)

    def _record_everything(self) -> None:
        if self._preserving:
            rows = torch.arange(self.values.shape[0], device=self.values.device)
            self._preserving[-1].record_rows(rows, self.values)
            self._preserving[-1].record_sub_keys(self.sub_keys)

    def _initial_tables(self) -> tuple[Tensor, Tensor]:
        fwpkm, seed = self.config.fwpkm, self.config.init_seed
        return (
            initial_sub_keys(fwpkm, seed, self.layer_number, self.rows),
            initial_values(fwpkm, seed, self.layer_number, self.columns),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastWeightTables:
        """Apply a conversion of `nn.Module` to everything but the tables, of which only the device follows."""
        tables = {name: self._buffers.pop(name) for name in _TABLES}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(tables)
        for name, table in tables.items():
            assert table is not None
            device = fn(torch.empty(0, dtype=table.dtype, device=table.device)).device
            if device != table.device:
                assert not self._preserving, "a model must not move while its fast weights are preserved"
                self._buffers[name] = table.to(device)
        if self._touched.device != self.values.device:
            if self._touched.any():
                self._find_touched()
            else:
                self._mark_untouched()
        return self
