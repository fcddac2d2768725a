#!/usr/bin/env bash
# Progressive distillation of the data set's teacher (the shipped one, or trained first).
#   bash scripts/distill_progressive.sh DATASET [key=value ...]      overrides go to the student
source "$(dirname "$0")/environment.sh"
recipe "${1:-}"
ensure_teacher "${@:2}"
train "$configs/progressive.yaml" run="$runs/progressive" method.teacher="$runs/teacher" "${@:2}"
