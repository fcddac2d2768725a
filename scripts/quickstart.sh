#!/usr/bin/env bash
# The main job: a teacher, its two distillations, a rectified flow, its reflow and its distillation, all on one curve.
#
#   bash scripts/quickstart.sh                     digits (8x8): about 15 minutes on 2 cores after installation
#   bash scripts/quickstart.sh fashion_mnist       28x28: hours on 2 cores, minutes on a GPU
#
# Ends with curves.jsonl, curves.png, samples.png and a table in runs/quickstart (runs/quickstart-DATASET for others).
# Run it again after an interruption: whatever is finished is kept, and the rest goes on.
source "$(dirname "$0")/environment.sh"
dataset=${1:-digits}
if [ "$dataset" = digits ]; then default=runs/quickstart; else default=runs/quickstart-$dataset; fi
export RUNS=${RUNS:-$default}
recipe "$dataset"
mkdir -p "$RUNS"

# Two lanes side by side: the teacher with its students, and the flows. On a processor each gets half of the cores, which is
# faster than all cores for one after the other, since networks this small do not keep many cores busy.
cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 1 ? cores / 2 : 1))}
started=$SECONDS

flows() {
    bash scripts/distill_flow.sh "$dataset"
}
students() {
    bash scripts/distill_progressive.sh "$dataset" && bash scripts/distill_consistency.sh "$dataset"
}

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
export TQDM_DYNAMIC_NCOLS=1
TQDM_POSITION=1 flows & lane=$!
TQDM_POSITION=0 students & other=$!
wait $other
wait $lane
trap - EXIT
echo "training took $(((SECONDS - started) / 60)) min; now the curve" >&2

processes=1
if ! python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)'; then processes=$((cores > 1 ? 2 : 1)); fi
measure=(-m scripts.evaluate "$configs/curve.yaml" out="$RUNS/curves.jsonl" runs="$RUNS")
if [ "$processes" -gt 1 ]; then
    accelerate launch --cpu --num_processes "$processes" --num_machines 1 --mixed_precision no --dynamo_backend no "${measure[@]}"
else
    python "${measure[@]}"
fi
python -m scripts.plot "$RUNS/curves.jsonl"
echo "quickstart took $(((SECONDS - started) / 60)) min: see $RUNS/curves.png and $RUNS/samples.png" >&2
