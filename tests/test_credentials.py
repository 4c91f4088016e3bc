"""Credentials and clocks that fail while a session logs: it holds, resumes, and loses nothing."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field

from adp_async._sansio.retry import RetryPolicy
from adp_async.auth import CustomSigner, SessionToken
from adp_async.errors import NotAuthenticated
from adp_async.local import Fault
from adp_async.local.identity import make_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from adp_async.local import Gateway, LocalPlatform, SessionProfile
    from adp_async.run import Run

KNOBS: dict[str, Any] = {
    "linger": 0.01,
    "close_timeout": 5.0,
    "retry": RetryPolicy(first_backoff=0.01, max_backoff=0.03),
}


#: Nothing leaves before a flush, however slowly it is logged.
ONE_BATCH = {"linger": 60.0}


@pytest.fixture
def gateway(bare_platform: LocalPlatform) -> Gateway:
    return bare_platform.gateway


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the other side is a server, not an event
            await asyncio.sleep(0.005)


def log_steps(run: Run, first: int, last: int) -> None:
    for step in range(first, last):
        run.log_metric("loss", step / 2, step=step)
    run.set_tag("last", last)


def steps_at(gateway: Gateway, run_id: str) -> list[int]:
    return [metric.step for metric in gateway.received(run_id).metrics]


async def holds_and_resumes(run: Run, gateway: Gateway, *, spoil: Any, mend: Any) -> None:
    """The test of each case: log before, during and after the trouble; everything is there once."""
    log_steps(run, 0, 10)
    await run.flush()
    spoil()
    log_steps(run, 10, 20)
    await until(lambda: run.stats().retries >= 3)
    log_steps(run, 20, 30)
    assert (run.stats().delivered, run.stats().rejected) == (11, {}), "held, not given up"
    mend()
    async with asyncio.timeout(60):
        await run.flush()
    log_steps(run, 30, 40)
    await run.flush()
    assert sorted(steps_at(gateway, run.run_id)) == list(range(40))
    assert dict(gateway.received(run.run_id).tags)["last"] == "40"


# A session token ----------------------------------------------------------------------------------


@pytest.fixture
def profile(bare_platform: LocalPlatform) -> SessionProfile:
    return bare_platform.add_session_profile()


def auth_of(profile: SessionProfile) -> SessionToken:
    return SessionToken(config_file=profile.config_file, profile=profile.profile)


@pytest.mark.parametrize("new_key", [False, True], ids=["refreshed", "signed in anew"])
async def test_a_session_token_expires(
    bare_platform: LocalPlatform,
    gateway: Gateway,
    profile: SessionProfile,
    caplog: pytest.LogCaptureFixture,
    new_key: bool,
) -> None:
    """Records wait until the token is renewed on disk; a warning says what to look at."""
    async with bare_platform.session(**KNOBS, auth=auth_of(profile)) as session:
        run = session.attach_run(gateway.add_run())
        await holds_and_resumes(
            run, gateway, spoil=profile.expire, mend=lambda: profile.renew(new_key=new_key)
        )
    warnings = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    trouble, all_clear = warnings
    assert "check the credentials" in trouble
    assert all_clear == "batches are delivered again"


async def test_a_direct_call_meanwhile(
    bare_platform: LocalPlatform, gateway: Gateway, profile: SessionProfile
) -> None:
    """With an expired token a call fails at once; after the renewal the same session works."""
    async with bare_platform.session(**KNOBS, auth=auth_of(profile)) as session:
        run_id = gateway.add_run()
        profile.expire()
        with pytest.raises(NotAuthenticated):
            await session.runs.get(run_id)
        profile.renew()
        assert (await session.runs.get(run_id)).info.run_id == run_id


async def test_a_token_file_that_is_gone_for_a_while(
    bare_platform: LocalPlatform, gateway: Gateway, profile: SessionProfile
) -> None:
    """A sign-in that deletes the file before it writes the new one costs time and no record."""

    def spoil() -> None:
        profile.expire()
        profile.token_file.unlink()

    async with bare_platform.session(**KNOBS, auth=auth_of(profile)) as session:
        run = session.attach_run(gateway.add_run())
        await holds_and_resumes(run, gateway, spoil=spoil, mend=profile.renew)


@pytest.mark.usefixtures("patient_end")
async def test_left_with_an_expired_token(
    bare_platform: LocalPlatform, gateway: Gateway, profile: SessionProfile
) -> None:
    """What could not be sent before the end is on disk, and goes with the next session's token."""
    knobs = KNOBS | {"auth": auth_of(profile), "close_timeout": 0.05}
    async with bare_platform.session(**knobs) as session:
        run = session.attach_run(gateway.add_run())
        profile.expire()
        log_steps(run, 0, 10)
    assert steps_at(gateway, run.run_id) == []
    profile.renew()
    async with bare_platform.session(**KNOBS, auth=auth_of(profile)) as session:
        await until(lambda: len(gateway.received(run.run_id).tags) > 0)
    assert steps_at(gateway, run.run_id) == list(range(10))


