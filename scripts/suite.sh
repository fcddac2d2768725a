#!/usr/bin/env bash
# Everything behind a published curve: trains all methods, measures, draws, and writes results/DATASET.
#   bash scripts/suite.sh digits            about 20 minutes on 2 cores
#   bash scripts/suite.sh fashion_mnist     about 5 hours on 2 cores, and 7 more for Inception, 1000 steps and all solvers
# It may be interrupted at any moment and goes on by the same command; what is finished is not done again.
# RUNS=FOLDER chooses where runs go (default: runs/DATASET), OUT=FOLDER where results go (default: results/DATASET).
source "$(dirname "$0")/environment.sh"
nothing_else suite.sh "$@"
dataset=${1:-}
export RUNS=${RUNS:-runs/$dataset}
recipe "$dataset"
bash scripts/quickstart.sh "$dataset"
for extra in "$configs"/curve-*.yaml; do # what the quickstart leaves out, such as FID in Inception's features
    [ -f "$extra" ] || continue
    if grep -q '^extractor: inception' "$extra"; then python -m scripts.fetch_inception; fi
    measure "$extra" out="$RUNS/curves.jsonl" runs="$RUNS"
done
if [ -f "$configs/solvers.yaml" ]; then # the teacher under the solvers that would crowd the curve
    measure "$configs/solvers.yaml" out="$RUNS/solvers/curves.jsonl" runs="$RUNS"
fi
bash scripts/publish.sh "$RUNS" "${OUT:-results/$dataset}"
