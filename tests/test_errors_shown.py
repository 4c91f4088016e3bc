"""What an error looks like where it is raised: few frames of ours, and nothing chained."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from children import until
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)

import adp_async
from adp_async import (
    AdpError,
    ApiKey,
    BadRequest,
    Closed,
    ConfigurationError,
    DeliveryError,
    InvalidRecord,
    NotFound,
    Session,
    blocking,
)
from adp_async.testing import PLATFORM_ID, FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OURS = str(Path(adp_async.__file__).parent)
REFUSAL = {"error_code": "INVALID_PARAMETER_VALUE", "message": "not this one"}


def shown(error: BaseException) -> str:
    """The traceback, which must be a single one, of at most four frames of ours."""
    text = "".join(traceback.format_exception(error))
    ours = [each for each in traceback.extract_tb(error.__traceback__) if OURS in each.filename]
    names = [f"{Path(each.filename).name}: {each.name}" for each in ours]
    assert len(names) <= 4, names
    assert text.count("Traceback (most recent call last)") == 1, text
    return text


async def _all(listing: Any) -> list[Any]:
    return [each async for each in listing]


async def _refused_flush(session: FakeSession) -> None:
    session.answer("log_experiment_run_batch", REFUSAL, status=400)
    run = session.attach_run(session.add_run())
    run.log_param("lr", 2)
    await run.flush()


async def _refused_receipt(session: FakeSession) -> None:
    session.answer("log_experiment_run_batch", REFUSAL, status=400)
    await session.attach_run(session.add_run()).log_param("lr", 2)


async def _refused_exit(session: FakeSession) -> None:
    session.answer("log_experiment_run_batch", REFUSAL, status=400)
    async with session.start_run() as run:
        run.log_param("lr", 2)


async def _refused_finish(session: FakeSession) -> None:
    run = await session.start_run()
    session.answer("update_experiment_run", REFUSAL, status=400)
    await run.finish()


async def _closed(session: FakeSession) -> None:
    await session.close()
    await session.runs.get("7")


async def _log_when_closed(session: FakeSession) -> None:
    run = session.attach_run("7")
    await session.close()
    run.log_metric("loss", 0.5)


async def _refused_close(session: FakeSession) -> None:
    session.answer("log_experiment_run_batch", REFUSAL, status=400)
    session.attach_run(session.add_run()).log_param("lr", 2)
    await session.close()


async def _log(session: FakeSession, name: str, *arguments: Any) -> None:
    getattr(session.attach_run("7"), name)(*arguments)


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [
        (lambda s: _log(s, "log_metric", "a\nb", 1), InvalidRecord),
        (lambda s: _log(s, "log_metric", "loss", None), InvalidRecord),
        (lambda s: _log(s, "log_metric", "loss", 1.0, 0.5), InvalidRecord),
        (lambda s: _log(s, "log_metrics", {"loss": "x"}), InvalidRecord),
        (lambda s: _log(s, "log_metrics", "loss", 0.5), TypeError),
        (lambda s: _log(s, "log_param", "", 1), InvalidRecord),
        (lambda s: _log(s, "log_text", "x", "../a"), ValueError),
        (lambda s: _log(s, "log_artifact", "/nowhere/to/be/found"), FileNotFoundError),
        (lambda s: s.runs.get("nope"), NotFound),
        (lambda s: s.runs.get(object()), TypeError),
        (lambda s: s.experiments.get_by_name("nope"), NotFound),
        (lambda s: _all(s.attach_run("nope").history("loss")), NotFound),
        (lambda s: s.attach_run("nope").history("loss").to_list(), NotFound),
        (lambda s: s.attach_run("nope").history("loss").first(), NotFound),
        (lambda s: s.attach_run("nope").history("loss").to_pandas(), NotFound),
        (lambda s: s.start_run(experiment_id="77").__aenter__(), NotFound),
        (lambda s: s.attach_run("nope", resume=True).__aenter__(), NotFound),
        (lambda s: s.attach_run("7").finish("RUNNING"), ValueError),
        (_refused_flush, DeliveryError),
        (_refused_receipt, DeliveryError),
        (_refused_exit, DeliveryError),
        (_refused_finish, BadRequest),
        (_refused_close, DeliveryError),
        (_closed, Closed),
        (_log_when_closed, Closed),
    ],
)
async def test_mistakes_of_asynchronous_code(
    mistake: Callable[[FakeSession], Awaitable[Any]], kind: type[Exception]
) -> None:
    """At most four frames of ours stand between the caller's line and the error."""
    session = await FakeSession(linger=0.0).open()
    session.answer("get_experiment_run_metric_history", {"error_code": "X"}, status=404)
    try:
        with pytest.raises(kind) as caught:
            await mistake(session)
        assert type(caught.value) is kind
        shown(caught.value)
    finally:
        session.logger._delivery.accumulator.rejections.take(None)
        await session.close()


def _blocking_flush(session: FakeBlockingSession) -> None:
    run = session.start_run()
    session.session.answer("log_experiment_run_batch", REFUSAL, status=400)
    run.log_param("lr", 2)
    run.flush()


