#!/usr/bin/env bash
# Copies a measured curve into results/: rows, kept samples, configs, pictures, tables and the report page.
#   bash scripts/publish.sh runs/quickstart results/digits
source "$(dirname "$0")/environment.sh"
use_environment requirements.txt
from=${1:?folder with curves.jsonl} to=${2:?folder in results}
if [ ! -f "$from/curves.jsonl" ]; then
    echo "error: $from/curves.jsonl does not exist: run scripts/quickstart.sh or python -m scripts.evaluate first" >&2
    exit 2
fi
if [ "$from" -ef "$to" ]; then
    echo "error: $from and $to are one folder: python -m scripts.plot and scripts.report draw in place" >&2
    exit 2
fi
rm -rf "$to/samples" "$to/configs"
rm -f "$to"/{curves,seconds,coverage,samples}*.{png,svg} # of a protocol that may not be there any more
mkdir -p "$to/samples" "$to/configs"
cp "$from/curves.jsonl" "$to/"
kept='import json, sys; print(*{row["samples"] for row in map(json.loads, sys.stdin) if row.get("samples")}, sep="\n")'
python -c "$kept" < "$to/curves.jsonl" | while read -r file; do # and not those of earlier weights
    [ ! -f "$from/$file" ] || cp "$from/$file" "$to/$file"
done
for config in "$from"/*/config.yaml; do
    [ ! -f "$config" ] || cp "$config" "$to/configs/$(basename "$(dirname "$config")").yaml"
done
ratios=()
if grep -q '"run": "teacher"' "$to/curves.jsonl"; then ratios=(--relative-to teacher); fi
python -m scripts.plot "$to/curves.jsonl" --markdown "$to/table.md" ${ratios[@]+"${ratios[@]}"}
python -m scripts.report "$to" --runs "$from"
