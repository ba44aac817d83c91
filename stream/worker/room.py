"""Room on the disk of the state directory, of which restores under way have promised themselves a part.

A restore may be larger than what is free, and would take the room of all partitions that go on before it fails. So it
asks first. The system's count of free bytes falls while it writes, and its promise with it.

Threads: restores ask from their own; a lock guards the sum.
"""

import contextlib
import shutil
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from stream.worker.store import MEMTABLE_BYTES, StoreFull

RESERVE_BYTES = 64 << 20  # what a restore leaves free, for checkpoints and for opening what it has brought

assert RESERVE_BYTES >= 2 * MEMTABLE_BYTES, "the store that was restored flushes its log while others checkpoint"


class Room:
    """Of the file system of `directory`, which must exist when it is asked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._promised_bytes = 0

    def free_bytes(self) -> int:
        """What is free now, promised or not. Raises `OSError`."""
        return shutil.disk_usage(self._directory).free

    def missing_bytes(self, size_bytes: int) -> int:
        """How many bytes must become free before a restore of `size_bytes` may begin. Raises `OSError`."""
        with self._lock:
            return self._missing_bytes(size_bytes, self.free_bytes())

    def _missing_bytes(self, size_bytes: int, free_bytes: int) -> int:
        return max(0, size_bytes + RESERVE_BYTES + self._promised_bytes - free_bytes)

    @contextlib.contextmanager
    def promised(self, size_bytes: int) -> Generator[Callable[[int], None]]:
        """Nobody else is promised these bytes while the block lasts; in it, each write tells its bytes.

        Raises `StoreFull`, at once, if they and the reserve do not fit; `OSError`.
        """
        with self._lock:
            free_bytes = self.free_bytes()
            missing_bytes = self._missing_bytes(size_bytes, free_bytes)
            if missing_bytes:
                raise StoreFull(
                    f"{missing_bytes} bytes are missing at {self._directory} to restore a snapshot of {size_bytes} "
                    f"bytes: {free_bytes} are free, of which {RESERVE_BYTES} are left to checkpoints and "
                    f"{self._promised_bytes} to other restores. Operator: make room there, or stop this worker, so "
                    f"that one with more room has the partition"
                )
            self._promised_bytes += size_bytes
        left_bytes = size_bytes

        def wrote(count: int) -> None:
            nonlocal left_bytes
            with self._lock:
                told = min(count, left_bytes)
                left_bytes -= told
                self._promised_bytes -= told

        try:
            yield wrote
        finally:
            wrote(left_bytes)
