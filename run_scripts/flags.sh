#!/usr/bin/env bash
# Flags: finds them by description and by name, and answers about countries from facts and passages.
#   RA_BLIP_SHARED=FOLDER bash run_scripts/flags.sh [OUT]      OUT: where it goes, default runs/flags
# FOLDER holds data/country_flags and weights/mobilenet_v2_1.0_224; RA_BLIP_VISION names another Hugging Face vision model.
# Stopped at any point, the same command continues.
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" cpu

project=flags data=country_flags out="${1:-runs/flags}"
set_up=(keep=3 focus=true)
. "$root/run_scripts/project.sh"
