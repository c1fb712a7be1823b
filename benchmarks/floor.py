"""The floor that every benchmark is set against: what bare SimPy delivers on this machine at this moment."""

import time

import simpy


def bare_events_per_s(events: int = 200_000, processes: int = 4) -> float:
    """Return SimPy events per CPU second of a few processes that do nothing but wait, once each nanosecond."""

    def wait(env: simpy.Environment) -> simpy.events.ProcessGenerator:
        for _ in range(events // processes):
            yield env.timeout(1)

    env = simpy.Environment()
    for _ in range(processes):
        env.process(wait(env))
    begin = time.process_time()
    env.run()
    return events / (time.process_time() - begin)


if __name__ == "__main__":
    print(f"bare SimPy: {bare_events_per_s():,.0f} events/s")
