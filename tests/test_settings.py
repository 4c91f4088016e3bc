"""Settings: where each comes from, what is refused, and where the service is."""

import math
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import attrs
import numpy as np
import pytest
from yarl import URL

from adp_async import Session
from adp_async._knobs import absolute_folder, variable_of
from adp_async._sansio.retry import RetryPolicy
from adp_async.auth import ApiKey, CustomSigner, InstancePrincipal
from adp_async.errors import ConfigurationError
from adp_async.settings import Knobs, Settings

PLATFORM = "ocid1.aidataplatform.oc1.iad.aaaaaaaaplatform"


def resolve(environ=None, **arguments):
    return Settings.resolve({"platform_id": PLATFORM, **arguments}, environ or {})


def test_defaults():
    """The settings of a session with nothing but its platform."""
    settings = resolve()

    assert settings == Settings(PLATFORM)
    assert attrs.asdict(settings, recurse=False) == {
        "platform_id": PLATFORM,
        "workspace": None,
        "endpoint": None,
        "path_prefix": "",
        "object_storage_endpoint": None,
        "page_url": None,
        "region": None,
        "auth": ApiKey(),
        "agent": None,
        "linger": 1.0,
        "max_in_flight": 4,
        "buffer_limit": 256 * 2**20,
        "max_block": 10.0,
        "overflow": "block",
        "close_timeout": 25.0,
        "exit_timeout": 10.0,
        "progress": True,
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
    """Over the environment, also over a value there that is wrong; None counts as not given."""
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
        ("endpoint", "https://under_score.xn--bcher-kva.example."),
        ("endpoint", "https://[2001:db8::1.2.3.4]:443"),
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
        ("platform_id", "ocid1.tenancy.oc1..aaaa"),
        ("platform_id", 7),
        ("workspace", ""),
        ("workspace", "a b"),
        ("workspace", "a\r\nb"),
        ("region", "ashburn"),
        ("region", "us-ashburn-1.evil.example"),
        ("path_prefix", "/a?b"),
        ("path_prefix", "/a b"),
        ("path_prefix", "/a%zz"),
        ("path_prefix", "/a/../b"),
        ("workspace", ".."),
        ("workspace", "w" * 256),
        ("platform_id", f"{PLATFORM}{'a' * 300}"),
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


class Hostile:
    """What fails in its own way whatever it is asked, and would tell a secret."""

    def _fail(self, *_):
        raise RuntimeError("hidden")

    __float__ = __index__ = __int__ = __str__ = __repr__ = __fspath__ = __eq__ = __bool__ = _fail
    __getattr__ = __len__ = __call__ = _fail
    __hash__ = None


class Sly(str):
    """A str that says something else than it is."""

    __slots__ = ()

    def __str__(self):
        return self

    def strip(self, *_):
        return self

    def __repr__(self):
        return "hidden"


DURATIONS = (
    *("linger", "max_block", "close_timeout", "spool_interval"),
    *("connect_timeout", "timeout", "call_timeout"),
)
COUNTS = ("max_in_flight", "buffer_limit", "spool_limit", "max_connections")
TEXTS = ("platform_id", "workspace", "endpoint", "path_prefix", "region", "overflow")
NUMBERS = (10**400, 10**5000, -(10**400), 1e308, math.nan, -math.inf, True, np.True_, 1j, "1", b"1")


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize(
    "number", [2, 2.5, Decimal("2.5"), Fraction(5, 2), np.float32(2.5), np.int64(2), np.array(2.5)]
)
def test_durations(name, number):
    """Whatever is a number is taken, and kept as a float."""
    kept = getattr(resolve(**{name: number}), name)

    assert type(kept) is float
    assert kept == number


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize(
    "bad",
    [*NUMBERS, 3.2e8, Decimal("NaN"), Decimal("sNaN"), np.array([1.0, 2.0]), [1], {}, Hostile()],
    ids=lambda bad: type(bad).__name__,
)
def test_bad_durations(name, bad):
    """Neither what isn't a number, nor what no timer or lock could wait for."""
    with pytest.raises(ConfigurationError, match=rf"^{name}: must be a number of seconds >=? 0"):
        resolve(**{name: bad})


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    """Whatever is an int is taken, and kept as one, up to the largest of 64 bits."""
    for number in (1, np.int64(1), np.uint8(1), 2**63 - 1):
        kept = getattr(resolve(**{name: number}), name)
        assert type(kept) is int
        assert kept == number


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    "bad", [*NUMBERS, 2**63, 1.0, Decimal(1), [], Hostile()], ids=lambda bad: type(bad).__name__
)
def test_bad_counts(name, bad):
    """Neither what isn't an int, nor what needs more than 64 bits."""
    with pytest.raises(ConfigurationError, match=rf"^{name}: must be an int >= 1"):
        resolve(**{name: bad})


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "bad",
    [
        *("\ud800", "a\0b", "a\u202eb", "a\x85b", "a\nb", "a\u2028b", "x y", "x" * 100_000),
        *(b"hidden", 7, ["x"], {"pass_phrase": "hidden"}, Hostile(), Sly("a\ud800")),
        "-----BEGIN PRIVATE KEY-----hidden",
    ],
    ids=lambda bad: type(bad).__name__,
)
def test_bad_texts(name, bad):
    """The error is short, can be printed, and shows nothing that may be a secret."""
    with pytest.raises(ConfigurationError, match=rf"^{name}: ") as raised:
        resolve(**{name: bad})

    message = str(raised.value)
    assert message.isprintable()
    assert message.isascii()
    assert len(message) < 500
    assert "hidden" not in message
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("around", ["{}", " {}", "{}\r", "\t{}\n"])
def test_blanks_around_texts(name, around):
    """They are taken off, by either road; a subclass of str is made a str."""
    good = {
        "platform_id": PLATFORM,
        "workspace": "wörk/space",
        "endpoint": "https://aidp.example.com/x",
        "path_prefix": "/api",
        "region": "us-ashburn-1",
        "overflow": "drop",
    }[name]
    knob = attrs.fields_dict(Settings)[name]
    platform = {} if name == "platform_id" else {"platform_id": PLATFORM}
    kept = [
        resolve(**{name: around.format(good)}),
        resolve(**{name: Sly(around.format(good))}),
        Settings(**{"platform_id": PLATFORM} | {name: np.str_(around.format(good))}),
        Settings.resolve(platform, {variable_of(knob): around.format(good)}),
    ]

    for settings in kept:
        assert getattr(settings, name) == good
        assert type(getattr(settings, name)) is str


