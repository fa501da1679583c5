import asyncio

import numpy as np
import pytest

from dsn_ray.batches import Batches


def brightness(sketches):
    return sketches.mean(axis=(1, 2, 3))[:, None].astype(np.float32)


@pytest.mark.parametrize("at_once", [1, 2])
def test_sketches_gather_while_the_network_is_at_work(at_once):
    sizes, running = [], 0

    async def network(sketches):
        nonlocal running
        running += 1
        assert running <= at_once
        sizes.append(len(sketches))
        await asyncio.sleep(0.01)
        running -= 1
        return brightness(sketches)

    async def ask(batches, number):
        await asyncio.sleep(number % 3 / 1000)
        sketch = np.full((3, 2, 2), number, np.uint8)
        assert (await batches(sketch)).tolist() == [number]

    async def people():
        batches = Batches(network, at_once)
        for _ in range(2):  # also when nobody was there for a while
            await asyncio.gather(*(ask(batches, number) for number in range(40)))

    asyncio.run(asyncio.wait_for(people(), timeout=20))
    assert sum(sizes) == 80
    assert 1 < max(sizes) <= 16
    assert len(sizes) < 40


def test_a_network_that_fails_fails_its_sketches_only():
    async def network(sketches):
        await asyncio.sleep(0.001)
        if 7 in sketches:
            raise RuntimeError("a network died")
        return brightness(sketches)

    async def people():
        batches = Batches(network)
        some = [np.full((3, 2, 2), number, np.uint8) for number in range(40)]
        return await asyncio.gather(*map(batches, some), return_exceptions=True)

    answers = asyncio.run(asyncio.wait_for(people(), timeout=20))
    failed = {number for number, answer in enumerate(answers) if isinstance(answer, RuntimeError)}
    assert 7 in failed
    assert len(failed) <= 16
    assert all(answers[number][0] == number for number in set(range(40)) - failed)


def test_whoever_goes_away_leaves_the_others_their_answers():
    async def network(sketches):
        await asyncio.sleep(0.01)
        return brightness(sketches)

    async def people():
        batches = Batches(network)
        some = [np.full((3, 2, 2), number, np.uint8) for number in range(5)]
        asked = [asyncio.create_task(batches(sketch)) for sketch in some]
        await asyncio.sleep(0.001)
        asked[0].cancel()
        asked[3].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(asyncio.wait_for(people(), timeout=20))
    assert [getattr(one, "tolist", lambda: None)() for one in answers] == [
        *(None, [1.0], [2.0], None, [4.0])
    ]
