#!/usr/bin/env bash
# The main job: a teacher, its two distillations, a rectified flow, its reflow and its distillation, and generators of
# another kind, all on one curve.
#
#   bash scripts/quickstart.sh                     digits (8x8): about 15 minutes on 2 cores after installation
#   bash scripts/quickstart.sh fashion_mnist       28x28: hours on 2 cores, minutes on a GPU
#
# Ends with curves.jsonl, report.html, pictures and a table in runs/quickstart (runs/quickstart-DATASET for others).
# Run it again after an interruption: whatever is finished is kept, and the rest goes on.
source "$(dirname "$0")/environment.sh"
nothing_else quickstart.sh "$@"
dataset=${1:-digits}
if [ "$dataset" = digits ]; then default=runs/quickstart; else default=runs/quickstart-$dataset; fi
export RUNS=${RUNS:-$default}
recipe "$dataset"
mkdir -p "$RUNS"

# Two lanes side by side: the teacher with its students, and the flows and baselines. On a processor each gets half of the cores, which is
# faster than all cores for one after the other, since networks this small do not keep many cores busy.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(cores) > 1 ? $(cores) / 2 : 1))}
started=$SECONDS

flows() { bash scripts/distill_flow.sh "$dataset" && bash scripts/train_baselines.sh "$dataset"; }
# On digits the teacher is trained too: that is what there is to see. Elsewhere the shipped one saves its hour.
if [ "$dataset" = digits ]; then export SHIPPED=${SHIPPED:-no}; fi
students() { bash scripts/distill_progressive.sh "$dataset" && bash scripts/distill_consistency.sh "$dataset"; }

set -m # each lane in a process group of its own, so that all of it can be stopped
stop() { kill -TERM -- "-$lane1" "-$lane2" 2>/dev/null || true; }
trap stop EXIT
trap 'exit 130' INT TERM
TQDM_POSITION=0 students & lane1=$!
TQDM_POSITION=1 flows & lane2=$!
while kill -0 "$lane1" 2>/dev/null && kill -0 "$lane2" 2>/dev/null; do sleep 1; done
if kill -0 "$lane1" 2>/dev/null; then wait "$lane2"; else wait "$lane1"; fi # the first to end; if it failed, so do we
wait "$lane1"
wait "$lane2"
trap - EXIT INT TERM
set +m
echo "training took $(((SECONDS - started) / 60)) min; now the curve" >&2

measure "$configs/curve.yaml" out="$RUNS/curves.jsonl" runs="$RUNS"
python -m scripts.plot "$RUNS/curves.jsonl"
python -m scripts.report "$RUNS"
echo "quickstart took $(((SECONDS - started) / 60)) min: see $RUNS/report.html, or curves.png and samples.png there" >&2
