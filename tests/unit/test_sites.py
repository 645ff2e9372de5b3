"""Which requests come from foreign pages, and which names are this process's own: every combination that a browser sends."""

import pytest

from sagapost_chassis import sites

ALLOWED = frozenset({b"https://shop.example"})
HOST = (b"host", b"localhost:9000")
FOREIGN: dict[str, list[tuple[bytes, bytes]]] = {
    "another site": [(b"origin", b"https://evil.example")],
    "another port": [(b"origin", b"http://localhost:5173")],
    "another name of this machine": [(b"origin", b"http://127.0.0.1:9000")],
    "an origin without a site": [(b"origin", b"null")],
    "an empty origin": [(b"origin", b"")],
    "a name that begins like ours": [(b"origin", b"http://localhost:9000.evil.example")],
    "a name that ends like ours": [(b"origin", b"http://evil-localhost:9000")],
    "an allowed name in another scheme": [(b"origin", b"http://shop.example")],
    "an allowed name on another port": [(b"origin", b"https://shop.example:444")],
    "two origins, the second foreign": [(b"origin", b"http://localhost:9000"), (b"origin", b"https://evil.example")],
    "two origins, the first allowed": [(b"origin", b"https://shop.example"), (b"origin", b"https://evil.example")],
    "a cross-site fetch without an origin": [(b"sec-fetch-site", b"cross-site")],
    "a same-site fetch without an origin": [(b"sec-fetch-site", b"same-site")],
    "a fetch from somewhere that has no name yet": [(b"sec-fetch-site", b"elsewhere")],
    "our origin in a cross-site fetch": [(b"origin", b"http://localhost:9000"), (b"sec-fetch-site", b"cross-site")],
    "a foreign origin in a same-origin fetch": [(b"origin", b"https://evil.example"), (b"sec-fetch-site", b"same-origin")],
}
OWN: dict[str, list[tuple[bytes, bytes]]] = {
    "a program": [],
    "our page": [(b"origin", b"http://localhost:9000"), (b"sec-fetch-site", b"same-origin")],
    "our page behind TLS": [(b"origin", b"https://localhost:9000")],
    "an old browser": [(b"origin", b"http://localhost:9000")],
    "the visitor himself": [(b"sec-fetch-site", b"none")],
    "an allowed site": [(b"origin", b"https://shop.example"), (b"sec-fetch-site", b"cross-site")],
    "an allowed site beside us": [(b"origin", b"https://shop.example"), (b"sec-fetch-site", b"same-site")],
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_what_a_foreign_page_sends_is_foreign(headers: list[tuple[bytes, bytes]]) -> None:
    """Every origin but our own and the allowed ones, and every site but our own, whichever of the two headers says so."""
    assert sites.is_foreign([HOST, *headers], ALLOWED)


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN)
def test_our_pages_allowed_sites_and_programs_are_not_foreign(headers: list[tuple[bytes, bytes]]) -> None:
    """Who may change something goes on doing so."""
    assert not sites.is_foreign([HOST, *headers], ALLOWED)


@pytest.mark.parametrize("text", ["shop.example:9000", "https://shop.example", "a b/c", "*", "shop_example!", "[::1", "ü.example"])
def test_a_list_of_hosts_holds_names_and_nothing_else(text: str) -> None:
    """A port, a scheme or a star would match nothing, silently."""
    with pytest.raises(ValueError, match="SAGAPOST_ALLOWED_HOSTS"):
        sites.names(text)


def test_a_list_of_hosts_is_read_with_spaces_and_commas() -> None:
    """Case makes no difference: names of hosts have none."""
    assert sites.names(" Shop.Example, 192.0.2.7 [2001:db8::7]") == {"shop.example", "192.0.2.7", "[2001:db8::7]"}
