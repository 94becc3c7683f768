"""Coverage-guided fuzzing of the archive reader, in process and without a disk.

    python tests/fuzz/fuzz_archive.py -max_total_time=60

Reads whatever bytes the fuzzer thinks of as an archive (plain or gzipped), and judges every name
and link of it. Anything but a manifest of sound names or an `Refusal` is a failure: the
process ends with another status than 0, and the bytes are kept as `crash-…` in the folder of
`-artifact_prefix=`. Options are those of libFuzzer. Needs the extra `fuzz` (Atheris).
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

# Not there for the type checker where the extra is not installed.
atheris = importlib.import_module("atheris")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["buttercup_dagster.sources"]):
    from buttercup_dagster.sources.unpacking.picture import Picture
    from buttercup_dagster.sources.unpacking.refusal import Refusal
    from buttercup_dagster.sources.unpacking.tar import FILE, HARDLINK, SYMLINK, TarReader

BLOCK = 512
MOST_BYTES = 16 * 1024


def read(data: bytes) -> None:
    """Everything that is done with an archive but the writing."""
    reader = TarReader(data[at : at + 700] for at in range(0, len(data), 700))
    refuse = reader.refusal
    picture = Picture()
    links: list[tuple[bytes, str]] = []
    for member in reader.members():
        if member.kind is FILE:
            path, folders = picture.add_file(member.name, refuse)
        else:
            path, folders = picture.add(member, refuse)
        assert not path.startswith(b"/")
        assert b".." not in path.split(b"/")
        for folder in folders:
            assert path == folder or path.startswith(folder + b"/")
        if member.kind in {SYMLINK, HARDLINK}:
            links.append((path, member.kind))
        elif reader.place(member.size) is None:
            assert sum(length for _, length in reader.spans(member.size)) == member.size
    for path, kind in links:
        if kind is HARDLINK:
            assert picture.hardlink_target(path, refuse)
        else:
            picture.leads_out(path, refuse)


def with_right_checksums(data: bytes) -> bytes:
    """The same blocks, each that looks like a header with the checksum that it needs.

    Without this nearly all that a fuzzer tries ends at the first checksum.
    """
    blocks = []
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        if len(block) == BLOCK and block[257:262] in {b"ustar", bytes(5)} and any(block):
            blank = block[:148] + b" " * 8 + block[156:]
            block = blank[:148] + b"%06o\x00 " % sum(blank) + blank[156:]
        blocks.append(block)
    return b"".join(blocks)


def test_one_input(data: bytes) -> None:
    """One archive, as it is and with right checksums."""
    for archive in (data, with_right_checksums(data)):
        refusal: Refusal | None = None
        try:
            read(archive)
        except Refusal as error:
            refusal = error
        assert refusal is None or (refusal.code and str(refusal).isprintable())


def main() -> None:
    """Fuzz until the options of libFuzzer say to stop."""
    from tests.fuzz.seeds import SEEDS

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, f"-max_len={MOST_BYTES}", corpus], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
