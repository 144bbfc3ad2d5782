"""Requests that a local server accepts, and the security headers of its responses."""

import socket

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fatai.errors import OptionError
from fatai.web.security import SecurityMiddleware, is_loopback
from fatai.web.server import serve


async def hello(request):
    return PlainTextResponse("hello")


async def chat(websocket):
    await websocket.accept()


def client(bound_to="127.0.0.1"):
    app = Starlette(routes=[Route("/", hello, methods=["GET", "POST", "PUT", "DELETE"]), WebSocketRoute("/chat", chat)])
    return TestClient(SecurityMiddleware(app, bound_to), "http://127.0.0.1:8000")


def status(host, bound_to="127.0.0.1"):
    return client(bound_to).get("/", headers={"host": host}).status_code


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LocalHost:1", "[::1]:8000"])
def test_names_of_this_machine_are_accepted(host):
    assert status(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.com:8000",
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "evil.com@localhost",
        "localhost@evil.com",
        "localhost/evil.com",
        "localhost:8000:1",
        "10.0.0.5",
        "",
        "127.0.0.1, evil.com",
        "0.0.0.0",
        "[::1",
        "localhost:999999",
    ],
)
def test_other_hosts_are_refused_with_a_message(host):
    response = client().get("/", headers={"host": host})
    assert response.status_code == 400
    assert (
        response.json()["error"].startswith("this server does not serve the host")
        and "open the address" in response.text
    )


def test_a_public_server_accepts_its_name_and_addresses_but_no_other_name():
    hosts = ("box.local:80", "192.168.0.7", "[fe80::1]", "localhost", "evil.com")
    statuses = [status(host, "box.local") for host in hosts]
    assert statuses == [200, 200, 200, 200, 400]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.com"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://localhost:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "cross-site"},
    ],
)
def test_other_pages_may_not_send_data(method, headers):
    response = client().request(method, "/", headers=headers)
    assert response.status_code == 403 and "only pages of this server" in response.json()["error"]


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}]
)
def test_pages_of_the_server_and_programs_may_send_data(headers):
    assert client().post("/", headers=headers).text == "hello"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "evil.com"])
def test_every_response_has_the_security_headers(host):
    headers = client().get("/", headers={"host": host}).headers
    assert (
        "default-src 'none'" in headers["content-security-policy"]
        and "frame-ancestors 'none'" in headers["content-security-policy"]
    )
    assert "unsafe" not in headers["content-security-policy"] and "http" not in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin" and headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_websockets_are_refused():
    with pytest.raises(WebSocketDisconnect) as caught, client().websocket_connect("/chat"):
        pass
    assert caught.value.code == 1008


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.0.7", False),
        ("::", False),
        ("box.local", False),
    ],
)
def test_is_loopback(host, local):
    assert is_loopback(host) is local


def test_a_port_in_use_is_named():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(OptionError, match=f"port {port}.*choose another --port"):
            serve(None, "127.0.0.1", port)
    with pytest.raises(OptionError, match="cannot listen at 192.0.2.1"):
        serve(None, "192.0.2.1", 0)
