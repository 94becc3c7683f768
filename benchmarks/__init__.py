"""What `make bench` runs: the source engine against tar, tarfile and curl, on real archives."""
