#!/usr/bin/env bash
# The whole job on one machine: trains in a generated world, answers questions about what training never saw, writes a report.
#   bash run_scripts/demo.sh [OUT] [options of `ra-blip demo`]      OUT: where it goes, default runs/demo
# Stopped at any point, the same command continues.
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" cpu

out="${1:-runs/demo}"
ra-blip demo --out "$out" "${@:2}"
echo "Report: $(cd -- "$out" && pwd)/report.html"
