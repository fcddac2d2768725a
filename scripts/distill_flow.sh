#!/usr/bin/env bash
# Distils the data set's reflowed model into a few steps (flow and reflow are trained first if needed).
#   bash scripts/distill_flow.sh DATASET [key=value ...]      overrides go to the distillation
source "$(dirname "$0")/environment.sh"
recipe "${1:-}"
source "$configs/pairs.sh"
if [ -f "$runs/reflow/config.yaml" ]; then ready "$runs/reflow"; else bash scripts/reflow.sh "$dataset"; fi
python -m scripts.pairs "$runs/reflow" --out "$runs/reflow-pairs" "${REFLOW_PAIRS[@]}"
train "$configs/distilled_flow.yaml" run="$runs/distilled-flow" \
    method.init="$runs/reflow" method.pairs="$runs/reflow-pairs" "${@:2}"
