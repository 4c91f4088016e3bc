"""Settings: where each comes from, what is refused, and where the service is."""

import math
import re
from pathlib import Path

import attrs
import pytest

from adp_async._sansio.retry import RetryPolicy
from adp_async.auth import ApiKey, CustomSigner, InstancePrincipal
from adp_async.errors import ConfigurationError
from adp_async.settings import Knobs, Settings

PLATFORM = "ocid1.aidataplatform.oc1.iad.aaaaaaaaplatform"


def resolve(environ=None, **arguments):
    return Settings.resolve({"platform_id": PLATFORM, **arguments}, environ or {})


def test_defaults():
    """What a session does when it is told nothing but its platform."""
    settings = resolve()

    assert settings == Settings(PLATFORM)
    assert attrs.asdict(settings, recurse=False) == {
        "platform_id": PLATFORM,
        "workspace": None,
        "endpoint": None,
        "path_prefix": "",
        "region": None,
        "auth": ApiKey(),
        "linger": 1.0,
        "max_in_flight": 4,
        "buffer_limit": 256 * 2**20,
        "max_block": 10.0,
        "overflow": "block",
        "close_timeout": 30.0,
        "spool": True,
        "spool_interval": 0.2,
        "spool_limit": 4 * 2**30,
        "recover": True,
        "ca_bundle": None,
        "connect_timeout": 10.0,
        "timeout": 60.0,
        "call_timeout": 300.0,
        "max_connections": 100,
        "retry": RetryPolicy(),
    }


def test_every_knob_is_typed_and_explained():
    """The keywords of a session are the settings, and each is in the docstring."""
    names = set(attrs.fields_dict(Settings))

    assert set(Knobs.__annotations__) == names - {"platform_id", "workspace"}
    assert set(re.findall(r"^ *\*(\w+)\*:", Settings.__doc__, re.MULTILINE)) == names


def test_the_environment():
    """Each variable is read, as what it is."""
    environ = {
        "AIDP_INSTANCE_ID": PLATFORM,
        "AIDP_WORKSPACE": "ws",
        "AIDP_ENDPOINT": "https://aidp.example.com",
        "OCI_REGION": "iad",
        "OCI_CLI_AUTH": "instance_principal",
        "ADP_ASYNC_PATH_PREFIX": "/api",
        "ADP_ASYNC_LINGER": " 0.5 ",
        "ADP_ASYNC_MAX_IN_FLIGHT": "8",
        "ADP_ASYNC_OVERFLOW": "drop",
        "ADP_ASYNC_SPOOL": "off",
        "ADP_ASYNC_RECOVER": "No",
        "ADP_ASYNC_TIMEOUT": "",
    }

    assert Settings.resolve({}, environ) == Settings(
        PLATFORM,
        workspace="ws",
        endpoint="https://aidp.example.com",
        region="iad",
        auth=InstancePrincipal(),
        path_prefix="/api",
        linger=0.5,
        max_in_flight=8,
        overflow="drop",
        spool=False,
        recover=False,
    )


def test_an_argument_wins():
    """Over the environment, also over a value there that is wrong; None is no argument."""
    environ = {"AIDP_WORKSPACE": "theirs", "ADP_ASYNC_LINGER": "nonsense"}

    assert resolve(environ, workspace="ours", linger=2).linger == 2
    assert resolve({"AIDP_WORKSPACE": "theirs"}, workspace=None).workspace == "theirs"


def test_the_process_environment(monkeypatch):
    """Without any environment given it is that of the process."""
    monkeypatch.setenv("AIDP_INSTANCE_ID", PLATFORM)

    assert Settings.resolve().platform_id == PLATFORM


@pytest.mark.parametrize(
    ("text", "spool"), [("on", True), ("OFF", False), ("/var/spool", "/var/spool")]
)
def test_spool_from_the_environment(text, spool):
    """A switch, or the folder."""
    assert resolve({"ADP_ASYNC_SPOOL": text}).spool == spool


