from pathlib import Path

import pytest

from stream.stages.state import HIGHEST
from stream.worker.store import RocksStore, StoreClosed


def test_what_was_written_is_read_after_reopening(tmp_path: Path):
    store = RocksStore.open(tmp_path / "s")
    store.write([(b"a", b"1"), (b"b", b""), (b"c", b"3")], sync=True)
    store.write([(b"d", b"4")], [b"a"], [(b"c", b"d")], sync=False)
    store.close()
    with RocksStore.open(tmp_path / "s") as again:
        assert again.get_many([b"d", b"a", b"b", b"c", b"x"]) == [b"4", None, b"", None, None]
        assert again.scan(b"", HIGHEST, 10) == [(b"b", b""), (b"d", b"4")]
        assert again.scan(b"b", b"d", 10) == [(b"b", b"")]
        assert again.batches == 2
    with pytest.raises(StoreClosed):
        again.get_many([b"a"])
