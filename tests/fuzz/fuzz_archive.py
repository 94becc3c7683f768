"""Coverage-guided fuzzing of the archive reader, in process and without a disk.

    python tests/fuzz/fuzz_archive.py -max_total_time=60

Reads whatever bytes the fuzzer thinks of as an archive (plain or gzipped), and judges every name
and link of it. Anything but a manifest of sound names or an `ArchiveError` is a failure: the
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
    from buttercup_dagster.sources.picture import Picture, clean_name
    from buttercup_dagster.sources.tar import ArchiveError, BlockStream, Kind, TarReader

BLOCK = 512
MOST_BYTES = 16 * 1024


def read(data: bytes) -> None:
    """Everything that is done with an archive but the writing."""
    reader = TarReader(BlockStream(data[at : at + 700] for at in range(0, len(data), 700)))
    picture = Picture()
    links: list[tuple[bytes, Kind]] = []
    for member in reader.members():
        path = clean_name(member.name, reader.error)
        assert not path.startswith(b"/")
        assert b".." not in path.split(b"/")
        for folder in picture.add(path, member, reader.error):
            assert path == folder or path.startswith(folder + b"/")
        if member.kind in {Kind.SYMLINK, Kind.HARDLINK} and member.link:
            links.append((path, member.kind))
        left = member.size
        for piece in reader.data(member):
            left -= len(piece)
        assert left == 0
    for path, kind in links:
        if kind is Kind.HARDLINK:
            assert picture.hardlink_target(path, reader.error)
        else:
            picture.leads_out(path, reader.error)


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
        refusal: ArchiveError | None = None
        try:
            read(archive)
        except ArchiveError as error:
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
