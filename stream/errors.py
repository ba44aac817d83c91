"""The exception tree. Each leaf says who acts.

    FraudstreamError
    ├── OperatorError        the operator must act: configuration, topics, state, credentials
    │   ├── StateError       the state does not belong to the log as it stands
    │   └── ConfigurationError
    └── InternalError        a programmer must act: a bug, or bytes that no version of ours wrote

A bad payment raises nothing: it is a `Refusal` (topics/codec.py), answered and kept in the dead letters.
"""


class FraudstreamError(Exception):
    """Base of all errors of ours."""


class OperatorError(FraudstreamError):
    """The operator must act; the message says what to do."""


class ConfigurationError(OperatorError):
    """Settings that cannot work."""


class StateError(OperatorError):
    """State and log do not fit each other."""


class InternalError(FraudstreamError):
    """A bug, or an internal record that cannot be read. The partition stops."""
