#!/usr/bin/env bash
# Consistency distillation of the data set's teacher (the shipped one, or trained first).
#   bash scripts/distill_consistency.sh DATASET [key=value ...]      overrides go to the student
source "$(dirname "$0")/environment.sh"
recipe "${1:-}"
ensure_teacher "${@:2}"
train "$configs/consistency.yaml" run="$runs/consistency" method.teacher="$runs/teacher" "${@:2}"
