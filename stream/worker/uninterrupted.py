"""Work that has an end which must be told, whoever waits for it.

A thread, or a request that is on its way, goes on when the task that awaits it is cancelled. If that task is the one
that keeps others from the same store, or the same connection, two are then at work in it at once.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_under_way: set[asyncio.Task[Any]] = set()  # the event loop itself holds tasks by weak references only


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`, which goes on to its end, with the locks that it holds, also if whoever awaits is cancelled.

    What it raises after that goes unheard.
    """
    task = asyncio.get_running_loop().create_task(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    return await asyncio.shield(task)
