"""The progress line: only on a terminal, at most five times a second, gone at the end."""

import io

import pytest

from simulator.report.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def test_silent_when_stderr_is_no_terminal():
    stream, clock = io.StringIO(), Clock()
    with Progress(10, None, stream, clock) as progress:
        clock.now_s += 5
        progress(10**9, 1, 2)
    assert stream.getvalue() == ""


def test_at_most_five_lines_a_second_and_no_trace():
    stream, clock = Terminal(), Clock()
    with Progress(1000, None, stream, clock) as progress:
        for i in range(1000):
            clock.now_s += 0.001
            progress(i * 10**9, i, i)
    lines = stream.getvalue().split("\r\x1b[2K")
    assert len(lines) - 2 in (4, 5)  # an erasure before each line, and the last
    assert lines[0] == lines[-1] == ""


def test_nothing_is_written_when_nothing_was_drawn():
    stream = Terminal()
    with Progress(stream=stream, clock=Clock()):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("requests", "until_ns", "text"),
    [
        (100, None, "25%, 15 s left, 60 s simulated, 12x, 25 requests, 1,000 events/s"),
        (100, 120 * 10**9, "50%, 5 s left, 60 s simulated, 12x, 25 requests, 1,000 events/s"),
        (None, None, "60 s simulated, 12x, 25 requests, 1,000 events/s"),
        (0, None, "60 s simulated, 12x, 25 requests, 1,000 events/s"),
    ],
)
def test_the_line(requests, until_ns, text):
    assert Progress(requests, until_ns, io.StringIO()).line(60 * 10**9, 25, 5000, 5.0) == text


def test_the_estimate_is_right_for_steady_progress():
    progress = Progress(1000, None, io.StringIO())
    for done in (1, 250, 999):
        left = progress.line(10**9, done, 1, 0.5 * done).split(", ")[1]
        assert left == {1: "8.3 min left", 250: "6.2 min left", 999: "500 ms left"}[done]
