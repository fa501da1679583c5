"""Sketches of many people to a network that takes several at a time."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

_BATCH = 16  # sketches embedded at a time

EmbedMany = Callable[[NDArray[np.uint8]], Awaitable[NDArray[np.float32]]]
"""Sketches, uint8 `[n, 3, px, px]`, to their features `[n, d]`."""

_Waiting = tuple[NDArray[np.uint8], asyncio.Future[NDArray[np.float32]]]


class Batches:
    """Embeds sketches one by one for those who ask, and many at a time for the network.

    Nobody waits for others to come: sketches gather while the network is at work, and many cost it
    little more than one.
    """

    def __init__(self, embed: EmbedMany, at_once: int = 1) -> None:
        """Without sketches.

        Args:
            embed: the network.
            at_once: batches that it takes at a time.
        """
        self._embed, self._free = embed, at_once
        self._waiting: list[_Waiting] = []
        self._working = set[asyncio.Task[None]]()

    async def __call__(self, sketch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A sketch's feature."""
        answer: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._waiting.append((sketch, answer))
        if self._free:
            self._free -= 1
            task = asyncio.create_task(self._work())
            self._working.add(task)
            task.add_done_callback(self._working.discard)
        return await answer

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                await self._answer(batch)
        finally:
            self._free += 1

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            features = await self._embed(np.stack([sketch for sketch, _ in batch]))
            for (_, answer), feature in zip(batch, features, strict=True):
                if not answer.done():
                    answer.set_result(feature)
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        finally:
            for _, answer in batch:
                answer.cancel()  # where this task was
