"""Parallel samples: the answers drawn from one prompt decode side by side, as a group that is scheduled as one.

Model: sequences of a group share the full KV blocks of their prompt and copy its last, partly filled one before they
write to it; they are admitted, preempted and swapped together (sequence groups, vLLM, SOSP 2023). One that is complete
leaves the group with its seat and the blocks that are its own; the last one takes the prompt's along.
"""

from simulator.serving.request import Request


def group_blocks(request: Request, tokens: int, size: int) -> int:
    """Return the KV blocks, of `size` tokens, of a request each of whose sequences holds `tokens` tokens.

    As long as there is no more than the prompt there is one copy of it.
    """
    blocks = -(-tokens // size)
    if request.samples == 1 or tokens <= request.prompt_tokens:
        return blocks
    shared = request.prompt_tokens // size
    return shared + request.samples * (blocks - shared)


def whole_blocks(request: Request, size: int, beyond: int = -1) -> int:
    """Return the KV blocks of a request each of whose answers has all its tokens, and `beyond` more, at once.

    The last token generated needs no KV.
    """
    prompt = request.prompt_tokens
    if not request.lengths:
        return group_blocks(request, prompt + request.output_tokens + beyond, size)
    shared = prompt // size
    return shared + sum([-(-(prompt + n + beyond) // size) - shared for n in request.lengths if n + beyond > 0])


def most_blocks(request: Request, size: int, beyond: int = -1) -> int:
    """Return the KV blocks that a request holds at most, as `whole_blocks` but that complete answers have left it."""
    prompt = request.prompt_tokens
    if not request.lengths:
        return group_blocks(request, prompt + request.output_tokens + beyond, size)
    shared = prompt // size
    ends = [(n, length + beyond) for n, length in enumerate(request.lengths, 1) if length + beyond > 0]
    return shared + max([n * (-(-(prompt + more) // size) - shared) for n, more in ends])


def computed_blocks(request: Request, tokens: int, size: int) -> int:
    """Return the KV blocks, of `size` tokens, of the first `tokens` that a prefill of a request computes.

    Those are the prompt and then, after a preemption, what each sequence had generated, one sequence after the other.
    """
    prompt = request.prompt_tokens
    if request.samples == 1 or tokens <= prompt:
        return -(-tokens // size)
    shared = prompt // size
    whole, part = divmod(tokens - prompt, request.generated)
    blocks = shared + whole * (-(-(prompt + request.generated) // size) - shared)
    return blocks + (-(-(prompt + part) // size) - shared if part else 0)


def computed_pairs(request: Request, done: int, count: int) -> int:
    """Return the query-key pairs of the next `count` tokens of a prefill that has computed `done`.

    A token attends to itself and to those before it in its own sequence, the prompt included.
    """
    if request.samples == 1 or done + count <= request.prompt_tokens:
        return count * done + count * (count + 1) // 2
    return _pairs(request, done + count) - _pairs(request, done)


def _pairs(request: Request, tokens: int) -> int:
    prompt, each = request.prompt_tokens, request.generated
    if tokens <= prompt:
        return tokens * (tokens + 1) // 2
    whole, part = divmod(tokens - prompt, each)
    own = whole * (each * (each + 1) // 2) + part * (part + 1) // 2
    return prompt * (prompt + 1) // 2 + (tokens - prompt) * prompt + own
