"""What is shown of texts from outside: printable, short, and without what was logged."""

from __future__ import annotations

import time
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adp_async._sansio.texts import first_words, printable, without_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


# printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("", ""),
        ("Zürich 東京 ✓", "Zürich 東京 ✓"),
        ("a\r\n\tb\x00c", "a b c"),
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("\x1b]0;title\x07rest\x9b2J", "]0;title rest 2J"),
        ("a\u202eb\u2066c\u200bd\u00ade\ufefff\u180eg", "a b c d e f g"),
        ("line\u2028end\u2029\x85x", "line end x"),
        ("half\ud83d an emoji\udc80", "half an emoji"),
        ("tag\U000e0041\U000e007fs", "tag s"),
        ("private\ue000 none\uffff", "private none"),
        ("  many   spaces\u3000\u00a0here ", "many spaces here"),
    ],
)
def test_only_what_can_be_seen_is_shown(text: str, shown: str) -> None:
    """Everything else becomes a space, and spaces become one."""
    assert printable(text) == shown


@given(st.text(alphabet=st.characters(codec=None), max_size=300), st.integers(1, 100))
def test_any_text_is_printable_and_short(text: str, limit: int) -> None:
    """In one line, of at most the limit, and cleaning it again changes nothing."""
    shown = printable(text, limit)

    assert len(shown) <= limit
    assert not {unicodedata.category(each) for each in shown} & UNSEEN
    assert printable(shown, limit).strip() == shown.strip()
    shown.encode()


# first words


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><title>Sign in</title><p class='x'>Who is it?</p>", "Sign in Who is it?"),
        (b"<SCRIPT>var a = '<p>';</Script >Hello<STYLE\n>p{}</style>!", "Hello !"),
        (b"<scripture>In the beginning</scripture>", "In the beginning"),
        (b"<!-- <p>not > this --><p>but this", "but this"),
        (b"<p>shown<!-- and never ended", "shown"),
        (b"<p>shown<script>never ended", "shown"),
        (b"a < b and b > c", "a c"),
        (b"3 < 5, said the teapot", "3 < 5, said the teapot"),
        (b"\xef\xbb\xbf<html>after a BOM", "after a BOM"),
        (b'{"detail":"no"}', '{"detail":"no"}'),
        (b'{"input":"hunter2","key":"lr"}', '{"input":...,"key":"lr"}'),
        (b"", ""),
    ],
)
def test_the_first_words_of_a_body(body: bytes, words: str) -> None:
    """As a person reads a page; text that only looks like markup stays."""
    assert first_words(body) == words


