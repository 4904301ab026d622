"""A web server that makes thumbnails: `python examples/server.py`, then

    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/?size=256' --output small.webp

One event loop talks to all clients, and the pool does the work on all cores. What concerns the pool is `thumbnail`,
`Server.make` and `serve`; the rest is as little HTTP as will do.

A photo that takes too long, or too much memory, is given up, and so is one whose client has gone away: that worker is
stopped, and nobody else notices. Who comes while too many wait is told so at once (503).
"""

import argparse
import asyncio
import io
import signal
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image, ImageOps

from pool import Pool, errors
from pool.cpus import available_cpus

LARGEST = 32 << 20  # bytes of a photo
READ_SECONDS = 10  # for a request to come in
NOT_AN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


class Refused(Exception):
    """A request that gets no thumbnail."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


def thumbnail(photo: bytes, size: int) -> bytes:
    """The task: an ordinary function."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as image:
        image.thumbnail((size, size))
        ImageOps.exif_transpose(image).convert("RGB").save(out, "WEBP")
    return out.getvalue()


class Server:
    def __init__(self, pool: Pool, most: int) -> None:
        self.pool = pool
        self.most = most  # photos that may be in the pool at a time
        self.waiting = 0
        self.connections: set[asyncio.Task[None]] = set()

    async def make(self, photo: bytes, size: int) -> bytes:
        if self.waiting >= self.most:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many photos at a time")
        self.waiting += 1
        try:
            return await self.pool.run(thumbnail, photo, size)
        except errors.TaskTimeout as error:
            raise Refused(HTTPStatus.GATEWAY_TIMEOUT, f"it took longer than {error.timeout:g} s") from error
        except (errors.MemoryLimitExceeded, errors.WorkerCrashed) as error:
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, type(error).__name__) from error
        except NOT_AN_IMAGE as error:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from error
        finally:
            self.waiting -= 1

    async def answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, one request."""
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        began, status, what = time.monotonic(), HTTPStatus.OK, "?"
        try:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    what, size, photo = await read_request(reader, writer)
                kind, body = "image/webp", await unless_gone(reader, self.make(photo, size))
            except Refused as error:
                status, kind, body = error.status, "text/plain; charset=utf-8", f"{error}\n".encode()
            retry = "Retry-After: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}{retry}Connection: close\r\n\r\n".encode() + body)
            async with asyncio.timeout(READ_SECONDS):
                await writer.drain()
                writer.write_eof()
                while await reader.read(1 << 16):  # who still sends would lose our answer if we hung up
                    pass
            said = str(status.value)
        except (ConnectionError, EOFError, TimeoutError):
            said = "gone"
        finally:
            writer.close()
            self.connections.discard(task)
        print(f"{what} {said} {(time.monotonic() - began) * 1000:.0f} ms", flush=True)


async def read_request(reader: StreamReader, writer: StreamWriter) -> tuple[str, int, bytes]:
    """What was asked for, the size of the thumbnail, and the photo. Raises Refused, ConnectionError, EOFError."""
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long") from None
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, _, rest = first.partition(" ")
    address = rest.partition(" ")[0]
    if method != "POST":
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "POST a photo")
    try:
        size = int(parse_qs(urlsplit(address).query).get("size", ["256"])[0])
        length = int(headers.get("content-length", "-1"))
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, "size and Content-Length are numbers") from None
    if not 1 <= size <= 4096:
        raise Refused(HTTPStatus.BAD_REQUEST, "a size is 1 to 4096")
    if length < 0:
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
    if length > LARGEST:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST} bytes")
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return f"{method} {address}", size, await reader.readexactly(length)


async def unless_gone(reader: StreamReader, making: Coroutine[Any, Any, bytes]) -> bytes:
    """What is made, unless the client hangs up (or sends more than it said): then the making is cancelled."""
    work, gone = asyncio.ensure_future(making), asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ConnectionResetError
        return work.result()
    finally:
        work.cancel()  # stops the task in its worker
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()  # by Ctrl-C or SIGTERM: nothing more is accepted, what has come is answered
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with Pool(options.workers, timeout=options.timeout, memory_limit="1GiB") as pool:
        pool.start()  # before there are connections, which the workers would hold open
        service = Server(pool, options.most or 4 * options.workers)
        async with await asyncio.start_server(service.answer, "127.0.0.1", options.port) as server:
            port = server.sockets[0].getsockname()[1]
            print(f"http://127.0.0.1:{port}/, with {options.workers} workers; Ctrl-C ends it", flush=True)
            await stop.wait()
        if service.connections:
            await asyncio.wait(service.connections)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve thumbnails of the photos that are posted.")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=available_cpus(), metavar="N", help="default: %(default)s")
    parser.add_argument("--most", type=int, metavar="N", help="photos at a time (default: 4 for each worker)")
    parser.add_argument("--timeout", type=float, default=5, metavar="S", help="for one photo (default: %(default)s s)")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(serve(parse_options()))
