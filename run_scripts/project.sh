# Sourced by grocery.sh and flags.sh, which set project, data, out and set_up: read, train, index, evaluate, report.
shared="${RA_BLIP_SHARED:?set it to the folder that holds data/ and weights/}"
given=("data.items=$out/items.jsonl" "data.questions=$out/train_questions.jsonl" "data.features=$out/features")
eye="model.vision.name=${RA_BLIP_VISION:-$shared/weights/mobilenet_v2_1.0_224}"
# One thread: small matrices. Freed memory is kept, since the next step wants it again.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=10000000000

[ -e "$out/train_questions.jsonl" ] || python -m ra_blip.data.readers "$project" "$shared/data/$data" "$out"
before="$eye" # what the first stage starts from; each later one starts from the stage before it
for stage in retrieve answer rank; do
  ra-blip train "$root/projects/$project/$stage.yaml" "out=$out/$stage" "$before" "${given[@]}"
  before="init=$out/$stage/model"
done
model=(--model "$out/rank/model" --features "$out/features")
[ -e "$out/index/manifest.json" ] || ra-blip index "$out/items.jsonl" "${model[@]}" --out "$out/index"
[ -e "$out/metrics.json" ] || ra-blip evaluate "$out/questions.jsonl" "${model[@]}" --index "$out/index" --out "$out" \
  --set "${set_up[@]}" --metric search_entity@1 search_entity@5
ra-blip report "$out/traces.jsonl" --out "$out/report.html"
echo "Report: $(cd -- "$out" && pwd)/report.html"
