"""The download engine: fetch, verify, unpack, store and lay out the sources of a task.

Plain Python without Dagster, Redis or settings. `prepare.prepare` is the whole way from a task to
its folder; `fetch.fetch`, `archive.unpack` and `store.Store` are the steps, usable on their own.
"""
