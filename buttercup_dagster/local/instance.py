"""Makes the storage of Dagster's instance before several processes open it.

`python -m buttercup_dagster.local.instance`, with DAGSTER_HOME set: processes that make the SQLite
files at the same time would spoil each other's schema versions.
"""

from __future__ import annotations

import dagster as dg


def main() -> None:
    """Open each part of the storage once."""
    with dg.DagsterInstance.get() as instance:
        instance.get_runs(limit=1)
        instance.get_asset_keys(limit=1)
        instance.all_instigator_state()


if __name__ == "__main__":
    main()
