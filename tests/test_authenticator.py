"""The one thread that signs: renewing once for all, the clock, and what goes wrong meanwhile."""

import asyncio
import concurrent.futures
import logging
import threading

import oci.auth.signers
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from adp_async._io import worker
from adp_async._io.authenticator import Authenticator
from adp_async._sansio.messages import Request
from adp_async._sansio.signing import http_date
from adp_async.auth import Auth, CustomSigner
from adp_async.errors import Closed, ConfigurationError, NotAuthenticated

REQUEST = Request("POST", "https://aidp.example.com/a", body=b"{}", operation="update_run")
NOW = 1388957500.0
REFUSED = NotAuthenticated("no", status=401, code="NotAuthenticated", request_id="id")


class Credentials:
    """A signer that records its calls, and that none overlap."""

    def __init__(self) -> None:
        self.token = 1
        self.refreshes = 0
        self.threads: set[threading.Thread] = set()
        self.busy = threading.Lock()
        self.failure = None
        self.gate = threading.Event()
        self.gate.set()
        self.is_refreshing = threading.Event()

    def __call__(self, request) -> None:
        self.threads.add(threading.current_thread())
        with self._alone():
            request.headers["authorization"] = f"token {self.token}"

    def do_request_sign(self, request) -> None:
        raise AssertionError("this would skip the renewal of instance principals")

    def refresh_security_token(self) -> None:
        self.threads.add(threading.current_thread())
        with self._alone():
            self.refreshes += 1
            self.is_refreshing.set()
            assert self.gate.wait(60)
            if self.failure is not None:
                raise self.failure
            self.token += 1

    def _alone(self):
        assert self.busy.acquire(blocking=False), "signing and refreshing overlap"
        self.busy.release()
        return self.busy


@pytest.fixture
def credentials():
    return Credentials()


@pytest.fixture
async def authenticator(credentials):
    authenticator = Authenticator(CustomSigner(credentials), clock=lambda: NOW)
    await authenticator.open()
    yield authenticator
    await authenticator.close()


async def recover(authenticator, generation=0, date=None):
    return await authenticator.recover(REFUSED, generation=generation, server_date=date)


async def test_signing(authenticator):
    """A signed request has a date, a host, a length and the signer's word."""
    signed = await authenticator.sign(REQUEST)

    assert signed.headers == {
        "date": http_date(NOW),
        "host": "aidp.example.com",
        "content-length": "2",
        "content-type": "application/json",
        "authorization": "token 1",
    }
    assert (signed.url, signed.body) == (REQUEST.url, REQUEST.body)


async def test_all_of_it_happens_in_one_thread(authenticator, credentials):
    """Traps 3 and 4: the signer itself is called, off the loop, and never while it refreshes."""
    calls = [authenticator.sign(REQUEST) for _ in range(50)]
    calls[10:10] = [recover(authenticator)]
    calls[40:40] = [recover(authenticator)]

    await asyncio.gather(*calls)

    assert [thread.name for thread in credentials.threads] == ["adp_async signer"]


async def test_what_only_computes_signs_in_two_threads():
    """Two signatures of an API key are made at once, and closing ends both threads."""
    meeting = threading.Barrier(2, timeout=30)
    threads = set()

    class Computing(Auth):
        only_computes = True

        def load(self):
            return self.sign

        def sign(self, request):
            threads.add(threading.current_thread())
            meeting.wait()

    authenticator = Authenticator(Computing())
    await authenticator.open()
    await asyncio.gather(authenticator.sign(REQUEST), authenticator.sign(REQUEST))
    await authenticator.close()

    assert [thread.name for thread in threads] == ["adp_async signer"] * 2
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("is_quick", "alone", "body_bytes", "where"),
    [
        (True, True, 16 * 1024, "MainThread"),
        (True, True, 16 * 1024 + 1, "adp_async signer"),
        (True, False, 2, "adp_async signer"),
        (False, True, 2, "adp_async signer"),
    ],
)
async def test_a_quick_signature_for_one_who_is_alone(is_quick, alone, body_bytes, where):
    """Only a small request that nothing else competes with is signed on the event loop."""
    threads = []

    class Quick(Auth):
        def load(self):
            return lambda _request: threads.append(threading.current_thread().name)

        def is_quick(self, signer):
            return is_quick

    authenticator = Authenticator(Quick())
    await authenticator.open()
    await authenticator.sign(Request("POST", REQUEST.url, body=bytes(body_bytes)), alone=alone)
    await authenticator.close()

    assert threads == [where]


