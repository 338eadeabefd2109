"""Short byte strings to numbers, tens of thousands in a call: a hash table in NumPy arrays. Free of torch.

A Python dictionary waits for memory at every look-up; here the look-ups of a call are in flight together.
"""

from __future__ import annotations

import numpy as np

_SHORT = 15
"""Bytes of a segment that are held in the table itself; what is longer is in a dictionary."""
_LONGEST_KEPT = 48
_SLOTS = 1 << 20
"""Of 24 bytes each."""
_KEPT = _SLOTS // 2
"""Segments after which the store is full; what one call adds behind them must leave slots free."""

# Two words of eight bytes: the segment, then zeros, and its length in the last byte. Row `n` of these tables is for
# segments of n bytes; the last row is for all longer ones, which are never equal to what a slot holds.
_LENGTHS = np.arange(_SHORT + 2)
_MASKS = np.array([[(1 << 8 * min(n, 8)) - 1, (1 << 8 * max(n - 8, 0)) - 1] for n in _LENGTHS.tolist()], np.uint64)
_TAGS = _LENGTHS.astype(np.uint64) << np.uint64(56)
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
_SHIFT = np.uint64(64 - (_SLOTS.bit_length() - 1))


class SegmentStore:
    """Segments (parts of a text, never empty) with a positive number for each."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._keys = np.zeros((_SLOTS, 2), np.uint64)
        self._numbers = np.zeros(_SLOTS, np.int64)
        self._longer: dict[bytes, int] = {}
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether `add` should not be called again before `clear`: with more, the table would get slow."""
        return self._count + len(self._longer) >= _KEPT

    def find(self, data: bytes, bounds: np.ndarray) -> np.ndarray:
        """Numbers of the segments that lie in `data` side by side; 0 for those that are not known.

        `bounds`: where each begins and the last one ends, int64, one more than there are segments.
        """
        keys = _keys(data, bounds)
        numbers = self._numbers.take(self._slots(keys))
        for at in np.flatnonzero(np.diff(bounds) > _SHORT).tolist():
            numbers[at] = self._longer.get(data[bounds[at] : bounds[at + 1]], 0)
        return numbers

    def add(self, segments: list[bytes], numbers: np.ndarray) -> None:
        """Keep segments that are all different and not known, but not those of more than 48 bytes."""
        lengths = np.array([len(segment) for segment in segments])
        keys = _keys(b"".join(segments), np.concatenate(([0], np.cumsum(lengths))))
        left = np.flatnonzero(lengths <= _SHORT)
        self._count += len(left)
        assert self._count < _SLOTS, "a search ends at a free slot"
        while len(left):
            slots, first = np.unique(self._slots(keys[left]), return_index=True)
            taken = left[first]  # of several that want a slot, one gets it
            self._keys[slots], self._numbers[slots] = keys[taken], numbers[taken]
            left = np.delete(left, first)
        for at in np.flatnonzero((lengths > _SHORT) & (lengths <= _LONGEST_KEPT)).tolist():
            self._longer[segments[at]] = int(numbers[at])

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        """For each key the slot that holds it, or the free one where its search ends."""
        mixed = keys * _FACTORS
        slots = ((mixed[:, 0] + mixed[:, 1]) >> _SHIFT).astype(np.int64)
        left = np.flatnonzero(self._are_others(slots, keys))
        while len(left):
            slots[left] = (slots[left] + 1) % _SLOTS
            left = left[self._are_others(slots[left], keys[left])]
        return slots

    def _are_others(self, slots: np.ndarray, keys: np.ndarray) -> np.ndarray:
        held = self._keys.take(slots, axis=0)
        return ((held[:, 0] != keys[:, 0]) | (held[:, 1] != keys[:, 1])) & (held[:, 1] != 0)


def _keys(data: bytes, bounds: np.ndarray) -> np.ndarray:
    """Two words for each segment, (segments, 2), different for different segments of at most 15 bytes."""
    padded = data + bytes(16)
    words = np.ndarray(len(data) + 9, "<u8", padded, strides=(1,))
    rows = np.minimum(np.diff(bounds), _SHORT + 1)
    keys = np.stack((words[bounds[:-1]], words[bounds[:-1] + 8]), axis=1)
    keys &= _MASKS.take(rows, axis=0)
    keys[:, 1] |= _TAGS.take(rows)
    return keys
