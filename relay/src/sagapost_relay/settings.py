"""The relay's settings from the environment."""

from typing import Annotated

import msgspec

from sagapost_chassis import outbox, settings


class Settings(settings.Common, frozen=True, kw_only=True):
    """One relay process serves one database, beside as many others as one likes.

    batch: rows of one shard per read · lease_s: how long a shard stays with a relay that has fallen silent; all relays of a database
    must have the same · rotate_s: how long a partition is filled, so that the history reaches back three to four times that ·
    retry_*: rows the broker does not take · plain_publish: use the client's own publish call.
    """

    database_url: settings.DatabaseUrl
    amqp_url: settings.BrokerUrl
    batch: int = 256
    port: int = 8011
    lease_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10
    rotate_s: float = 3600
    confirm_timeout_s: float = 10
    retry_attempts: int = 8
    retry_base_s: float = 0.5
    retry_cap_s: float = 30
    max_payload_bytes: int = outbox.MAX_PAYLOAD_BYTES
    plain_publish: bool = False
