"""Whole engines against measurements: one module per public source, on one harness."""
