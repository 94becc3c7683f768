"""Making a task's source archives from what a person has on disk, and serving them.

Plain Python without Dagster or Redis. `task.pack_task` is the whole way from a folder or a git
repository to the archives of a task; `serve.SourceServer` hands them out.
"""