def _blocking_flush_in_vain(session: FakeBlockingSession) -> None:
    script = session.session.answer("log_experiment_run_batch", status=503)
    run = session.start_run()
    run.log_metric("loss", 0.5)
    try:
        run.flush(0.02)
    finally:
        script.left = 0


def _blocking_exit(session: FakeBlockingSession) -> None:
    with session.start_run() as run:
        session.session.answer("log_experiment_run_batch", REFUSAL, status=400)
        run.log_param("lr", 2)


def _blocking_receipt(session: FakeBlockingSession) -> None:
    run = session.start_run()
    session.session.answer("log_experiment_run_batch", REFUSAL, status=400)
    run.log_param("lr", 2).wait(10)


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [
        (lambda s: s.runs.get("nope"), NotFound),
        (lambda s: list(s.attach_run("nope").history("loss")), NotFound),
        (lambda s: s.attach_run("nope").history("loss").to_list(), NotFound),
        (lambda s: s.attach_run("nope").history("loss").first(), NotFound),
        (lambda s: s.start_run(experiment_id="77"), NotFound),
        (lambda s: s.runs.search(filter="metrics.loss < 1"), TypeError),
        (lambda s: s.runs.search(experiment_names="digits"), TypeError),
        (lambda s: s.runs.get("7", experiment="digits"), TypeError),
        (_blocking_flush_in_vain, TimeoutError),
        (_blocking_flush, DeliveryError),
        (_blocking_exit, DeliveryError),
        (_blocking_receipt, DeliveryError),
    ],
)
def test_mistakes_of_blocking_code(
    mistake: Callable[[FakeBlockingSession], Any], kind: type[Exception]
) -> None:
    """The thread that waits for another one hides it."""
    session = FakeBlockingSession(linger=0.0).open()
    session.session.answer("get_experiment_run_metric_history", {"error_code": "X"}, status=404)
    try:
        with pytest.raises(kind) as caught:
            mistake(session)
        assert type(caught.value) is kind
        shown(caught.value)
    finally:
        session.session.logger._delivery.accumulator.rejections.take(None)
        session.close()


@pytest.mark.parametrize("make", [Session, blocking.Session, blocking.start_run])
@pytest.mark.parametrize(
    "wrong", [{"linger": "1 s"}, {"lingr": 1}, {"platform_id": "nonsense"}], ids=str
)
def test_mistakes_of_settings(make: Any, wrong: dict[str, Any]) -> None:
    """Neither attrs nor the rules of a setting are seen."""
    with pytest.raises((AdpError, TypeError)) as caught:
        make(**{"platform_id": PLATFORM_ID, **wrong})
    assert next(iter(wrong)) in shown(caught.value)


@pytest.mark.parametrize("key", ["missing", "encrypted", "public", "nonsense"])
def test_mistakes_of_keys(key: str, tmp_path: Path) -> None:
    """What the system and `cryptography` say is in the error, not in front of it."""
    pem = tmp_path / "key.pem"
    private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if key == "nonsense":
        pem.write_text("nonsense")
    elif key == "encrypted":
        locked = BestAvailableEncryption(b"secret")
        pem.write_bytes(
            private_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, locked)
        )
    elif key == "public":
        public = private_key.public_key()
        pem.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    auth = ApiKey(
        key_file=pem,
        user="ocid1.user.oc1..user",
        tenancy="ocid1.tenancy.oc1..tenancy",
        fingerprint=":".join(["aa"] * 16),
    )
    with pytest.raises(ConfigurationError, match=r"^key_file: ") as caught:
        blocking.Session(PLATFORM_ID, auth=auth, region="us-ashburn-1").open()
    shown(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (401, "NotAuthenticated", "whether key, fingerprint, token or clock is to blame"),
        (404, "NotAuthorizedOrNotFound", "`adp-async doctor` checks platform, workspace and reg"),
        (404, "RESOURCE_DOES_NOT_EXIST", ""),
    ],
)
async def test_what_has_many_causes_comes_with_advice(status: int, code: str, advice: str) -> None:
    """A note names the command that finds out; the service's words alone would not help."""
    async with FakeSession() as session:
        reply = {"code": code, "message": "no"}
        session.answer("get_experiment_run_by_id", reply, status=status)
        with pytest.raises(AdpError) as caught:
            await session.runs.get("7")
        assert advice in "".join(getattr(caught.value, "__notes__", ()))
        assert bool(advice) is hasattr(caught.value, "__notes__")


async def test_what_records_wait_for_is_a_cause_without_frames() -> None:
    """The error that holds them is told with the one that is raised, in a line."""
    session = await FakeSession(linger=0.0, close_timeout=0.3, spool=False).open()
    session.answer("log_experiment_run_batch", REFUSAL, status=503)
    session.attach_run(session.add_run()).log_metric("loss", 0.5)
    await until(lambda: session.health().status == "failing")
    with pytest.raises(AdpError) as caught:
        await session.close()

    text = "".join(traceback.format_exception(caught.value))
    assert "ServiceFault" in text
    assert text.count("Traceback (most recent call last)") == 1
