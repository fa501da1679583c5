"""The app of the page, with a network that knows colours only."""

import asyncio
import io
import os
import threading
import time

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from dsn_ray import web
from dsn_ray.data.views import decode
from dsn_ray.gallery import Gallery
from dsn_ray.retrieval.index import BinaryCodes, Index
from dsn_ray.retrieval.ranking import words
from dsn_ray.web import LARGEST_SKETCH, make_app

NAMES = ("red/a.png", "green/<b>&.png", "blue/c.png")


def png(colour, size=(40, 30), dot="black"):
    picture = Image.new("RGB", size, colour)
    if dot:
        picture.putpixel((5, 5), (0, 0, 0))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


async def mean_colour(sketch):
    return sketch.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture
def gallery(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png(name.partition("/")[0]))
    features = np.eye(3, dtype=np.float32)
    codes = BinaryCodes(np.full(3, 0.5), np.eye(3), words(features > 0.5))
    return Gallery(tmp_path, NAMES, Index(features, lambda features: codes))


@pytest.fixture
def client(gallery):
    return TestClient(make_app(gallery, 32, mean_colour))


def test_what_is_drawn_is_found_with_class_and_score(client):
    answer = client.post("/search?top=2", content=png("blue")).json()
    assert answer["codes"] == "real"
    first, second = answer["photos"]
    assert first == {"photo": 2, "path": "blue/c.png", "class": "blue", "score": first["score"]}
    assert first["score"] > 0.9 > second["score"]


def test_the_network_sees_what_training_sees(gallery, prepared):
    seen = []

    async def keep(sketch):
        seen.append(sketch)
        return await mean_colour(sketch)

    client = TestClient(make_app(gallery, 32, keep))
    for (file, domain), stored in prepared.items():
        if domain == "sketch":
            assert client.post("/search", content=file.read_bytes()).status_code == 200
            np.testing.assert_array_equal(seen.pop(), decode(stored, 32))


def test_binary_codes_are_compared_by_the_bits_that_differ(client):
    answer = client.post("/search?codes=binary", content=png("lime")).json()
    assert answer["bits"] == 3
    assert answer["photos"][0]["photo"] == 1
    assert [photo["score"] for photo in answer["photos"]] == [0, 2, 2]


@pytest.mark.parametrize(
    ("content", "query", "status", "said"),
    [
        (b"", "", 422, "The sketch is empty"),
        (png("white", dot=None), "", 422, "The sketch is empty"),
        (b"a text named .png", "", 422, "no picture that can be used"),
        (png("red")[:60], "", 422, "no picture that can be used"),
        (b"x" * (LARGEST_SKETCH + 1), "", 413, "larger than 10 MB"),
        (png("red"), "?top=51", 422, "top: Input should be less than or equal to 50"),
        (png("red"), "?codes=oil", 422, "codes: Input should be 'real' or 'binary'"),
    ],
)
def test_bad_input_is_one_sentence_and_the_server_goes_on(client, content, query, status, said):
    answer = client.post(f"/search{query}", content=content)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert client.post("/search", content=png("red")).status_code == 200


def test_a_decompression_bomb_is_refused(client):
    bomb = io.BytesIO()
    Image.new("1", (30000, 30000)).save(bomb, "PNG")
    answer = client.post("/search", content=bomb.getvalue())
    assert answer.status_code == 422
    assert "pixel" in answer.json()["error"]


def test_a_sketch_of_many_pixels_is_refused_before_it_is_decoded(client):
    large = io.BytesIO()
    Image.new("1", (5000, 5000)).save(large, "PNG")
    answer = client.post("/search", content=large.getvalue())
    assert answer.status_code == 422
    assert "more than 16 million pixels" in answer.json()["error"]


def test_an_upload_without_a_length_is_cut_off(client):
    sent = 0

    def chunks():
        nonlocal sent
        while sent < 50 * 2**20:
            sent += 2**20
            yield bytes(2**20)

    assert client.post("/search", content=chunks()).status_code == 413


def test_a_sketch_that_does_not_arrive_is_not_awaited_for_ever(gallery, monkeypatch):
    monkeypatch.setattr(web, "PATIENCE", 0.2)

    async def stalling():
        yield png("red")[:60]
        await asyncio.sleep(30)

    async def send():
        transport = httpx.ASGITransport(make_app(gallery, 32, mean_colour))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/search", content=stalling())

    answer = asyncio.run(asyncio.wait_for(send(), timeout=10))
    assert answer.status_code == 408
    assert "did not arrive" in answer.json()["error"]


def test_sketches_on_their_way_leave_room_for_others(gallery, monkeypatch):
    monkeypatch.setattr(web, "PATIENCE", 5)
    release = asyncio.Event()

    async def stalling():
        yield png("red")[:60]
        await release.wait()

    async def send():
        transport = httpx.ASGITransport(make_app(gallery, 32, mean_colour, capacity=2))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            slow = [
                asyncio.create_task(client.post("/search", content=stalling())) for _ in range(3)
            ]
            await asyncio.sleep(0.1)
            answer = await client.post("/search", content=png("red"))
            release.set()
            return answer, await asyncio.gather(*slow)

    answer, slow = asyncio.run(asyncio.wait_for(send(), timeout=20))
    assert answer.status_code == 200
    assert {one.status_code for one in slow} <= {422, 429}


