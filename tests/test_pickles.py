"""Pickles of runs: no secret is in them, and what arrives shares one session a process."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from typing import TYPE_CHECKING, Any

import oci
import pytest
from attrs import define
from children import points, start
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import adp_async.blocking
from adp_async._shared_sessions import SharedSessions
from adp_async.address import RunAddress, address_of
from adp_async.auth import (
    ApiKey,
    Auth,
    CustomSigner,
    DelegationToken,
    InstancePrincipal,
    ResourcePrincipal,
    SessionToken,
    WorkloadIdentity,
)
from adp_async.blocking import _session_of
from adp_async.errors import ConfigurationError
from adp_async.integrations._shared import TrackedRun
from adp_async.settings import Settings
from adp_async.testing import PLATFORM_ID, FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adp_async.local import LocalPlatform

KEY = rsa.generate_private_key(65537, 1024)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
OWNER = {"tenancy": "ocid1.tenancy.oc1..a", "user": "ocid1.user.oc1..b"}
FINGERPRINT = ":".join(["a1"] * 16)
SECRET = "hidden-word"


def signer_of_oci() -> Any:
    return oci.signer.Signer(*OWNER.values(), FINGERPRINT, None, private_key_content=PEM)


class Wrapping:
    """A signer of one's own around one of oci's."""

    def __init__(self) -> None:
        self.theirs = signer_of_oci()

    def __call__(self, request: object) -> None:
        self.theirs(request)


class WithAKey:
    """A signer of one's own that keeps a key, and can be pickled."""

    def __init__(self) -> None:
        self.key = KEY

    def __call__(self, request: object) -> None: ...


SECRETS: dict[str, tuple[Callable[[], Auth], str]] = {
    "key_content": (
        lambda: ApiKey(key_content=PEM, fingerprint=FINGERPRINT, **OWNER),
        "ApiKey(key_content=...)",
    ),
    "passphrase": (lambda: ApiKey(passphrase=SECRET), "ApiKey(passphrase=...)"),
    "session passphrase": (lambda: SessionToken(passphrase=SECRET), "SessionToken(passphrase=...)"),
    "delegation token": (lambda: DelegationToken(SECRET), "DelegationToken(token=...)"),
    "signer of oci": (lambda: CustomSigner(signer_of_oci()), "the key of a Signer"),
    "around one": (lambda: CustomSigner(Wrapping()), "the key of a Wrapping"),
    "with a key": (lambda: CustomSigner(WithAKey()), "the key of a WithAKey"),
}


def settings_with(auth: Auth) -> Settings:
    return Settings.resolve({"platform_id": PLATFORM_ID, "workspace": "w", "auth": auth}, {})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_refused(name: str, protocol: int) -> None:
    """The error names the argument and the way out, and nothing of the secret."""
    make, told = SECRETS[name]
    auth = make()
    settings = settings_with(auth)

    for each in (auth, settings, RunAddress("r", settings), {"nested": [settings]}):
        with pytest.raises(ConfigurationError) as raised:
            pickle.dumps(each, protocol)
        message = str(raised.value)
        assert message.startswith(f"auth: {told} is a secret")
        assert "profile" in message
        assert "key_file" in message
        assert SECRET not in message
        assert PEM.splitlines()[3] not in message


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config file whose profile has all that a session needs, a session token included."""
    (tmp_path / "key.pem").write_text(PEM)
    (tmp_path / "token").write_text("token")
    lines = [f"{name}={value}" for name, value in OWNER.items()]
    lines += [f"fingerprint={FINGERPRINT}", f"key_file={tmp_path / 'key.pem'}"]
    lines += [f"security_token_file={tmp_path / 'token'}"]
    (tmp_path / "config").write_text("\n".join(["[DEFAULT]", *lines]))
    monkeypatch.setenv("OCI_CONFIG_FILE", str(tmp_path / "config"))


#: A delegation token opens a session on an instance of OCI's only.
@pytest.mark.parametrize("name", sorted(SECRETS.keys() - {"delegation token"}))
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.usefixtures("profile")
def test_runs_are_refused_too(name: str, strict: bool) -> None:
    """On either face, lenient, attached, or held by what a framework's callback holds."""
    with FakeBlockingSession(auth=SECRETS[name][0]()) as session:
        run = session.start_run(strict=strict)
        attached = session.attach_run(run.run_id, strict=strict)
        tracked = TrackedRun(None, run=run, knobs={})
        for each in (run, run._run, attached, address_of(run), tracked):
            with pytest.raises(ConfigurationError, match="secrets never travel in a pickle"):
                pickle.dumps(each)
            assert copy.copy(each) == each
        assert copy.deepcopy([run, attached]) == [run, attached]


@pytest.mark.parametrize("name", SECRETS)
def test_copies_in_this_process(name: str) -> None:
    """They go nowhere: copying settings and addresses works as before."""
    address = RunAddress("r", settings_with(SECRETS[name][0]()))

    for copied in (copy.copy(address), copy.deepcopy(address), copy.deepcopy([address])[0]):
        assert copied == address
        assert copied.settings.auth is address.settings.auth


