#!/usr/bin/env bash
# One reflow of the data set's rectified flow (trained first if needed): pairs, then training on them.
#   bash scripts/reflow.sh DATASET [key=value ...]      overrides go to the reflow; pairs: see configs/DATASET/pairs.sh
source "$(dirname "$0")/environment.sh"
recipe "${1:-}"
source "$configs/pairs.sh"
ready "$runs/flow" "$configs/flow.yaml"
python -m scripts.pairs "$runs/flow" --out "$runs/flow-pairs" "${FLOW_PAIRS[@]}"
train "$configs/reflow.yaml" run="$runs/reflow" method.init="$runs/flow" method.pairs="$runs/flow-pairs" "${@:2}"