async def test_one_refresh_for_all_who_wait(authenticator, credentials):
    """A hundred refused requests lead to one refresh, and each tries again."""
    assert await asyncio.gather(*(recover(authenticator) for _ in range(100))) == [True] * 100

    assert credentials.refreshes == 1
    assert authenticator.generation == 1
    assert (await authenticator.sign(REQUEST)).headers["authorization"] == "token 2"


async def test_who_comes_late_just_tries_again(authenticator, credentials):
    """A 401 for something signed before the refresh leads to no other one."""
    before = authenticator.generation
    await recover(authenticator, before)

    assert await recover(authenticator, before)
    assert credentials.refreshes == 1
    assert await recover(authenticator, authenticator.generation)
    assert credentials.refreshes == 2


async def test_a_signer_that_cannot_be_renewed():
    """An API key that was refused is not tried again."""
    authenticator = Authenticator(CustomSigner(lambda request: request))
    await authenticator.open()

    assert await recover(authenticator) is False
    assert authenticator.generation == 0
    await authenticator.close()


async def test_a_refresh_that_is_done_at_once(authenticator, credentials, monkeypatch):
    """The worker may be through before anybody looks: it counts all the same."""

    def submit(function):
        future = concurrent.futures.Future()
        future.set_result(function())
        return future

    monkeypatch.setattr(authenticator._worker, "submit", submit)
    assert await recover(authenticator) is True
    assert credentials.refreshes == 1


async def test_a_refresh_that_finds_nothing_new(authenticator, credentials):
    """A signer that answers False (a token file that hasn't changed) isn't worth another try."""
    credentials.refresh_security_token = lambda: False

    assert await recover(authenticator) is False
    assert authenticator.generation == 0


async def test_what_renews_itself_counts_too(authenticator, credentials):
    """A token that changed on disk while the request was out is worth another try as it is."""
    generation = authenticator.generation
    credentials.renewals = 1

    assert await recover(authenticator, generation)
    assert credentials.refreshes == 0


async def test_a_refresh_that_fails(authenticator, credentials):
    """Every waiter gets an error of its own, with the reason; the next 401 tries again."""
    credentials.failure = OSError("the metadata service is away")

    errors = await asyncio.gather(
        *(recover(authenticator) for _ in range(3)), return_exceptions=True
    )

    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert isinstance(error, NotAuthenticated)
        assert error.__cause__ is error.__context__ is None, "nothing of the signer is shown"
        assert (error.status, error.request_id) == (401, "id")
        assert error.message == "no; refreshing the credentials failed with OSError"
    assert credentials.refreshes == 1

    credentials.failure = None
    assert await recover(authenticator)
    assert (await authenticator.sign(REQUEST)).headers["authorization"] == "token 2"


