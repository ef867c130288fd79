"""Answers that are waited for in event loops."""

from __future__ import annotations

import asyncio
from typing import cast

from samplerpool.client.async_answering import AsyncAnswering
from samplerpool.client.connection import PoolConnection
from samplerpool.client.delivery import Delivery


async def test_what_comes_goes_to_the_loop_of_who_waits_even_if_another_thread_begins_to_wait_meanwhile() -> None:
    answering = AsyncAnswering(cast(PoolConnection, None))
    other_loop = asyncio.new_event_loop()

    class Interrupted(Delivery):
        def leads_into(self, loop: asyncio.AbstractEventLoop) -> bool:
            answering._delivery = Delivery(other_loop)
            return super().leads_into(loop)

    loop = asyncio.get_running_loop()
    answering._delivery = Interrupted(loop)
    assert answering._delivery_here().leads_into(loop)
    assert answering._delivery_here().leads_into(loop)
    other_loop.close()