@pytest.mark.parametrize(
    "piece",
    [
        "<", "<script ", "<script>", "<style><", "<!--", "<a>", "</script>", "value='", 'value="',
        "value=[", "value '", "invalid value ", "invalid value [", "Got invalid value x for ",
        "got '", "Key (value", "Failing row contains (", "Duplicate entry '", "value ", "\\'",
        "value='a'b", "from String '", "invalid input syntax for ", '"input": {', "[parameters: (",
        "Param value 'x' had length ", "\x00", "\u2028", " ",
    ],
)  # fmt: skip
def test_reading_takes_time_in_proportion(piece: str) -> None:
    """60 kB of anything take some milliseconds; it was up to 170."""
    text = piece * (60_000 // len(piece))
    body = text.encode()

    started = time.thread_time()
    first_words(body)
    printable(without_values(text), 2_000)

    assert time.thread_time() - started < 0.05


# without values: the messages of the MLflow that is installed

SECRETS = [
    "hunter2",
    "it's hunter2",
    'say "hunter2"',
    "both ' and \" hunter2",
    "new\nline hunter2",
    "', 'new_value': 'hunter2",
    "x' for run ID='hunter2'. Attempted logging new value 'hunter2",
    "\\' hunter2 \\",
    "' had length 5, hunter2",
    "}]' hunter2",
    "ünï🎉 hunter2",
]


def message_of(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        call(*arguments, **named)
    return str(caught.value.message)


@pytest.mark.parametrize("secret", SECRETS)
def test_mlflow_refuses_a_value(secret: str) -> None:
    """Which parameter of which record, and the rule, are shown; the value is not."""
    validation = pytest.importorskip("mlflow.utils.validation")

    message = message_of(validation._validate_metric, "loss", secret, 1, 0, path="metrics[7]")
    assert "hunter2" in message
    assert without_values(message) == (
        "Invalid value ... for parameter 'metrics[7].value' supplied: (timestamp=1). "
        "Please specify value as a valid double (64-bit floating point)"
    )


@pytest.mark.parametrize("secret", [0.123456, -1e300, float("nan"), 7])
def test_mlflow_refuses_a_time_or_a_step(secret: float) -> None:
    """The metric's value beside it is not shown, and its key is."""
    validation = pytest.importorskip("mlflow.utils.validation")

    for arguments in ((-1, 0), (1, "x")):
        message = message_of(validation._validate_metric, "loss", secret, *arguments)
        shown = without_values(message)
        assert str(secret) in message
        assert "metric 'loss' (value=...)" in shown
        assert str(secret) not in shown.replace("64-bit", "")


@pytest.mark.parametrize("key", ["b@d", "it's", 'say "x"', "value='x'", "a\nb"])
def test_mlflow_refuses_a_key(key: str) -> None:
    """A key is not a value, and the message must show which one it is."""
    validation = pytest.importorskip("mlflow.utils.validation")

    for call in (
        validation._validate_metric_name,
        validation._validate_param_name,
        validation._validate_tag_name,
    ):
        for path in ("name", "metrics[3].name", "params[0].key", "key"):
            message = message_of(call, key, path)
            assert without_values(message) == message


@pytest.mark.parametrize(
    "names",
    [
        ("_validate_batch_limit", ("metrics", 1000, 2000)),
        ("_validate_batch_log_api_req", ("x" * 1_000_001,)),
        ("_validate_run_id", ("no run/",)),
        ("_validate_experiment_name", ("",)),
        ("_validate_length_limit", ("Param value", 3, "hunter2")),
        ("_validate_length_limit", ("params[4].value", 3, "hunter2")),
    ],
)
def test_rules_stay_as_they_are(names: tuple[str, tuple[Any, ...]]) -> None:
    """A message without a value is shown word for word."""
    validation = pytest.importorskip("mlflow.utils.validation")
    name, arguments = names

    message = message_of(getattr(validation, name), *arguments)

    assert "hunter2" not in message
    assert without_values(message) == message


def test_mlflow_names_keys_that_occur_twice() -> None:
    """Keys alone: nothing is hidden."""
    validation = pytest.importorskip("mlflow.utils.validation")
    from mlflow.entities import Param

    message = message_of(validation._validate_param_keys_unique, [Param("lr", "1")] * 2)

    assert without_values(message) == message
    assert "['lr']" in message


@pytest.mark.mlflow
def test_mlflow_refuses_to_change_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged and what should have been is not shown; the keys and the run are."""
    pytest.importorskip("mlflow.store.tracking.sqlalchemy_store")
    from mlflow.entities import Param
    from mlflow.store.tracking.file_store import FileStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database = SqlAlchemyStore(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"))
    run = database.create_run("0", "somebody", 0, [], "run").info.run_id
    for number, secret in enumerate(SECRETS):
        keys = [f"a{number}", f"b/{number}"]
        database.log_batch(run, [], [Param(key, f"old {secret}") for key in keys], [])
        changed = [Param(key, f"new {secret}") for key in keys]
        for message in (
            message_of(database.log_batch, run, [], changed, []),
            message_of(database.log_param, run, changed[0]),
        ):
            shown = without_values(message)
            assert "hunter2" in message
            assert "hunter2" not in shown
            assert "Changing param values is not allowed." in shown
            assert f"'{keys[0]}'" in shown
        several = without_values(message_of(database.log_batch, run, [], changed, []))
        assert f"'{keys[1]}'" in several
        assert several.endswith(f"for run ID='{run}'.")

    database._dispose_engine()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    files = FileStore(str(tmp_path / "files"))
    run = files.create_run("0", "somebody", 0, [], "run").info.run_id
    for number, secret in enumerate(SECRETS):
        files.log_param(run, Param(f"a{number}", secret))
        shown = without_values(message_of(files.log_param, run, Param(f"a{number}", f"{secret}!")))
        assert "hunter2" not in shown
        assert f"'a{number}'" in shown


@pytest.mark.parametrize("secret", SECRETS)
def test_other_messages(secret: str) -> None:
    """Of MLflow 2, of a database, of readers of JSON: the value goes, what is around it stays."""
    messages = [
        (f"Param value '{secret}' had length 6001, which exceeded length limit of 6000", "6001"),
        (f"Got invalid value {secret} for metric 'loss' (timestamp=1).", "for metric 'loss'"),
        (f"Parameter 'value' must be an integer, got '{secret}'.", "Parameter 'value' must be"),
        (f"(sqlite3.Error) no\n[SQL: INSERT ?]\n[parameters: [('k', {secret!r})]]", "[SQL: INSERT"),
        (f"DETAIL:  Failing row contains (lr, {secret}, null).\n[SQL: INSERT ...]", "[SQL: INSERT"),
        (f"Key (key, value)=(lr, {secret}) already exists.", "already exists"),
        (f"Duplicate entry 'lr-{secret}-1' for key 'metrics.PRIMARY'", "for key 'metrics.PRIMARY'"),
        (f"Malformed model info. \n {secret} \n is not a valid JSON.", "is not a valid JSON."),
        (f"params[3]: rejectedValue={secret!r}, too long", "too long"),
        (f"Input should be a number [input_value={secret!r}, input_type=str]", "input_type=str"),
    ]
    for message, kept in messages:
        shown = without_values(message)
        assert "hunter2" not in shown
        assert kept in shown


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ('Cannot read double from String "x": no', "Cannot read double from String ...: no"),
        ("metrics[0].value: must be finite", "metrics[0].value: must be finite"),
        ("metrics[0].value: 0.5 is refused", "metrics[0].value: ... is refused"),
        ("value=abc, key=lr", "value=..., key=lr"),
        ("the value of param 'lr' is too long", "the value of param 'lr' is too long"),
        ("Missing value for required parameter 'x.value'.", None),
        ("Invalid value for 'view'. Expected a word.", None),
        ("values: [1, {'a': ']'}] are refused", "values: ... are refused"),
        ("Invalid value [1, 2 for", "Invalid value ..."),
        ("Invalid value 'x' in params[1]", "Invalid value ... in params[1]"),
        ("the value was 'cut of", "the value was ..."),
        ("value=", None),
        ("value=,", None),
    ],
)
def test_what_stays(message: str, shown: str | None) -> None:
    """Rules, keys and indices; where a value does not end all that follows is hidden."""
    assert without_values(message) == (message if shown is None else shown)


@given(st.text(max_size=200), st.text(min_size=4, max_size=50, alphabet="SECRET'\"\\,{}[] "))
def test_a_value_written_as_python_writes_it_never_shows(before: str, value: str) -> None:
    """Whatever quotes and brackets it holds."""
    told = without_values(f"x: [{{'key': 'lr', 'old_value': {value!r}, 'new_value': {value!r}}}]")

    assert told == "x: [{'key': 'lr', 'old_value': ..., 'new_value': ...}]"
    without_values(before)