# Credentials that are renewed when they are told to -----------------------------------------------


@define(eq=False, slots=False)
class ResourcePrincipal:
    """Signs as a resource principal does: with a token that is only renewed on demand.

    *failures*: how many renewals fail yet, as with a metadata service that is down.
    """

    platform: LocalPlatform = field(repr=False)
    key: RSAPrivateKey = field(repr=False)
    failures: int = 0
    seconds: float = 0.0
    refreshes: int = 0
    _key_id: str = field(default="", repr=False)
    _signer: Any = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        self._renew()

    def __call__(self, request: Any) -> None:
        self._signer(request)

    def refresh_security_token(self) -> None:
        time.sleep(self.seconds)
        self.refreshes += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the metadata service is down")
        self._renew()

    def expire(self) -> None:
        self.platform.gateway.verifier.forget(self._key_id)

    def _renew(self) -> None:
        from oci.auth.signers import SecurityTokenSigner

        token = make_token("resource", time.time() + 3600)
        self._key_id = f"ST${token}"
        self.platform.gateway.verifier.register(self._key_id, self.key.public_key())
        self._signer = SecurityTokenSigner(token, self.key)


@pytest.fixture
def signer(bare_platform: LocalPlatform, api_key: RSAPrivateKey) -> ResourcePrincipal:
    return ResourcePrincipal(bare_platform, api_key)


async def test_a_principal_is_refreshed(
    bare_platform: LocalPlatform, gateway: Gateway, signer: ResourcePrincipal
) -> None:
    """A token that ran out is renewed after the 401, once for all runs, and nobody waits."""
    signer.seconds = 0.03
    async with bare_platform.session(**KNOBS, auth=CustomSigner(signer)) as session:
        runs = [session.attach_run(gateway.add_run()) for _ in range(4)]
        signer.expire()
        for run in runs:
            log_steps(run, 0, 10)
        await session.logger.flush()
        assert session.logger.stats().retries == 0
        assert signer.refreshes == 1
    assert all(steps_at(gateway, run.run_id) == list(range(10)) for run in runs)


