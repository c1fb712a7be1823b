"""One gate, one verdict: in CI the property tests draw the same examples each time; elsewhere they go on exploring."""

import os

from hypothesis import settings

settings.register_profile("gate", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("gate")
