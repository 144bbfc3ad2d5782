"""Which requests a server on this machine answers, and what its answers tell browsers."""

import socket

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fatai.errors import OptionError
from fatai.web.security import Guard, is_loopback
from fatai.web.server import serve


async def hello(request):
    return PlainTextResponse("hello")


async def talk(websocket):
    await websocket.accept()


def client(listening="127.0.0.1"):
    app = Starlette(routes=[Route("/", hello, methods=["GET", "POST", "PUT", "DELETE"]), WebSocketRoute("/talk", talk)])
    return TestClient(Guard(app, listening), "http://127.0.0.1:8000")


def status(host, listening="127.0.0.1"):
    return client(listening).get("/", headers={"host": host}).status_code


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LocalHost:1", "[::1]:8000"])
def test_this_machine_is_answered_by_its_names(host):
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
def test_other_hosts_are_refused_with_a_sentence(host):
    response = client().get("/", headers={"host": host})
    assert response.status_code == 400
    assert (
        response.json()["error"].startswith("this server does not answer for the host")
        and "open it by the address" in response.text
    )


def test_a_server_for_others_answers_to_its_name_and_to_addresses_but_to_no_strange_name():
    hosts = ("box.local:80", "192.168.0.7", "[fe80::1]", "localhost", "evil.com")
    answered = [status(host, "box.local") for host in hosts]
    assert answered == [200, 200, 200, 200, 400]


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
def test_other_pages_may_not_send_anything(method, headers):
    response = client().request(method, "/", headers=headers)
    assert response.status_code == 403 and "only pages of this server" in response.json()["error"]


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}]
)
def test_its_own_pages_and_programs_may_send(headers):
    assert client().post("/", headers=headers).text == "hello"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "evil.com"])
def test_every_answer_keeps_to_itself(host):
    headers = client().get("/", headers={"host": host}).headers
    assert (
        "default-src 'none'" in headers["content-security-policy"]
        and "frame-ancestors 'none'" in headers["content-security-policy"]
    )
    assert "unsafe" not in headers["content-security-policy"] and "http" not in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin" and headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_there_is_no_talk_over_websockets():
    with pytest.raises(WebSocketDisconnect) as caught, client().websocket_connect("/talk"):
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
def test_what_is_loopback(host, local):
    assert is_loopback(host) is local


def test_a_port_that_is_taken_is_said_so():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(OptionError, match=f"port {port}.*choose another --port"):
            serve(None, "127.0.0.1", port)
    with pytest.raises(OptionError, match="cannot listen at 192.0.2.1"):
        serve(None, "192.0.2.1", 0)
