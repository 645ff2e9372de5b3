"""What is said of a certificate that is refused."""

import ssl

from sagapost_chassis import tls


def test_a_chain_of_causes_that_leads_back_to_itself_is_followed_once() -> None:
    """The broker's client raises such errors when its peer hangs up: following them for ever would stop the whole process."""
    first, second = OSError("one"), OSError("two")
    first.__cause__, second.__cause__ = second, first

    assert tls.fault(first, "broker") is None


def test_a_refused_certificate_is_found_below_what_the_client_made_of_it() -> None:
    """The sentence names the server and says what to correct."""
    refused = ssl.SSLCertVerificationError(1, "no")
    refused.verify_message = "self-signed certificate"
    outer = OSError("connection failed")
    outer.__cause__ = refused

    assert "the certificate of the broker is refused (self-signed certificate)" in str(tls.fault(outer, "broker"))
