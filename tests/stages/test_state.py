"""State over a store: whatever the checkpoints, reads see what was written last."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from stream.stages.state import Changes, MemoryStore, State


@given(st.integers(0, 2**32))
def test_reads_and_scans_see_the_latest_writes_across_checkpoints(seed: int) -> None:
    random = Random(seed)
    store = MemoryStore()
    state = State(store, scanned=b"P")
    model: dict[bytes, bytes] = {}
    frozen: Changes | None = None
    for _ in range(80):
        key = random.choice([b"P", b"P", b"Q"]) + bytes([random.randrange(30)])
        what = random.random()
        if what < 0.5:
            value = bytes([random.randrange(9)])
            state.put(key, value)
            model[key] = value
        elif what < 0.6:
            state.delete(key)
            model.pop(key, None)
        elif what < 0.75:
            if frozen is None:
                frozen = state.freeze()
            else:
                store.write(frozen)
                state.written()
                frozen = None
        else:
            table = key[:1]
            low, high = (table + bytes([n]) for n in sorted([random.randrange(31), random.randrange(31)]))
            limit = random.choice([1, 3, 100])
            expected = sorted((k, v) for k, v in model.items() if low <= k < high)[:limit]
            assert state.scan(low, high, limit) == expected
            assert state.get_many([low, key]) == [model.get(low), model.get(key)]
