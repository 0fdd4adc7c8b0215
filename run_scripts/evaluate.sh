#!/usr/bin/env bash
# Answers questions under each condition (with retrieval, without, gold knowledge ...) and makes the page that shows it.
#   bash run_scripts/evaluate.sh QUESTIONS.jsonl MODEL INDEX OUT [options of `ra-blip evaluate`]
: "${4:?give QUESTIONS.jsonl MODEL INDEX OUT}"
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" cpu

ra-blip evaluate "$1" --model "$2" --index "$3" --out "$4" "${@:5}"
ra-blip report "$4/traces.jsonl" --out "$4/report.html"
