"""The web view: a page, a WebSocket with pictures and figures, a snapshot."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import threading
from importlib import resources
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

from csr_deploy.demo.access import Guard, is_local
from csr_deploy.demo.hub import Hub
from csr_deploy.errors import CsrError, MissingDependencyError, OptionError, RuntimeUnavailableError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket
    from typing_extensions import Self

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path → (file of the package, type). These and no others are sent: a path is never looked up as a file."""
_STATUS_S = 0.5
_SEND_S = 10.0


def make_app(hub: Hub) -> Starlette:
    """The application, without its guard.

    Raises:
        MissingDependencyError: If Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse, PlainTextResponse, Response
        from starlette.routing import Route, WebSocketRoute
    except ImportError as error:
        raise MissingDependencyError("starlette", "demo", "The web view") from error

    def send_file(path: str) -> Route:
        name, kind = _PAGE[path]
        content = (resources.files("csr_deploy.demo") / "page" / name).read_bytes()

        async def endpoint(request: Request) -> Response:
            return Response(content, media_type=kind)

        return Route(path, endpoint)

    def snapshot(request: Request) -> Response:
        jpeg = hub.snapshot()
        if jpeg is None:
            return PlainTextResponse("There is no picture yet.\n", 503)
        return Response(
            jpeg, media_type="image/jpeg", headers={"Content-Disposition": 'inline; filename="csr-demo.jpg"'}
        )

    def status(request: Request) -> Response:
        return JSONResponse(hub.status())

    return Starlette(
        routes=[
            *map(send_file, _PAGE),
            Route("/snapshot.jpg", snapshot),
            Route("/status.json", status),
            WebSocketRoute("/live", lambda websocket: _live(websocket, hub)),
        ]
    )


async def _live(websocket: WebSocket, hub: Hub) -> None:
    """One browser. It asks for each message, so that a slow one gets fewer and never old ones."""
    from starlette.websockets import WebSocketDisconnect

    await websocket.accept()
    with hub.viewer() as room:
        if not room:
            await websocket.close(1013, "too many browsers look already")
            return
        number = -1
        try:
            while True:
                await websocket.receive_text()
                message = await hub.newer(number, _STATUS_S)
                if message is None:
                    text = json.dumps({**hub.status(), "picture": False})
                    await asyncio.wait_for(websocket.send_text(text), _SEND_S)
                    continue
                number = message.number
                await asyncio.wait_for(websocket.send_text(message.text), _SEND_S)
                await asyncio.wait_for(websocket.send_bytes(message.jpeg), _SEND_S)
        except (WebSocketDisconnect, asyncio.TimeoutError, KeyError, RuntimeError):
            # It went away, does not read, or sends something else than text: it is not served any longer.
            return


class WebServer:
    """Serves from entering to leaving a with block, in a thread of its own.

    Args:
        hub: Gives what is shown.
        host: Address to listen at.
        port: 0 for any free one.
        token: None only where `host` is this machine's own.

    Raises:
        OptionError: If the address is none, or is open to others without a token.
        RuntimeUnavailableError: If the port is in use or may not be used.
        MissingDependencyError: If Starlette, uvicorn or websockets is not installed.
    """

    def __init__(self, hub: Hub, host: str, port: int, token: str | None) -> None:
        if token is None and not is_local(host):
            raise OptionError("others can reach this address, so a token is needed", where=host)
        app = make_app(hub)
        try:
            import uvicorn
            import websockets  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(str(error.name), "demo", "The web view") from error
        self._socket = _listen(host, port)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._token = token
        self._server = uvicorn.Server(
            uvicorn.Config(
                Guard(app, token, self.port),
                log_level="critical",
                access_log=False,
                lifespan="off",
                server_header=False,
                limit_concurrency=128,
                timeout_graceful_shutdown=1,
                ws_max_size=1024,
                # JPEG files do not become smaller, and trying takes longer than making them.
                ws_per_message_deflate=False,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()

    def addresses(self) -> list[str]:
        """Where the page can be opened, with the token."""
        hosts = [self.host]
        if self.host in ("0.0.0.0", "::"):  # noqa: S104
            hosts = _own_addresses() or [socket.gethostname()]
        query = f"?token={self._token}" if self._token else ""
        return [f"http://{f'[{h}]' if ':' in h else h}:{self.port}/{query}" for h in hosts]


def _own_addresses() -> list[str]:
    """IPv4 addresses of this machine that others can reach."""
    found = [a.address for i in psutil.net_if_addrs().values() for a in i if a.family == socket.AF_INET]
    return sorted(address for address in found if not address.startswith("127."))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise OptionError("is no address of this machine", where=f"{host}:{port}") from error
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen(64)
    except OSError as error:
        made.close()
        raise _refused(error, host, port) from error
    return made


def _refused(error: OSError, host: str, port: int) -> CsrError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return RuntimeUnavailableError(
            "the port is in use by another program", where=where, fix=f"Give another one: --port {port + 1}."
        )
    if error.errno == errno.EACCES:
        return RuntimeUnavailableError(
            "this user may not use the port", where=where, fix="Give one above 1023: --port 8000."
        )
    return OptionError(f"cannot listen there: {error.strerror}", where=where)
