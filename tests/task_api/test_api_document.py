"""The API document, the models generated from it, and what the server serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_spec_validator import validate

from task_api.api import generate
from tests.support.server import Client

DOCUMENT: dict[str, Any] = yaml.safe_load(generate.DOCUMENT.read_text())
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
CONTRACT = {
    ("/v1/task/", "post"): ("Task", "202", "string"),
    ("/v1/task/", "delete"): (None, "200", "string"),
    ("/v1/task/{task_id}/", "delete"): (None, "200", "string"),
    ("/v1/sarif/", "post"): ("SARIFBroadcast", "200", "string"),
    ("/status/", "get"): (None, "200", "Status"),
    ("/status/", "delete"): (None, "200", "string"),
}


@pytest.fixture
def served(client: Client) -> Any:
    return client.get("/openapi.json", authorization=None).json


def shape(schema: Any) -> Any:
    """What of a schema is a promise: types, names, formats, enumerations, what is required."""
    if "anyOf" in schema:  # an optional field of the models may also be null
        (schema,) = (one for one in schema["anyOf"] if one.get("type") != "null")
    kept: dict[str, Any] = {
        name: schema[name] for name in ("type", "format", "enum", "$ref") if name in schema
    }
    if "properties" in schema:
        kept["properties"] = {name: shape(one) for name, one in schema["properties"].items()}
        kept["required"] = sorted(schema["required"])
    if "items" in schema:
        kept["items"] = shape(schema["items"])
    if "additionalProperties" in schema:
        values = schema["additionalProperties"]
        kept["additionalProperties"] = values if isinstance(values, bool) else shape(values)
    return kept


def test_the_document_is_valid() -> None:
    validate(DOCUMENT)


def test_the_served_document_is_valid(served: Any) -> None:
    validate(served)


def test_the_document_holds_the_contract() -> None:
    assert set(OPERATIONS) == set(CONTRACT)
    assert set(DOCUMENT["components"]["schemas"]) == {
        "Task",
        "TaskDetail",
        "SourceDetail",
        "SourceType",
        "TaskType",
        "SARIFBroadcast",
        "SARIFBroadcastDetail",
        "Status",
        "StatusState",
        "StatusTasksState",
    }


@pytest.mark.parametrize("which", CONTRACT, ids=lambda which: f"{which[1]} {which[0]}")
@pytest.mark.parametrize("origin", ["document", "server"])
def test_an_operation(served: Any, which: tuple[str, str], origin: str) -> None:
    document = DOCUMENT if origin == "document" else served
    path, method = which
    body, status, answer = CONTRACT[which]
    operation = document["paths"][path][method]
    security = operation.get("security", document.get("security"))
    assert [list(one) for one in security] == [["BasicAuth"]]
    if body is None:
        assert "requestBody" not in operation
    else:
        assert operation["requestBody"]["required"] is True
        content = operation["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"] == f"#/components/schemas/{body}"
    assert list(operation["responses"]) == [status]
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    assert schema.get("type", schema.get("$ref", "").rpartition("/")[2]) == answer
    found = [
        (one["name"], one["in"], one["required"], shape(one["schema"]))
        for one in operation.get("parameters", [])
    ]
    uuid_schema = {"type": "string", "format": "uuid"}
    assert found == ([("task_id", "path", True, uuid_schema)] if "{" in path else [])


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_a_schema_is_served_as_documented(served: Any, name: str) -> None:
    assert shape(served["components"]["schemas"][name]) == shape(
        DOCUMENT["components"]["schemas"][name]
    )


def test_the_security_scheme_is_served(served: Any) -> None:
    for document in (DOCUMENT, served):
        scheme = document["components"]["securitySchemes"]["BasicAuth"]
        assert (scheme["type"], scheme["scheme"]) == ("http", "basic")


def test_every_reference_leads_somewhere(served: Any) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [ref for value in node.values() for ref in references(value)]
        if isinstance(node, list):
            return [ref for value in node for ref in references(value)]
        return []

    names = {reference.rpartition("/")[2] for reference in references(served)}
    assert names <= set(served["components"]["schemas"])
    assert "HTTPValidationError" not in names


def test_the_models_are_those_of_the_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = tmp_path / "wire.py"
    generate.generate(fresh)
    assert fresh.read_text() == generate.TARGET.read_text()
    assert generate.main(["--check"]) == 0
    stale = tmp_path / "stale.py"
    stale.write_text("")
    monkeypatch.setattr(generate, "TARGET", stale)
    assert generate.main(["--check"]) == 1
    assert "run `make api-models`" in capsys.readouterr().err
    assert generate.main(["--wrong"]) == 2
