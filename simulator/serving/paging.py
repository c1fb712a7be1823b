"""KV blocks that a request takes: of its prompt, of its answers, and of layers that keep only a window of positions.

Model: paged blocks, which sequences of one prompt share until they write (vLLM, SOSP 2023); layers in groups of one
size, so that any block serves any group, those with a window giving back what has left it (vLLM's hybrid KV cache).
"""

from typing import Any, NamedTuple

from simulator.serving.request import Request


class Windows(NamedTuple):
    """Groups of layers of one size: a block holds the positions of a block in one of them."""

    full: int
    """Groups that keep every position."""
    windowed: int
    """Groups that keep the last ones."""
    tokens: int
    """Positions that a query sees in those, its own included."""
    chunk: int
    """Tokens of one prompt that an iteration computes at most."""


class Paging:
    """Blocks of `size` tokens, of all layers, each of which keeps every position.

    Sequences of a request share the full blocks of their prompt and copy its last, partly filled one before they write
    to it; as long as there is no more than the prompt there is one copy of it.
    """

    __slots__ = ("size",)

    sheds = False
    """Whether a prompt gives blocks back when a part of it has been computed."""

    def __init__(self, size: int) -> None:
        self.size = size

    def held(self, request: Request, tokens: int) -> int:
        """Return the blocks of a request each of whose sequences holds so many tokens."""
        blocks = -(-tokens // self.size)
        if request.samples == 1 or tokens <= request.prompt_tokens:
            return blocks
        shared = request.prompt_tokens // self.size
        return shared + request.samples * (blocks - shared)

    def rooms(self, tokens: Any) -> Any:
        """Return the blocks of one sequence for each of an array of counts of tokens."""
        return -(-tokens // self.size)

    def whole(self, request: Request, beyond: int = -1) -> int:
        """Return the blocks of a request each of whose answers has all its tokens, and `beyond` more, at once.

        The last token generated needs no KV.
        """
        prompt, size = request.prompt_tokens, self.size
        if not request.lengths:
            return self.held(request, prompt + request.output_tokens + beyond)
        shared = prompt // size
        return shared + sum([-(-(prompt + n + beyond) // size) - shared for n in request.lengths if n + beyond > 0])

    def most(self, request: Request, beyond: int = -1) -> int:
        """Return the blocks that a request needs at most, as `whole` but that complete answers have left it."""
        prompt, size = request.prompt_tokens, self.size
        if not request.lengths:
            return self.held(request, prompt + request.output_tokens + beyond)
        shared = prompt // size
        ends = [(n, length + beyond) for n, length in enumerate(request.lengths, 1) if length + beyond > 0]
        return shared + max([n * (-(-(prompt + more) // size) - shared) for n, more in ends])

    def prefilled(self, request: Request, tokens: int) -> int:
        """Return the blocks of the first `tokens` that a prefill of a request computes, once it has.

        Those are the prompt and then, after a preemption, what each sequence had generated, one sequence after the
        other.
        """
        prompt, size = request.prompt_tokens, self.size
        if request.samples == 1 or tokens <= prompt:
            return -(-tokens // size)
        shared = prompt // size
        whole, part = divmod(tokens - prompt, request.generated)
        blocks = shared + whole * (-(-(prompt + request.generated) // size) - shared)
        return blocks + (-(-(prompt + part) // size) - shared if part else 0)

    def prefilling(self, request: Request, done: int, tokens: int) -> int:
        """Return the blocks of a request while an iteration computes up to `tokens` of its prefill, from `done` on."""
        return self.prefilled(request, tokens)

    def reserved(self, request: Request) -> int:
        """Return the blocks with which all of a prefill can be computed, in however many parts."""
        return self.prefilled(request, request.prompt_tokens + request.samples * request.generated)

    def longest(self, blocks: int) -> int:
        """Return the longest context of one sequence that can be computed, and decode, in so many blocks."""
        return blocks * self.size

    def sequences(self, blocks: int, tokens: int) -> int:
        """Return how many sequences of so many tokens each are in so many blocks."""
        return blocks // -(-tokens // self.size)

    def tokens(self, blocks: float, sequences: float) -> float:
        """Return about how many tokens `sequences` of one length have in all that hold so many blocks."""
        return blocks * self.size


class WindowedPaging(Paging):
    """Blocks of groups of layers some of which keep a window: as long as a context is within it they all grow alike.

    Then a sequence keeps `kept` blocks of each group with a window, in which the window lies wherever it begins. What
    an iteration computes needs blocks in every group; those before the window are given back when it ends.
    """

    __slots__ = ("chunk", "full", "kept", "plain", "windowed")

    sheds = True

    def __init__(self, size: int, windows: Windows, fed: int = 1) -> None:
        """`fed`: tokens of a sequence in a decode step, all of which see their windows."""
        super().__init__(size)
        self.plain = Paging(size)  # of one group that keeps everything
        self.full, self.windowed = windows.full, windows.windowed
        self.kept = (windows.tokens + fed - 3) // size + 2
        self.chunk = -(-windows.chunk // size)  # blocks that a part of a prompt adds at most

    def windows(self, request: Request, tokens: int) -> int:
        """Return the blocks of one group with a window when each sequence of a request holds so many tokens."""
        blocks, kept = -(-tokens // self.size), self.kept
        if request.samples == 1 or tokens <= request.prompt_tokens:
            return min(blocks, kept)
        shared = request.prompt_tokens // self.size
        own = blocks - shared
        return min(shared, max(0, kept - own)) + request.samples * min(own, kept)

    def grows(self, request: Request, tokens: int) -> bool:
        """Return whether more tokens take more blocks of a group with a window."""
        blocks = -(-tokens // self.size)
        if request.samples == 1:
            return blocks < self.kept
        return tokens <= request.prompt_tokens or blocks - request.prompt_tokens // self.size < self.kept

    def _alone(self, tokens: int) -> int:
        """Return the blocks of one sequence of so many tokens."""
        blocks = -(-tokens // self.size)
        return self.full * blocks + self.windowed * min(blocks, self.kept)

    def held(self, request: Request, tokens: int) -> int:
        """Return the blocks of a request each of whose sequences holds so many tokens."""
        return self.full * self.plain.held(request, tokens) + self.windowed * self.windows(request, tokens)

    def rooms(self, tokens: Any) -> Any:
        """Return the blocks of one sequence for each of an array of counts of tokens."""
        blocks = -(-tokens // self.size)
        return self.full * blocks + self.windowed * blocks.clip(max=self.kept)

    def whole(self, request: Request, beyond: int = -1) -> int:
        """Return the blocks of all answers at once, once they decode; see `Paging.whole`."""
        prompt, size, kept = request.prompt_tokens, self.size, self.kept
        shared = prompt // size if request.samples > 1 else 0
        lengths = request.lengths or [request.output_tokens] * request.samples
        own = [min(-(-(prompt + n + beyond) // size) - shared, kept) for n in lengths if n + beyond > 0]
        windows = min(shared, kept) + sum(own) if own else min(-(-prompt // size), kept)
        return self.full * self.plain.whole(request, beyond) + self.windowed * windows

    def most(self, request: Request, beyond: int = -1) -> int:
        """Return the blocks that a request needs at most, were it prefilled with all it may have generated as well."""
        if not request.lengths:
            blocks = self.plain.held(request, request.prompt_tokens + request.output_tokens + beyond)
        else:
            blocks = self.plain.most(request, beyond)
        return self._parted(blocks, request.samples)

    def _parted(self, blocks: int, sequences: int) -> int:
        """Return what a prefill of so many blocks needs that may be computed in parts, of sequences after a prompt."""
        windows = self.kept + self.chunk
        if sequences > 1:  # each has its own beside that of the prompt, and a block that it begins in
            windows += sequences * (self.kept + 1)
        return self.full * blocks + self.windowed * min(blocks, windows)

    def prefilled(self, request: Request, tokens: int) -> int:
        """Return the blocks of the first `tokens` of a prefill once they are computed; see `Paging.prefilled`."""
        prompt = request.prompt_tokens
        if request.samples == 1 or tokens <= prompt:
            return self._alone(tokens)
        whole, part = divmod(tokens - prompt, request.generated)
        if whole == request.samples:
            return self.held(request, prompt + request.generated)
        shared, beyond = divmod(prompt, self.size)
        own = min(-(-(prompt + request.generated) // self.size) - shared, self.kept)
        begun = min(-(-(prompt + part) // self.size) - shared, self.kept) if part else 0
        # its window stays, for the next sequence goes on from there; a last block that is not full is everyone's own
        windows = min(shared, self.kept - (beyond > 0)) + whole * own + begun
        return self.full * self.plain.prefilled(request, tokens) + self.windowed * windows

    def prefilling(self, request: Request, done: int, tokens: int) -> int:
        """Return the blocks of a request while an iteration computes up to `tokens` of its prefill, from `done` on."""
        new = self.plain.prefilled(request, tokens) - self.plain.prefilled(request, done)
        return self.prefilled(request, done) + (self.full + self.windowed) * new

    def reserved(self, request: Request) -> int:
        """Return the blocks with which all of a prefill can be computed, in however many parts."""
        tokens = request.prompt_tokens + request.samples * request.generated
        blocks = self.plain.prefilled(request, tokens)
        return self._parted(blocks, request.samples if request.generated else 1)

    def longest(self, blocks: int) -> int:
        """Return the longest context of one sequence that can be computed, and decode, in so many blocks."""
        most, full, windowed = self.kept + self.chunk, self.full, self.windowed
        if blocks < (full + windowed) * most:
            return blocks // (full + windowed) * self.size
        return (blocks - windowed * most) // full * self.size if full else 2**62

    def sequences(self, blocks: int, tokens: int) -> int:
        """Return how many sequences of so many tokens each are in so many blocks."""
        return blocks // self._alone(tokens)

    def tokens(self, blocks: float, sequences: float) -> float:
        """Return about how many tokens `sequences` of one length have in all that hold so many blocks.

        Of layers that all have a window, what is left of their contexts.
        """
        alike = blocks / (self.full + self.windowed)
        if alike <= sequences * self.kept or not self.full:
            return alike * self.size
        return (blocks - self.windowed * sequences * self.kept) / self.full * self.size


def paging_of(size: int, windows: Windows | None, fed: int = 1) -> Paging:
    """Return how requests take blocks of `size` tokens; `fed` as in `WindowedPaging`."""
    return Paging(size) if windows is None else WindowedPaging(size, windows, fed)
