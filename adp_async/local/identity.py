"""The local platform's identity: made-up OCIDs, a key, and the OCI config file for clients."""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import os
import secrets
from typing import TYPE_CHECKING

from attrs import asdict, field, frozen
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Identity", "KeyFile", "generate_key", "make_token", "write_private", "write_profile"]

REGION = "us-ashburn-1"
_OCID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"


def generate_key() -> rsa.RSAPrivateKey:
    """A new RSA-2048 key, the smallest OCI accepts; takes about 0.1 s."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@frozen
class Identity:
    """The names of one local platform and of its only user."""

    tenancy: str
    user: str
    platform_id: str
    workspace: str

    @classmethod
    def invent(cls) -> Identity:
        return cls(
            tenancy=_ocid("tenancy"),
            user=_ocid("user"),
            platform_id=_ocid("aidataplatform", "iad"),
            workspace="local",
        )

    @classmethod
    def load_or_invent(cls, path: Path) -> Identity:
        """The identity kept in *path*, so that a platform keeps its address over restarts."""
        if path.exists():
            return cls(**json.loads(path.read_text()))
        identity = cls.invent()
        write_private(path, json.dumps(asdict(identity), indent=1).encode())
        return identity

    def key_id(self, fingerprint: str) -> str:
        return f"{self.tenancy}/{self.user}/{fingerprint}"


@frozen
class KeyFile:
    """A private key on disk, and the fingerprint that OCI knows it by."""

    path: Path
    key: rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def load_or_write(cls, path: Path, key: rsa.RSAPrivateKey | None = None) -> KeyFile:
        """The key kept in *path*; else *key*, or a fresh one, is written there."""
        if key is None and path.exists():
            loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
            if not isinstance(loaded, rsa.RSAPrivateKey):
                message = f"{path} does not hold an RSA key"
                raise TypeError(message)
            return cls(path, loaded)
        key = key or generate_key()
        write_private(path, _pem(key))
        return cls(path, key)

    @property
    def fingerprint(self) -> str:
        return self.fingerprint_of(self.key)

    @staticmethod
    def fingerprint_of(key: rsa.RSAPrivateKey) -> str:
        """What OCI calls *key*."""
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        # MD5 is what OCI defines the fingerprint as; nothing is secured by it.
        digest = hashlib.md5(public, usedforsecurity=False).hexdigest()
        return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def make_token(subject: str, expires: float) -> str:
    """A session token that looks like the service's: a JWT whose signature is not checked."""
    header = {"alg": "RS256", "typ": "JWT"}
    payload = {"sub": subject, "exp": int(expires), "jti": secrets.token_hex(8)}
    return ".".join([_part(header), _part(payload), secrets.token_urlsafe(32)])


def write_private(path: Path, content: bytes) -> None:
    """Replace *path* in one step; only its owner may read it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)


def write_profile(path: Path, profile: str, entries: dict[str, str]) -> None:
    """Add or replace one profile of the OCI config file *path*."""
    config = configparser.ConfigParser(interpolation=None, default_section="")
    config.read(path)
    config[profile] = entries
    lines = []
    for section in config.sections():
        lines += [f"[{section}]", *(f"{key}={value}" for key, value in config[section].items()), ""]
    write_private(path, "\n".join(lines).encode())


def _ocid(kind: str, region: str = "") -> str:
    unique = "".join(secrets.choice(_OCID_CHARACTERS) for _ in range(56))
    return f"ocid1.{kind}.oc1.{region}.aaaa{unique}"


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
