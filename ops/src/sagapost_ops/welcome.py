"""What `up` prints when everything is ready: the addresses of the stack, and the call to try."""

from typing import Final

from sagapost_ops import plan, screen, state

_WIDTH: Final = 88
CURL: Final = (
    'curl -X POST http://localhost:{port}/api/checkout -H "Content-Type: application/json" -d '
    """'{{"user_id": 1, "user_email": "test@example.com", "items": [{{"product_id": 1, "quantity": 1, "price": "1299.99"}}]}}'"""
)


def show(console: screen.Screen, found: state.State) -> None:
    """Print the addresses of a stack, and the call to try: on one line, with no frame at its sides, so that it can be copied."""
    ports = {service.name: service.port for service in found.services}
    user, password = plan.BROKER_USER
    each = f", each with --port-offset {found.port_offset}" if found.port_offset else ""
    addresses = (
        ("page", f"http://localhost:{ports['page']}", ""),
        ("API", f"http://localhost:{ports['gateway']}/api", ""),
        ("docs", f"http://localhost:{ports['gateway']}/docs", ""),
        ("mailbox", f"http://localhost:{ports['mailbox']}", ""),
        ("RabbitMQ", f"http://localhost:{ports['rabbitmq-management']}", f"{user} / {password}"),
    )
    console.rule("Sagapost is up", style="green", width=_WIDTH)
    styles = ("bold", "cyan", "dim")
    console.table([""] * 3, [[screen.Styled(*cell) for cell in zip((f" {name}", *rest), styles, strict=True)] for name, *rest in addresses])
    console.line()
    console.line(screen.Styled(" try", "bold"))
    console.line(CURL.format(port=ports["gateway"]))
    console.line()
    console.line(f" ./sagapost demo · status · logs -f · verify · down{each}", style="dim")
    console.rule(style="green", width=_WIDTH)
