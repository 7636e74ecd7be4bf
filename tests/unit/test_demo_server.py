"""The web view over real sockets: who gets in, what is sent, and what a browser may do to it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from csr_deploy.artifact import Artifact
from csr_deploy.demo.access import is_local, make_token
from csr_deploy.demo.catalogue import open_model
from csr_deploy.demo.hub import MOST_VIEWERS, Hub
from csr_deploy.demo.server import WebServer
from csr_deploy.demo.system import SystemMonitor
from csr_deploy.errors import OptionError, RuntimeUnavailableError
from tests.demo import ScriptedSource, noise, until, web_view

httpx = pytest.importorskip("httpx", reason="needs httpx to ask the server")
websockets = pytest.importorskip("websockets.asyncio.client", reason="needs websockets")
exceptions = pytest.importorskip("websockets.exceptions", reason="needs websockets")
pytest.importorskip("uvicorn", reason="needs uvicorn")

TOKEN = "a-token-of-22-letters."


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return open_model("resnet56-csr2")


def endless() -> ScriptedSource:
    pictures = [noise(48, 64, seed=n) for n in range(8)]
    return ScriptedSource(pictures * 20_000, pause_s=0.01)


@pytest.fixture(scope="module")
def local(artifact: Artifact) -> Iterator[Any]:
    with web_view(endless, [artifact]) as server:
        until(lambda: server.hub.pipeline.statistics.frames > 1)
        yield server


@pytest.fixture(scope="module")
def public(artifact: Artifact) -> Iterator[Any]:
    with web_view(endless, [artifact], host="0.0.0.0", token=TOKEN) as server:
        until(lambda: server.hub.pipeline.statistics.frames > 1)
        yield server


def url(server: Any, path: str = "/", kind: str = "http") -> str:
    return f"{kind}://127.0.0.1:{server.port}{path}"


def raw(server: Any, request: bytes) -> bytes:
    """The answer to bytes that no proper client would send."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_the_page_loads_nothing_from_elsewhere(local: Any) -> None:
    page = httpx.get(url(local))
    assert page.status_code == 200
    assert "http:" not in page.text
    assert "https:" not in page.text
    for path in ("/app.js", "/style.css", "/icon.svg"):
        answer = httpx.get(url(local, path))
        assert answer.status_code == 200
        assert path in page.text
        assert "@import" not in answer.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "style=" not in page.text
    assert "<script>" not in page.text