@pytest.mark.parametrize("name", ["recover", "retry", "auth", "spool"])
@pytest.mark.parametrize("bad", [Hostile(), [], {}, 0, b"x"], ids=lambda bad: type(bad).__name__)
def test_bad_others(name, bad):
    """What raises when it is looked at is as wrong as the rest."""
    if name == "auth" and isinstance(bad, Hostile):
        return  # it can be called, and whether it signs is seen when it does
    with pytest.raises(ConfigurationError, match=rf"^{name}: "):
        resolve(**{name: bad})


def test_settings_made_by_hand():
    """`Settings(...)` follows the same rules."""
    assert Settings(PLATFORM, linger=np.float32(2)).linger == 2.0
    with pytest.raises(ConfigurationError, match=r"^linger: .*the argument linger"):
        Settings(PLATFORM, linger=10**400)
    with pytest.raises(ConfigurationError, match=r"^max_block: "):
        attrs.evolve(Settings(PLATFORM), max_block=1e308)


@pytest.mark.parametrize("name", ["first_backoff", "max_backoff", "max_attempts"])
@pytest.mark.parametrize(
    "bad", [*NUMBERS, 0, -1, None, [], Hostile()], ids=lambda bad: type(bad).__name__
)
def test_bad_policies(name, bad):
    """A policy names the number that makes no sense; a ValueError, as it is made by hand."""
    with pytest.raises(ValueError, match=f"^RetryPolicy: {name} must be .*, not "):
        RetryPolicy(**{name: bad})


def test_policies_of_other_numbers():
    """NumPy's numbers are as good as Python's, and become those."""
    policy = RetryPolicy(np.float32(0.5), Decimal(8), np.int64(3))

    assert policy == RetryPolicy(0.5, 8.0, 3)
    assert [type(number) for number in attrs.astuple(policy)] == [float, float, int]


@pytest.mark.parametrize(
    ("text", "number"), [("5", 5.0), ("+.5", 0.5), ("1e3", 1000.0), ("1_000.", 1000.0)]
)
def test_numbers_of_the_environment(text, number):
    """Digits as Python writes them."""
    assert resolve({"ADP_ASYNC_LINGER": text}).linger == number


@pytest.mark.parametrize("variable", ["ADP_ASYNC_LINGER", "ADP_ASYNC_BUFFER_LIMIT"])
@pytest.mark.parametrize(
    "text",
    [
        *("5s", "0x10", "\u0665", "1__0", "_1", "inf", "nan", "1,5", "1 000", "e5", ".", "-1"),
        *("1e999", "9" * 5000, "True", "\udcff", "'5'"),
    ],
)
def test_what_is_no_number_of_the_environment(variable, text):
    """No units, no hexadecimal digits, none of other scripts; the variable is named."""
    name = variable.removeprefix("ADP_ASYNC_").lower()

    with pytest.raises(ConfigurationError, match=rf"^{name}: must be .*environment's {variable}"):
        resolve({variable: text})


@pytest.mark.parametrize("blank", ["", " ", "\r\n", "\t"])
def test_blank_variables(blank):
    """They are as good as unset, whatever they are for."""
    knobs = attrs.fields(Settings)
    environ = {variable_of(knob): blank for knob in knobs} | {"AIDP_INSTANCE_ID": PLATFORM}

    assert Settings.resolve({}, environ) == Settings(PLATFORM)


