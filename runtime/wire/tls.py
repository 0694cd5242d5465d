"""TLS 1.3 contexts for both ends, and how an edge knows that a certificate is the right one.

An edge trusts the system's authorities, one authority in a file, or exactly one certificate by its
hash, which suits a self-signed one. Knows no sockets; the check of a pin is made by the caller once
the connection stands, with `is_pinned`.
"""

from __future__ import annotations

import hmac
import re
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from errno import EINVAL
from pathlib import Path

from runtime.wire.auth import certificate_hash
from runtime.wire.states import Role

# what OpenSSL makes of bytes that are no TLS
NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}
NO_TLS |= {"PACKET_LENGTH_TOO_LONG", "BAD_RECORD_TYPE", "UNEXPECTED_MESSAGE"}
BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
NO_PASSPHRASE = ""  # else one would be asked for on the terminal
# In DER two times stand beside each other there alone, as UTCTime or GeneralizedTime (RFC 5280,
# 4.1.2.5). Python tells them of certificates that it has verified, so of none that has expired.
VALIDITY = re.compile(rb"[\x17\x18].\d{12,14}Z[\x17\x18].(\d{12,14})Z", re.DOTALL)
UTC_TIME_DIGITS = 12
PIN = re.compile(r"sha256:([0-9a-f]{64})")


class TLSError(ValueError):
    """A certificate, key or option that cannot be used; the message says which."""


@dataclass(frozen=True)
class Certificate:
    """A server's certificate, ready to serve."""

    context: ssl.SSLContext
    hash: bytes  # of the certificate itself, as both ends know it
    file: Path
    key: Path
    doubt: str  # why whoever verifies it refuses it, whatever the authority; empty if nobody need
    expires_s: float  # since 1970

    @property
    def pin(self) -> str:
        """What an edge is told to expect: sha256:<64 hexadecimal digits>."""
        return f"sha256:{self.hash.hex()}"

    @property
    def terms(self) -> str:
        """The same for a network stack that ends TLS itself. Raises TLSError."""
        try:
            pem = [_pem(path) for path in (self.file, self.key)]
        except OSError as error:
            raise TLSError(f"cannot read {error.filename}: {error.strerror}") from error
        return "\n".join(["server", *pem])

    def on_file(self) -> Certificate:
        """What its files hold now. Raises TLSError."""
        return load_certificate(self.file, self.key)

    def serve_file(self) -> None:
        """From now on serve what its files hold; connections that stand keep what they have.

        Only after `on_file`: a context that was given half of a pair serves nobody.
        Raises TLSError.
        """
        try:
            self.context.load_cert_chain(self.file, self.key, NO_PASSPHRASE)
        except (OSError, ValueError) as error:
            raise TLSError(f"cannot use {self.file} with {self.key}: {error}") from error


@dataclass(frozen=True)
class Trust:
    """Which servers an edge accepts: those that `context` verifies, or the pinned one."""

    context: ssl.SSLContext
    pin: bytes = b""
    authorities: str = "pinned"  # else system, or in PEM

    def terms(self, host: str) -> str:
        """The same for a network stack that begins TLS with this host itself."""
        return "\n".join(["client", host, self.authorities])

    def is_pinned(self, certificate: bytes) -> bool:
        """Whether the hash of the server's certificate is the expected one, if any is."""
        return not self.pin or hmac.compare_digest(self.pin, certificate)


