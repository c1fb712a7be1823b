"""Scenario files: a strict, versioned schema; loading with bases, overrides and positions; writing them resolved."""