async def test_a_refresh_that_fails_at_first(
    bare_platform: LocalPlatform,
    gateway: Gateway,
    signer: ResourcePrincipal,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the metadata service is down records wait; a direct call says what failed."""

    def spoil() -> None:
        signer.expire()
        signer.failures = 10_000

    def mend() -> None:
        signer.failures = 0

    async with bare_platform.session(**KNOBS, auth=CustomSigner(signer)) as session:
        run = session.attach_run(gateway.add_run())
        await holds_and_resumes(run, gateway, spoil=spoil, mend=mend)
        spoil()
        with pytest.raises(NotAuthenticated, match="ConnectionError") as caught:
            await session.runs.get(run.run_id)
        assert caught.value.__cause__ is None
        mend()
        await session.runs.get(run.run_id)
    assert "ST$" not in caplog.text


async def test_the_loop_goes_on_during_a_refresh(
    bare_platform: LocalPlatform, gateway: Gateway, signer: ResourcePrincipal
) -> None:
    """A refresh that takes its time holds the requests back, and no event loop."""
    begun, seen = threading.Event(), threading.Event()
    renew, went_on = signer.refresh_security_token, []

    def refresh() -> None:
        begun.set()
        went_on.append(seen.wait(20))
        renew()

    async with bare_platform.session(**KNOBS, auth=CustomSigner(signer)) as session:
        signer.refresh_security_token = refresh  # type: ignore[method-assign]
        run = session.attach_run(gateway.add_run())
        signer.expire()
        flush = asyncio.create_task(log_and_flush(run))
        await until(begun.is_set)
        assert session._engine.thread is not None
        await session._engine.thread.run(asyncio.sleep(0))
        seen.set()
        await flush
    assert went_on == [True]
    assert signer.refreshes == 1


async def log_and_flush(run: Run) -> None:
    log_steps(run, 0, 10)
    await run.flush()


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_refused_for_a_while(
    bare_platform: LocalPlatform, gateway: Gateway, status: int
) -> None:
    """A policy that was taken away and given back: nothing is given up in between."""
    async with bare_platform.session(**KNOBS) as session:
        run = session.attach_run(gateway.add_run())
        refusal = Fault.reply(status, "NotAuthorizedOrNotFound")
        await holds_and_resumes(
            run,
            gateway,
            spoil=lambda: gateway.inject(refusal, times=None),
            mend=gateway.clear_faults,
        )


# Clocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1200.0, -1200.0], ids=["slow", "fast"])
async def test_a_clock_20_minutes_off(
    bare_platform: LocalPlatform, gateway: Gateway, offset: float
) -> None:
    """From the first 401 on the service's clock is used: no batch is sent more than twice."""
    gateway.clock_offset = offset
    async with bare_platform.session(**KNOBS | ONE_BATCH) as session:
        run = session.attach_run(gateway.add_run())
        log_steps(run, 0, 10)
        await run.flush()
        log_steps(run, 10, 20)
        await run.flush()
        assert session.logger.stats().retries == 0
    assert steps_at(gateway, run.run_id) == list(range(20))
    assert gateway.counts.by_status[401] == 1


async def test_a_clock_that_jumps_and_is_set_right(
    bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """Each jump of the clock costs one 401; direct calls and batches go on."""
    async with bare_platform.session(**KNOBS | ONE_BATCH) as session:
        run = session.attach_run(gateway.add_run())
        for turn, offset in enumerate([0.0, 1200.0, 0.0, -1200.0, 0.0]):
            gateway.clock_offset = offset
            log_steps(run, 10 * turn, 10 * turn + 10)
            await asyncio.gather(run.flush(), session.runs.get(run.run_id))
        assert session.logger.stats().retries == 0
    assert steps_at(gateway, run.run_id) == list(range(50))
    assert 4 <= gateway.counts.by_status[401] <= 8


async def test_a_wrong_clock_and_an_expired_token(
    bare_platform: LocalPlatform, gateway: Gateway, signer: ResourcePrincipal
) -> None:
    """Both at once, where one 401 hides the other, are mended within one attempt."""
    async with bare_platform.session(**KNOBS, auth=CustomSigner(signer)) as session:
        run = session.attach_run(gateway.add_run())
        signer.expire()
        gateway.clock_offset = 1200.0
        log_steps(run, 0, 10)
        await run.flush()
        assert session.logger.stats().retries == 0
    assert steps_at(gateway, run.run_id) == list(range(10))


async def test_timestamps_are_the_callers(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """The correction is for the signature alone: points keep the time of this machine's clock."""
    gateway.clock_offset = 1200.0
    async with bare_platform.session(**KNOBS) as session:
        run = session.attach_run(gateway.add_run())
        before = time.time_ns() // 1_000_000
        await run.log_metric("loss", 1.0)
        run.log_metric("loss", 1.0, step=1)
        await run.flush()
    stamps = [metric.timestamp for metric in gateway.received(run.run_id).metrics]
    assert all(before <= stamp <= before + 60_000 for stamp in stamps)
