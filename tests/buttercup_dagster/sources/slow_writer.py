"""Unpacks with a second process that is stopped again and again, in two blocks of 2 KiB.

Run as a program: the reader forks, and pytest has threads. Arguments: archive, new folder.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from buttercup_dagster.sources.unpacking import gunzip, writer
from buttercup_dagster.sources.unpacking.extract import Extraction
from buttercup_dagster.sources.unpacking.gunzip import ArchiveFile, unpacked_blocks
from buttercup_dagster.sources.unpacking.tar import TarReader
from buttercup_dagster.sources.unpacking.writer import Writer

BLOCK_BYTES = 2048


def main(archive: str, folder: str) -> None:
    gunzip.OUTPUT_BYTES = BLOCK_BYTES  # type: ignore[misc]
    writer.SLOTS = 2  # type: ignore[misc]
    handle = os.open(archive, os.O_RDONLY)
    Path(folder).mkdir()
    os.chdir(folder)
    second = Writer(BLOCK_BYTES)
    done = threading.Event()

    def hinder() -> None:
        while not done.wait(0.001):
            os.kill(second._process, signal.SIGSTOP)
            done.wait(0.002)
            os.kill(second._process, signal.SIGCONT)

    thread = threading.Thread(target=hinder, daemon=True)
    thread.start()
    blocks = unpacked_blocks(ArchiveFile(handle), most_bytes=2**40)
    extraction = Extraction(
        TarReader(second.sharing(blocks)),
        lambda _rows, _offset: None,
        writer=second,
        refuse_escaping=False,
        most_file_bytes=2**40,
        most_entries=2**40,
        most_name_bytes=2**40,
    )
    finish = second.wait

    def wait() -> None:
        done.set()
        thread.join()
        finish()

    second.wait = wait  # type: ignore[method-assign]
    extraction.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
