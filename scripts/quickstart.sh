#!/usr/bin/env bash
# The main job: a teacher, its two distillations, a rectified flow, its reflow and its distillation, and generators of
# another kind, all on one curve.
#
#   bash scripts/quickstart.sh                     digits (8x8): about 18 minutes on 2 cores after installation
#   bash scripts/quickstart.sh fashion_mnist       28x28: about 5 hours on 2 cores, minutes on a GPU
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

started=$SECONDS

flows() { bash scripts/distill_flow.sh "$dataset" && bash scripts/train_baselines.sh "$dataset"; }
# On digits the teacher is trained too: that is what there is to see. Elsewhere the shipped one saves its hours.
if [ "$dataset" = digits ]; then export SHIPPED=${SHIPPED:-no}; fi
students() { bash scripts/distill_progressive.sh "$dataset" && bash scripts/distill_consistency.sh "$dataset"; }
side_by_side students flows # the teacher with its students; flows and baselines
echo "training took $(((SECONDS - started) / 60)) min; now the curve" >&2

measure "$configs/curve.yaml" out="$RUNS/curves.jsonl" runs="$RUNS"
python -m scripts.plot "$RUNS/curves.jsonl" --markdown "$RUNS/table.md" --relative-to teacher
python -m scripts.report "$RUNS"
echo "quickstart took $(((SECONDS - started) / 60)) min: see $RUNS/report.html, or curves.png, samples.png and table.md there" >&2
