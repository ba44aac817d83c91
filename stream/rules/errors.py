"""What a rule set or a policy can be refused for."""

from stream.errors import OperatorError


class RulesRefused(OperatorError):
    """This rule set or policy can never become active as it is; its author has to change it.

    Reads like msgspec's errors: `unknown feature 'x' - at `$.rules[2].when[0].feature``.
    """

    def __init__(self, what: str, path: str = "$") -> None:
        super().__init__(f"{what} - at `{path}`")
        self.what = what
        self.path = path
