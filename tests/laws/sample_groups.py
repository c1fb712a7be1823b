"""What parallel samples of one prompt hold and attend to, token by token and block by block, for twins of engines.

A request is a dict with `prompt` and `made` tokens and, unless it is 1, `samples`.
"""

from math import ceil


def sequences(r):
    return r.get("samples", 1)


def computed(r):
    """What a prefill computes, in its order: (sequence, position) of the prompt, then of what each sequence made."""
    own = [(s, r["prompt"] + k) for s in range(sequences(r)) for k in range(r["made"])]
    return [(0, position) for position in range(r["prompt"])] + own


def pairs(r, before, after):
    """Query-key pairs of tokens `before` to `after` of a prefill: each attends to its sequence up to itself."""
    if sequences(r) == 1 or not r["made"]:
        return sum(range(before + 1, after + 1))
    return sum(position + 1 for _, position in computed(r)[before:after])


def blocks(r, tokens, size, decodes=False):
    """Distinct KV blocks of the first `tokens` of a prefill, or of so many in each sequence that decodes.

    Blocks full of the prompt are everybody's; any other is one sequence's own as soon as more than the prompt is there.
    """
    if sequences(r) == 1 or tokens <= r["prompt"]:
        return ceil(tokens / size)
    each = [(s, position) for s in range(sequences(r)) for position in range(tokens)]
    held = each if decodes else computed(r)[:tokens]
    number = {(s, position // size) for s, position in held}
    return len({(None if (block + 1) * size <= r["prompt"] else s, block) for s, block in number})
