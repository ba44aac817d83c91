"""Settings of a process: where things are. Settings that have meaning travel by `control` instead.

From the environment (`FRAUD_BOOTSTRAP=...`) or a TOML file named by `FRAUD_SETTINGS`; a command's option wins.
"""

import os
import socket
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from stream.errors import ConfigurationError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})


class Settings(BaseSettings):
    """One process. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="FRAUD_", extra="ignore", hide_input_in_errors=True)

    bootstrap: str | None = Field(None, description="host:port[,host:port] of the brokers; none: the embedded one")
    prefix: str = Field("", description="put before each topic's name: several deployments on one broker")
    group: str = Field("fraudstream", description="the consumer group of the workers")
    state_dir: Path = Field(Path(".fraud/state"), description="this instance's state; nobody else's")
    snapshot_url: str | None = Field(None, description="where snapshots go (fsspec URL); none: no snapshots")
    snapshot_every_s: float = 180.0
    checkpoint_every_s: float = 1.0
    checkpoint_light_s: float = Field(5.0, description="the same, while fewer than a thousand keys have changed")
    checkpoint_changes_max: int = 60_000
    tick_every_s: float = Field(60.0, description="how often the learner may publish")
    accounts_in_memory: int = Field(200_000, description="per account partition")
    terminals_in_memory: int = Field(100_000, description="per terminal partition")
    block_cache_bytes: int = 128 << 20
    linger_ms: float = Field(0.2, description="how long a record of a journal, or a decision, may wait for company")
    metrics_port: int | None = Field(None, description="Prometheus metrics and health; none: off; 0: a free one")
    metrics_host: str = "127.0.0.1"
    session_timeout_s: float = 10.0

    security_protocol: str = Field("PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    plaintext_off_loopback: bool = Field(False, description="allow an unencrypted connection to another machine")
    sasl_mechanism: str = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: Path | None = None
    ssl_certificate_location: Path | None = None
    ssl_key_location: Path | None = None
    ssl_key_password: SecretStr | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("FRAUD_SETTINGS")
        toml = (TomlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
        return (init_settings, env_settings, *toml)

    def security(self) -> dict[str, str]:
        """librdkafka's security options. Raises `ConfigurationError` for plaintext to another machine."""
        protocol = self.security_protocol.upper()
        encrypted = protocol in {"SSL", "SASL_SSL"}
        if not encrypted and not self.plaintext_off_loopback and self.bootstrap and not _is_loopback(self.bootstrap):
            raise ConfigurationError(
                "plaintext to a broker on another machine: set FRAUD_SECURITY_PROTOCOL=SASL_SSL, or, if the network "
                "is trusted, FRAUD_PLAINTEXT_OFF_LOOPBACK=true"
            )
        if protocol == "PLAINTEXT":
            return {}
        options = {"security.protocol": protocol}
        if protocol.startswith("SASL"):
            if self.sasl_username is None or self.sasl_password is None:
                raise ConfigurationError("SASL needs FRAUD_SASL_USERNAME and FRAUD_SASL_PASSWORD")
            options |= {
                "sasl.mechanism": self.sasl_mechanism,
                "sasl.username": self.sasl_username,
                "sasl.password": self.sasl_password.get_secret_value(),
            }
        for option, path in (
            ("ssl.ca.location", self.ssl_ca_location),
            ("ssl.certificate.location", self.ssl_certificate_location),
            ("ssl.key.location", self.ssl_key_location),
        ):
            if path is not None:
                options[option] = str(path)
        if self.ssl_key_password is not None:
            options["ssl.key.password"] = self.ssl_key_password.get_secret_value()
        return options

    def client(self) -> dict[str, Any]:
        """What every Kafka client of ours begins with."""
        if self.bootstrap is None:
            raise ConfigurationError("no broker: give --bootstrap, set FRAUD_BOOTSTRAP, or `fraud broker start`")
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": f"fraudstream-{socket.gethostname()}",
            # Brokers that are away come back within seconds; the default would look for them every ten.
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1_000,
        } | self.security()


def _is_loopback(bootstrap: str) -> bool:
    return all(server.rsplit(":", 1)[0].strip() in LOOPBACK for server in bootstrap.split(","))
