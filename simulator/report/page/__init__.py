"""One self-contained HTML page of a run: arrays from rows, charts from arrays, a page from charts."""
