"""What may go wrong around the broker, and who acts.

OperatorError (stream/errors.py)
└── BrokerError
    ├── JarsRefused      a jar is not the one this release was tested with: whoever runs the Maven mirror
    ├── JarsUnreachable  the jars can't be downloaded: the operator (network, mirror or cache)
    ├── JavaMissing      no Java >= 17: the operator installs one
    ├── BrokerFailed     Kafka did not start, or died: the operator reads the end of its log
    └── TopicsFailed     the broker refused an administrative request: the operator
"""

from stream.errors import OperatorError


class BrokerError(OperatorError):
    """The broker can't do what was asked. The text says who must do what."""


class JarsRefused(BrokerError):
    """A jar's SHA-256 is not the recorded one. It is never loaded."""


class JarsUnreachable(BrokerError):
    """The jars are not in the cache and can't be downloaded."""


class JavaMissing(BrokerError):
    """No Java of a sufficient version was found."""


class BrokerFailed(BrokerError):
    """Kafka ended early, or did not answer in time. Holds the end of its log."""


class TopicsFailed(BrokerError):
    """A broker refused to describe or create topics."""
