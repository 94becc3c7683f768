#!/bin/bash -eu
pip3 install "$SRC/buttercup"
compile_python_fuzzer "$SRC/fuzz_unpack.py"