def test_a_client_that_goes_away_is_no_fault_of_the_server(gallery, caplog):
    messages = [
        {"type": "http.request", "body": b"abc", "more_body": True},
        {"type": "http.disconnect"},
    ]
    said = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b""}
    scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "server": ("test", 80)}
    asyncio.run(make_app(gallery, 32, mean_colour)(scope, receive, send))
    assert [one["status"] for one in said if "status" in one] in ([], [400])
    assert caplog.records == []


def test_pages_of_other_sites_cannot_read_along(gallery):
    app = make_app(gallery, 32, mean_colour, hosts=("localhost", "::1"))
    for host, status in {"localhost:8000": 200, "[::1]:8000": 200, "evil.example": 400}.items():
        answer = TestClient(app).get("/photos/0", headers={"Host": host})
        assert answer.status_code == status
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_few_photos_are_decoded_at_a_time(gallery, monkeypatch):
    at_once, most, usual = 0, 0, web.open_rgb

    def counting(*given, **more):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        at_once -= 1
        return usual(*given, **more)

    monkeypatch.setattr(web, "open_rgb", counting)
    app = make_app(gallery, 32, mean_colour)

    async def many():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.get(f"/photos/{n % 3}") for n in range(12)))

    assert {answer.status_code for answer in asyncio.run(many())} == {200}
    assert 1 <= most <= web.DECODED


def test_beyond_capacity_one_is_told_to_come_again(gallery):
    release = threading.Event()

    async def slow(sketch):
        while not release.is_set():
            await asyncio.sleep(0.01)
        return await mean_colour(sketch)

    app = make_app(gallery, 32, slow, capacity=20)

    async def all_at_once():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = [
                asyncio.create_task(client.post("/search", content=png("red"))) for _ in range(100)
            ]
            while sum(task.done() for task in asked) < 80:
                await asyncio.sleep(0.01)
            release.set()
            return await asyncio.gather(*asked)

    answers = asyncio.run(asyncio.wait_for(all_at_once(), timeout=60))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 80
    assert {answer.status_code for answer in answers} == {200, 429}
    assert refused[0].headers["retry-after"] == "1"
    assert "try again" in refused[0].json()["error"]


def test_photos_are_small_and_those_that_are_gone_say_so(client, gallery, tmp_path_factory):
    answer = client.get("/photos/1")
    assert answer.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(answer.content)).size) <= 240
    (gallery.root / NAMES[1]).unlink()
    secret = tmp_path_factory.mktemp("outside") / "secret.png"
    secret.write_bytes(png("red"))
    (gallery.root / NAMES[2]).unlink()
    (gallery.root / NAMES[2]).symlink_to(secret)
    for path in ("1", "2", "3", "-1"):
        answer = client.get(f"/photos/{path}")
        assert answer.status_code == 404
        assert "gone" in answer.json()["error"]
    for path in ("../secret.png", "%2e%2e%2fsecret.png", "red/a.png"):
        assert client.get(f"/photos/{path}").status_code in (404, 422)


def test_a_browser_keeps_a_photo_until_its_file_changes(client, gallery):
    first = client.get("/photos/0")
    same = {"If-None-Match": first.headers["etag"]}
    assert client.get("/photos/0", headers=same).status_code == 304
    assert client.get("/photos/1", headers=same).status_code == 200
    file = gallery.root / NAMES[0]
    file.write_bytes(png("yellow"))
    os.utime(file, (1, 1))
    changed = client.get("/photos/0", headers=same)
    assert changed.status_code == 200
    assert Image.open(io.BytesIO(changed.content)).getpixel((200, 150))[1] > 200
    file.unlink()
    assert client.get("/photos/0", headers=same).status_code == 404


def test_the_page_asks_nobody_else(client):
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/", "/page.css", "/page.js", "/examples.json"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "http://" not in answer.text
        assert "https://" not in answer.text
    assert f"LARGEST = {LARGEST_SKETCH // 2**20} * 2 ** 20" in client.get("/page.js").text
    for example in client.get("/examples.json").json():
        points = np.concatenate([np.array(line) for line in example["lines"]])
        assert ((points >= 0) & (points <= 100)).all()


def test_health_and_interface_are_told(client):
    assert client.get("/healthz").json() == {"status": "ok", "photos": 3}
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/search", "/photos/{number}", "/healthz"}
    assert {"200", "413", "422", "429"} <= set(schema["paths"]["/search"]["post"]["responses"])
    assert client.get("/docs").status_code == 404


def test_a_fault_of_our_own_shows_nothing_of_the_inside(gallery):
    async def broken(sketch):
        raise RuntimeError("a secret of the inside")

    client = TestClient(make_app(gallery, 32, broken))
    answer = client.post("/search", content=png("red"))
    assert answer.status_code == 500
    assert answer.json() == {"error": "The server failed; its log says why."}
