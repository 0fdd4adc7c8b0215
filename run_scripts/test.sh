#!/usr/bin/env bash
# The test suite.
#   bash run_scripts/test.sh [pytest arguments]      e.g. -x -k retrieval; paths are relative to the repository's root
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" cpu,dev

cd -- "$root"
python -m pytest "$@"
