"""What `make bench-system` runs: the whole system, as real processes on loopback."""
