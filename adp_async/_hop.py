"""The way to a collector: where it is, and the token that it expects.

`adp_async.collector` has it as a `Handle`, an agent writes it into a file, and a session that is
told of the agent reads it there.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from attrs import asdict, field, frozen

from adp_async._sansio.rules import shown
from adp_async.auth import Auth
from adp_async.errors import ConfigurationError, misconfigured

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async.auth import Signer

#: Where an agent's handle is looked for.
VARIABLE: Final = "ADP_ASYNC_AGENT"
#: Beside the socket of an agent: its folder, and the handle in it.
FOLDER: Final = ".d"
FILE: Final = "handle.json"
_SOCKET: Final = "unix:"
#: For requests by a socket, whose address is a path.
_FINGERPRINT: Final = re.compile("[0-9a-f]{64}")
_LOCALHOST: Final = "http://localhost"


class Carrier:
    """Carries requests of workers to a collector, where that is not done by a socket.

    It is part of the handle: picklable and, so that a process has one session, comparable and
    hashable.
    """

    async def carry(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Have `Shared.answer` called with these arguments, and return what it returns.

        Whatever it raises means that no answer came: the request is sent again, under the same
        token.
        """
        raise NotImplementedError


@frozen
class Hop:
    """The way to one shared run, or to a shared session.

    *address* is ``unix:`` and a path, or ``https://host:port`` with the SHA-256 *fingerprint* of
    its certificate.  *run_id* is None when a whole session is shared.
    """

    address: str
    platform_id: str
    workspace: str | None
    run_id: str | None
    fingerprint: str = ""
    token: str = field(default="", repr=False)
    #: How requests get there, when it is not by a socket.
    carrier: Carrier | None = None

    @property
    def socket(self) -> str:
        """The path of its socket; "" when it has none."""
        is_socket = self.address.startswith(_SOCKET)
        return self.address.removeprefix(_SOCKET) if is_socket else ""

    @property
    def base_url(self) -> str:
        """What every URL to it begins with."""
        return self.address if self.address.startswith("https://") else _LOCALHOST

    def to_json(self) -> str:
        """As text, for a file that only its owner can read; see `from_json`.

        Raises `ConfigurationError` for one with a carrier, which is only picklable.
        """
        if self.carrier is not None:
            raise ConfigurationError("a handle with a carrier cannot be text; pickle it")
        facts = asdict(self, filter=lambda attribute, _: attribute.name != "carrier")
        return msgspec.json.encode(facts).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote.  Raises `ConfigurationError` for anything else."""
        try:
            facts: dict[str, Any] = msgspec.json.decode(text, type=dict[str, str | None])
            hop = cls(**facts)
            if hop._leads_somewhere():
                return hop
        except (msgspec.DecodeError, TypeError, AttributeError):
            pass
        raise ConfigurationError("this is not the handle of a collector")

    def _leads_somewhere(self) -> bool:
        """Whether it has what a connection needs."""
        is_whole = bool(self.platform_id and self.token)
        if self.address.startswith("https://"):
            return is_whole and _FINGERPRINT.fullmatch(self.fingerprint) is not None
        return is_whole and bool(self.socket)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The handle in the file of an agent, or beside its socket.  `ConfigurationError`."""
        plain = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if not os.path.isfile(plain) and not plain.endswith(FILE):
            plain = os.path.join(plain + FOLDER, FILE)
        try:
            with open(plain, "rb") as file:
                return cls.from_json(file.read(2**20))
        except OSError as error:
            problem = f"{shown(os.fspath(path))} cannot be read: {error.strerror}"
        except ConfigurationError:
            problem = f"{shown(plain)} is not the handle of an agent"
        except ValueError:
            problem = "its path has a NUL or a surrogate in it"
        looked = f"the argument agent and the environment's {VARIABLE}"
        fix = "Start `adp-async agent`, and name its socket, or the file that it prints."
        raise misconfigured("agent", problem, looked=looked, fix=fix)


class Unsigned(Auth):
    """For a session whose requests a collector signs."""

    mode = "collector"
    only_computes = True

    def load(self) -> Signer:
        return _sign_nothing

    def is_quick(self, signer: Signer) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return type(other) is Unsigned

    def __hash__(self) -> int:
        return hash(Unsigned)


def _sign_nothing(request: object) -> None:
    """Nothing to do."""


#: What of a session's defaults is otherwise with a collector near by, which journals and gathers.
NEARBY: Final[Mapping[str, object]] = {"linger": 0.05, "spool": False, "recover": False}


def through_agent(given: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, object]:
    """The arguments *given* of a session, leading to an agent if they, or *environ*, name one.

    A session that is told another way, by its *endpoint* or *auth*, is not led to an agent of the
    environment.  Raises `ConfigurationError`.
    """
    agent = given.get("agent")
    if agent is None and not {"endpoint", "auth"} & given.keys():
        agent = environ.get(VARIABLE, "").strip() or None
    if agent is None:
        return {**given, "agent": None}
    path = _plain_path(agent)
    if path is None:
        return dict(given)  # its rule says what it must be
    hop = Hop.from_file(path)
    found = {**NEARBY, **given, "agent": agent}
    for name, variable in (("spool", "ADP_ASYNC_SPOOL"), ("linger", "ADP_ASYNC_LINGER")):
        if name not in given and environ.get(variable, "").strip():
            del found[name]  # which is read from there
    for name, variable in (("platform_id", "AIDP_INSTANCE_ID"), ("workspace", "AIDP_WORKSPACE")):
        wanted = given.get(name) or environ.get(variable, "").strip() or None
        theirs = getattr(hop, name)
        if wanted is not None and not isinstance(wanted, str):
            continue  # its rule says what it must be
        if wanted is not None and str.__ne__(wanted, theirs):
            problem = f"the agent is for the {name} {theirs!r:.200}, not {shown(wanted)}"
            fix = "Start another agent for that."
            raise misconfigured("agent", problem, looked="its handle", fix=fix)
        found[name] = theirs
    return {**found, "endpoint": hop.base_url, "path_prefix": "", "auth": Unsigned()}


def _plain_path(value: object) -> str | None:
    """A path as a plain, non-empty str; None for anything else, whatever it pretends to be."""
    try:
        path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    except Exception:  # of a class that is not ours
        return None
    return str.__str__(path) or None if isinstance(path, str) else None
