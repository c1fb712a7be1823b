"""Sweeps: points of a grid, a sample or a search, run on Dask workers into one dataset."""
