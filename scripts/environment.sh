# Sourced by every recipe: goes to the repository's root, makes .venv if needed, and activates it.
#
#   PYTHON=python3.12   the interpreter that creates .venv (default: python3)
#   VENV=PATH           another place for the environment; VENV=none uses the Python that is active
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# use_environment REQUIREMENTS: installs the file once; a changed file is installed again.
use_environment() {
    local requirements=$1 venv=${VENV:-.venv}
    if [ "$venv" = none ]; then
        return
    fi
    if [ ! -f "$venv/bin/activate" ]; then # written last, so one that was interrupted is made again
        echo "creating $venv" >&2
        "${PYTHON:-python3}" -m venv "$venv"
    fi
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
    local stamp="$venv/.installed-$(basename "$requirements")"
    if ! cat requirements*.txt | cmp -s - "$stamp"; then
        echo "installing $requirements into $venv (once; a few minutes and gigabytes)" >&2
        python -m pip install --quiet --disable-pip-version-check -r "$requirements"
        cat requirements*.txt > "$stamp"
    fi
}

# recipe DATASET: where its configs and its runs are.
#   RUNS=FOLDER         where runs go (default: runs/DATASET)
recipe() {
    dataset=${1:-}
    if [ -z "$dataset" ] || [ ! -d "configs/$dataset" ]; then
        echo "error: give a data set: $(ls configs | tr '\n' ' ')(got '${dataset}')" >&2
        exit 2
    fi
    configs=configs/$dataset
    runs=${RUNS:-runs/$dataset}
    use_environment requirements.txt
}

train() { python -m scripts.train "$@"; }

# measure CONFIG [key=value ...]: a sweep. Without a GPU two processes share the sampling, since networks this small do not keep many
# cores busy; the rows are those of one.
measure() {
    local processes=1 threads
    if [ "$(cores)" -gt 1 ] && python -c 'import sys, torch; sys.exit(torch.cuda.is_available())'; then processes=2; fi
    threads=$(($(cores) / processes)) # torchrun's own choice is a single one
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} \
        python -m torch.distributed.run --standalone --nproc_per_node "$processes" -m scripts.evaluate "$@"
}

cores() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || sysctl -n hw.ncpu; } # nproc obeys these two

# side_by_side FIRST SECOND: two commands of this shell at the same time; the failure or interruption of one stops both. On a processor
# each gets half of the cores, which is faster than all cores for one after the other, since networks this small do not keep many cores
# busy.
side_by_side() {
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(cores) > 1 ? $(cores) / 2 : 1))}
    set -m # each lane in a process group of its own, so that all of it can be stopped
    stop() { kill -TERM -- "-$lane1" "-$lane2" 2>/dev/null || true; }
    trap stop EXIT
    trap 'exit 130' INT TERM
    # shellcheck disable=SC2086
    TQDM_POSITION=0 $1 & lane1=$!
    # shellcheck disable=SC2086
    TQDM_POSITION=1 $2 & lane2=$!
    while kill -0 "$lane1" 2>/dev/null && kill -0 "$lane2" 2>/dev/null; do sleep 1; done
    if kill -0 "$lane1" 2>/dev/null; then wait "$lane2"; else wait "$lane1"; fi # the first to end; if it failed, so do we
    wait "$lane1"
    wait "$lane2"
    trap - EXIT INT TERM
    set +m
}

# nothing_else SCRIPT "$@": for scripts that take a data set alone; overrides would be lost without a word.
nothing_else() {
    if [ $# -gt 2 ]; then
        echo "error: scripts/$1 takes a data set and nothing else (got '$3'): give overrides to the recipe of one method" >&2
        exit 2
    fi
}

# ready RUN CONFIG [key=value ...]: what other runs start from. A run that is there goes on as it was begun, whatever overrides it
# was given then; otherwise it is trained by the recipe.
ready() {
    local run=$1 config=${2:-}
    if [ -f "$run/config.yaml" ]; then
        train "$run/config.yaml" run="$run"
    else
        train "$config" run="$run" "${@:3}"
    fi
}

exists() { [ -e "$1" ]; } # of a pattern: whether anything matches

# ensure_teacher [key=value ...]: the data set's teacher at $runs/teacher, unless the overrides name another. What is there is used;
# without it the one that ships with this repository is copied, or with SHIPPED=no, or where none ships, a teacher is trained.
ensure_teacher() {
    local shipped=teachers/shipped/$dataset given
    for given in "$@"; do
        case $given in method.teacher=*) return ;; esac
    done
    if exists "$runs"/teacher/checkpoints/*/ema.safetensors && ! exists "$runs"/teacher/checkpoints/*/state.pt; then
        return # a shipped model: weights to use, and nothing to go on with
    fi
    if [ ! -e "$runs/teacher" ] && [ -d "$shipped" ] && [ "${SHIPPED:-yes}" != no ]; then
        echo "starting from the shipped teacher $shipped (SHIPPED=no trains one)" >&2
        mkdir -p "$runs"
        rm -rf "$runs/.teacher.partial"
        cp -R "$shipped" "$runs/.teacher.partial"
        mv "$runs/.teacher.partial" "$runs/teacher"
        return
    fi
    ready "$runs/teacher" "$configs/teacher.yaml"
}
