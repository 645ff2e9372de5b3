"""Which versions the parts of a stack have; it must not start them."""

import importlib.metadata

from sagapost_ops import state
from sagapost_sandbox import packages


def of_product() -> str:
    """Give the version of this checkout."""
    return importlib.metadata.version("sagapost-ops")


def of_stack() -> dict[state.Kind, str]:
    """Give the version of each kind of server: the installed ones', and our own for our processes."""
    postgres, rabbitmq = packages.find_postgres(), packages.find_rabbitmq()
    ours = of_product()
    return {
        "postgres": postgres.version if postgres else "unknown",
        "rabbitmq": rabbitmq.version if rabbitmq else "unknown",
        "health": ours,
        "http": ours,
    }
