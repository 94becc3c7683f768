"""Generate `task_api/wire.py`, the models of the wire, from the API document beside this file.

Run by `make api-models`. With `--check`, nothing is written, and the status is 1 if the file that
stands differs from what would be written.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

DOCUMENT = Path(__file__).parent / "crs-v1.4.0.yaml"
TARGET = Path(__file__).parents[1] / "wire.py"

HEADER = f'''"""The models of the wire. Generated from `api/{DOCUMENT.name}`; change that, not this.

`make api-models` writes this file.
"""
'''


def generate(target: Path) -> None:
    """Write the models to `target`.

    Raises:
        subprocess.CalledProcessError: the generator or the formatter failed; it has said why.
    """
    # Imported here: the generator is a tool of development and need not be installed.
    import datamodel_code_generator as generator  # noqa: PLC0415
    from datamodel_code_generator.enums import DataModelType, StrictTypes  # noqa: PLC0415

    generator.generate(
        DOCUMENT,
        input_file_type=generator.InputFileType.OpenAPI,
        output=target,
        output_model_type=DataModelType.PydanticV2BaseModel,
        target_python_version=generator.PythonVersion.PY_311,
        custom_file_header=HEADER,
        disable_timestamp=True,
        formatters=[],
        use_annotated=True,
        use_schema_description=True,
        use_union_operator=True,
        use_standard_collections=True,
        use_specialized_enum=True,
        capitalise_enum_members=True,
        # A number is a number: `true` is no deadline, and "1" is no time.
        strict_types=[StrictTypes.int, StrictTypes.bool, StrictTypes.str],
    )
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run(
        [*ruff, "check", "--quiet", "--isolated", "--select=I,UP", "--fix-only", str(target)],
        check=True,
    )
    subprocess.run(
        [*ruff, "format", "--quiet", "--isolated", "--line-length=100", str(target)], check=True
    )


def main(argv: list[str] | None = None) -> int:
    """Write `wire.py`, or compare it with what would be written (`--check`)."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m task_api.api.generate [--check]\n")
        return 2
    if not arguments:
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / TARGET.name
        generate(fresh)
        if TARGET.is_file() and fresh.read_bytes() == TARGET.read_bytes():
            return 0
    sys.stderr.write(f"{TARGET} does not match {DOCUMENT.name}; run `make api-models`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
