"""How the task server logs: to standard error, without credentials and without queries."""

from __future__ import annotations

import logging
from typing import Any


class WithoutQuery(logging.Filter):
    """Cuts the query from the path in an access log's record; a query may be a credential."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, changed."""
        arguments = record.args
        if isinstance(arguments, tuple) and len(arguments) == 5:
            client, method, path, *rest = arguments
            record.args = (client, method, str(path).partition("?")[0], *rest)
        return True


def log_config(level: str) -> dict[str, Any]:
    """The configuration for `logging.config.dictConfig`, for uvicorn and for this package.

    Args:
        level: one of `settings.LOG_LEVELS`.
    """
    # `trace` is uvicorn's own level; for the rest of the process it means debug.
    common = "DEBUG" if level == "trace" else level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"without_query": {"()": "task_api.logs.WithoutQuery"}},
        "formatters": {
            "default": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        },
        "handlers": {
            "default": {
                "class": "logging.StreamHandler",
                "formatter": "default",
                "stream": "ext://sys.stderr",
            },
        },
        "loggers": {
            "uvicorn": {"handlers": ["default"], "level": common, "propagate": False},
            "uvicorn.error": {"level": common},
            "uvicorn.access": {
                "handlers": ["default"],
                "filters": ["without_query"],
                "level": common,
                "propagate": False,
            },
            "task_api": {"handlers": ["default"], "level": common, "propagate": False},
        },
        "root": {"handlers": ["default"], "level": "WARNING"},
    }