def test_the_command_lines_region():
    """OCI_CLI_REGION does when OCI_REGION is not set, and is named when it is wrong."""
    both = {"OCI_REGION": "iad", "OCI_CLI_REGION": "phx"}

    assert resolve({"OCI_REGION": " ", "OCI_CLI_REGION": "phx"}).region == "phx"
    assert resolve(both).region == "iad"
    with pytest.raises(ConfigurationError, match=r"^region: .*the environment's OCI_CLI_REGION\)"):
        resolve({"OCI_CLI_REGION": "nonsense"})


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
    """A mistake in the environment is reported as such."""
    arguments = {} if name == "platform_id" else {"platform_id": PLATFORM}

    with pytest.raises(ConfigurationError, match=rf"^{name}: .*the environment's {variable}\)"):
        Settings.resolve(arguments, {variable: text})


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://aidp.example.com", "plain http is allowed for localhost only"),
        ("http://10.0.0.1:8080", "plain http is allowed for localhost only"),
        ("http://localhost.example.com", "plain http is allowed for localhost only"),
        ("http://0.0.0.0:8080", "plain http is allowed for localhost only"),
        ("https://user:hidden@example.com", "must not contain credentials"),
        ("aidp.example.com", "a URL such as"),
        ("ftp://example.com", "a URL such as"),
        ("https://", "a URL such as"),
        ("https://example.com/?a=b", "a URL such as"),
        ("https://example.com/#a", "a URL such as"),
        ("https://example.com/ü", "a URL such as"),
        ("https://exa mple.com", "a URL such as"),
        ("https://example.com:port", "is not a URL"),
        ("https://example.com:99999", "is not a URL"),
        ("https://[::1", "a URL such as"),
        (b"https://example.com", "a URL such as"),
        (URL("https://user:hidden@example.com"), "a URL such as"),
        ("https://example.com/?token=hidden", "without a query or a fragment"),
        ("https://user:hidden@example.com:port", "must not contain credentials"),
        ("https://example.com\\@hidden", "must not contain credentials"),
        ("https://example.com\\evil", "a URL such as"),
        ("https://exa\tmple.com", "a URL such as"),
        ("https://example.com:0", "from 1 to 65535"),
        ("https://example.com:", "from 1 to 65535"),
        ("https://example.com:-1", "is not a URL"),
        ("https://example.com:８０", "is not a URL"),
        ("https://bücher.example", "a URL such as"),
        ("https://-a.example", "a URL such as"),
        ("https://a..example", "a URL such as"),
        (f"https://{'a' * 64}.example", "a URL such as"),
        ("https://[1.2.3.4]", "is not a URL"),
        ("https://[:::1]", "is not a URL"),
        ("https://[::1]evil", "a URL such as"),
        ("https://::1", "a URL such as"),
        ("https://example.com/%zz", "a URL such as"),
        ("https://example.com/../x", "must not have '.' or '..'"),
        ("http://127.0.0.1.example.com", "plain http is allowed for localhost only"),
        ("http://2130706433", "plain http is allowed for localhost only"),
        (" ", "a URL such as"),
        (f"https://example.com/{'x' * 3000}", "at most 2,000 characters"),
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
    """The registry does without a workspace; what needs one raises an error."""
    assert resolve(workspace="ws").required_workspace() == "ws"
    with pytest.raises(ConfigurationError, match=r"^workspace: is missing .*AIDP_WORKSPACE"):
        resolve().required_workspace()


def test_the_host_as_it_is_signed():
    """Letters of scheme and host are small ones, those of the path as they are."""
    assert resolve(endpoint="HTTPS://API.Example.com/V1").base_url == "https://api.example.com/V1"


def test_unknown_settings():
    """More than one, or what resembles none."""
    with pytest.raises(TypeError, match=r"^unknown settings 'a', 'b'$"):
        resolve(a=1, b=2)
    with pytest.raises(TypeError, match=r"^unknown setting 'endpiont'; did you mean 'endpoint'\?$"):
        Session(PLATFORM, endpiont="x")


def test_unknown_setting():
    """A misspelt keyword is a TypeError, as for any call, whatever its value."""
    for value in (1, None):
        with pytest.raises(TypeError, match=r"^unknown setting 'lingr'; did you mean 'linger'\?$"):
            resolve(lingr=value)


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
    """A new region is assumed to be in the commercial realm, with a warning."""
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
        ConfigurationError,
        match=r"^endpoint: neither an endpoint nor a region is set.*AIDP_ENDPOINT.*region=",
    ):
        resolve().complete(None)
    with pytest.raises(
        ConfigurationError, match=r"^endpoint: neither an endpoint nor a region is set"
    ):
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


@pytest.mark.parametrize("home", ["", "relative", "./here"])
def test_a_home_that_is_no_folder(home, monkeypatch):
    """It leads nowhere, and the working folder is not taken in its place."""
    monkeypatch.setenv("HOME", home)

    with pytest.raises(
        ValueError, match="'~/spool' has no home folder to start from: HOME is empty or rel"
    ):
        absolute_folder("~/spool")


def test_repr_hides_secrets():
    """Settings are shown whole, but for what signs."""
    assert "hidden" not in repr(resolve(auth=ApiKey("file", passphrase="hidden")))
