#!/usr/bin/env bash
# Embeds a knowledge base and writes its index, or edits one in place without training.
#   bash run_scripts/index.sh ITEMS.jsonl --model DIR --out DIR [--add] [--remove ID ...]
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" cpu

ra-blip index "$@"
