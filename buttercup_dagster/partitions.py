"""One partition for each task, by its id."""

import dagster as dg

tasks = dg.DynamicPartitionsDefinition(name="tasks")
