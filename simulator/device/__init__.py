"""Accelerators: data sheets, the memory ledger and the time that one step of a model takes on them."""
