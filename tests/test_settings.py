"""Where a process finds its broker and how it logs in: nothing in the clear to another machine, no secret shown."""

import logging

import pytest
from pydantic import ValidationError

from stream.errors import ConfigurationError
from stream.settings import Settings

SECRET = "hunter2-correct-horse"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("FRAUD_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("bootstrap", ["127.0.0.1:9092", "localhost:1", "[::1]:9092", "127.0.0.1:1,localhost:2"])
def test_plaintext_is_fine_on_loopback(bootstrap):
    assert Settings(bootstrap=bootstrap).client()["bootstrap.servers"] == bootstrap


@pytest.mark.parametrize(
    "bootstrap",
    [
        "kafka:9092",
        "10.0.0.7:9092",
        "127.0.0.1:9092,kafka:9092",
        "[2001:db8::1]:9092",
        "localhost.example.com:9092",
        "PLAINTEXT://kafka:9092",
        "0.0.0.0:9092",
    ],
)
@pytest.mark.parametrize("protocol", ["PLAINTEXT", "plaintext", "SASL_PLAINTEXT"])
def test_plaintext_off_loopback_is_refused_unless_told_so(bootstrap, protocol):
    given = {
        "bootstrap": bootstrap,
        "security_protocol": protocol,
        "sasl_username": "detector",
        "sasl_password": SECRET,
    }
    with pytest.raises(ConfigurationError, match="plaintext to a broker on another machine"):
        Settings(**given).client()
    assert Settings(**given, plaintext_off_loopback=True).client()["bootstrap.servers"] == bootstrap


def test_unknown_protocol_is_refused():
    with pytest.raises((ConfigurationError, ValidationError)):
        Settings(bootstrap="kafka:9092", security_protocol="SASL_SSLL").client()


def test_sasl_without_a_name_or_password_is_refused():
    for given in ({}, {"sasl_username": "a"}, {"sasl_password": SECRET}):
        with pytest.raises(ConfigurationError, match="SASL needs"):
            Settings(bootstrap="kafka:9092", security_protocol="SASL_SSL", **given).client()


def test_sasl_ssl_reaches_the_client_with_the_certificate_checked():
    settings = Settings(
        bootstrap="kafka:9092",
        security_protocol="sasl_ssl",
        sasl_username="detector",
        sasl_password=SECRET,
        ssl_ca_location="/etc/ca.pem",
        ssl_certificate_location="/etc/cert.pem",
        ssl_key_location="/etc/key.pem",
        ssl_key_password=SECRET + "2",
    )
    client = settings.client()
    assert client["security.protocol"] == "SASL_SSL"
    assert client["sasl.mechanism"] == "SCRAM-SHA-512"
    assert client["sasl.username"] == "detector"
    assert client["sasl.password"] == SECRET
    assert client["ssl.ca.location"] == "/etc/ca.pem"
    assert client["ssl.certificate.location"] == "/etc/cert.pem"
    assert client["ssl.key.password"] == SECRET + "2"
    assert not any("verification" in name or "identification" in name for name in client)  # their defaults are on


def test_no_secret_in_what_settings_show(monkeypatch, caplog):
    monkeypatch.setenv("FRAUD_SASL_PASSWORD", SECRET)
    monkeypatch.setenv("FRAUD_SSL_KEY_PASSWORD", SECRET)
    settings = Settings(bootstrap="127.0.0.1:9092", sasl_username="detector")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").info("%s %r %s", settings, settings, settings.model_dump())
    shown = [repr(settings), str(settings), caplog.text, settings.model_dump_json(), f"{settings.sasl_password}"]
    assert not any(SECRET in text for text in shown)
    assert settings.sasl_password is not None
    assert settings.sasl_password.get_secret_value() == SECRET


def test_no_secret_in_an_error_about_settings(monkeypatch):
    monkeypatch.setenv("FRAUD_SASL_PASSWORD", SECRET)
    with pytest.raises(ValidationError) as wrong:
        Settings(metrics_port="no port", sasl_password={"secret": SECRET})
    assert SECRET not in str(wrong.value)


def test_no_secret_in_the_repr_of_what_settings_are_turned_into():
    from stream.worker.fetch import FetchSettings
    from stream.worker.membership import MembershipSettings

    settings = Settings(
        bootstrap="kafka:9092", security_protocol="SASL_SSL", sasl_username="detector", sasl_password=SECRET
    )
    made = [
        FetchSettings(bootstrap_servers="kafka:9092", group_id="g", security=settings.security()),
        MembershipSettings(bootstrap_servers="kafka:9092", group_id="g", security=settings.security()),
    ]
    assert not any(SECRET in repr(one) for one in made)
