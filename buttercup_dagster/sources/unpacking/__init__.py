"""What runs in the process that unpacks one archive; `archive.unpack` starts it.

Modules here import next to nothing, so that the process is there in a few hundredths of a second
and holds little memory: no `re`, no `typing`, no `dataclasses`, no `json`, and nothing of the
project but each other.
"""
