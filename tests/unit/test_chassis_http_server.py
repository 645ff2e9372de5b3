import resource

import pytest

from sagapost_chassis import http_server

HOST = (b"host", b"shop.example")


@pytest.mark.parametrize(
    ("version", "target", "headers"),
    [
        ("1.1", b"/", [HOST]),
        ("1.0", b"/", []),
        ("1.1", b"/api/products?limit=1&x=%20", [(b"host", b"[::1]:9000")]),
        ("1.1", b"/api/checkout", [HOST, (b"content-length", b"12 ")]),
        ("1.1", b"/api/checkout", [HOST, (b"transfer-encoding", b" Chunked")]),
        ("1.1", b"/", [HOST, (b"x", b"\xc3\xa9\ttab")]),
    ],
)
def test_what_is_plain_is_let_through(version: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """The rules refuse nothing that has one meaning."""
    assert http_server.fault(version, target, headers) == ""


@pytest.mark.parametrize(
    ("version", "target", "headers", "said"),
    [
        ("2.0", b"/", [HOST], "HTTP/1.1"),
        ("1.1", b"http://shop.example/", [HOST], "target"),
        ("1.1", b"/a#b", [HOST], "target"),
        ("1.1", b"*", [HOST], "target"),
        ("1.1", b"/", [], "Host"),
        ("1.1", b"/", [HOST, HOST], "Host"),
        ("1.0", b"/", [HOST, HOST], "Host"),
        ("1.1", b"/", [(b"host", b"a, b")], "Host"),
        ("1.1", b"/", [HOST, (b"content-length", b"1"), (b"content-length", b"1")], "Content-Length"),
        ("1.1", b"/", [HOST, (b"content-length", b"0x1")], "Content-Length"),
        ("1.1", b"/", [HOST, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")], "either"),
        ("1.1", b"/", [HOST, (b"transfer-encoding", b"gzip, chunked")], "either"),
        ("1.0", b"/", [HOST, (b"transfer-encoding", b"chunked")], "either"),
        ("1.1", b"/", [HOST, (b"x", b"a\x00b")], "control"),
        ("1.1", b"/", [HOST, (b"x", b"a\rb")], "control"),
    ],
)
def test_what_has_two_meanings_or_none_is_named(version: str, target: bytes, headers: list[tuple[bytes, bytes]], said: str) -> None:
    """Also where today's parser refuses it first: another one may not."""
    assert said in http_server.fault(version, target, headers)


def test_a_request_for_another_protocol_has_no_body() -> None:
    """What follows it could be either."""
    assert http_server.fault("1.1", b"/", [HOST], upgrade=True) == ""
    assert "body" in http_server.fault("1.1", b"/", [HOST, (b"content-length", b"0")], upgrade=True)


def test_no_more_connections_than_files_can_be_open() -> None:
    """Two ports and what else is opened share the limit; the soft one is raised as far as the hard one allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        enough = http_server.bounded(100)
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        many = http_server.bounded(10_000_000)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    assert enough == 100
    assert raised == 2 * 100 + 1024
    assert 2 * many <= hard[0] == hard[1]
