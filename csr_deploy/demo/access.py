"""Who may see the page: the token, the names the page may be called by, and the headers of every answer."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from csr_deploy.errors import OptionError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_VARIABLE = "CSR_DEMO_TOKEN"
_LEAST_TOKEN = 16
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_token(given: str | None) -> str:
    """A token that cannot be guessed, or the given one.

    Raises:
        OptionError: If the given one is short, or would not stand in an address.
    """
    if given is None:
        return secrets.token_urlsafe(16)
    if len(given) < _LEAST_TOKEN or not all(c.isascii() and (c.isalnum() or c in "-_.~") for c in given):
        raise OptionError(
            f"the token must have at least {_LEAST_TOKEN} letters, digits or any of - _ . ~",
            where=f"${TOKEN_VARIABLE}",
            fix="Make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(16))'",
        )
    return given


class Guard:
    """Stands before the application.

    With a token, who shows it in the address gets a cookie and is sent on to the address without it, so that
    it does not stay in the browser's history; anyone else gets 401. Without one, the page must be asked for
    by a name of this machine: else any page on the Internet could read it, by a name of its own that changes
    its address to this one.

    Args:
        app: The application.
        token: None where only this machine can reach the page.
        port: Of the server; browsers share cookies between ports.
    """

    def __init__(self, app: App, token: str | None, port: int) -> None:
        self._app = app
        self._token = token
        self._cookie = f"csr_demo_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        problem = self._problem(scope, headers)
        if problem is not None:
            await _refuse(scope, send, *problem)
            return
        if scope["type"] == "http" and self._token is not None and self._asked(scope) is not None:
            cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Lax"
            await _answer(send, 303, b"", [(b"location", b"/"), (b"set-cookie", cookie.encode())])
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_fixed_headers()]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _problem(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._token is None and _name(host) not in _LOCAL_NAMES and not is_local(_name(host)):
            return 403, "This page is for this machine only: open it as http://localhost."
        origin = headers.get("origin")
        if scope["type"] == "websocket" and origin is not None and urlsplit(origin).netloc != host:
            return 403, "Another site may not read this one."
        if self._token is not None and not self._is_known(scope, headers):
            return 401, "Open the address that csr-demo has printed, with its token."
        return None

    def _asked(self, scope: Scope) -> str | None:
        values = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        return values[0] if values else None

    def _is_known(self, scope: Scope, headers: MutableMapping[str, str]) -> bool:
        assert self._token is not None
        shown = [self._asked(scope), _cookie(headers.get("cookie", ""), self._cookie)]
        kind, _, value = headers.get("authorization", "").partition(" ")
        shown.append(value.strip() if kind.lower() == "bearer" else None)
        # Every one is compared, and in a time that does not depend on how much of it is right.
        return any([hmac.compare_digest(s.encode(), self._token.encode()) for s in shown if s is not None])


def _name(host: str) -> str:
    """A Host header without its port, and without the brackets of IPv6."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(header: str, name: str) -> str | None:
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return None
    return morsel.value if morsel else None


def _fixed_headers() -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    content = (text + "\n").encode()
    if scope["type"] == "http":
        await _answer(send, status, content, [(b"content-type", b"text/plain; charset=utf-8")])
    elif "websocket.http.response" in scope.get("extensions", {}):
        await _answer(send, status, content, [], "websocket.http.response")
    else:
        await send({"type": "websocket.close", "code": 1008})


async def _answer(
    send: Send, status: int, content: bytes, headers: list[tuple[bytes, bytes]], kind: str = "http.response"
) -> None:
    length = (b"content-length", str(len(content)).encode())
    await send({"type": f"{kind}.start", "status": status, "headers": [*headers, length, *_fixed_headers()]})
    await send({"type": f"{kind}.body", "body": content})
