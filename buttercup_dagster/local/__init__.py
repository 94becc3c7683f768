"""Everything on one machine: the processes that `buttercup up` and `buttercup demo` run."""
