"""What parallel samples of one prompt hold and attend to, token by token and block by block, for twins of engines.

A request is a dict with `prompt` and `made` tokens and, unless it is 1, `samples`: how many of its answers go on. Where
these differ, `answers` has the length of each.
"""

from functools import lru_cache
from itertools import pairwise
from math import ceil

from hypothesis import strategies as st


def sequences(r):
    return r.get("samples", 1)


def answers(output, samples=1, further=None):
    """The length of each answer: the first has `output` tokens, the others as many, or what `further` says."""
    return [output, *(further if further is not None else [output] * (samples - 1))]


def leave(r):
    """Let the answers go that have all their tokens; return how many those are. The last ones stay as they are."""
    left = [length for length in r["answers"] if length > r["made"]]
    gone = len(r["answers"]) - len(left)
    if left:
        r["answers"], r["samples"] = left, len(left)
    return gone


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


def window_blocks(r, tokens, size, kept, decodes=False):
    """As `blocks`, of layers that keep the last `kept` blocks of each sequence, and of the prompt while that is needed.

    It is needed until every sequence has begun to go on from it.
    """
    if sequences(r) == 1 or tokens <= r["prompt"]:
        lengths = {0: tokens}
    elif decodes:
        lengths = dict.fromkeys(range(sequences(r)), tokens)
    else:
        lengths = {s: position + 1 for s, position in computed(r)[:tokens]}
        lengths = {s: n for s, n in lengths.items() if n > r["prompt"]}
    kept_of = {s: range(ceil(n / size))[-kept:] for s, n in lengths.items()}
    number = {(None if (b + 1) * size <= r["prompt"] else s, b) for s, of in kept_of.items() for b in of}
    if sequences(r) > 1 and not decodes and r["prompt"] < tokens < total(r):
        number |= {(None, b) for b in range(ceil(r["prompt"] / size))[-kept:] if (b + 1) * size <= r["prompt"]}
    return len(number)


def _distinct(prompt, size, tokens):
    """Distinct KV blocks of sequences that begin with one prompt and have so many tokens each."""
    number = {(s, position // size) for s, held in enumerate(tokens) for position in range(held)}
    private = [(s, block) for s, block in number if (block + 1) * size > prompt]
    written = {s for s, held in enumerate(tokens) if held > prompt}  # who writes has a copy; who does not needs none
    own = [(s, block) for s, block in private if s in written] or {(0, block) for _, block in private}
    return len({block for s, block in number if (block + 1) * size <= prompt}) + len(own)


def whole(r, size, more=0):
    """KV blocks of all answers with all their tokens but the last, which is never fed, and `more`."""
    return _distinct(r["prompt"], size, [r["prompt"] + length - 1 + more for length in r["answers"]])


def most(r, size, more=0):
    """KV blocks at most at any time, when who has all tokens leaves."""
    return _most(r["prompt"], tuple(r["answers"]), size, more)


@lru_cache(1 << 12)
def _most(prompt, answers, size, more):
    held = [[prompt + made + more for length in answers if length > made] for made in range(max(answers))]
    return max(_distinct(prompt, size, tokens) for tokens in held)


def total(r):
    """Tokens that a prefill computes."""
    return r["prompt"] + sequences(r) * r["made"]


def whole_or_sliced(costs, batch, budget, ticks):
    """Ticks of a prefill of these whole requests, or of each slice of a long one."""
    tokens = sum(map(total, batch))
    if tokens <= budget:
        return [round(costs.prefill_ns(tokens, sum(pairs(r, 0, total(r)) for r in batch), len(batch)) * ticks)]
    [r] = batch
    cuts = [*range(0, tokens, budget), tokens]
    return [round(costs.prefill_ns(b - a, pairs(r, a, b), 1) * ticks) for a, b in pairwise(cuts)]


def several(most_rows, most_tokens):
    """For each request of a workload how many answers it wants, and how long those after the first are: () for one."""
    length = st.one_of(st.integers(1, 3), st.integers(1, most_tokens))
    group = st.lists(length, max_size=3).map(lambda further: (1 + len(further), further))
    return st.lists(st.one_of(st.just(()), group), min_size=most_rows, max_size=most_rows)


def within(workload, groups, seats):
    """The workload with as many answers of each request as there are seats for."""
    rows = zip(workload, groups, strict=False)
    return [(*row, *((min(g[0], seats), g[1][: seats - 1]) if g else ())) for row, g in rows]
