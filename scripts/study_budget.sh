#!/usr/bin/env bash
# What a longer budget buys: progressive and consistency distillation of one teacher after 0.3 and 3.6 million network evaluations,
# measured as the published curve, which has them after 1.2 million.
#   bash scripts/study_budget.sh fashion_mnist     about 3 hours on 2 cores
# It may be interrupted at any moment and goes on by the same command. RUNS=FOLDER chooses where runs go (default:
# runs/DATASET-budget).
source "$(dirname "$0")/environment.sh"
nothing_else study_budget.sh "$@"
export RUNS=${RUNS:-runs/${1:-}-budget}
recipe "${1:-}"
if [ ! -f "$configs/budget.yaml" ]; then
    echo "error: $configs/budget.yaml does not exist: the study is set up for $(ls configs/*/budget.yaml | cut -d/ -f2 | tr '\n' ' ')" >&2
    exit 2
fi
students() {
    local budget
    for budget in 3e5 3.6e6; do
        bash "scripts/distill_$1.sh" "$dataset" budget.evals=$budget run="$RUNS/$1-$budget"
    done
}
ensure_teacher # before the two lanes, which would both make it
side_by_side 'students progressive' 'students consistency'
measure "$configs/budget.yaml" out="$RUNS/curves.jsonl" runs="$RUNS"
python -m scripts.plot "$RUNS/curves.jsonl"
