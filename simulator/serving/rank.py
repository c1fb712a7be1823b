"""What one rank of an engine holds: its queue, the prompts it has begun, its batch and its KV blocks.

A rank is a data-parallel attention rank, or a micro-batch of a pipeline (vLLM's virtual engine): it schedules for
itself, and all ranks of an instance step together. This is the view that a batcher reads; nothing here knows of time.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from simpy import Environment

from simulator.errors import InvariantError
from simulator.serving.decode_batch import DecodeBatch
from simulator.serving.engine import Engine
from simulator.serving.engine_view import DECODE_ON, Step, Victim
from simulator.serving.first_chunk import FirstChunks
from simulator.serving.kv_cache import KVCache
from simulator.serving.lower_tiers import LowerTiers
from simulator.serving.queueing import Queue, precedence
from simulator.serving.request import Request
from simulator.serving.reservation import Holding, Reservation
from simulator.serving.samples import computed_pairs
from simulator.serving.speculation import SpeculativeBatch
from simulator.serving.stretches import Cached
from simulator.serving.swap import SwapSpace
from simulator.serving.windowed_batch import batch_of


class Rank:
    """Requests and KV blocks of one rank; an instance moves them from iteration to iteration."""

    __slots__ = (
        "arrived",
        "batch",
        "by_priority",
        "decoded",
        "decodes",
        "first_chunks",
        "fresh",
        "kv",
        "last_step_ns",
        "limits",
        "lower",
        "now_ns",
        "paging",
        "partial",
        "reservations",
        "reserved",
        "reserved_seats",
        "step",
        "swap",
        "waiting",
    )

    def __init__(self, engine: Engine) -> None:
        self.limits = engine.limits
        self.paging = engine.paging
        self.waiting: Queue = engine.queue() if engine.queue is not None else deque()
        self.by_priority = engine.by_priority  # whether the lowest priority is preempted first
        self.now_ns = 0  # when the iteration to come begins
        self.decoded = 0  # decode steps since the last iteration with prompts
        self.partial: list[Request] = []  # whose prefill has begun and not ended
        self.batch: DecodeBatch | SpeculativeBatch
        if engine.speculation is None:
            self.batch = batch_of(self.paging, engine.to_completion)
        else:
            self.batch = SpeculativeBatch(self.paging, engine.speculation)
        prefixes = engine.prefixes() if engine.prefixes is not None else None
        self.kv = KVCache(engine.kv_blocks, engine.watermark_blocks, self.batch, prefixes)
        self.lower: LowerTiers | None = None  # what is kept of the prefix cache beyond device memory
        self.swap: SwapSpace | None = None  # host memory for those who are preempted; none: they are computed anew
        self.first_chunks = FirstChunks(engine.first_chunk, self.batch) if engine.first_chunk else None
        self.fresh: list[Request] = []  # members that have not yet had a decode step here
        self.reservations: deque[Reservation] = deque()
        self.reserved = 0  # requests that were prefilled elsewhere and are to come
        self.reserved_seats = 0  # of those
        self.arrived: list[Request] = []  # of those, the ones whose keys and values are here
        self.step = DECODE_ON  # what it does in the iteration under way
        self.decodes = False  # whether its batch takes part in the iteration under way
        self.last_step_ns = 0  # end of its last decode step

    # -- what a batcher may read ----------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Seats taken: by the sequences of requests that decode, are being prefilled, come back, or hold a place."""
        seats = self.batch.sequences + self.reserved_seats
        if self.partial:
            seats += sum([request.samples for request in self.partial])
        if self.swap is not None:
            seats += sum([row.request.samples for row in self.swap.coming])
        if self.lower is not None:
            seats += sum([row.request.samples for row in self.lower.loading])
        return seats

    @property
    def swapped(self) -> int:
        """Requests that wait in host memory for room to decode on."""
        return len(self.swap.out) if self.swap is not None else 0

    @property
    def queued(self) -> int:
        """Requests that wait for a prefill, or for a place to decode."""
        return len(self.waiting) + len(self.reservations) + self.swapped

    @property
    def decoding(self) -> int:
        """Sequences that take part in a decode step."""
        return self.batch.sequences

    @property
    def admissible_blocks(self) -> int:
        """KV blocks that new prompts may take now, the watermark left free."""
        return self.kv.admissible(self.kv.used)

    @property
    def free_blocks(self) -> int:
        """KV blocks that nothing holds now."""
        return self.kv.total - self.kv.used

    @property
    def positions(self) -> int:
        """Tokens that each sequence of those who decode feeds in a step."""
        return self.batch.positions

    @property
    def step_blocks(self) -> int:
        """KV blocks that those who decode take for one step more."""
        return self.batch.blocks_after(1) - self.batch.blocks

    def claim(self, request: Request) -> tuple[int, int]:
        """Return what a waiting request would compute and take; see `EngineView.claim`."""
        tokens = request.prompt_tokens + request.samples * request.generated
        blocks = self.paging.reserved(request)
        prefixes = self.kv.prefixes
        if prefixes is None:
            return tokens, blocks
        units, in_use = prefixes.found_in_use(request)
        return tokens - units * prefixes.unit_tokens, blocks - in_use * prefixes.unit_blocks

    def reachable_tokens(self, request: Request, ticks: int) -> int:
        """Return the tokens of a request that the prefix cache has, and those after them that lower tiers offer."""
        prefixes = self.kv.prefixes
        if prefixes is None:
            return 0
        if self.lower is None:
            return prefixes.found(request) * prefixes.unit_tokens
        return sum(self.lower.find(request, prefixes, ticks)) * prefixes.unit_tokens

    @property
    def growth_blocks(self) -> int:
        """KV blocks that those who run will still take until they have all their tokens."""
        paging, batch = self.paging, self.batch
        beyond = batch.lookahead - 1
        growth = 0
        for request in self.partial:
            growth += paging.whole(request, beyond) - request.blocks - request.shared_blocks
        for request in batch.members.values():
            growth += paging.whole(request, beyond) - batch.room(request)
        return growth

    def victims(self) -> Iterator[Request]:
        """Yield who may be preempted: who was begun last, then who joined the batch last; or by priority.

        Then, as in vLLM, the lowest priority goes first and of its like who arrived last, whenever each was begun.
        """
        if not self.by_priority:
            yield from reversed(self.partial)
            yield from reversed(self.batch.members.values())
            return
        yield from sorted([*self.partial, *self.batch.members.values()], key=precedence, reverse=True)

    def latest(self) -> Iterator[Victim]:
        """Yield what those who may be preempted hold and take for a step; see `EngineView.latest`."""
        dropped: dict[Cached, int] = {}  # references to cached units that those before would have given up
        for request in self.victims():
            if request.request_id not in self.batch.members:
                yield Victim(request, request.blocks + self._freed(request, dropped), 0)
                continue
            blocks = self.batch.room(request)
            held = blocks - request.shared_blocks + self._freed(request, dropped)
            yield Victim(request, held, self.batch.room(request, 1) - blocks)

    def _freed(self, request: Request, dropped: dict[Cached, int]) -> int:
        """Return the cached blocks that nobody references any more when this request goes as well; it is noted down."""
        prefixes = self.kv.prefixes
        if prefixes is None:
            return 0
        units = request.shared_blocks // prefixes.unit_blocks
        return prefixes.given_up(request.keys, units, dropped) * prefixes.unit_blocks

    # -- what happens to it ---------------------------------------------------------------------------------------

    def stand_on(self, lower: LowerTiers, env: Environment) -> None:
        """Keep what the prefix cache gives up, or takes in, in lower tiers as well."""
        self.lower, lower.env = lower, env
        self.kv.evicted = lower.keep

    def queue(self, request: Request) -> None:
        """Let a request wait; what slower tiers have of it comes nearer meanwhile, unless it may begin at once."""
        if self.lower is not None and self.kv.prefixes is not None and (self.waiting or self.running):
            self.lower.prefetch(request, self.kv.prefixes)
        self.waiting.append(request)

    def begin(self, step: Step, now_ns: int) -> tuple[int, int, int]:
        """Admit those of a step's prompts that are new, take blocks, and return (tokens, query-key pairs, prompts)."""
        paging = self.paging
        tokens = pairs = taken = 0
        for request, _ in step.prompts:
            if not request.computed:
                self.partial.append(self.waiting.popleft())
                if request.prefill_start_ns < 0:
                    request.prefill_start_ns = now_ns
                self.adopt(request)
        for request, count in step.prompts:
            done = request.computed
            tokens += count
            pairs += computed_pairs(request, done, count)
            blocks = paging.reserved(request) if step.reserves else paging.prefilling(request, done, done + count)
            blocks -= request.shared_blocks
            taken += blocks - request.blocks
            request.blocks = blocks
        self.kv.held += taken
        self.kv.make_room()
        if step.prompts:
            self.decoded = 0
        if step.padded and step.prompts:
            longest = max(count for _, count in step.prompts)
            tokens = len(step.prompts) * longest  # each attends to what a cache had of its prompt as well
            pairs = sum([longest * r.computed + longest * (longest + 1) // 2 for r, _ in step.prompts])
        return tokens, pairs, len(step.prompts)

    def adopt(self, request: Request) -> None:
        """Hold what the prefix cache has of a request that is being admitted, so that it need not be computed."""
        prefixes = self.kv.prefixes
        if prefixes is None:
            return
        units = prefixes.found(request)
        prefixes.acquire(request.keys, units)
        request.computed = units * prefixes.unit_tokens
        request.shared_blocks = units * prefixes.unit_blocks
        if not request.preemptions:
            request.cached_tokens = request.computed

    def take(self, request: Request, tokens: int) -> None:
        """Hold KV blocks for so many tokens of each sequence of a request, beside the cached ones that it shares."""
        request.blocks = self.paging.held(request, tokens) - request.shared_blocks
        self.kv.held += request.blocks
        self.kv.make_room()

    def _share(self, request: Request, tokens: int) -> int:
        """Give the cache the full units of the first `tokens` of a request, and return how many blocks those have.

        Its keys are those of the prompt and of its first sequence, which come first.
        """
        prefixes = self.kv.prefixes
        if prefixes is None:
            return 0
        first = request.shared_blocks // prefixes.unit_blocks
        last = min(len(request.keys), min(tokens, request.context_tokens) // prefixes.unit_tokens)
        if last <= first:
            return 0
        prefixes.insert(request.keys, first, last)
        if self.lower is not None:
            self.lower.store(request.keys[:last])
        blocks = (last - first) * prefixes.unit_blocks
        request.shared_blocks += blocks
        return blocks

    def computed(self, prompts: Sequence[tuple[Request, int]]) -> list[Request]:
        """Count the tokens of an iteration that has ended and return those whose prefill is done."""
        for request, count in prompts:
            request.computed += count
            if request.keys:
                blocks = self._share(request, request.computed)
                request.blocks -= blocks
                self.kv.held -= blocks
            if self.paging.sheds and (not self.step.reserves or request.computed == request.prefill_tokens):
                self._shed(request)
        if self.paging.sheds:
            self.kv.make_room()
        done = [r for r, _ in prompts if r.computed == r.prompt_tokens + r.samples * r.generated]
        if len(done) == len(self.partial):
            self.partial.clear()
        else:
            self.partial = [r for r in self.partial if r.computed < r.prefill_tokens]
        return done

    def _shed(self, request: Request) -> None:
        """Free what the layers with a window have computed of a request and see no more."""
        blocks = self.paging.prefilled(request, request.computed) - request.shared_blocks
        self.kv.held -= request.blocks - blocks
        request.blocks = blocks

    def drop(self, request: Request, tokens: int) -> None:
        """Free the blocks of a request that does not decode; of its `tokens` computed the cache keeps what it may."""
        self.kv.held -= request.blocks
        request.blocks = 0
        prefixes = self.kv.prefixes
        if prefixes is not None and request.keys:
            self._share(request, tokens)
            prefixes.release(request.keys, request.shared_blocks // prefixes.unit_blocks)
            request.shared_blocks = 0
            self.kv.make_room()

    def detach(self, request: Request) -> Holding:
        """Let a request go whose keys and values stay for now; returns what to free when they have moved."""
        prefixes = self.kv.prefixes
        units = request.shared_blocks // prefixes.unit_blocks if prefixes is not None else 0
        holding = Holding(request.rank, request.blocks, request.keys, units)
        request.blocks = request.shared_blocks = 0
        return holding

    def free(self, holding: Holding) -> None:
        """Free what a request left behind when it went."""
        self.kv.held -= holding.blocks
        if holding.units and self.kv.prefixes is not None:
            self.kv.prefixes.release(holding.keys, holding.units)

    def decode(self, request: Request, now_ns: int) -> None:
        """Let a request decode from the next step on; its blocks are the batch's now."""
        self.kv.held -= request.blocks
        request.blocks = 0
        self.batch.join(request)
        self.fresh.append(request)
        if self.first_chunks is not None:
            self.first_chunks.joined(request, now_ns)

    def steps_at_most(self, steps: int) -> int:
        """Return how many of so many decode steps may be taken at once: its batcher and first chunks may say fewer."""
        if self.step.steps is not None:
            steps = min(steps, self.step.steps)
        until = self.first_chunks.steps() if self.first_chunks is not None else None
        return steps if until is None else min(steps, until)

    def advance(self, steps: int, now_ns: int) -> None:
        """Count decode steps that have ended now."""
        self.batch.advance(steps)
        self.decoded += steps
        self.kv.make_room()
        self.last_step_ns = now_ns
        if self.first_chunks is not None:
            self.first_chunks.send(now_ns)

    def pop_finished(self) -> list[Request]:
        """Take out the requests that have just made their last token; the cache keeps what it may of their contexts."""
        batch = self.batch
        done = batch.pop_finished()
        if self.kv.prefixes is not None:
            for request in done:
                self.drop(request, request.context_tokens - 1)
            for request in batch.parted:
                batch.blocks -= self._keep_first(request)
                self.kv.make_room()
        if batch.parted:
            self.batch.parted = []
        return done

    def part(self, request: Request) -> None:
        """Let the answers of a request leave that the end of its prefill has completed, while others go on."""
        batch, held = self.batch, request.context_tokens - 1
        before = self.paging.held(request, held)
        ended = request.part()
        freed = before - self.paging.held(request, held)
        if isinstance(batch, DecodeBatch) and batch.keeps:
            batch.pad(ended, ended * held, freed)
        freed += self._keep_first(request)
        request.blocks -= freed
        self.kv.held -= freed
        self.kv.make_room()

    def _keep_first(self, request: Request) -> int:
        """Leave the cache what it may keep of the first answer if that has just ended, while others go on.

        Return how many blocks more are shared. Those of the answer are nobody's then, nor does the request go by their
        keys any more.
        """
        prefixes = self.kv.prefixes
        if prefixes is None or not request.keys or request.generated != request.first_answer_tokens:
            return 0
        before = request.shared_blocks
        self._share(request, request.context_tokens - 1)
        units, held = request.prompt_tokens // prefixes.unit_tokens, request.shared_blocks // prefixes.unit_blocks
        if held > units:
            prefixes.release(request.keys, held, units)
            request.shared_blocks = units * prefixes.unit_blocks
        request.keys = request.keys[:units]
        return request.shared_blocks - before

    def take_stock(self, now_ns: int, instance: str) -> None:
        """Between two iterations: forget prefixes that have expired, and let those decode who have come."""
        self.now_ns = now_ns
        if self.kv.prefixes is not None:
            self.kv.prefixes.expire(now_ns)
        if self.arrived:
            come, self.arrived = self.arrived, []
            for request in come:
                self.reserved -= 1
                self.reserved_seats -= request.samples
                self.decode(request, now_ns)
                request.decode_instance = instance

    def start_decoding(self, now_ns: int) -> None:
        """Note when those who are new to the batch had their first step."""
        for request in self.fresh:
            if request.decode_start_ns < 0:
                request.decode_start_ns = now_ns

    def report_gaps(self, first_ns: int, gap: Callable[[int, int], None]) -> None:
        """Report how long after the token before the first of a jump came: `gap(ns, tokens)`."""
        old = self.batch.sequences
        for request in self.fresh:
            old -= request.samples
            gap(first_ns - request.last_token_ns, request.samples)
        if old:
            gap(first_ns - self.last_step_ns, old)
        self.fresh.clear()

    def withdraw(self, request: Request) -> bool:
        """Let a request go that has begun, wherever it is, its blocks with it; return whether it was here."""
        if self.lower is not None and self.lower.withdraw(request):
            self.drop(request, request.computed)
            return True
        if self.swap is not None and request in self.swap:
            if self.swap.withdraw(request):
                self.drop(request, request.context_tokens - 1)
            return True
        if request.request_id in self.batch.members:
            self.batch.leave(request)
            if request in self.fresh:
                self.fresh.remove(request)
            else:
                request.last_token_ns = self.last_step_ns
            self.drop(request, request.context_tokens - 1)
            return True
        if request in self.partial:
            self.partial.remove(request)
            self.drop(request, request.computed)
            return True
        return False

    def reserve(self, place: Reservation, request: Request, tokens: int) -> Reservation:
        """Put a place for a request with so many tokens in each sequence at the end of the line, and return it."""
        place.blocks, place.seats = self.paging.held(request, tokens), request.samples
        self.reservations.append(place)
        return place

    def can_grant(self, steps: int) -> bool:
        """Return whether there is a place for the next reservation when `steps` of the jump under way have begun.

        A request preempted here comes first, so there is none while any waits.
        """
        if not self.reservations or self.waiting or self.swapped:
            return False
        place = self.reservations[0]
        if self.running + place.seats > self.limits.max_running:
            return False
        return place.blocks <= self.kv.admissible(self.kv.used_after(steps))

    def grant(self) -> Reservation:
        """Set blocks and seats aside for the next reservation and return it."""
        place = self.reservations.popleft()
        self.kv.held += place.blocks
        self.kv.make_room()
        self.reserved += 1
        self.reserved_seats += place.seats
        return place

    def trim(self, place: Reservation, seats: int) -> None:
        """Leave a reservation, granted or not, only so many seats."""
        if place.triggered:
            self.reserved_seats -= place.seats - seats
        place.seats = seats

    def give_back(self, place: Reservation) -> None:
        """Forget a reservation, granted or not, whose request does not come."""
        if place.triggered:
            self.kv.held -= place.blocks
            self.reserved -= 1
            self.reserved_seats -= place.seats
        else:
            self.reservations.remove(place)

    def keep(self, request: Request) -> bool:
        """Let a request that was prefilled here to be moved decode here if there are seats; return whether so."""
        if self.running + request.samples > self.limits.max_running:
            return False
        self.reserved += 1
        self.reserved_seats += request.samples
        self.arrived.append(request)
        return True

    def check(self) -> None:
        """Raise InvariantError unless the KV ledger adds up and no more run than there are seats."""
        self.kv.check()
        for beside in (self.swap, self.lower):
            if beside is not None:
                beside.check()
        if self.running > self.limits.max_running:
            raise InvariantError(f"{self.running} sequences run on {self.limits.max_running} seats")
