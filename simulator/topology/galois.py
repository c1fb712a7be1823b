"""Finite fields of any prime power, as the Slim Fly needs them: elements are numbered 0 to q - 1.

Model: the number of an element, written with base p, holds the coefficients of its polynomial over the integers modulo
p; products are reduced by a monic polynomial modulo which x generates every element but zero. Source: Lidl and
Niederreiter, Introduction to Finite Fields, 1986.
"""

from itertools import product


class FiniteField:
    """The field of `q` elements; `powers[i]` is the i-th power of one primitive element, i from 0 to q - 2."""

    def __init__(self, q: int) -> None:
        """Raise ValueError where `q` is no prime power, for then there is no such field."""
        found = _prime_and_exponent(q)
        if found is None:
            raise ValueError(f"{q} is no power of a prime")
        self._p, self._degree = found
        self.q = q
        self.powers = self._cycle()
        self._log = {element: exponent for exponent, element in enumerate(self.powers)}

    def add(self, left: int, right: int) -> int:
        """Return the sum of two elements."""
        return self._number(tuple((a + b) % self._p for a, b in zip(*map(self._digits, (left, right)), strict=True)))

    def subtract(self, left: int, right: int) -> int:
        """Return the difference of two elements."""
        return self._number(tuple((a - b) % self._p for a, b in zip(*map(self._digits, (left, right)), strict=True)))

    def multiply(self, left: int, right: int) -> int:
        """Return the product of two elements."""
        if not left or not right:
            return 0
        return self.powers[(self._log[left] + self._log[right]) % (self.q - 1)]

    def _cycle(self) -> tuple[int, ...]:
        """Return the powers of x modulo the first polynomial of the degree of which x is a primitive root."""
        for tail in product(range(self._p), repeat=self._degree):  # x^degree = tail, lowest coefficient first
            seen = {(one := (1, *(0,) * (self._degree - 1))): None}
            place = self._times_x(one, tail)
            while place not in seen:
                seen[place] = None
                place = self._times_x(place, tail)
            if len(seen) == self.q - 1 and place == one:  # all but zero, so that each of them has an inverse
                return tuple(map(self._number, seen))
        raise AssertionError("every prime power has a primitive polynomial")

    def _times_x(self, digits: tuple[int, ...], tail: tuple[int, ...]) -> tuple[int, ...]:
        carried = digits[-1]
        return tuple((low + carried * t) % self._p for low, t in zip((0, *digits[:-1]), tail, strict=True))

    def _digits(self, element: int) -> tuple[int, ...]:
        return tuple(element // self._p**place % self._p for place in range(self._degree))

    def _number(self, digits: tuple[int, ...]) -> int:
        return sum(digit * self._p**place for place, digit in enumerate(digits))


def is_prime_power(q: int) -> bool:
    """Return whether there is a field of `q` elements."""
    return _prime_and_exponent(q) is not None


def _prime_and_exponent(q: int) -> tuple[int, int] | None:
    prime = next((p for p in range(2, q + 1) if q % p == 0), q + 1)
    exponent = next((n for n in range(1, q.bit_length()) if prime**n == q), None)
    return None if exponent is None else (prime, exponent)
