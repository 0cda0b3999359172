#!/usr/bin/env bash
# Three short windows from start to verdict, with a new checkpoint after the first. Every step is a command that a user
# could type; exit code 0 only if every window was accepted.
set -euo pipefail
cd "$(dirname "$0")/.."

run=demo/.run
rm -rf "$run"
mkdir -p "$run"
# Block 30, where the first window opens, comes twelve seconds from now.
genesis=$(python3 -c 'import time; print(round(time.time() + 12 - 30 * 1.5, 3))')
# What the checkpoints prescribe: gsm8k, or math with the same problems in its form.
environment=${ENVIRONMENT:-gsm8k}
policy=(--env "$environment" --max-tokens 192 --temperature 0.7 --top-p 0.95 --top-k 50)

case "$environment" in
  gsm8k) dataset=demo/gsm8k ;;
  math) dataset="$run/math" && python3 demo/as_math.py "$dataset" ;;
  *) echo "ENVIRONMENT must be gsm8k or math, not $environment" && exit 64 ;;
esac

supervisor() {
  "${CARGO_TARGET_DIR:-target}/debug/grail-supervisor" --config config/demo.toml --set "chain.genesis=$genesis" --set "environment.dataset=$PWD/$dataset" "$@"
}

publish_the_second() {
  # Bounded: if no window is uploaded at all, the demo must fail, not wait for ever.
  for _ in $(seq 300); do
    if supervisor status 2>/dev/null | grep -q '"outcome": "uploaded"'; then
      supervisor publish-checkpoint demo/checkpoint-b "${policy[@]}"
      return
    fi
    sleep 0.5
  done
  echo "no window was uploaded within 150 s"
  return 1
}

echo "A local chain, a local bucket and a model of one million parameters; nothing leaves this machine."
supervisor publish-checkpoint demo/checkpoint-a "${policy[@]}"
publish_the_second >"$run/publish.log" 2>&1 &
publisher=$!
trap 'kill "$publisher" 2>/dev/null || true' EXIT

supervisor run --windows 3
wait "$publisher" || { echo "The second checkpoint was not published:"; cat "$run/publish.log"; exit 1; }
cat "$run/publish.log"

echo
echo "Now as the network's validator: fetch, check every group, prove again."
supervisor validate --test-mode --last 3 --all
