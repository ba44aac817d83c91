"""Combinations of codes (currency, channel, entry mode, ...): payments share few, so each is looked at once."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream.columns.scan import Scanned
from stream.features import CODES_WIDTH, codes_of
from topics.codec import Parsed, parse_payment
from topics.journal import RUN_MODES
from topics.limits import Limits
from topics.payment import Payment

NOT_COUNTED: Final = frozenset({"refund", "payout"})
UNKNOWN: Final = -1
COMBINATIONS_MAX: Final = 10_000


class Combinations:
    """Those that were met, by their canonical text, each with a number.

    What a code may be, no setting changes: a combination that `parse_payment` took once, it takes always. One that it
    refused is not kept. All are forgotten when there are more than COMBINATIONS_MAX of them, some 1 kB each.

    By number: `codes` float32 (m, CODES_WIDTH); `bits` uint8 (2, m), the mode's place in RUN_MODES and whether the
    windows count it; `currencies`, of the amount and of what is billed.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._clear()

    def _clear(self) -> None:
        self._numbers.clear()
        self.codes: NDArray[np.float32] = np.empty((64, CODES_WIDTH), np.float32)
        self.bits: NDArray[np.uint8] = np.empty((2, 64), np.uint8)
        self.currencies: list[tuple[str, str | None]] = []

    def numbers_of(self, scanned: Scanned, value_of: Callable[[int], bytes], limits: Limits) -> list[int]:
        """The number of each payment's combination; UNKNOWN: the payment is not plain, or its codes are refused.
        `value_of`: its JSON, by its place."""
        if len(self._numbers) > COMBINATIONS_MAX:
            self._clear()
        blob, known = scanned.blob, self._numbers
        if scanned.plain.all():
            found = [known.get(blob[a:b], UNKNOWN) for a, b in scanned.codes_at.tolist()]
            if UNKNOWN not in found:
                return found
        plain = scanned.plain.tolist()
        return [
            self._number(blob[a:b], i, value_of, limits) if plain[i] else UNKNOWN
            for i, (a, b) in enumerate(scanned.codes_at.tolist())
        ]

    def _number(self, text: bytes, i: int, value_of: Callable[[int], bytes], limits: Limits) -> int:
        number = self._numbers.get(text)
        if number is None:
            parsed = parse_payment(value_of(i), limits)
            if not isinstance(parsed, Parsed):
                return UNKNOWN
            number = self._numbers[text] = self._enter(parsed.payment)
        return number

    def _enter(self, payment: Payment) -> int:
        number = len(self.currencies)
        if number == len(self.codes):
            self.codes = np.concatenate((self.codes, np.empty_like(self.codes)))
            self.bits = np.concatenate((self.bits, np.empty_like(self.bits)), axis=1)
        self.codes[number] = np.frombuffer(codes_of(payment), np.float32)
        self.bits[0, number] = RUN_MODES.index(payment.mode)
        self.bits[1, number] = payment.mode != "test" and payment.operation not in NOT_COUNTED
        self.currencies.append((payment.currency, payment.billing_currency))
        return number
