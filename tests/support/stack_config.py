"""What a stack tells its services, without a stack."""

from pathlib import Path

from propeller.stack.config import StackConfig
from propeller.stack.services import CLIENT_NAMES, PORTS
from propeller.stack.state_folder import StateFolder


def make_stack_config(folder: Path) -> StackConfig:
    """A stack of two proplets, provisioned in name."""
    state = StateFolder(folder)
    secrets = state.load_secrets("admin", "a-long-password")
    secrets.domain_id, secrets.channel_id = "d", "c"
    names = (*CLIENT_NAMES, "proplet-1", "proplet-2")
    secrets.clients = {name: {"id": f"id-{name}", "key": f"key-{name}"} for name in names}
    return StackConfig(state, {name: 20_000 + number for number, name in enumerate(PORTS)}, secrets)
