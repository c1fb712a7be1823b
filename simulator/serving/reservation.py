"""Places of requests between two engines: what one sets aside for a request to come, and what it left at the other."""

from collections.abc import Sequence
from typing import NamedTuple

from simpy import Environment, Event


class Holding(NamedTuple):
    """KV blocks of a request that has left a rank and whose keys and values are still there."""

    rank: int
    blocks: int
    keys: Sequence[int]
    units: int


class Reservation(Event):
    """A place asked for: it fires when blocks and seats of rank `rank` are set aside for a request to come."""

    def __init__(self, env: Environment, rank: int) -> None:
        super().__init__(env)
        self.rank = rank
        self.blocks = self.seats = 0
