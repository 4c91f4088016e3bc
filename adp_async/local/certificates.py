"""The local platform's TLS: a certificate authority of its own making, and a server's certificate.

The authority's private key signs one certificate and is never written, so that nobody can sign
another with it: a machine that trusts the authority trusts this platform and nothing else.
"""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import certifi
from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from adp_async.local.identity import write_private

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Certificates"]

_LIFETIME: Final = timedelta(days=365)
#: A platform that starts with less than this left gets new certificates.
_RENEWAL: Final = timedelta(days=30)
#: Clocks of containers and virtual machines may be behind.
_TOLERANCE: Final = timedelta(hours=1)


@frozen
class Certificates:
    """The files of one platform, of which only *server* holds a private key.

    *authority* is what clients have to trust, and nothing else; *trusted* adds the public
    authorities, for programs that also talk to others.
    """

    authority: Path
    trusted: Path
    server: Path

    @classmethod
    def load_or_make(cls, folder: Path) -> Certificates:
        """Those kept in *folder*, so that clients go on trusting a platform that restarts."""
        files = cls(folder / "tls_ca.pem", folder / "tls_trusted.pem", folder / "tls_server.pem")
        if not files._are_valid(datetime.now(UTC)):
            files._make(datetime.now(UTC))
        public = certifi.contents()  # they change, so not kept
        write_private(files.trusted, files.authority.read_bytes() + public.encode())
        return files

    def context(self) -> ssl.SSLContext:
        """What the server needs: TLS 1.2 or later, with its certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.server)
        return context

    def _are_valid(self, now: datetime) -> bool:
        if not (self.authority.exists() and self.server.exists()):
            return False
        authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
        server = x509.load_pem_x509_certificate(self.server.read_bytes())
        return server.issuer == authority.subject and now + _RENEWAL < server.not_valid_after_utc

    def _make(self, now: datetime) -> None:
        key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        # A name of its own: OpenSSL takes authorities of one name for one another.
        name = _name(f"adp-async local platform {x509.random_serial_number():x}"[:64])
        authority = _authority(name, key, now)
        server = _server(authority, key, server_key.public_key(), now)
        pem = serialization.Encoding.PEM
        private = server_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(self.server, server.public_bytes(pem) + private)
        write_private(self.authority, authority.public_bytes(pem))


def _authority(name: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    builder = _builder(name, name, key.public_key(), now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(ca=True), critical=True).sign(key, hashes.SHA256())


def _server(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
) -> x509.Certificate:
    hosts: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = (
        _builder(_name("localhost"), authority.subject, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(purposes, critical=False)
        .add_extension(issuer, critical=False)  # Python 3.13 verifies strictly, and wants it
    )
    return builder.sign(authority_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _TOLERANCE)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
