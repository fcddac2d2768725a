#!/usr/bin/env bash
# Trains a DDPM teacher.   bash scripts/train_teacher.sh DATASET [key=value ...]
# Run it again after an interruption and it goes on; run it again when finished and it returns at once.
source "$(dirname "$0")/environment.sh"
recipe "${1:-}"
train "$configs/teacher.yaml" run="$runs/teacher" "${@:2}"
