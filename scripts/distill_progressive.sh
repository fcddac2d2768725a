#!/usr/bin/env bash
# Progressive distillation of the data set's teacher (trained first if needed).
#   bash scripts/distill_progressive.sh DATASET [key=value ...]      overrides go to the student
source "$(dirname "$0")/environment.sh"
recipe "${1:-}"
train "$configs/teacher.yaml" run="$runs/teacher"
train "$configs/progressive.yaml" run="$runs/progressive" method.teacher="$runs/teacher" "${@:2}"