@pytest.mark.parametrize(
    "auth",
    [
        ApiKey(),
        ApiKey("~/.oci/config", "TRAINING", fingerprint=FINGERPRINT, key_file="k.pem", **OWNER),
        SessionToken("config", "P"),
        InstancePrincipal(),
        DelegationToken(profile="P"),
        ResourcePrincipal(),
        WorkloadIdentity(),
    ],
    ids=repr,
)
def test_what_says_where_the_credentials_are_travels(auth: Auth) -> None:
    """Files, profiles and principals are found by the process it arrives in."""
    address = RunAddress("r", settings_with(auth))

    assert pickle.loads(pickle.dumps(address)) == address


def test_secrets_of_the_environment_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read when the session opens, and are part of no setting."""
    monkeypatch.setenv("OCI_CLI_KEY_CONTENT", PEM)
    monkeypatch.setenv("OCI_CLI_PASSPHRASE", SECRET)

    pickled = pickle.dumps(settings_with(ApiKey()))

    assert SECRET.encode() not in pickled
    assert PEM.splitlines()[3].encode() not in pickled


# One session a process ----------------------------------------------------------------------------


class Plain:
    """A signer that can be pickled, and is equal to itself alone."""

    def __init__(self) -> None:
        self.name = "mine"

    def __call__(self, request: object) -> None: ...


@define
class Comparing:
    """A signer with an ``__eq__``, and so without a hash."""

    name: str = "mine"

    def __call__(self, request: object) -> None: ...


def by_reference(request: object) -> None: ...


@pytest.mark.parametrize("signer", [Plain(), Comparing(), by_reference, Plain().__call__])
def test_fifty_tasks_share_a_session(signer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the signer, and whether the run is pickled once or anew for each task."""
    opened: list[FakeBlockingSession] = []

    def session(**settings: Any) -> FakeBlockingSession:
        opened.append(FakeBlockingSession(auth=settings["auth"]))
        return opened[-1]

    monkeypatch.setattr(adp_async.blocking, "Session", session)
    monkeypatch.setattr(adp_async.blocking, "_shared", SharedSessions(_session_of))
    monkeypatch.setattr(adp_async.auth._base, "_known", {})  # as in another process
    with FakeBlockingSession(auth=signer) as parents:
        run = parents.start_run()
        once = pickle.dumps(run)
        pickles = [once] * 25 + [pickle.dumps(run) for _ in range(25)]
        monkeypatch.setattr(adp_async.auth._base, "_known", {})
        arrived = [pickle.loads(each) for each in pickles]
        again = pickle.loads(pickle.dumps(arrived[-1]))
    assert len(opened) == 1
    assert {each.run_id for each in [*arrived, again]} == {run.run_id}
    opened[0].close()


def test_signers_that_were_pickled_are_not_kept() -> None:
    """A driver pickles a signer for each of its jobs, and lives longer than they do."""
    before = len(adp_async.auth._base._known)
    for _ in range(10):
        signer = CustomSigner(Plain())
        assert pickle.loads(pickle.dumps(signer)) is signer
        del signer
    gc.collect()
    assert len(adp_async.auth._base._known) <= before


def test_two_signers_have_two_sessions() -> None:
    """What was built separately is not mistaken for one."""
    first, second = (settings_with(CustomSigner(Plain())) for _ in range(2))

    arrived = [pickle.loads(pickle.dumps(each)) for each in (first, second, first)]

    assert arrived[0] == arrived[2] == first != second == arrived[1]
    assert len({*arrived, first, second}) == 2


TASKS = """
    import json, multiprocessing, os, sys, threading
    from adp_async import ApiKey, Session, blocking
    from adp_async._shared_sessions import SharedSessions

    class Own:
        '''Signs with the key that each process finds for itself.'''

        def __init__(self):
            self.signer = None

        def __call__(self, request):
            self.signer = self.signer or ApiKey().load()
            self.signer(request)

        def __getstate__(self):
            return {"signer": None}

    def task(given):
        run, number = given
        with run:
            run.log_metric("loss", 0.5, step=number)
        threads = [each.name for each in threading.enumerate()]
        return os.getpid(), len(blocking._shared._sessions), len(threads)

    if __name__ == "__main__":
        with blocking.Session(auth=Own()) as session:
            run = session.attach_run(sys.argv[1])
            context = multiprocessing.get_context("spawn")
            with context.Pool(2) as pool:
                found = pool.map(task, [(run, number) for number in range(50)], chunksize=1)
        print(json.dumps(found))
"""


async def test_fifty_real_tasks(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """In two workers: two sessions, the threads of one each, and every point."""
    run_id = bare_platform.gateway.add_run()

    child = await start(bare_platform, tmp_path, TASKS, run_id)
    found = json.loads(await child.ends_well(120))

    assert len(found) == 50
    assert len({pid for pid, _, _ in found}) <= 2
    assert {sessions for _, sessions, _ in found} == {1}
    assert max(threads for _, _, threads in found) <= 8
    assert sorted(points(bare_platform.gateway, run_id)["loss"]) == list(range(50))
