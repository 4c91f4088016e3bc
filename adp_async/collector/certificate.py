"""A certificate for one job: made when a collector opens, known to workers by its fingerprint."""

from __future__ import annotations

import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from attrs import field, frozen

#: Clocks of containers and virtual machines may be behind.
_TOLERANCE: Final = timedelta(days=1)
_LIFETIME: Final = timedelta(days=3650)


@frozen
class Certificate:
    """A self-signed certificate with its key, in PEM, and its SHA-256 *fingerprint*."""

    pem: bytes = field(repr=False)
    fingerprint: bytes = field(repr=bytes.hex)

    @classmethod
    def make(cls) -> Certificate:
        """A new one.  What it is called doesn't matter: workers know it by its fingerprint."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "adp-async collector")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _TOLERANCE)
            .not_valid_after(now + _LIFETIME)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = certificate.public_bytes(serialization.Encoding.PEM)
        return cls(private + public, certificate.fingerprint(hashes.SHA256()))

    @classmethod
    def kept_in(cls, path: Path) -> Certificate:
        """The one in the file *path*, which is written for its owner alone when it is not there."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        if not path.exists():
            made = cls.make()
            write_private(path, made.pem)
            return made
        pem = path.read_bytes()
        return cls(pem, x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()))

    def context(self) -> ssl.SSLContext:
        """What a server needs to show it.  The key is in a file for as long as that takes."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with tempfile.TemporaryDirectory(prefix="adp-async-") as folder:
            path = Path(folder, "certificate.pem")
            write_private(path, self.pem)
            context.load_cert_chain(path)
        return context


def write_private(path: Path, content: bytes) -> None:
    """Write a new file, for its owner alone, all at once."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    beside.replace(path)