async def test_a_cancelled_caller_takes_nobody_along(authenticator, credentials):
    """The refresh goes on for the others when the one who asked for it is cancelled."""
    credentials.gate.clear()
    first, second = (asyncio.create_task(recover(authenticator)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    credentials.gate.set()

    assert await second
    assert credentials.refreshes == 1


async def test_nobody_left_to_hear_of_a_failure(authenticator, credentials, caplog):
    """A refresh that fails when all callers are gone leaves no stray exception."""
    caplog.set_level(logging.DEBUG)
    credentials.failure = OSError("secret")
    credentials.gate.clear()
    only = asyncio.create_task(recover(authenticator))
    await asyncio.sleep(0)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only

    credentials.gate.set()
    await authenticator.run(int)

    assert "refreshing the credentials failed with OSError" in caplog.text
    assert "never retrieved" not in caplog.text
    assert "secret" not in caplog.text


async def test_a_cancelled_signature_is_not_made(authenticator, credentials):
    """Waiting requests that are cancelled cost nothing, and the rest is signed."""
    credentials.gate.clear()
    refreshing = asyncio.create_task(recover(authenticator))
    waiting = [asyncio.create_task(authenticator.sign(REQUEST)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    credentials.gate.set()

    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert [signed.headers["authorization"] for signed in results[1:]] == ["token 2"] * 2
    assert await refreshing


# The clock


async def test_a_wrong_clock(authenticator, credentials, caplog):
    """Twenty minutes off: every later date is the service's, and nothing is refreshed."""
    answers = await asyncio.gather(
        *(recover(authenticator, date=http_date(NOW + 1200)) for _ in range(5))
    )

    assert answers == [True] * 5
    assert authenticator.skew == 1200.0
    assert (await authenticator.sign(REQUEST)).headers["date"] == http_date(NOW + 1200)
    assert credentials.refreshes == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_clock_that_was_set_right(authenticator):
    """The correction goes when our own clock is right again."""
    await recover(authenticator, date=http_date(NOW + 1200))

    assert await recover(authenticator, authenticator.generation, http_date(NOW))
    assert authenticator.skew == 0.0


async def test_a_right_clock_is_no_excuse(authenticator, credentials):
    """With clocks that agree a 401 is about the credentials, and with no Date as well."""
    assert await recover(authenticator, date=http_date(NOW + 60))
    assert await recover(authenticator, 1, "nonsense")

    assert credentials.refreshes == 2
    assert authenticator.skew == 0.0


async def test_clock_first_credentials_next(authenticator, credentials):
    """When both are wrong, the second 401 leads to the refresh."""
    date = http_date(NOW + 1200)

    assert await recover(authenticator, 0, date)
    assert await recover(authenticator, 1, date)

    assert credentials.refreshes == 1


# Opening, failing, closing


class Broken(Auth):
    mode = "broken"

    def __init__(self) -> None:
        self.fixed = False

    def load(self):
        if not self.fixed:
            raise ConfigurationError("key_file: is missing")
        return Credentials()


async def test_a_signer_that_does_not_load():
    """Opening raises the configuration's error, and works once that is fixed."""
    auth = Broken()
    authenticator = Authenticator(auth)

    with pytest.raises(ConfigurationError, match="key_file: is missing"):
        await authenticator.open()
    with pytest.raises(Closed):
        await authenticator.sign(REQUEST)
    auth.fixed = True
    await authenticator.open()

    assert (await authenticator.sign(REQUEST)).headers["authorization"] == "token 1"
    await authenticator.close()


async def test_loading_is_off_the_loop():
    """The import of oci and the reading of files happen in the signer's thread."""
    threads = []

    class Watched(Auth):
        def load(self):
            threads.append(threading.current_thread().name)
            return Credentials()

    authenticator = Authenticator(Watched())
    await authenticator.open()
    await authenticator.open()
    await authenticator.close()

    assert threads == ["adp_async signer"]


async def test_the_region_of_the_credentials(credentials):
    """A principal's signer knows where it is."""
    credentials.region = "us-ashburn-1"
    authenticator = Authenticator(CustomSigner(credentials))

    await authenticator.open()

    assert authenticator.region == "us-ashburn-1"
    await authenticator.close()


async def test_a_signer_that_fails(authenticator, credentials):
    """It is NotAuthenticated, names the error's class and does not cause a refresh."""
    failure = ConnectionError("secret")

    def fail(request):
        raise failure

    authenticator._signer = fail
    with pytest.raises(
        NotAuthenticated, match=r"update_run: .*failed with ConnectionError"
    ) as raised:
        await authenticator.sign(REQUEST)

    assert raised.value.__cause__ is raised.value.__context__ is None
    assert "secret" not in str(raised.value)
    assert await authenticator.recover(raised.value, generation=0, server_date=None) is False
    assert credentials.refreshes == 0
    authenticator._signer = credentials
    assert await authenticator.sign(REQUEST)


async def test_closed(authenticator, credentials):
    """After closing nothing is signed; closing twice does no harm; opening again works."""
    await authenticator.close()
    await authenticator.close()

    with pytest.raises(Closed):
        await authenticator.sign(REQUEST)
    with pytest.raises(Closed):
        await recover(authenticator)
    await authenticator.open()
    assert await authenticator.sign(REQUEST)


async def test_closing_does_not_wait_for_a_refresh(authenticator, credentials):
    """A refresh that hangs is left behind in a thread that doesn't keep the process."""
    credentials.gate.clear()
    hanging = asyncio.create_task(recover(authenticator))
    assert await asyncio.to_thread(credentials.is_refreshing.wait, 30)

    async with asyncio.timeout(20):
        await authenticator.close()

    (thread,) = credentials.threads
    assert thread.daemon
    assert thread.is_alive()
    credentials.gate.set()
    assert await hanging


def test_a_loop_that_is_gone(credentials, caplog):
    """A refresh whose loop was closed meanwhile is dropped, and the thread goes on to its end."""
    authenticator = Authenticator(CustomSigner(credentials))
    credentials.gate.clear()

    async def leave_in_the_middle():
        await authenticator.open()
        task = asyncio.create_task(recover(authenticator))
        assert await asyncio.to_thread(credentials.is_refreshing.wait, 30)
        task.cancel()

    asyncio.run(leave_in_the_middle())
    (thread,) = credentials.threads
    credentials.gate.set()
    asyncio.run(authenticator.close())
    thread.join(30)

    assert not thread.is_alive()
    assert caplog.messages == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), SystemExit(2)], ids=repr)
def test_an_end_of_the_process_during_a_refresh(credentials, failure):
    """It is nobody's failed refresh and comes out as it is."""
    authenticator = Authenticator(CustomSigner(credentials))
    authenticator._signer = credentials
    credentials.failure = failure

    with pytest.raises(type(failure)) as raised:
        authenticator._refresh()

    assert raised.value is failure
    assert authenticator.generation == 0


async def test_in_a_forked_child(authenticator, monkeypatch):
    """The threads are the parent's: nothing is signed, instead of waited for for ever."""
    monkeypatch.setattr(worker.os, "getpid", lambda: -1)

    with pytest.raises(Closed, match="belongs to the parent process"):
        await authenticator.sign(REQUEST)


async def test_repr(authenticator):
    """It shows what helps in debugging."""
    assert repr(authenticator) == "<Authenticator custom signer | open | generation 0>"


# The signers of oci


class Federation:
    """Stands in for the federation client of instance principals."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        self.session_key_supplier = self
        self.asked = 0
        self.forced = 0

    def get_key_pair(self):
        return {"private": self.key}

    def get_security_token(self):
        self.asked += 1
        return f"token{self.asked}"

    def refresh_security_token(self):
        self.forced += 1


async def test_instance_principals_renew_in_every_call():
    """Trap 3: OCI's signer is asked for its token at each signature, and after a 401 by force."""
    federation = Federation()
    signer = oci.auth.signers.X509FederationClientBasedSecurityTokenSigner(federation)
    authenticator = Authenticator(CustomSigner(signer))
    await authenticator.open()

    keys = [(await authenticator.sign(REQUEST)).headers["authorization"] for _ in range(2)]
    assert await recover(authenticator)
    await authenticator.close()

    assert ['keyId="ST$token2"' in keys[0], 'keyId="ST$token3"' in keys[1]] == [True, True]
    assert federation.forced == 1


async def test_a_signature_that_failed_renews_nothing(authenticator, credentials):
    """Nobody has refused anything: a new token would not help, and might be asked for for ever."""
    error = NotAuthenticated("no", code="CannotSign")

    assert not await authenticator.recover(error, generation=0, server_date=None)
    assert credentials.refreshes == 0


async def test_two_corrections_in_a_row_are_taken_back_together(authenticator):
    """The last time that was known to be right is the one before both."""
    for ahead in (3600, 7200):
        generation = authenticator.generation
        assert await recover(authenticator, generation, http_date(NOW + ahead))
        assert authenticator.skew == ahead

    authenticator.refused(authenticator.skew)

    assert authenticator.skew == 0.0
