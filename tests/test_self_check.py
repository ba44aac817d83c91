"""A machine that computes other bits must not decide."""

import pytest

from stream import self_check


def test_this_machine_gives_the_recorded_bits() -> None:
    self_check.check()


def test_other_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check.bits, "kernel_hash", lambda: "0" * 32)
    with pytest.raises(self_check.OtherBits, match="Operator"):
        self_check.check()
