"""Ports that cannot be had: who has them, and what to do."""

import errno

from propeller.process.run import StartError


def cannot_listen(name: str, host: str, port: int, variable: str, error: OSError) -> StartError:
    """The error of a service that cannot listen: one line with the port, who holds it if that can be seen, the remedy.

    Args:
        name: of the service.
        host: where it would listen.
        port: likewise.
        variable: the setting that chooses the port; empty if there is none.
        error: what the system said.
    """
    setting = f" ({variable})" if variable else ""
    if error.errno != errno.EADDRINUSE:
        return StartError(f"{name}: cannot listen on {host}:{port}{setting}: {error.strerror}")
    who = holder(port)
    by = f" by {who}" if who else ""
    other = f"choose another port with {variable}" if variable else "choose another port"
    return StartError(
        f"{name}: port {port} is already in use{by}; stop what listens there, or {other} "
        "(propeller up --ports auto takes free ones)"
    )


def holder(port: int) -> str | None:
    """The process that listens on a port, as far as this user may see it."""
    import psutil  # for the error alone

    try:
        for one in psutil.net_connections(kind="tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return f"{psutil.Process(one.pid).name()} (process {one.pid})"
    except (psutil.Error, OSError):
        pass
    return None
