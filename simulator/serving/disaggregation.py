"""Prefill/decode disaggregation: the KV cache of a prefilled request moves over the fabric to a decode engine.

Model: a place (blocks and a seat of one rank) is asked for at the chosen decode engine; as soon as it is granted, the
layers that are computed leave, in messages of a few layers, each target rank reading its part from one source rank; the
source keeps its blocks until the last byte is in. Nothing moves while decode is full: that is the back-pressure.
Sources: Splitwise (ISCA 2024), DistServe (OSDI 2024), CloudMatrix384 (arXiv:2506.12708).
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from simpy import AllOf, AnyOf, Event

from simulator.clock import Clock
from simulator.serving.instance import Instance
from simulator.serving.kv_layout import Interval, Kind, KVLayout, pieces, shards
from simulator.serving.pool import Pool
from simulator.serving.request import UNFINISHED, Request
from simulator.serving.reservation import Holding, Reservation
from simulator.serving.transfer_rules import TransferRules

Shards = list[tuple[int, int, int]]
RETRY_NS = 1_000_000
"""Time after which a prefill engine that had no seat for a request that falls back is asked again, at least."""


class Network(Protocol):
    """Moves bytes between devices (see simulator.network)."""

    def transfer(self, shards: Sequence[tuple[int, int, int]]) -> Event:
        """Return an event that fires when every (source, target, bytes) has arrived; zero bytes take the latency."""


class Caches(NamedTuple):
    """Where the KV caches of the instances of both pools lie; `value_bytes` are those of a head, layer and position."""

    layouts: dict[str, KVLayout]
    """By instance."""
    layers: int
    value_bytes: int
    kinds: tuple[tuple[Kind | None, int | None], ...] = ((None, None),)
    """Kinds of layers (None: all), and how many positions at the end of a context they keep (None: all)."""


class _Message(NamedTuple):
    """Layers that leave together, of positions computed at once, at the time when they are computed."""

    ready_ns: int
    layers: Interval
    positions: Interval
    begun_at: int
    """Positions that the request had computed when the iteration began."""
    end_ns: int
    """When the iteration ends."""


class _Move:
    """One request between its two engines."""

    __slots__ = (
        "ends",
        "finished",
        "granted_ns",
        "handed_ns",
        "messages",
        "news",
        "place",
        "planned",
        "request",
        "source",
        "target",
        "tokens",
        "waits",
    )

    def __init__(self, request: Request, tokens: int, target: Instance, place: Reservation) -> None:
        self.request = request
        self.tokens = tokens  # positions that the target will hold
        self.target = target
        self.place = place
        self.source: Instance | None = None
        self.handed_ns = -1  # when the prefill ended
        self.granted_ns = -1
        self.waits = False  # prefilled and without a place
        self.ends = (0, 0)  # a device that sends and the one that it sends to
        self.finished = False  # it had but one token to generate
        self.messages: deque[_Message] = deque()
        self.planned = 0  # positions whose messages are sent or waiting
        self.news: Event | None = None  # for what waits for its next message or its end


class KVTransfer:
    """Takes requests from a prefill pool to a decode pool, by the rules of a scenario."""

    def __init__(
        self, env: Clock, network: Network, prefill: Pool, decode: Pool, caches: Caches, rules: TransferRules
    ) -> None:
        self._env = env
        self._network = network
        self._prefill = prefill
        self._decode = decode
        self._caches = caches
        self._rules = rules
        self._pulls = rules.direction == "pull"
        self._by_layers = rules.mode == "layerwise"
        step = rules.message_layers or caches.layers
        self._groups = [(at, min(at + step, caches.layers)) for at in range(0, caches.layers, step)]
        self._moves: dict[int, _Move] = {}
        self._withdrawn: set[int] = set()  # requests to cancel at the engine that gets them
        self.unplaced = 0  # requests whose prefill has ended and that wait for a place
        self.kept = 0  # requests that prefill engines have decoded themselves

    @property
    def layouts(self) -> dict[str, KVLayout]:
        """How the caches of each instance lie, by name; an engine that joins adds its own."""
        return self._caches.layouts

    # -- what happens to a request --------------------------------------------------------------------------------

    def enter(self, request: Request) -> None:
        """Route a request that has arrived to a prefill engine, and ask for its place now if the rules say so."""
        reserves = self._rules.reserves
        if reserves in ("on_arrival", "before_prefill"):
            move = self._ask(request, request.generated)
            if reserves == "before_prefill":
                self._env.process(self._enter_later(move))
                return
        self._prefill.choose(request).submit(request)

    def _enter_later(self, move: _Move) -> Generator[Event, Any, None]:
        yield move.place
        if move.request.outcome != UNFINISHED:  # given up in this very nanosecond
            return
        self._prefill.choose(move.request).submit(move.request)

    def withdraw(self, request: Request, gone: Callable[[Request], None]) -> bool:
        """Part with a request that is given up, if it is on its way, and return whether it is.

        One that waits for a place goes at once and `gone` hears of it. One whose cache moves goes when that has
        arrived: what is on its way is read from the blocks of one engine and written to those of the other.
        """
        move = self._moves.get(request.request_id)
        if move is None:
            return False
        if not move.waits:
            self._withdrawn.add(request.request_id)
            return True
        assert move.source is not None
        move.finished = True
        self._give_up(move)
        self._free(move, move.source.detach(request))
        gone(request)
        return True

    def forget(self, request: Request) -> None:
        """Give back the place of a request that goes before it is routed, granted or not: others wait behind it."""
        move = self._moves.get(request.request_id)
        if move is not None:
            move.finished = True
            self._give_up(move)

    def _cancel_withdrawn(self, request: Request, instance: Instance) -> None:
        if request.request_id in self._withdrawn:
            self._withdrawn.remove(request.request_id)
            instance.cancel(request)

    def began(self, prompts: Sequence[tuple[Request, int]], end_ns: int, source: Instance) -> None:
        """Hear of an iteration that prefills so many tokens of each of `prompts`, from now to `end_ns`."""
        if not self._by_layers and self._rules.reserves != "on_prefill_start":
            return
        for request, count in prompts:
            if request.decode_instance == source.name:
                continue
            move = self._moves.get(request.request_id)
            if move is None:
                move = self._ask(request, request.generated)
            if not self._by_layers:
                continue
            if move.source is None:
                move.source = source
                self._env.process(self._carry(move))
            self._plan(move, request.computed, count, end_ns)

    def _plan(self, move: _Move, done: int, count: int, end_ns: int) -> None:
        """Add the messages of an iteration; layers take equal parts of it.

        What a cache held beforehand goes with the first. A request that was preempted computes positions again: those
        that have left are not sent twice, those that had not are lost with their blocks.
        """
        if move.messages and done < move.messages[-1].positions[1]:
            move.planned = move.messages[0].positions[0]
            move.messages.clear()
        first, end = move.planned, done + count
        if end <= first:
            return
        now, layers = self._env.now, self._caches.layers
        for group in self._groups:
            ready_ns = now - (now - end_ns) * group[1] // layers
            move.messages.append(_Message(ready_ns, group, (first, end), done, end_ns))
        move.planned = end
        self._tell(move)

    def hand_over(self, request: Request, source: Instance) -> None:
        """Take over a request whose prefill has just ended at `source`.

        One that was decoded there before it was preempted stays: it has not asked for a place in its turn, and would
        hold blocks here that those who have theirs wait for. The prompt that has just ended leaves it a seat.
        """
        if request.decode_instance == source.name and source.keep(request):
            return
        move = self._moves.get(request.request_id)
        if move is None:
            move = self._ask(request, request.generated - 1)
        move.target.trim(move.place, request.samples)
        move.handed_ns = self._env.now
        if move.source is None:
            move.source = source
            move.messages.append(_Message(self._env.now, (0, self._caches.layers), (0, move.tokens), 0, self._env.now))
            place = move.place
            if place.triggered and not place.processed and not self._pulls:  # nearly always
                place.callbacks.append(partial(self._placed_at_once, move))
            else:
                self._env.process(self._carry(move))
        self._tell(move)

    def ended(self, request: Request) -> None:
        """Hear of a request that its first token has ended: its place is given up when nothing is on its way there."""
        move = self._moves.get(request.request_id)
        if move is None or move.handed_ns >= 0:
            return
        move.finished = True
        if move.source is None:
            self._give_up(move)
        else:
            self._tell(move)

    # -- the actor, or what does as it does, where a prefilled request has its place at once and its bytes are pushed --

    def _placed_at_once(self, move: _Move, place: Event) -> None:
        move.granted_ns = self._env.now
        found = self._due(move)
        if found:
            self._network.transfer(found).callbacks.append(partial(self._moved, move))
        else:
            self._release(move, self._join(move))

    def _moved(self, move: _Move, transfer: Event) -> None:
        if transfer.ok:  # else the environment raises what has happened
            self._release(move, self._join(move))

    def _carry(self, move: _Move) -> Generator[Event, Any, None]:
        """Wait for the place, send what is computed, wait for what is on its way, and let the request decode."""
        env = self._env
        if not (yield from self._placed(move)):
            self._give_up(move)
            return
        move.granted_ns = env.now
        on_the_way: list[Event] = []
        while not move.finished and (move.messages or move.handed_ns < 0):
            if not move.messages:
                yield self._news(move)
            elif move.messages[0].ready_ns > env.now:
                yield env.timeout(move.messages[0].ready_ns - env.now)
            else:
                found = self._due(move)
                if found:
                    on_the_way.append(env.process(self._read(found)) if self._pulls else self._network.transfer(found))
        if on_the_way:
            yield on_the_way[0] if len(on_the_way) == 1 else AllOf(env, on_the_way)
        if move.finished:
            self._give_up(move)
        else:
            yield from self._arrive(move)

    def _arrive(self, move: _Move) -> Generator[Event, Any, None]:
        holding = self._join(move)
        if self._pulls:
            yield self._network.transfer([(move.ends[1], move.ends[0], 0)])  # the source learns that all is read
        self._release(move, holding)

    def _join(self, move: _Move) -> Holding:
        """Let a request decode whose cache is in; return what its source holds of it."""
        request, source = move.request, move.source
        assert source is not None
        request.kv_transfer_ns += self._env.now - max(move.handed_ns, move.granted_ns)
        del self._moves[request.request_id]
        holding = source.detach(request)
        move.target.join(request, move.place)
        return holding

    def _release(self, move: _Move, holding: Holding) -> None:
        self._free(move, holding)
        self._cancel_withdrawn(move.request, move.target)

    def _free(self, move: _Move, holding: Holding) -> None:
        assert move.source is not None
        move.source.release(holding)
        self._prefill.left(move.source, move.request)

    def _placed(self, move: _Move) -> Generator[Event, Any, bool]:
        """Wait for the place; return False when the request will not need it."""
        env, place, fallback = self._env, move.place, self._rules.fallback
        while not place.triggered:
            if move.finished:
                return False
            if move.handed_ns < 0:
                yield AnyOf(env, [place, self._news(move)])
                continue
            if not move.waits:
                move.waits = True
                self.unplaced += 1
            if fallback is not None and self._falls_back(move):
                return False
            if fallback is None or fallback.after is None:
                yield place
                continue
            waited_ns = env.now - move.handed_ns
            left_ns = fallback.after - waited_ns if waited_ns < fallback.after else max(fallback.after, RETRY_NS)
            yield AnyOf(env, [place, env.timeout(left_ns)])
        yield place  # it may have been granted in this very nanosecond
        self._waited(move)
        return not move.finished

    def _waited(self, move: _Move) -> None:
        if move.waits:
            move.waits = False
            self.unplaced -= 1
            move.request.kv_wait_ns += self._env.now - move.handed_ns

    def _falls_back(self, move: _Move) -> bool:
        """Let the source decode the request if the rules say so and it can."""
        fallback, request, source = self._rules.fallback, move.request, move.source
        assert fallback is not None
        assert source is not None
        waited_ns = self._env.now - move.handed_ns
        late = fallback.after is not None and waited_ns >= fallback.after
        # at the end of its prefill only; it is itself among those that wait
        crowded = fallback.waiting is not None and not waited_ns and self.unplaced > fallback.waiting
        if not (late or crowded):
            return False
        rank = source.ranks[request.rank]
        if rank.paging.most(request, rank.batch.lookahead - 1) > source.engine.request_blocks:
            return False
        return source.keep(request)

    def _give_up(self, move: _Move) -> None:
        """Give the place back, unless that is done: the request ended, or its prefill engine decodes it."""
        if self._moves.pop(move.request.request_id, None) is None:
            return
        self._waited(move)
        self.kept += not move.finished
        move.target.withdraw(move.place)
        self._decode.left(move.target, move.request)
        if move.source is not None and not move.finished:
            self._cancel_withdrawn(move.request, move.source)

    def _ask(self, request: Request, generated: int) -> _Move:
        """Ask for a place for a request whose prefill computes its prompt and so many tokens of each sequence."""
        target = self._decode.choose(request)
        place = target.reserve(request, request.prompt_tokens + generated)
        tokens = request.prompt_tokens + request.samples * generated
        move = self._moves[request.request_id] = _Move(request, tokens, target, place)
        return move

    # -- what it sends --------------------------------------------------------------------------------------------

    def _due(self, move: _Move) -> Shards:
        """Take the messages that may leave now and return their bytes from device to device."""
        now, done = self._env.now, move.request.computed
        messages = move.messages
        parts: list[Shards] = []
        while messages and messages[0].ready_ns <= now:
            message = messages.popleft()
            if done < message.begun_at or (done < message.positions[1] and now > message.end_ns):
                move.planned = message.positions[0]  # preempted since: these blocks are gone
                messages.clear()
                break
            parts.append(self._shards(move, message))
        found = parts[0] if len(parts) == 1 else _summed(parts)
        if found:
            move.ends = found[0][0], found[0][1]
            move.request.kv_transfer_bytes += sum([size_bytes for _, _, size_bytes in found])
        return found

    def _shards(self, move: _Move, message: _Message) -> Shards:
        source, target, layouts = move.source, move.target, self._caches.layouts
        assert source is not None
        here, there = layouts[source.name], layouts[target.name]
        ranks = move.request.rank % here.data, move.place.rank % there.data
        caches, (first, end), parts = self._caches, message.positions, []
        for kind, kept in caches.kinds:
            if kept is not None:  # of several sequences the window of their prompt, and all that comes after it
                length = move.tokens if move.request.samples == 1 else min(move.tokens, move.request.prompt_tokens)
                first = max(first, min(end, length - kept))
            parts.append(
                shards(
                    pieces(here, there, *ranks, message.layers, kind),
                    (source.devices, target.devices),
                    (here.context, there.context),
                    caches.value_bytes,
                    (first, end),
                    move.tokens,
                )
            )
        return parts[0] if len(parts) == 1 else _summed(parts)

    def _read(self, found: Shards) -> Generator[Event, Any, None]:
        """Move bytes that the target reads: it is told of them and asks for them."""
        source, target, _ = found[0]
        yield self._network.transfer([(source, target, 0)])
        yield self._network.transfer([(target, source, 0)])
        yield self._network.transfer(found)

    def _news(self, move: _Move) -> Event:
        move.news = Event(self._env)
        return move.news

    def _tell(self, move: _Move) -> None:
        if move.news is not None and not move.news.triggered:
            move.news.succeed()

    # -- the end of a run -----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Write down how long what is still here has waited or moved: the run is over."""
        now = self._env.now
        for move in self._moves.values():
            if move.handed_ns < 0:
                continue
            if move.waits:
                move.request.kv_wait_ns += now - move.handed_ns
            else:
                move.request.kv_transfer_ns += now - max(move.handed_ns, move.granted_ns)


def _summed(parts: Sequence[Shards]) -> Shards:
    """Return what goes from device to device in all; within one part no pair of devices is there twice."""
    total: dict[tuple[int, int], int] = {}
    for part in parts:
        for a, b, size_bytes in part:
            total[a, b] = total.get((a, b), 0) + size_bytes
    return [(a, b, size_bytes) for (a, b), size_bytes in total.items()]
