"""A certificate that edges will refuse is told before any edge comes."""

import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from runtime.wire.tls import TLSError, load_certificate, trust
from tests.certificates import self_signed


def refused(server: ssl.SSLContext, edge: ssl.SSLContext) -> str:
    """Why an edge leaves that wants to reach localhost; empty if it stays."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    name = "localhost" if edge.check_hostname else None
    ends = edge.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, True)
    try:
        for _ in range(3):
            for end in ends:
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    assert ends[0].version() == "TLSv1.3"
    return ""


@pytest.mark.parametrize(
    ("made", "doubt"),
    [
        ({}, ""),
        ({"extension": "subjectAltName=IP:127.0.0.1,DNS:localhost"}, ""),
        ({"days": -1}, "certificate has expired"),
        ({"extension": "extendedKeyUsage=clientAuth"}, "unsuitable certificate purpose"),
        ({"extension": "subjectAltName=email:a@b"}, ""),  # the common name counts then
    ],
)
def test_what_edges_that_verify_a_certificate_will_say(
    tmp_path: Path, made: dict[str, Any], doubt: str
) -> None:
    self_signed(tmp_path, "server", **made)
    told: list[str] = []
    pair = tmp_path / "server.pem", tmp_path / "server.key"
    certificate = load_certificate(*pair, told.append)
    assert certificate.doubt == doubt
    assert told == []
    authority = trust(str(tmp_path / "server.pem"))
    pinned = trust(certificate.pin)
    assert authority is not None
    assert pinned is not None
    assert bool(refused(certificate.context, authority.context)) == bool(doubt)
    assert refused(certificate.context, pinned.context) == ""


@pytest.mark.parametrize("days", [2, -1, 10_000, 40_000])
def test_a_certificate_says_when_it_expires(tmp_path: Path, days: int) -> None:
    """As the openssl program reads it, in either of the two ways to write a time."""
    self_signed(tmp_path, "server", days=days)
    pair = tmp_path / "server.pem", tmp_path / "server.key"
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(pair[0])]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    end_s = ssl.cert_time_to_seconds(told.strip().removeprefix("notAfter="))
    assert load_certificate(*pair).expires_s == end_s


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no such device here")
def test_a_device_is_not_read_for_ever(tmp_path: Path) -> None:
    self_signed(tmp_path, "server")
    good, device = tmp_path / "server.pem", Path("/dev/zero")
    with pytest.raises(TLSError, match=r"cannot read /dev/zero: it is a device, and no file$"):
        load_certificate(device, tmp_path / "server.key")
    with pytest.raises(TLSError, match=r"cannot read /dev/zero: it is a device, and no file$"):
        load_certificate(good, device)
    with pytest.raises(TLSError, match=r"of a certificate authority \(it is a device"):
        trust("/dev/zero")


def test_a_key_that_nobody_can_connect_with_is_refused(tmp_path: Path) -> None:
    """It is a curve of Bitcoin's, and none of TLS 1.3."""
    self_signed(tmp_path, "server", curve="secp256k1")
    with pytest.raises(TLSError, match=r"TLS 1\.3 has no use for a key of its kind"):
        load_certificate(tmp_path / "server.pem", tmp_path / "server.key")
