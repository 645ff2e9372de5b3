"""`demo`: makes one checkout through the gateway, shows what happens to it, and fails unless it ends as its story says."""

from urllib.parse import urlsplit

import rich_click as click

from sagapost_ops import errors, own_stack, screen
from sagapost_ops.commands import options
from sagapost_ops.demo import stories, telling
from sagapost_ops.saga import advice


@click.command(
    help="""Watch one checkout: the answer, each step of its saga, the money at the provider, and the mails at the end.

    Works only on a running development stack of this checkout: it makes real orders, and `poison` makes a fault. Exit code 1 when
    it does not end as its story says; what is wrong is named.

    \b
    ./sagapost demo                # the same as: demo happy
    ./sagapost demo decline        # a declined card: nothing is charged
    ./sagapost demo cancel         # paid, cancelled: refunded
    ./sagapost demo late-payment   # cancelled during the charge: the same
    ./sagapost demo poison         # a dead letter: found and sent again
    ./sagapost demo cancel --json | jq .movements
    """
)
@click.argument("story", type=click.Choice(tuple(stories.STORIES)), default="happy")
@options.port_offset
@options.as_json
def command(*, story: str, port_offset: int, as_json: bool) -> None:
    """Tell the story."""
    where = own_stack.find("demo", port_offset)
    console = screen.quiet() if as_json else screen.out()
    told = stories.STORIES[story]
    demo = telling.tell(console, where, story, told, port_offset)
    if as_json:
        screen.json(demo)
    else:
        telling.show_end(console, told, demo, f"http://localhost:{urlsplit(where.mailbox_url or '').port}", advice.option(port_offset))
    if demo.faults:
        raise errors.FailedError(f"{'; '.join(demo.faults)} (see ./sagapost saga show {demo.saga.order_id}{advice.option(port_offset)})")
