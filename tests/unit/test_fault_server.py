"""The fault server answers as HTTP asks for, except where it is told to fail."""

from __future__ import annotations

import http.client

import pytest

from modelcache.testing import Fault, FaultServer

CONTENT = b"0123456789"


def asked(server: FaultServer, *, headers: dict[str, str] | None = None, **options: object) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(str(options.get("method", "GET")), "/m", body=options.get("body"), headers=headers or {})  # type: ignore[arg-type]
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("Content-Length", "")
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("header", "status", "body"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-30", 206, CONTENT),
        ("bytes=0-1,4-5", 200, CONTENT),
        ("bytes=5-2", 200, CONTENT),
        ("bytes=-", 200, CONTENT),
        ("lines=1-2", 200, CONTENT),
        ("bytes=10-", 416, b""),
    ],
)
def test_ranges(header: str, status: int, body: bytes, server: FaultServer) -> None:
    server.add("/m", CONTENT)

    assert asked(server, headers={"Range": header})[:2] == (status, body)


def test_a_header_is_put_in_place_of_its_own_whatever_its_case(server: FaultServer) -> None:
    server.add("/m", CONTENT, [Fault(headers={"content-length": "5"})])

    assert asked(server)[1:] == (CONTENT[:5], "5")


def test_the_body_of_a_request_is_no_second_request(server: FaultServer) -> None:
    server.add("/m", CONTENT)
    asked(server, method="POST", body=b"GET /x HTTP/1.1\r\n\r\n")

    assert server.methods() == ["POST"]


def test_a_client_that_wants_the_connection_closed_gets_it(server: FaultServer) -> None:
    server.add("/m", CONTENT)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/m", headers={"Connection": "close"})
    answer = connection.getresponse()

    assert answer.will_close
    assert answer.read() == CONTENT
    connection.close()


@pytest.mark.parametrize("options", [{"reset": True}, {"framing": "chunks"}])
def test_a_fault_that_would_do_nothing_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"framing|hang_up"):
        Fault(**options)  # type: ignore[arg-type]
