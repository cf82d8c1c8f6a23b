#!/usr/bin/env bash
# Runs every benchmark in turn and keeps what each printed under benchmarks/results/DATE-NAME.txt. One that fails does
# not keep the others from running. COMFYUI=CHECKOUT compares with the ComfyUI in that folder as well.
set -uo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # as the product runs, see cli.py
checkout=${COMFYUI:+$(realpath "$COMFYUI")}
cd "$(dirname "$0")" || exit
mkdir -p results
log=$(mktemp)
trap 'rm -f "$log" "$log.txt"' EXIT
failed=
# large wants 10 GB of disk, 12 of memory, and minutes
for script in transformer pipeline modes start decode load server long_queue loading large comfyui_nodes; do
    echo "== $script"
    arguments=() python=../$BIN/python
    [[ $script == transformer && -n $checkout ]] && arguments=(--comfyui "$checkout")
    if [[ $script == comfyui_nodes ]]; then
        [[ -n $checkout ]] || { echo "not run: COMFYUI names no checkout"; continue; }
        python=$("$python" ../tests/comfyui/comfyui_environment.py "$checkout") || exit
        arguments=(--comfyui "$checkout")
    fi
    result=results/$(date -u +%F)-$script.txt
    if ! "$python" "$script.py" "${arguments[@]}" 2>"$log" | tee "$log.txt" | grep -v '^{'; then
        failed+=" $script"
        tail -n 5 "$log"
        continue
    fi
    cp "$log.txt" "$result"
done
[[ -z $failed ]] || { echo "failed:$failed"; exit 1; }
