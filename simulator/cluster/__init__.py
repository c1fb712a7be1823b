"""The cluster's inventory: who holds which devices."""