def test_auth():
    """A name, a class or any object that signs."""
    assert resolve(auth="instance_principal").auth == InstancePrincipal()
    assert resolve(auth=ApiKey("file")).auth == ApiKey("file")
    assert resolve(auth=print).auth == CustomSigner(print)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("linger", 0),
        ("timeout", 0.001),
        ("spool", Path("folder")),
        ("region", "IAD"),
        ("region", "us-gov-ashburn-1"),
        ("endpoint", "http://127.0.0.1:8080"),
        ("endpoint", "http://127.8.0.1"),
        ("endpoint", "http://[::1]:8080/"),
        ("endpoint", "http://localhost:80"),
        ("endpoint", "https://example.com:8443/deep/path%20here"),
        ("path_prefix", "api"),
        ("retry", RetryPolicy(max_attempts=1)),
    ],
)
def test_good_values(name, good):
    """What is taken, and kept as it is."""
    assert getattr(resolve(**{name: good}), name) == good


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("platform_id", "my-platform"),
        ("platform_id", f"{PLATFORM}/../x"),
        ("platform_id", 7),
        ("workspace", ""),
        ("workspace", "a b"),
        ("workspace", "a\r\nb"),
        ("region", "ashburn"),
        ("region", "us-ashburn-1.evil.example"),
        ("path_prefix", "/a?b"),
        ("path_prefix", "/a b"),
        ("auth", "apikey"),
        *(("linger", bad) for bad in (-1, math.nan, math.inf, "1", True)),
        *(("timeout", bad) for bad in (0, -0.1, math.inf, [1])),
        *(("max_in_flight", bad) for bad in (0, -1, 1.5, True, "4")),
        ("buffer_limit", 1e9),
        ("overflow", "explode"),
        ("spool", ""),
        ("spool", 1),
        ("recover", "yes"),
        ("retry", 8),
    ],
)
def test_bad_values(name, bad):
    """The error names the setting, where it was looked for, and a fix."""
    expected = rf"^{name}: .* \(looked in the argument {name}\)\. .*\.$"

    with pytest.raises(ConfigurationError, match=expected):
        resolve(**{name: bad})


@pytest.mark.parametrize(
    ("variable", "name", "text"),
    [
        ("AIDP_INSTANCE_ID", "platform_id", "nonsense"),
        ("AIDP_ENDPOINT", "endpoint", "nonsense"),
        ("OCI_REGION", "region", "nonsense"),
        ("OCI_CLI_AUTH", "auth", "nonsense"),
        ("ADP_ASYNC_LINGER", "linger", "nonsense"),
        ("ADP_ASYNC_LINGER", "linger", "nan"),
        ("ADP_ASYNC_MAX_IN_FLIGHT", "max_in_flight", "1.5"),
        ("ADP_ASYNC_RECOVER", "recover", "perhaps"),
    ],
)
def test_bad_environment(variable, name, text):
    """What is wrong in the environment is said to be there."""
    arguments = {} if name == "platform_id" else {"platform_id": PLATFORM}

    with pytest.raises(ConfigurationError, match=rf"^{name}: .*the environment's {variable}\)"):
        Settings.resolve(arguments, {variable: text})


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://aidp.example.com", "http is for this machine only"),
        ("http://10.0.0.1:8080", "http is for this machine only"),
        ("http://localhost.example.com", "http is for this machine only"),
        ("http://0.0.0.0:8080", "http is for this machine only"),
        ("https://user:hidden@example.com", "user and password"),
        ("aidp.example.com", "a URL such as"),
        ("ftp://example.com", "a URL such as"),
        ("https://", "a URL such as"),
        ("https://example.com/?a=b", "a URL such as"),
        ("https://example.com/#a", "a URL such as"),
        ("https://example.com/ü", "a URL such as"),
        ("https://exa mple.com", "a URL such as"),
        ("https://example.com:port", "is no URL"),
        ("https://example.com:99999", "is no URL"),
        ("https://[::1", "is no URL"),
        (b"https://example.com", "a URL"),
    ],
)
def test_bad_endpoints(endpoint, reason):
    """Plain http leaves the machine never, and a password is not repeated."""
    with pytest.raises(ConfigurationError, match=f"^endpoint: .*{reason}") as raised:
        resolve(endpoint=endpoint)

    assert "hidden" not in str(raised.value)


