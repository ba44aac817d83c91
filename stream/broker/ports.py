"""Free loopback ports that stay free while a broker is down."""

import random
import socket

from stream.broker.server_properties import HOST

# Below the ports that Linux and macOS hand out to outgoing connections: else one of those could take a killed broker's
# port before it is started again.
PORT_FIRST, PORT_LAST = 20_000, 32_000
TRIES_MAX = 1_000


def free_ports(count: int) -> list[int]:
    """`count` different ports on which nothing listens on 127.0.0.1. Raises OSError if none is found."""
    chance = random.SystemRandom()  # two test runs that start together must not try the same ports
    held: list[socket.socket] = []
    try:
        for _ in range(TRIES_MAX):
            if len(held) == count:
                return [opened.getsockname()[1] for opened in held]
            opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                opened.bind((HOST, chance.randint(PORT_FIRST, PORT_LAST)))
            except OSError:
                opened.close()
                continue
            held.append(opened)
    finally:
        for opened in held:
            opened.close()
    raise OSError(f"no {count} free ports on {HOST} between {PORT_FIRST} and {PORT_LAST}")


def listens(port: int) -> bool:
    """True if something accepts connections on this loopback port."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False
