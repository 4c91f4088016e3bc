"""MLflow's words and the service's: URIs, fields, error codes, ids of models; without a network."""

from __future__ import annotations

from typing import Any

import pytest
from api_samples import MODELS, OPERATIONS
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.model_registry_pb2 import ModelRegistryService
from mlflow.protos.service_pb2 import MlflowService

from adp_async import errors
from adp_async.auth import ApiKey, SessionToken
from adp_async.integrations.mlflow import connection, ending, registry, request_auth
from adp_async.integrations.mlflow.failures import as_mlflow, in_mlflows_words
from adp_async.integrations.mlflow.logged_models import id_of, run_and_name
from adp_async.integrations.mlflow.uri import StoreAddress
from adp_async.integrations.mlflow.wire import BY_PATH, Methods, translated

OCID = "ocid1.aidataplatform.oc1.iad.aaaa"
SERVICES = {"tracking": MlflowService, "registry": ModelRegistryService}


# ------------------------------------------------------------------ the URI


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("aidp://", StoreAddress()),
        ("aidp:", StoreAddress()),
        (f"aidp://{OCID}", StoreAddress(platform_id=OCID)),
        (f"aidp://{OCID}/my%2Fkey/", StoreAddress(platform_id=OCID, workspace="my/key")),
        ("aidp:///key?linger=5&sync=1", StoreAddress(workspace="key", linger=5.0, sync=True)),
        ("aidp://?endpoint=https%3A%2F%2Fhost&sync=", StoreAddress(endpoint="https://host")),
    ],
)
def test_a_uri_is_taken_apart(uri: str, address: StoreAddress) -> None:
    """What it leaves out is None, and comes from the usual settings."""
    assert StoreAddress.parse(uri) == address


def test_a_uri_gives_only_what_it_says() -> None:
    """The rest is left to the session."""
    assert StoreAddress().knobs() == {}
    assert StoreAddress.parse("aidp:///key?linger=5").knobs() == {"workspace": "key", "linger": 5.0}


@pytest.mark.parametrize(
    ("mode", "kind"), [("", ApiKey), ("api_key", ApiKey), ("security_token", SessionToken)]
)
def test_a_profile_signs_in_the_usual_mode(
    monkeypatch: pytest.MonkeyPatch, mode: str, kind: type
) -> None:
    """``OCI_CLI_AUTH`` says what the profile holds."""
    monkeypatch.setenv("OCI_CLI_AUTH", mode)

    knobs = StoreAddress.parse("aidp://?profile=TRAINING&config_file=~/config").knobs()

    assert knobs == {"auth": kind("~/config", "TRAINING")}


def test_a_profile_and_a_principal_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A principal reads no config file."""
    monkeypatch.setenv("OCI_CLI_AUTH", "instance_principal")

    with pytest.raises(errors.ConfigurationError, match="'instance_principal'"):
        StoreAddress.parse("aidp://?profile=TRAINING").knobs()


# ------------------------------------------------------------------ fields


def calls() -> list[Any]:
    return [
        pytest.param(methods.path_of(api), api, id=methods.path_of(api))
        for methods in (Methods(service) for service in SERVICES.values())
        for api in methods._info
        if methods.path_of(api) in BY_PATH
    ]


@pytest.mark.parametrize(("path", "api"), calls())
def test_the_service_knows_every_field_that_is_sent(path: str, api: Any) -> None:
    """Whatever MLflow puts into a call, names that the API doesn't have stay here."""
    plain = (str, int, float, bool)
    filled = {
        field.name: "x" if isinstance(getattr(api(), field.name), plain) else []
        for field in api.DESCRIPTOR.fields
    }

    doing = translated(path, filled)

    row = OPERATIONS[doing.endpoint.operation]
    known = set(row["query"]) | set(MODELS[row["body"]]["fields"] if row["body"] else ())
    assert set(doing.query) | set(doing.body or {}) <= known
    assert (doing.body is None) == (doing.endpoint.method == "GET")


def test_the_registry_is_the_platforms() -> None:
    """One path is there twice, in a workspace as well."""
    assert BY_PATH["mlflow/model-versions/create"].operation == "create_model_version"


def test_columns_of_an_order_are_one_text() -> None:
    """In a query; in a body they stay a list."""
    order = {"order_by": ["name ASC", "version DESC"]}

    assert translated("mlflow/model-versions/search", order).query == {
        "order_by": "name ASC,version DESC"
    }
    assert translated("mlflow/runs/search", order).body == order


def test_a_metric_loses_what_the_service_has_no_place_for() -> None:
    """The model and the dataset it was measured on."""
    metric = {"key": "a", "value": 1.0, "timestamp": 1, "step": 0}

    doing = translated(
        "mlflow/runs/log-batch", {"run_id": "r", "metrics": [{**metric, "model_id": "m-1"}]}
    )

    assert doing.body == {"run_id": "r", "metrics": [metric]}


