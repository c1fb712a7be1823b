"""The prefix cache unit by unit: the slow twin of stretches. A table of counts by key, an order of eviction by key."""

from collections import OrderedDict
from heapq import heappop, heappush
from itertools import count


class LeastRecent:
    """Least recently used first; with a lifetime, what was not used for so long is gone."""

    def __init__(self, lifetime_ns=None):
        self.lifetime_ns = lifetime_ns
        self.since = OrderedDict()

    def add(self, keys, now_ns):
        for key in keys:
            self.since[key] = now_ns

    def remove(self, keys):
        for key in keys:
            del self.since[key]

    def pop(self):
        return self.since.popitem(last=False)[0]

    def expired(self, now_ns):
        found = []
        while self.lifetime_ns is not None and self.since:
            if next(iter(self.since.values())) + self.lifetime_ns >= now_ns:
                break
            found.append(self.pop())
        return found


class Ranked:
    """By a rank that a unit has when it becomes free; among equals who became free first goes first."""

    def __init__(self, rank):
        self.rank = rank
        self.count = count()
        self.heap = []
        self.place = {}

    def add(self, keys, now_ns):
        for key in keys:
            self.place[key] = place = next(self.count)
            heappush(self.heap, (self.rank(key), place, key))

    def remove(self, keys):
        for key in keys:
            del self.place[key]

    def pop(self):
        while True:
            _, place, key = heappop(self.heap)
            if self.place.get(key) == place:
                del self.place[key]
                return key

    def expired(self, now_ns):
        return []


class UnitCache:
    """Units by key: those that requests reference, and those that may be evicted."""

    def __init__(self, eviction="lru", lifetime_ns=None, pin_units=0, pin_most=0):
        self.now_ns = 0
        self.references, self.uses, self.born = {}, {}, {}
        self.referenced = self.idle = self.pinned = 0
        self.pin_units, self.pin_most, self.pins = pin_units, pin_most, set()
        ranks = {"lfu": self.uses.__getitem__, "fifo": self.born.__getitem__}
        self.victims = Ranked(ranks[eviction]) if eviction in ranks else LeastRecent(lifetime_ns)
        self.births = count()

    def match(self, keys, most):
        found = 0
        for key in keys[:most]:
            if key not in self.references:
                break
            found += 1
        return found

    def in_use(self, keys, most):
        """How many of the units that are here in front may not be evicted."""
        return sum(self.references[key] > 0 or key in self.pins for key in keys[: self.match(keys, most)])

    def acquire(self, keys, units):
        idle = []
        for key in keys[:units]:
            if not self.references[key] and key not in self.pins:
                idle.append(key)
            self.references[key] += 1
            self.uses[key] += 1
        self.victims.remove(idle)
        self.idle -= len(idle)
        self.referenced += len(idle)

    def insert(self, keys, first, last):
        for place in range(first, last):
            key = keys[place]
            if key in self.references:
                self.acquire((key,), 1)
                continue
            self.references[key] = self.uses[key] = 1
            self.born[key] = next(self.births)
            self.referenced += 1
            if place < self.pin_units and self.pinned < self.pin_most:
                self.pins.add(key)
                self.pinned += 1

    def release(self, keys, units):
        idle = []
        for key in reversed(keys[:units]):
            self.references[key] -= 1
            if not self.references[key] and key not in self.pins:
                idle.append(key)
        self.victims.add(idle, self.now_ns)
        self.idle += len(idle)
        self.referenced -= len(idle)

    def alone(self, keys, units, dropped):
        """How many of the units nobody would hold if this prompt went as well as those noted in `dropped`."""
        freed = 0
        for key in keys[:units]:
            dropped[key] = dropped.get(key, 0) + 1
            freed += self.references[key] == dropped[key]
        return freed

    def evict(self, units):
        gone = [self.victims.pop() for _ in range(units)]
        self.forget(gone)
        return gone

    def expire(self, now_ns):
        self.now_ns = now_ns
        self.forget(self.victims.expired(now_ns))

    def forget(self, keys):
        for key in keys:
            del self.references[key], self.uses[key], self.born[key]
        self.idle -= len(keys)
