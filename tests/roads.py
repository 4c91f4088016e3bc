"""Roads to the service on loopback: certificates good and bad, TLS before a server, proxies."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import warnings
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from attrs import define, field
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

HOST = "aidp.example.test"


@define
class Authority:
    """A certificate authority in a folder; each server's file holds certificate and key."""

    folder: Path
    name: str = "test authority"
    _key: ec.EllipticCurvePrivateKey = field(init=False)
    _certificate: x509.Certificate = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._made(self.name, self._key, ca=True)
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name.replace(' ', '-')}.pem"

    def server(self, *names: str, since: float = -1.0, until: float = 1.0) -> Path:
        """The file of a certificate for *names*, valid from and to so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._made("server", key, names=names, since=since, until=until)
        file = self.folder / f"server-{certificate.serial_number}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return file

    def revocations(self) -> bytes:
        """A list of certificates that it takes back, as it may stand in a file of its own."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now)
            .next_update(now + timedelta(days=1))
        )
        crl = builder.sign(self._key, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.PEM)

    def _made(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        names: tuple[str, ...] = (),
        ca: bool = False,
        since: float = -1.0,
        until: float = 1.0,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        identifier = x509.SubjectKeyIdentifier.from_public_key
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=since))
            .not_valid_after(now + timedelta(days=until))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(identifier(key.public_key()), critical=False)
        )
        if ca:
            usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
            builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        else:
            authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            builder = builder.add_extension(authority, critical=False)
            alternatives = x509.SubjectAlternativeName([_general_name(each) for each in names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256())


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
    "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _general_name(name: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def server_context(file: Path, *, only: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A server's side of TLS; *only* in that version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    if only is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = only
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@asynccontextmanager
async def listening(
    connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
    *,
    port: int = 0,
) -> AsyncIterator[int]:
    """The port at which *connected* is given each connection; none is left behind.

    Those of `asyncio.start_server` are nobody's until their handshake is over.  In the end this
    raises what *connected* raised, unless a connection broke.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(connection: socket.socket) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        with connection, suppress(asyncio.IncompleteReadError, OSError):
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=context
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                await connected(reader, writer)
                writer.close()
                await writer.wait_closed()
            finally:
                transport.abort()
                await asyncio.sleep(0)  # it is closed then

    async def accept() -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            tasks.add(loop.create_task(serve(connection)))

    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        accepting = loop.create_task(accept())
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            await asyncio.sleep(0)  # so that each task has begun
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(accepting, *tasks, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception):
                    raise end


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Hand bytes back and forth between a connection and the server at *port*."""
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
    finally:
        far_writer.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()


@asynccontextmanager
async def tls_before(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port of TLS in front of the plain server at *port*."""
    async with listening(lambda *streams: relay(*streams, port), context) as tls_port:
        yield tls_port


@define
class Fork:
    """Leads each new connection to *target*, a port; None closes it at once."""

    target: int | None
    port: int = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Fork]:
        async with listening(self._connected) as self.port:
            yield self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.target is not None:
            await relay(reader, writer, self.target)


@define
class ConnectProxy:
    """A proxy that leads every tunnel to *target*, or answers CONNECT with *answer*."""

    target: int
    #: None lets it pass; nothing at all closes the connection.
    answer: bytes | None = None
    port: int = 0
    #: What came, up to the empty line.
    heads: list[bytes] = field(factory=list)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ConnectProxy]:
        async with listening(self._connected) as self.port:
            yield self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        if self.answer is not None:
            writer.write(self.answer)
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await relay(reader, writer, self.target)
