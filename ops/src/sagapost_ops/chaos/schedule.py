"""Which process dies how often, when and where, decided by a seed before anything runs; it must not start or kill anything."""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from sagapost_chassis import crashpoints
from sagapost_ops.load import planning

MIX: Final = "ok=88,declined=5,flaky=3,late=2,cancelled=2"
SERVICES: Final = ("gateway", "order", "payment", "email", "relay-order", "relay-payment")
SERVERS: Final = ("order-db", "payment-db", "rabbitmq")
REPLAY: Final = "dlq-replay"  # the operator's command, started for its crash point only
OWNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "order": ("order",),
    "saga": ("order",),
    "sweeper": ("order",),
    "payment": ("payment",),
    "email": ("email",),
    "relay": ("relay-order", "relay-payment"),
    "dlq": (REPLAY,),
}
# what comes by seldom is waited for at its first pass; the others die at one of the first passes
_RARE: Final = frozenset({"sweeper.after_commit", "payment.after_refund", "dlq.after_publish"})
_LATEST_PASS: Final = 4
_HASTY: Final = 0.15  # the share of kills that do not wait until the process is ready
# one in so many kills hits a server; the broker takes longest to come back
_SERVER_SHARES: Final = {"order-db": 50, "payment-db": 50, "rabbitmq": 65}
_KILLS_A_POINT: Final = 50
KILL_S: Final = 1.2

Way = Literal["kill", "point"]


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """One life's end: kill -9 after a while (`share` 0 to 1 of what there is time for), or by itself at the `nth` pass of a point.

    `hasty`: the while counts from the start, not from readiness. `down_s`: how long a server stays away.
    """

    way: Way
    point: str = ""
    nth: int = 1
    share: float = 0.5
    hasty: bool = False
    down_s: float = 0.0


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """The deaths of each process in their order, and how often each point is to fire."""

    deaths: dict[str, tuple[Death, ...]]
    points: dict[str, int]

    @property
    def kills(self) -> int:
        """How many processes are to die."""
        return sum(len(deaths) for deaths in self.deaths.values())


def plan(seed: int, kills: int, points_each: int | None = None) -> Schedule:
    """Deal `kills` deaths over every process, with every crash point `points_each` times; more when that many do not suffice.

    Raises:
        ValueError: a crash point has no owner here.

    """
    dice = planning.Dice(seed)
    each = max(1, kills // _KILLS_A_POINT) if points_each is None else points_each
    deaths: dict[str, list[Death]] = {name: [] for name in (*SERVICES, *SERVERS, REPLAY)}
    for place, point in enumerate(crashpoints.NAMES):
        owners = OWNERS.get(point.partition(".")[0], ())
        if not owners:
            raise ValueError(f"nobody dies at {point}: name its owner in chaos/schedule.py")
        for number in range(each):
            nth = 1 if point in _RARE else dice.randint(1, _LATEST_PASS)
            deaths[owners[(place + number) % len(owners)]].append(Death(way="point", point=point, nth=nth, share=dice.random()))
    for server, one_in in _SERVER_SHARES.items():
        for _ in range(max(1, kills // one_in)):
            deaths[server].append(Death(way="kill", share=dice.random(), down_s=round(dice.uniform(0, 1.5), 2)))
    _fill_up(deaths, kills, dice)
    for listed in deaths.values():
        dice.shuffle(listed)
    return Schedule(deaths={name: tuple(listed) for name, listed in deaths.items()}, points=dict.fromkeys(crashpoints.NAMES, each))


def _fill_up(deaths: dict[str, list[Death]], kills: int, dice: planning.Dice) -> None:
    """Give the rest of the kills to whoever dies least, and at least one to each."""
    while sum(map(len, deaths.values())) < kills or any(not any(d.way == "kill" for d in deaths[name]) for name in SERVICES):
        need = [name for name in SERVICES if not any(death.way == "kill" for death in deaths[name])]
        name = min(need or SERVICES, key=lambda name: len(deaths[name]))
        deaths[name].append(Death(way="kill", share=dice.random(), hasty=dice.random() < _HASTY))


def minutes(checkouts: int, kills: int) -> float:
    """Say how long a campaign takes at least, so that processes live for a moment between two deaths."""
    return max(1.0, kills * KILL_S / 60, checkouts / 600)
