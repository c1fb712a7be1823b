"""Serving: requests, engines with batchers and KV memory, routers, and the hand-over from prefill to decode."""
