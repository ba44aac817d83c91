"""What msgspec's decoders raise on bytes that are not what they should be: not only its own errors."""

from typing import Final

import msgspec

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Text that is no UTF-8, and depths beyond Python's own, come as Python's errors."""
