"""Two clients log in with one set of options; and what we use of aiokafka's insides is still there."""

import inspect
import ssl

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.auth import GSSAPICredentials, SASLCredentials, SSLCredentials

from stream.errors import ConfigurationError
from stream.worker.membership import MembershipSettings, faust_credentials


def test_plaintext_needs_no_credentials() -> None:
    assert faust_credentials({}) is None
    assert faust_credentials({"security.protocol": "plaintext"}) is None


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_sasl_passes_mechanism_user_and_password(mechanism: str) -> None:
    found = faust_credentials(
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.username": "fraud",
            "sasl.password": "secret",
        }
    )
    assert isinstance(found, SASLCredentials)
    assert (found.protocol.value, found.mechanism.value) == ("SASL_PLAINTEXT", mechanism)
    assert (found.username, found.password) == ("fraud", "secret")
    assert "secret" not in repr(found)


def test_sasl_over_tls_checks_the_brokers_name_unless_told_otherwise() -> None:
    options = {
        "security.protocol": "sasl_ssl",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": "fraud",
        "sasl.password": "secret",
    }
    found = faust_credentials(options)
    assert isinstance(found, SASLCredentials)
    assert found.protocol.value == "SASL_SSL"
    assert found.ssl_context is not None
    assert (found.ssl_context.check_hostname, found.ssl_context.verify_mode) == (True, ssl.CERT_REQUIRED)
    unnamed = faust_credentials(options | {"ssl.endpoint.identification.algorithm": "none"})
    assert isinstance(unnamed, SASLCredentials)
    assert unnamed.ssl_context is not None
    assert (unnamed.ssl_context.check_hostname, unnamed.ssl_context.verify_mode) == (False, ssl.CERT_REQUIRED)


def test_tls_alone_and_kerberos() -> None:
    assert isinstance(faust_credentials({"security.protocol": "SSL"}), SSLCredentials)
    found = faust_credentials({"security.protocol": "SASL_PLAINTEXT", "sasl.kerberos.service.name": "k"})
    assert isinstance(found, GSSAPICredentials)
    assert found.kerberos_service_name == "k"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ssl.crl.location": "x"}, "ssl.crl.location"),
        ({"security.protocol": "SASL"}, "SASL"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}, "OAUTHBEARER"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}, "sasl.username and sasl.password"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere/ca.pem"}, "TLS files"),
    ],
)
def test_what_only_one_client_would_obey_is_refused(options: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        faust_credentials(options)


def test_heartbeats_that_could_not_keep_a_session_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        MembershipSettings(group_id="g", bootstrap_servers="b:1", session_timeout_s=6, heartbeat_s=3)


def test_aiokafka_is_as_expected() -> None:
    """membership.py stands on these; an upgrade that moves them must be read."""
    coordinator = inspect.getsource(GroupCoordinator)
    for name in ("_commit_lock", "_coordination_task", "_pending_exception", "_maybe_leave_group"):
        assert name in coordinator
    # The request is made of the member's identity before anything is awaited.
    commit = inspect.getsource(GroupCoordinator._do_commit_offsets)
    assert commit.index("self.generation") < commit.index("await")
    assert commit.index("self.member_id") < commit.index("await")
    # `assignment`, which we pass as None, is not used.
    assert commit.count("assignment") == 1
    assert "_last_fetch_ended" in inspect.getsource(SubscriptionState.fetcher_idle_time.fget)  # type: ignore[arg-type]
    # Heartbeats go through what we put in its place, and True says that we are a member.
    assert "success = await self._do_heartbeat()" in inspect.getsource(GroupCoordinator._heartbeat_routine)
    beat = inspect.getsource(GroupCoordinator._do_heartbeat)
    assert beat.count("return True") == 2
    assert beat.index("error_type is Errors.NoError") < beat.index("return True")
    assert "self._fetcher = Fetcher(" in inspect.getsource(AIOKafkaConsumer.start)