def load_certificate(
    certificate: Path, key: Path, on_failure: Callable[[str], None] = lambda reason: None
) -> Certificate:
    """Read PEM files. Raises TLSError. on_failure(reason) hears of each handshake that fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        for path in (certificate, key):
            _check_ends(path)
        context.load_cert_chain(certificate, key, NO_PASSPHRASE)
        text = _pem(certificate)
        first = ssl.PEM_cert_to_DER_cert(text[text.index(BEGIN) : text.index(END) + len(END)])
        doubt, expires_s = _doubt(context, first), _expiry_s(first)
    except (OSError, ValueError) as error:
        reason = _why_unusable(certificate, key, error)
        sentence = f"cannot use the certificate {certificate} with the key {key}: {reason}"
        raise TLSError(sentence) from error
    context.sslobject_class = _telling(on_failure)
    return Certificate(context, certificate_hash(first), certificate, key, doubt, expires_s)


def _doubt(server: ssl.SSLContext, certificate: bytes) -> str:
    """What an edge finds wrong that takes it for signed; by a handshake in memory.

    Raises TLSError where there can be none.
    """
    edge = _edge_context()
    edge.load_verify_locations(cadata=certificate)
    edge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # else who signed it would matter
    edge.check_hostname = False
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = server.wrap_bio(up, down, server_side=True), edge.wrap_bio(down, up)
    try:
        for end in (theirs, ours, theirs):  # a hello, all of the server's, what comes of it
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:  # its reason differs from one OpenSSL to the next
        sentence = "TLS 1.3 has no use for a key of its kind; make one of prime256v1, or of RSA"
        raise TLSError(sentence) from error
    return ""


def _expiry_s(certificate: bytes) -> float:
    """The end of its validity. Raises ValueError."""
    if (validity := VALIDITY.search(certificate)) is None:
        raise ValueError("the certificate does not say until when it is valid")
    end = validity[1].decode()
    if len(end) == UTC_TIME_DIGITS:
        end = ("19" if end >= "50" else "20") + end
    return datetime.strptime(end + "+0000", "%Y%m%d%H%M%S%z").timestamp()


def _check_ends(path: Path) -> None:
    """Raises OSError for a device, which may have no end, and for what is not there."""
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise OSError(EINVAL, "it is a device, and no file", str(path))


def _pem(path: Path) -> str:
    """The text of a file, which may have remarks in any encoding around what matters."""
    _check_ends(path)
    return path.read_text(encoding="ascii", errors="replace")


def _why_unusable(certificate: Path, key: Path, error: Exception) -> str:
    """What is wrong with the files; OpenSSL names neither which one nor what."""
    texts = {}
    for path in (certificate, key):
        try:
            texts[path] = _pem(path)
        except OSError as unread:
            return f"cannot read {path}: {unread.strerror}"
    if BEGIN not in texts[certificate]:
        return f"the certificate's file has no {BEGIN}"
    if "PRIVATE KEY-----" not in texts[key]:
        return "the key's file has no -----BEGIN PRIVATE KEY-----"
    if "ENCRYPTED" in texts[key]:
        return "the key has a passphrase, for which a server cannot ask; take it off"
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return "the key is not this certificate's"
    return str(error)


def _telling(on_failure: Callable[[str], None]) -> type[ssl.SSLObject]:
    """asyncio tells nobody of a connection that never came to be."""

    class Handshake(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                on_failure(handshake_failure(error, Role.SERVER))
                raise

    return Handshake


def handshake_failure(error: ssl.SSLError, role: Role) -> str:
    """Why there is no TLS, and what to do about it, as this end sees it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    reason = error.reason or str(error)
    if reason not in NO_TLS:
        return f"no TLS connection: {reason}"
    if role is Role.EDGE:
        return "the server speaks no TLS: leave --tls out, or ask its operator for a certificate"
    return "the edge speaks no TLS: it needs --tls"


def trust(option: str) -> Trust | None:
    """What `--tls` of an edge means: nothing, "system", "sha256:...", or an authority's file.

    Raises TLSError.
    """
    if not option:
        return None
    if pin := PIN.fullmatch(option.lower()):
        context = _edge_context()
        # A pinned certificate needs no authority and no name: it is compared itself.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return Trust(context, bytes.fromhex(pin[1]))
    context = _edge_context()
    try:
        if option == "system":
            context.load_default_certs()
            authorities = option
        else:
            _check_ends(Path(option))
            context.load_verify_locations(option)
            authorities = Path(option).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TLSError(
            f"--tls is {option!r}; expected system, sha256:<64 hexadecimal digits>, or the file "
            f"of a certificate authority ({getattr(error, 'strerror', None) or error})"
        ) from error
    return Trust(context, authorities=authorities)


def _edge_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
