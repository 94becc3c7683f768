"""How a task gets prepared: the download engine and the Dagster definitions around it."""
