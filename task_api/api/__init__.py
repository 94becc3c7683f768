"""The API document, `crs-v1.4.0.yaml`, and the generator of `task_api/wire.py`."""