def test_a_search_is_not_widened() -> None:
    """A condition that the service doesn't know is an error."""
    with pytest.raises(MlflowException, match="by datasets"):
        translated("mlflow/logged-models/search", {"datasets": [{"dataset_name": "d"}]})


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound(status=404, code="NotAuthorizedOrNotFound"), "RESOURCE_DOES_NOT_EXIST"),
        (errors.BadRequest(status=400, code="InvalidParameter"), "INVALID_PARAMETER_VALUE"),
        (errors.BadRequest(status=400, code="INVALID_STATE"), "INVALID_STATE"),
        (errors.Conflict(status=409, code="IncorrectState"), "RESOURCE_CONFLICT"),
        (errors.Conflict(status=409, operation="create_experiment"), "RESOURCE_ALREADY_EXISTS"),
        (errors.NotAuthenticated(status=401), "UNAUTHENTICATED"),
        (errors.Forbidden(status=403), "PERMISSION_DENIED"),
        (errors.Throttled(status=429), "REQUEST_LIMIT_EXCEEDED"),
        (errors.ServiceFault(status=500), "INTERNAL_ERROR"),
        (errors.ServiceFault(status=501), "NOT_IMPLEMENTED"),
        (errors.ServiceFault(status=503), "TEMPORARILY_UNAVAILABLE"),
        (errors.ConnectionFailed("refused"), "TEMPORARILY_UNAVAILABLE"),
        (errors.RequestTimeout("late"), "TEMPORARILY_UNAVAILABLE"),
        (errors.ConfigurationError("no region"), "INVALID_PARAMETER_VALUE"),
        (errors.UnreadableReply("a page"), "INTERNAL_ERROR"),
        (errors.Closed("closed"), "INVALID_STATE"),
        (errors.DeliveryError("x", cause=errors.Forbidden(status=403)), "PERMISSION_DENIED"),
        (TimeoutError("late"), "TEMPORARILY_UNAVAILABLE"),
    ],
)
def test_errors_have_mlflows_codes(error: Exception, code: str) -> None:
    """And the service's replies are what MLflow's REST store raises."""
    found = as_mlflow(error)

    assert found.error_code == code
    assert isinstance(found, RestException) == isinstance(error, errors.ServiceError)


def test_our_error_is_the_cause() -> None:
    """So that its attributes, the request id for one, can be found."""
    error = errors.NotFound("no such run", status=404, request_id="abc")

    with pytest.raises(MlflowException, match="no such run") as caught, in_mlflows_words():
        raise error

    assert caught.value.__cause__ is error


# ------------------------------------------------------------------ models and ends


@pytest.mark.parametrize("name", ["model", "my model", "Modell ß", "a-b_c", "1"])
def test_an_id_says_where_the_model_is(name: str) -> None:
    """To any process."""
    made = id_of("4f2a" * 8, name)

    assert run_and_name(made) == ("4f2a" * 8, name)
    assert made.isascii()
    assert not {"/", "@", " "} & set(made)


@pytest.mark.parametrize("other", ["m-0123456789abcdef", "name", "m-run..zz", "m-.model"])
def test_other_ids_say_nothing(other: str) -> None:
    """Those of MLflow's own servers."""
    assert run_and_name(other) is None


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED"), (SystemExit, "FAILED")],
)
def test_a_body_that_is_interrupted_is_killed(error: type[BaseException], status: str) -> None:
    """MLflow says FAILED of all of them."""
    try:
        raise error
    except BaseException:
        assert ending.status_now("FAILED") == status
        assert ending.status_now("FINISHED") == "FINISHED"
    assert ending.status_now("FAILED") == "FAILED"


# The request auth provider, without a network ----------------------------------------------------


class Prepared:
    """What requests hands to an auth provider, as far as it looks."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.method = "POST"
        self.body = b"{}"
        self.headers: dict[str, str] = {}


def test_a_path_that_is_not_mlflows_is_named() -> None:
    """The request is for no operation at all."""
    auth = request_auth.SignedByOci(lambda request: None)  # type: ignore[arg-type]
    with pytest.raises(MlflowException, match="elsewhere"):
        auth(Prepared("https://example.com/elsewhere"))


def test_credentials_that_cannot_be_renewed_are_not() -> None:
    """A 401 then stays a 401."""
    assert not request_auth.SignedByOci(lambda request: None)._renew()  # type: ignore[arg-type]


def test_an_api_that_mlflow_does_not_know_is_not_published() -> None:
    """Its name is all there is to say."""
    with pytest.raises(MlflowException, match="NoSuchApi"):
        Methods(MlflowService).path_of(type("NoSuchApi", (), {}))


def test_a_search_without_a_filter_stays_so() -> None:
    """MLflow's own addition is taken away, and nothing else."""
    assert registry._without_prompts(None) is None
    assert registry._without_prompts("name = 'a'") == "name = 'a'"


# ------------------------------------------------------------------ what was raised before


class Refused:
    """The receipt of a metric that the service refused."""

    def __init__(self, step: int) -> None:
        rejection = errors.Rejection("run", "metric", "bad@key", step, errors.BadRequest("no"))
        self.error = errors.DeliveryError("refused", rejections=[rejection])

    def wait(self, timeout: float | None = None) -> None:
        raise self.error


def test_refusals_that_were_raised_are_remembered_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop that catches them step after step makes memory no fuller, whatever it logs."""
    monkeypatch.setattr(connection, "_KEPT", 10)
    ours = connection.Connection(StoreAddress())
    for step in range(100):
        with pytest.raises(MlflowException, match="bad@key"):
            ours.wait([Refused(step)])  # type: ignore[list-item]
    assert [name[-1] for name in ours._told] == list(range(90, 100))
