#!/usr/bin/env bash
# Runs the tests, in an environment made for it if there is none; --all: the slow ones too, and
# thousands of random inputs where there are a few otherwise.
#   bash scripts/test.sh [--all] [pytest arguments]
source "$(dirname "$0")/environment.sh"
use_environment requirements-test.txt
if [ "${1:-}" = "--all" ]; then
    shift
    set -- -m "" "$@"
    export HYPOTHESIS_PROFILE="${HYPOTHESIS_PROFILE:-long}"
fi
# A process for each core, at most 4, and a thread in each; the tests of a file share their fixtures
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
