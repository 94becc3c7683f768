"""The routes of the task server, one module for each subject."""