def test_every_answer_carries_the_headers(local: Any, public: Any) -> None:
    for server, path in ((local, "/"), (local, "/nowhere"), (public, "/"), (local, "/snapshot.jpg")):
        headers = httpx.get(url(server, path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/../app.js",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page/index.html",
        "/app.js/",
        "/app.js%00.html",
        "/.%5c..%5capp.js",
        "/static/../../catalogue.py",
        "/app.js/../hub.py",
        "/%c0%ae%c0%ae/etc/passwd",
        "/" + "a" * 9000,
    ],
)
def test_tricks_in_the_path_find_nothing(local: Any, path: str) -> None:
    # Not through a client, which would tidy the path up.
    host = f"127.0.0.1:{local.port}"
    answer = raw(local, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    status = int(answer.split(b" ", 2)[1])
    assert status in (307, 400, 404)
    assert b"root:" not in answer
    assert b"import" not in answer


def test_other_methods_are_refused(local: Any) -> None:
    for method in ("POST", "PUT", "DELETE", "TRACE"):
        assert httpx.request(method, url(local)).status_code == 405


def test_only_this_machine_s_names_without_a_token(local: Any) -> None:
    for host in ("localhost", "127.0.0.1", f"localhost:{local.port}", "[::1]:99"):
        assert httpx.get(url(local), headers={"Host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example", "192.168.1.7", "[::2]:80", "[", ""):
        assert httpx.get(url(local), headers={"Host": host}).status_code == 403


def test_without_the_token_nothing_is_shown(public: Any) -> None:
    wrong = ("", "?token=", "?token=wrong", f"?token={TOKEN[:-1]}", f"?token={TOKEN}x", "?token=%ff")
    headers = [
        {"Cookie": f"csr_demo_{public.port}=wrong"},
        {"Cookie": b"\xff=\xff"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
    ]
    with httpx.Client() as client:
        for path in ("/", "/snapshot.jpg", "/status.json", "/nowhere"):
            for query in wrong:
                answer = client.get(url(public, path + query))
                assert answer.status_code == 401
                assert "set-cookie" not in answer.headers
        for header in headers:
            assert client.get(url(public), headers=header).status_code == 401


def test_the_token_becomes_a_cookie(public: Any) -> None:
    with httpx.Client() as client:
        answer = client.get(url(public, f"/?token={TOKEN}"))
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert client.get(url(public)).status_code == 200
        assert client.get(url(public, "/snapshot.jpg")).content[:3] == b"\xff\xd8\xff"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.get(url(public, "/status.json"), headers=headers).json()["frames"] > 0
    assert all(address.endswith(f":{public.port}/?token={TOKEN}") for address in public.addresses())


async def ask(connection: Any) -> tuple[dict[str, Any], bytes]:
    await connection.send("next")
    values = json.loads(await connection.recv())
    return values, await connection.recv() if values["picture"] else b""


def test_frames_come_when_they_are_asked_for(local: Any) -> None:
    async def look() -> None:
        async with websockets.connect(url(local, "/live", "ws")) as connection:
            numbers = []
            for _ in range(5):
                values, jpeg = await ask(connection)
                assert jpeg[:3] == b"\xff\xd8\xff"
                numbers.append(values["frame"])
            assert numbers == sorted(set(numbers))
            assert values["state"] == {"state": "running", "text": "scripted"}
            assert len(values["models"][0]["top"]) == 5
            assert values["system"]["memory_mib"] > 10
            assert values["compare"][0]["name"] == "resnet56-csr2"
            # Who does not ask gets nothing, and then the newest one.
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(connection.recv(), 0.5)
            later, _ = await ask(connection)
            assert later["frame"] > numbers[-1] + 5

    asyncio.run(look())


def test_a_websocket_needs_the_token_and_its_own_origin(local: Any, public: Any) -> None:
    async def status(address: str, **options: Any) -> int:
        try:
            async with websockets.connect(address, **options):
                return 101
        except exceptions.InvalidStatus as error:
            return int(error.response.status_code)

    async def look() -> None:
        assert await status(url(public, "/live", "ws")) in (401, 403)
        assert await status(url(public, "/live?token=wrong", "ws")) in (401, 403)
        assert await status(url(public, f"/live?token={TOKEN}", "ws")) == 101
        assert await status(url(public, f"/live?token={TOKEN}", "ws"), origin="http://evil.example") == 403
        assert await status(url(local, "/live", "ws"), origin="http://evil.example") == 403
        assert await status(url(local, "/live", "ws"), origin=url(local)[:-1]) == 101
        assert await status(url(local, "/elsewhere", "ws")) in (403, 404)

    asyncio.run(look())


def test_ten_browsers_and_one_that_vanishes(local: Any) -> None:
    async def look() -> None:
        connections = [await websockets.connect(url(local, "/live", "ws")) for _ in range(10)]
        answers = await asyncio.gather(*(ask(c) for c in connections))
        assert all(jpeg for _, jpeg in answers)
        assert local.hub.viewers == 10
        # One without a word, in the middle of an answer; one with what nobody understands; one politely.
        await connections[0].send("next")
        connections[0].transport.abort()
        await connections[1].send(b"\x00\x01")
        await connections[2].send("x" * 5000)
        await connections[3].close()
        for _ in range(3):
            answers = await asyncio.gather(*(ask(c) for c in connections[4:]))
        assert all(jpeg for _, jpeg in answers)
        for connection in connections[1:]:
            await connection.close()

    asyncio.run(look())
    until(lambda: local.hub.viewers == 0)
    frames = local.hub.pipeline.statistics.frames
    until(lambda: local.hub.pipeline.statistics.frames > frames + 3)


def test_one_browser_too_many(local: Any) -> None:
    async def look() -> None:
        connections = [await websockets.connect(url(local, "/live", "ws")) for _ in range(MOST_VIEWERS)]
        await asyncio.gather(*(ask(c) for c in connections))
        async with websockets.connect(url(local, "/live", "ws")) as connection:
            with pytest.raises(exceptions.ConnectionClosed) as caught:
                await connection.recv()
        assert caught.value.rcvd.code == 1013
        await asyncio.gather(*(c.close() for c in connections))

    asyncio.run(look())
    until(lambda: local.hub.viewers == 0)


def test_a_browser_that_reads_nothing_holds_nobody_up(local: Any) -> None:
    async def look() -> None:
        mute = await websockets.connect(url(local, "/live", "ws"), max_queue=1)
        mute.transport.pause_reading()
        for _ in range(50):
            await mute.send("next")
        async with websockets.connect(url(local, "/live", "ws")) as connection:
            for _ in range(20):
                _, jpeg = await asyncio.wait_for(ask(connection), 10)
                assert jpeg
        mute.transport.abort()

    asyncio.run(look())
    until(lambda: local.hub.viewers == 0)


def test_nothing_is_encoded_while_nobody_looks(local: Any) -> None:
    until(lambda: local.hub.viewers == 0)
    time.sleep(0.1)
    before = local.hub._message
    frames = local.hub.pipeline.statistics.frames
    until(lambda: local.hub.pipeline.statistics.frames > frames + 10)
    assert local.hub._message is before


def test_the_last_picture_stays_when_the_source_has_ended(artifact: Artifact) -> None:
    source = ScriptedSource([noise(48, 64)] * 3, live=False)
    with web_view(lambda: source, [artifact]) as server:
        until(server.hub.pipeline.done.is_set)

        async def look() -> None:
            async with websockets.connect(url(server, "/live", "ws")) as connection:
                values, jpeg = await ask(connection)
                assert values["state"]["state"] == "ended"
                assert jpeg[:3] == b"\xff\xd8\xff"
                values, jpeg = await ask(connection)
                assert (values["picture"], jpeg) == (False, b"")

        asyncio.run(look())
        assert httpx.get(url(server, "/snapshot.jpg")).status_code == 200


def test_no_snapshot_before_the_first_picture(artifact: Artifact) -> None:
    with web_view(lambda: ScriptedSource([]), [artifact]) as server:
        assert httpx.get(url(server, "/snapshot.jpg")).status_code == 503


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeUnavailableError, match=f"in use by another program\n.*--port {port + 1}"):
            WebServer(Hub(SystemMonitor()), "127.0.0.1", port, None)


def test_addresses_that_are_none() -> None:
    hub = Hub(SystemMonitor())
    for host in ("no.such.host.invalid", "192.0.2.1"):
        with pytest.raises(OptionError):
            WebServer(hub, host, 0, TOKEN)
    with pytest.raises(OptionError, match="a token is needed"):
        WebServer(hub, "0.0.0.0", 0, None)


def test_which_addresses_are_this_machine_s_own() -> None:
    assert all(is_local(host) for host in ("localhost", "127.0.0.1", "127.3.2.1", "::1"))
    assert not any(
        is_local(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.com", "", "localhost.x")
    )


def test_tokens() -> None:
    assert len(make_token(None)) >= 22
    assert make_token(None) != make_token(None)
    assert make_token(TOKEN) == TOKEN
    for token in ("short", "with spaces in the middle", "ümlaut-ümlaut-ümlaut", "a;b" * 10):
        with pytest.raises(OptionError, match="the token must have"):
            make_token(token)
