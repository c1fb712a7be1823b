"""Parallel samples: the answers drawn from one prompt decode side by side, as a group that is scheduled as one.

Model: sequences of a group are admitted, preempted and swapped together (sequence groups, vLLM, SOSP 2023), so that one
prefill computes again what all of them had. Which blocks they share is a matter of paging.
"""

from simulator.serving.request import Request


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
