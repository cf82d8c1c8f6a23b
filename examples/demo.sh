#!/usr/bin/env bash
# From a prompt to an image through the HTTP API. The script starts a server on a free port, sends the example request of
# WaveSpeed's documentation, polls the result as that page describes, writes the images and stops the server.
# It needs curl, and hidream in $BIN.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
command -v curl >/dev/null || { echo "the demo needs curl to call the API: please install it" >&2; exit 1; }

home=$(mktemp -d)
log=$home/server.log
export HIDREAM_HOME=$home/state
"$BIN/hidream" serve --port 0 >"$home/stdout" 2>"$log" &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true; rm -rf "$home"' EXIT

field() { "$BIN/python" -c "import json, sys; data = json.load(sys.stdin)['data']; print($1)"; }

printf 'starting the server'
until host=$(grep -o 'http://[^ ]*' "$home/stdout" | head -1) && [ -n "$host" ] && curl -sf "$host/readyz" >/dev/null; do
    kill -0 $server 2>/dev/null || { echo; cat "$log" >&2; exit 1; }
    printf '.'; sleep 0.5
done
echo " ready at $host"
WAVESPEED_API_KEY=$(grep -o 'hd_[A-Za-z0-9_-]*' "$home/stdout")

await() { # id file
    local answer status
    while :; do
        # the example of WaveSpeed's documentation, with another host
        answer=$(curl -s --location --request GET "$host/api/v2/predictions/$1/result" \
--header "Authorization: Bearer ${WAVESPEED_API_KEY}")
        status=$(field "data['status']" <<<"$answer")
        case $status in
            completed) break ;;
            failed) field "data['error']" <<<"$answer" >&2; exit 1 ;;
        esac
        sleep 0.5
    done
    field "data['outputs'][0]" <<<"$answer" | base64 --decode >"$2"
    field "f\"$2: {data['timings']['inference'] / 1000:.2f} s of model time, {data['executionTime'] / 1000:.2f} s in all, seed {data['seed']}\"" <<<"$answer"
}

# the example of WaveSpeed's documentation, with another host
requestId=$(curl -s --location --request POST "$host/api/v2/wavespeed-ai/hidream-i1-dev" \
--header "Content-Type: application/json" \
--header "Authorization: Bearer ${WAVESPEED_API_KEY}" \
--data-raw '{
"prompt": "A Ghibli-inspired scene featuring a giant, friendly creature walking through a lush forest and holding a sign saying \"HiDream on wavespeed.ai\", with vibrant colors, soft lighting, and whimsical details like floating lights and colorful, magical creatures. The scene captures a peaceful, enchanted atmosphere",
"size": "1024*1024",
"seed": -1,
"enable_base64_output": true,
"enable_safety_checker": true
}' | field "data['id']")
await "$requestId" demo.png

# a prompt whose words the small embedded model knows
requestId=$(curl -s --location --request POST "$host/api/v2/wavespeed-ai/hidream-i1-dev" \
--header "Content-Type: application/json" \
--header "Authorization: Bearer ${WAVESPEED_API_KEY}" \
--data-raw '{"prompt": "flat style a fox in the snow", "size": "1024*1024", "seed": 7}' | field "data['id']")
await "$requestId" demo-nano.png

cat <<END

The demo wrote two images. demo.png is the example request of WaveSpeed's documentation. Of that request, the embedded
model (nano, 13 M parameters, runs on a CPU) knows a creature and a forest. demo-nano.png shows what nano has learnt.
Next steps:
    . $BIN/activate                            puts \`hidream\` on the path of this shell; then:
    hidream generate "cartoon a cat in a meadow"    an image without a server
    make serve                                      a server that keeps running; it prints its first key
    HIDREAM_MODEL=/path/to/HiDream-I1-Dev HIDREAM_MODELS_LLAMA=/path/to/Llama-3.1-8B-Instruct make serve
                                                    the real 17 B model
END
