"""The page to draw on and its search, as an ASGI app; nothing here knows of Ray."""

import asyncio
import functools
import hashlib
import io
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsn_ray.data.decoding import FORMATS, UndecodablePicture, open_rgb
from dsn_ray.gallery import Gallery, as_trained
from dsn_ray.retrieval.index import Codes

LARGEST_SKETCH = 10 * 2**20
"""Bytes of an uploaded picture."""
MOST_PHOTOS = 50
CAPACITY = 64
"""Searches at a time for each network; further ones are told to come again."""
ARRIVING = 2
"""Sketches that may be on their way for each that may be searched for."""
MOST_PIXELS = 16_000_000
"""Of a sketch."""
DECODED = 2
"""Sketches decoded at a time, and photos, of which a large one wants 700 MB."""
PATIENCE = 10.0
"""Seconds for a sketch to arrive."""

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/examples.json": "examples.json",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_THUMBNAIL = 240
_log = logging.getLogger(__name__)

Embed = Callable[[NDArray[np.uint8]], Awaitable[NDArray[np.float32]]]
"""A sketch, uint8 `[3, px, px]`, to its feature `[d]`."""


class Photo(BaseModel):
    """A photo that was found."""

    photo: int
    """its number; `/photos/<number>` shows it"""
    path: str
    """below the gallery"""
    class_: str
    """the folder it lies in"""
    score: float
    """cosine, or bits that differ"""

    model_config = {
        "alias_generator": lambda name: name.rstrip("_"),
        "populate_by_name": True,
        "use_attribute_docstrings": True,
    }


class Found(BaseModel):
    """What a search found, nearest first."""

    codes: Codes
    bits: int
    """of a binary code"""
    photos: list[Photo]


class Fault(BaseModel):
    """What is wrong, for people."""

    error: str


class _Refused(NamedTuple):
    status: int
    error: str
    headers: dict[str, str] | None = None

    def raised(self) -> HTTPException:
        return HTTPException(self.status, self.error, self.headers)


TOO_LARGE = _Refused(413, f"The picture is larger than {LARGEST_SKETCH // 2**20} MB.")
BUSY = _Refused(429, "Too many people are searching; try again in a second.", {"Retry-After": "1"})
SLOW = _Refused(408, f"The picture did not arrive within {PATIENCE:g} seconds.")
CUT_OFF = _Refused(400, "The picture did not arrive whole.")
STRANGE = _Refused(400, "This server does not answer to that name.")
MANY_PIXELS = _Refused(422, f"The picture has more than {MOST_PIXELS // 10**6} million pixels.")
EMPTY = _Refused(422, "The sketch is empty: draw something first.")
GONE = _Refused(404, "This photo is gone, or it was never here.")


def make_app(
    gallery: Gallery,
    px: int,
    embed: Embed,
    capacity: int = CAPACITY,
    hosts: Collection[str] = (),
) -> FastAPI:
    """The page, `/search`, `/photos/<number>`, `/healthz` and `/openapi.json`.

    Args:
        gallery: the photos.
        px: side at which the network sees a sketch.
        embed: the network.
        capacity: searches at a time.
        hosts: names that it answers to, so that no page of another site can have its own name lead
            here and read along; all where none is given.
    """
    app = FastAPI(title="dsn_ray", docs_url=None, redoc_url=None)
    faults: dict[int | str, dict[str, Any]] = {
        refused.status: {"model": Fault} for refused in (SLOW, TOO_LARGE, EMPTY, BUSY)
    }
    arriving = searching = 0
    decoding, shrinking = asyncio.Semaphore(DECODED), asyncio.Semaphore(DECODED)

    @app.post("/search", responses=faults, openapi_extra=_BODY)
    async def search(
        request: Request,
        top: Annotated[int, Query(ge=1, le=MOST_PHOTOS)] = 10,
        codes: Codes = "real",
    ) -> Found:
        """Finds the photos nearest to a sketch, which is the request's body: PNG, JPEG, WebP..."""
        nonlocal arriving, searching
        if arriving >= ARRIVING * capacity:
            raise BUSY.raised()
        arriving += 1
        try:
            body = await _body(request)
        finally:
            arriving -= 1
        if searching >= capacity:
            raise BUSY.raised()
        searching += 1
        try:
            async with decoding:
                sketch = await asyncio.to_thread(_sketch, body, px)
            feature = await embed(sketch)
            rows, scores = await asyncio.to_thread(gallery.index.search, feature[None], top, codes)
        finally:
            searching -= 1
        return Found(
            codes=codes,
            bits=gallery.index.features.shape[1],
            photos=[
                Photo(
                    photo=row,
                    path=gallery.paths[row],
                    class_=gallery.class_of(row),
                    score=round(score, 4),
                )
                for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            ],
        )

    @app.get(
        "/photos/{number}",
        responses={404: {"model": Fault}, 422: {"model": Fault}},
        response_class=Response,
    )
    async def photo(number: int, request: Request) -> Response:
        """A photo of the gallery, small."""
        if not 0 <= number < len(gallery.paths):
            raise GONE.raised()
        async with shrinking:
            known = request.headers.get("if-none-match")
            return await asyncio.to_thread(_photo, gallery, number, known)

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        """Whether the server is there, and how many photos it searches."""
        return {"status": "ok", "photos": len(gallery.paths)}

    for path, file in _FILES.items():
        app.get(path, include_in_schema=False)(_sender(_PAGE / file))
    _speak_in_sentences(app, hosts)
    return app


