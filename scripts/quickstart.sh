#!/usr/bin/env bash
# The main job: a teacher and other methods on one curve.
#
#   bash scripts/quickstart.sh                     digits (8x8): about 20 minutes on 2 cores
#   bash scripts/quickstart.sh fashion_mnist       28x28: about 5 hours on 2 cores
#
# Which methods: those of quickstart.yaml among the configs of the data set, or else of curve.yaml.
# Ends with curves.jsonl, report.html, pictures and a table in runs/quickstart
# (runs/quickstart-DATASET for others). Run it again after an interruption: whatever is finished is
# kept, and the rest goes on.
source "$(dirname "$0")/environment.sh"
use_environment requirements.txt
dataset=${1:-digits} SECONDS=0 curve=curve
if [ -f "${CONFIGS:-configs}/$dataset/quickstart.yaml" ]; then
    curve=quickstart
fi
# On digits the teacher is trained too: that is what there is to see. Elsewhere the shipped one saves
# its hours.
if [ "$dataset" = digits ]; then
    export RUNS=${RUNS:-runs/quickstart} SHIPPED=${SHIPPED:-no}
fi
export RUNS=${RUNS:-runs/quickstart-$dataset}
# Side by side: networks this small do not keep many cores busy.
python -m scripts.recipe "$dataset" --for "$curve" --lanes 2 "${@:2}"
echo "training took $((SECONDS / 60)) min; now the curve" >&2
python -m scripts.recipe "$dataset" "$curve"
python -m scripts.plot "$RUNS/curves.jsonl" --markdown "$RUNS/table.md" --relative-to teacher
python -m scripts.report "$RUNS"
echo "quickstart took $((SECONDS / 60)) min: see $RUNS/report.html, or curves.png," \
    "samples.png and table.md there" >&2
