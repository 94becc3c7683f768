"""When a signed URL stops working, as far as the URL itself says so.

Known forms: Amazon S3 (signature version 4: `X-Amz-Date` and `X-Amz-Expires`, seconds), Google
Cloud Storage (the same with `X-Goog-`), their older form (`Expires`, UNIX seconds), and Azure
(`se`, ISO 8601).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

from task_api.task import Source, split_url


def url_expiry_ms(url: str) -> int | None:
    """When the signature of a URL ends, UNIX milliseconds; None where the URL does not say."""
    parts = split_url(url)
    if parts is None or not parts.query:
        return None
    query = {name.lower(): value for name, value in parse_qsl(parts.query)}
    try:
        moment = _expiry(query)
        return None if moment is None else int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def source_expiry_ms(source: Source) -> int | None:
    """When the last URL of a source stops working, UNIX milliseconds.

    None where there is a URL that does not say: it may work for ever.
    """
    moments = [url_expiry_ms(url) for url in source.urls]
    known = [moment for moment in moments if moment is not None]
    return max(known) if known and len(known) == len(moments) else None


def _expiry(query: Mapping[str, str]) -> datetime | None:
    for vendor in ("amz", "goog"):
        date, seconds = query.get(f"x-{vendor}-date"), query.get(f"x-{vendor}-expires")
        if date and seconds:
            signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return signed + timedelta(seconds=int(seconds))
    if expires := query.get("expires"):
        return datetime.fromtimestamp(int(expires), UTC)
    if end := query.get("se"):
        moment = datetime.fromisoformat(end)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None
