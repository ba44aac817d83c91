"""An embedded broker that lets nobody in without a name, and nobody do what no ACL allows.

The clients' listener is SASL_SSL. One user for each who reads or writes, by SCRAM-SHA-512; the broker itself and
its administrator log in as `admin` by PLAIN (within TLS), because SCRAM's users are stored in the broker that must
first be reached. No password is ever on a command line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # these are its public names; its type information does not say so
    AdminClient,
    ScramCredentialInfo,  # pyright: ignore[reportPrivateImportUsage]
    ScramMechanism,  # pyright: ignore[reportPrivateImportUsage]
    UserScramCredentialAlteration,  # pyright: ignore[reportPrivateImportUsage]
    UserScramCredentialUpsertion,  # pyright: ignore[reportPrivateImportUsage]
)

from stream.broker.errors import BrokerFailed
from stream.errors import ConfigurationError

ADMIN = "admin"
SCRAM_ITERATIONS = 4_096  # the least that Kafka takes; each log-in pays for them
ANSWER_S = 60.0

_PLAIN_TEXT = re.compile(r"[A-Za-z0-9._~+/=\-]+")


@dataclass(frozen=True, kw_only=True)
class BrokerSecurity:
    """`certificate`: PEM file with the private key (PKCS #8) and the chain for 127.0.0.1; `ca`: PEM of who signed it.

    `users`: name → password. Passwords are of letters, digits and `._~+/=-`, so that nothing needs an escape.
    """

    certificate: Path
    ca: Path
    users: Mapping[str, str] = field(repr=False)
    admin_password: str = field(repr=False)

    def __post_init__(self) -> None:
        if ADMIN in self.users:
            raise ConfigurationError(f"{ADMIN!r} is the administrator, and cannot be another user")
        for name, password in (*self.users.items(), (ADMIN, self.admin_password)):
            if not _PLAIN_TEXT.fullmatch(password):
                raise ConfigurationError(f"the password of {name} is empty, or has other characters than letters etc.")

    def properties(self) -> dict[str, str]:
        """What is added to server.properties, a file that only its owner can read."""
        plain = (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required username="{ADMIN}" '
            f'password="{self.admin_password}" user_{ADMIN}="{self.admin_password}";'
        )
        return {
            "listener.security.protocol.map": "BROKER:SASL_SSL,CONTROLLER:SASL_SSL",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.broker.plain.sasl.jaas.config": plain,
            "listener.name.broker.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.controller.plain.sasl.jaas.config": plain,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.certificate),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{ADMIN}",
            "allow.everyone.if.no.acl.found": "false",
        }

    def client(self, user: str = ADMIN) -> dict[str, str]:
        """librdkafka's security options for one user. Raises KeyError for one that is not there."""
        admin = user == ADMIN
        return {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.ca),
            "sasl.mechanism": "PLAIN" if admin else "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": self.admin_password if admin else self.users[user],
        }

    def create_users(self, bootstrap: str) -> None:
        """Stores the users in a broker that runs; again is harmless. Raises `BrokerFailed`."""
        if not self.users:
            return
        admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, **self.client()})
        wanted: list[UserScramCredentialAlteration] = [
            UserScramCredentialUpsertion(
                name, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, SCRAM_ITERATIONS), password.encode()
            )
            for name, password in self.users.items()
        ]
        try:
            for done in admin.alter_user_scram_credentials(wanted, request_timeout=ANSWER_S).values():
                done.result()
        except KafkaException as error:
            raise BrokerFailed(f"the broker does not take its users: {error.args[0].str()}") from error
