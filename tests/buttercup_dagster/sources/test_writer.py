"""The process that reads an archive and the one that writes its files never mix them up."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from tests.support.archives import file, packed

SCRIPT = Path(__file__).with_name("slow_writer.py")


def test_a_slow_second_process_costs_no_byte(tmp_path: Path) -> None:
    chance = random.Random(17)
    # Headers and files begin and end at every place of a block; a few are many blocks long.
    usual = [0, 1, 511, 512, 1024, 1536, 2048, 3000]
    sizes = [20_000 if number % 100 == 0 else chance.choice(usual) for number in range(5000)]
    content = {f"{number}": chance.randbytes(size) for number, size in enumerate(sizes)}
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(packed(*(file(name.encode(), data) for name, data in content.items())))
    tree = tmp_path / "tree"
    subprocess.run([sys.executable, SCRIPT, archive, tree], check=True, timeout=100)
    found = {path.name: path.read_bytes() for path in tree.iterdir()}
    assert found.keys() == content.keys()
    assert [name for name, data in content.items() if found[name] != data] == []
