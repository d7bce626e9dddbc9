"""Ports to listen at, looked at before anything is loaded."""

from __future__ import annotations

import socket


def check_port(host: str, port: int) -> None:
    """Make sure that a port can be listened at.

    Raises:
        OSError: for one that is taken, or an address that is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OSError(f"Cannot listen at {host}, port {port}: {why}. Choose another with --host or --port.") from error
