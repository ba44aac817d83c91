"""Calls that may never return, as those to a store that takes connections and says nothing.

Nothing can end such a call. Each has a daemon thread of its own, so that it can be left behind, and keeps the process
from ending as little as it keeps other calls from their threads.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Patience:
    """At most `calls_max` at a time, those left behind among them. On one event loop."""

    def __init__(self, calls_max: int) -> None:
        self._room = asyncio.Semaphore(calls_max)

    async def call(self, s_max: float | None, call: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
        """What `call` returns, or raises. Raises `TimeoutError` after `s_max` seconds (None: never), as it does if
        there was no room for so long."""
        async with asyncio.timeout(s_max):
            await self._room.acquire()
            loop = asyncio.get_running_loop()
            told: asyncio.Future[Any] = loop.create_future()

            def tell(result: T | None, error: BaseException | None) -> None:
                self._room.release()
                if told.done():
                    return  # left behind
                if error is None:
                    told.set_result(result)
                else:
                    told.set_exception(error)

            def work() -> None:
                result: T | None = None
                failure: BaseException | None = None
                try:
                    result = call(*args, **settings)
                except BaseException as error:
                    failure = error
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(tell, result, failure)

            threading.Thread(target=work, name="patience", daemon=True).start()
            return await told
