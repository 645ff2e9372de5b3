"""What the order service reads from the environment."""

from typing import Annotated

import msgspec

from sagapost_chassis import settings


class Settings(settings.Common, frozen=True, kw_only=True):
    """`pay_window_s`: seconds after which an unpaid order is given up."""

    database_url: str
    amqp_url: str
    port: int = 8001
    pay_window_s: Annotated[int, msgspec.Meta(ge=1, le=7 * 24 * 3600)] = 900