_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _sender(file: Path) -> Callable[[], FileResponse]:
    def send() -> FileResponse:
        return FileResponse(file)

    return send


def _photo(gallery: Gallery, number: int, known: str | None) -> Response:
    """A photo, small, unless the browser knows it by its tag."""
    file = gallery.root / gallery.paths[number]
    try:
        if not file.resolve().is_relative_to(gallery.root.resolve()):
            raise GONE.raised()
        status = file.stat()
        stamp = f"{file} {status.st_size} {status.st_mtime_ns}"
        tag = f'"{hashlib.sha256(os.fsencode(stamp)).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if known == tag:
            return Response(status_code=304, headers=headers)
        return Response(_thumbnail(file, tag), media_type="image/jpeg", headers=headers)
    except (OSError, RuntimeError, UndecodablePicture):
        raise GONE.raised() from None


@functools.lru_cache(maxsize=2000)
def _thumbnail(file: Path, tag: str) -> bytes:
    """A photo as a small JPEG, made anew when its tag changes; drawing on, one sees many again."""
    picture = open_rgb(file.read_bytes(), least_px=_THUMBNAIL)
    contents = io.BytesIO()
    ImageOps.contain(picture, (_THUMBNAIL, _THUMBNAIL)).save(contents, "JPEG", quality=85)
    return contents.getvalue()


async def _body(request: Request) -> bytes:
    """The request's body, of which never more than is allowed is held."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > LARGEST_SKETCH:
        raise TOO_LARGE.raised()
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                body += chunk
                if len(body) > LARGEST_SKETCH:
                    raise TOO_LARGE.raised()
    except TimeoutError:
        raise SLOW.raised() from None
    except ClientDisconnect:
        raise CUT_OFF.raised() from None
    return bytes(body)


def _sketch(encoded: bytes, px: int) -> NDArray[np.uint8]:
    """A sketch as training sees it."""
    if not encoded:
        raise EMPTY.raised()
    if _pixels(encoded) > MOST_PIXELS:
        raise MANY_PIXELS.raised()
    try:
        sketch = as_trained(encoded, "sketch", px)
    except ValueError as error:
        raise HTTPException(422, f"This is no picture that can be used: {error}.") from None
    if (sketch == sketch[:, :1, :1]).all():
        raise EMPTY.raised()
    return sketch


def _pixels(encoded: bytes) -> int:
    """How many a picture has; 0 where nobody can tell, which decoding it then explains."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            return picture.width * picture.height
    except Exception:  # on broken bytes the decoders let nearly any escape
        return 0


def _speak_in_sentences(app: FastAPI, hosts: Collection[str]) -> None:
    """Every answer that is no result is one sentence, and every answer has passed the guard."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}."}, 422)

    app.add_middleware(_Guard, hosts=hosts)


class _Guard:
    """Answers to its own names only, hides what fails, and sends safe headers with every answer."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_safely(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        request = Request(scope)
        if self._hosts and request.url.hostname not in self._hosts:
            strange = JSONResponse({"error": STRANGE.error}, STRANGE.status)
            await strange(scope, receive, send_safely)
            return
        try:
            await self._app(scope, receive, send_safely)
        except Exception:
            _log.exception("%s failed", request.url.path)
            if begun:
                raise
            failed = JSONResponse({"error": "The server failed; its log says why."}, 500)
            await failed(scope, receive, send_safely)