def test_no_platform():
    """Without a platform nothing can be asked; the error says where it was looked for."""
    with pytest.raises(
        ConfigurationError,
        match=r"^platform_id: is missing \(looked in the argument platform_id and the "
        r"environment's AIDP_INSTANCE_ID\)\. ",
    ):
        Settings.resolve({}, {})


def test_no_workspace():
    """The registry does without a workspace; what needs one says so."""
    assert resolve(workspace="ws").required_workspace() == "ws"
    with pytest.raises(ConfigurationError, match=r"^workspace: is missing .*AIDP_WORKSPACE"):
        resolve().required_workspace()


def test_unknown_setting():
    """A misspelt keyword is a TypeError, as for any call."""
    with pytest.raises(TypeError, match="no setting lingr"):
        resolve(lingr=1)


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("us-ashburn-1", "aidp.us-ashburn-1.oci.oraclecloud.com"),
        ("iad", "aidp.us-ashburn-1.oci.oraclecloud.com"),
        ("PHX", "aidp.us-phoenix-1.oci.oraclecloud.com"),
        ("us-gov-phoenix-1", "aidp.us-gov-phoenix-1.oci.oraclegovcloud.com"),
        ("uk-gov-london-1", "aidp.uk-gov-london-1.oci.oraclegovcloud.uk"),
        ("eu-madrid-2", "aidp.eu-madrid-2.oci.oraclecloud.eu"),
    ],
)
def test_the_endpoint_of_a_region(region, host):
    """Regions of all realms, in full or by their key."""
    assert resolve(region=region).complete("eu-frankfurt-1").base_url == f"https://{host}"


def test_the_region_of_the_credentials():
    """It counts when neither endpoint nor region is given."""
    assert resolve().complete("eu-frankfurt-1").region == "eu-frankfurt-1"
    given = resolve(endpoint="https://aidp.example.com")
    assert given.complete("nonsense") is given


def test_a_region_that_oci_does_not_know_yet(caplog):
    """A new region is taken to be in the commercial realm, and that is said."""
    settings = resolve(region="us-newtown-1").complete()

    assert settings.base_url == "https://aidp.us-newtown-1.oci.oraclecloud.com"
    assert "oci doesn't know the region us-newtown-1" in caplog.text


def test_an_unknown_region_key():
    """A key of three letters is known or wrong."""
    with pytest.raises(ConfigurationError, match=r"^region: 'xyz' is unknown"):
        resolve(region="xyz").complete()


def test_a_malformed_region_of_the_config_file():
    """The error says that it came from there."""
    with pytest.raises(ConfigurationError, match=r"^region: .*looked in OCI's config file"):
        resolve().complete("nonsense")


def test_no_region_at_all():
    """Nothing says where the service is: the error lists all that could."""
    with pytest.raises(
        ConfigurationError, match=r"^endpoint: nothing says.*AIDP_ENDPOINT.*region="
    ):
        resolve().complete(None)
    with pytest.raises(ConfigurationError, match=r"^endpoint: nothing says"):
        _ = resolve().base_url


@pytest.mark.parametrize(
    ("endpoint", "prefix", "base"),
    [
        ("https://a.example.com/", "", "https://a.example.com"),
        ("https://a.example.com", "api", "https://a.example.com/api"),
        ("https://a.example.com/x/", "/api/", "https://a.example.com/x/api"),
        ("https://a.example.com/api/20260430/", "", "https://a.example.com/api"),
    ],
)
def test_base_url(endpoint, prefix, base):
    """Slashes come out right, and a version that came along with the endpoint goes."""
    assert resolve(endpoint=endpoint, path_prefix=prefix).base_url == base


def test_repr_hides_secrets():
    """Settings are shown whole, but for what signs."""
    assert "hidden" not in repr(resolve(auth=ApiKey("file", passphrase="hidden")))
