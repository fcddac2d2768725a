#!/usr/bin/env bash
# Trains a rectified flow from scratch.   bash scripts/train_flow.sh DATASET [key=value ...]
source "$(dirname "$0")/environment.sh"
recipe "${1:-}"
train "$configs/flow.yaml" run="$runs/flow" "${@:2}"
