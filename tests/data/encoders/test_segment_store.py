"""A store of segments is a dictionary, whatever is in it and however full it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fwpkm.data.encoders import segment_store
from megatron_fwpkm.data.encoders.segment_store import SegmentStore

SEGMENT = st.one_of(st.binary(min_size=1, max_size=17), st.sampled_from([b"a" * n for n in range(1, 60)]))


@given(calls=st.lists(st.tuples(st.lists(SEGMENT, min_size=1), st.lists(SEGMENT, unique=True)), max_size=5))
def test_a_store_is_a_dictionary(calls: list[tuple[list[bytes], list[bytes]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_store, "_SLOTS", 256)
        patch.setattr(segment_store, "_SHIFT", np.uint64(56))
        patch.setattr(segment_store, "_KEPT", 128)
        store, known = SegmentStore(), dict[bytes, int]()
        for looked_up, added in calls:
            new = [segment for segment in added if segment not in known]
            if store.is_full:
                store.clear()
                known, new = {}, added
            if new:
                numbers = np.arange(1, len(new) + 1) * 3 + (1 << 40)
                store.add(new, numbers)
                known |= {segment: int(n) for segment, n in zip(new, numbers, strict=True) if len(segment) <= 48}
            segments = looked_up + added
            bounds = np.cumsum([0] + [len(segment) for segment in segments])
            found = store.find(b"".join(segments), bounds)
            assert found.tolist() == [known.get(segment, 0) for segment in segments]
            assert store.is_full == (len(known) >= 128)


def test_zeros_and_lengths_tell_segments_apart() -> None:
    store = SegmentStore()
    segments = [bytes(n) for n in range(1, 49)] + [b"a" + bytes(n) for n in range(15)]
    store.add(segments, np.arange(1, len(segments) + 1))
    found = store.find(b"".join(segments), np.cumsum([0] + [len(segment) for segment in segments]))
    assert found.tolist() == list(range(1, len(segments) + 1))
    assert store.find(b"b" * 16 + bytes(49), np.array([0, 16, 65])).tolist() == [0, 0]
    store.clear()
    assert store.find(b"\0", np.array([0, 1])).tolist() == [0] and not store.is_full


def test_a_search_goes_on_at_the_first_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_store, "_SLOTS", 16)
    monkeypatch.setattr(segment_store, "_SHIFT", np.uint64(60))
    for first in range(0, 240, 15):
        store, segments = SegmentStore(), [bytes([first + number]) for number in range(15)]  # all slots but one
        store.add(segments, np.arange(1, 16))
        assert store.find(b"".join(segments), np.arange(16)).tolist() == list(range(1, 16))
        assert store.find(b"zz", np.array([0, 2])).tolist() == [0]
