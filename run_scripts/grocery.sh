#!/usr/bin/env bash
# Real photographs: finds supermarket products and their facts, and answers about photographs that training never saw.
#   RA_BLIP_SHARED=FOLDER bash run_scripts/grocery.sh [OUT]      OUT: where it goes, default runs/grocery
# FOLDER holds data/grocery_store and weights/mobilenet_v2_1.0_224; RA_BLIP_VISION names another Hugging Face vision model.
# Stopped at any point, the same command continues.
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" cpu

project=grocery data=grocery_store out="${1:-runs/grocery}"
set_up=(vote=200 keep=1 rerank=none)
. "$root/run_scripts/project.sh"
python "$root/benchmarks/nearest_neighbour.py" "$out" --features "$out/features"
