#!/usr/bin/env bash
# Eight minutes on a GPU, one page: what this project needs to know of a CUDA host, step by step.
#
#   scripts/gpu.sh [--out FILE] [--programs DIR] [--torch DIR] [--python PYTHON]      on one GPU
#   scripts/gpu.sh --cpu …                                                            the same steps on the CPU, with small sizes
#
#   --out FILE         the page (default docs/measurements/gpu.md; with --cpu docs/measurements/gpu-script-cpu.md)
#   --programs DIR     grail-proof-worker, and for step 8 the other two (default target/release, else target/debug)
#   --torch DIR        libtorch's folder, <site-packages>/torch/lib of a wheel (default: that of PYTHON's torch, if it has one)
#   --python PYTHON    one with torch 2.11.0 and transformers 4.57.1 for step 4 (default .venv-reference, else python3;
#                      with --cpu none)
#
# It needs no network, installs nothing, and starts what lies there: a host needs torch 2.11.0's wheel and the programs, built with
# `cargo build --release` and stripped, with scripts/, config/ and demo/ beside them (below 60 MiB in all). Every step is a process of
# its own with a time limit and a log, so that later ones speak when earlier ones fail; what a step needs and is not here is told, and
# the rest goes on. The exit code is 1 where a step failed.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Seconds of the whole.
total=480
# Exit code of a step that lacks something.
left_out=3

# ---------------------------------------------------------------------------------------------------------------- within a step

worker="${GPU_SCRIPT_PROGRAMS:-}/grail-proof-worker"
supervisor="${GPU_SCRIPT_PROGRAMS:-}/grail-supervisor"
folder="${GPU_SCRIPT_FOLDER:-}"
failed=0 passed=0

# Runs a part of a step, says how long it took and keeps in mind how it ended.
part() {
  local begun code
  printf '$'; printf ' %s' "$@"; echo
  begun=$(date +%s.%N)
  "$@" </dev/null
  code=$?
  printf -- '-- %.1f s, exit code %d\n' "$(since "$begun")" "$code"
  case $code in
    0) passed=1 ;;
    "$left_out") ;;
    *) failed=1 ;;
  esac
  return $code
}

since() { awk -v begun="$1" -v now="$(date +%s.%N)" 'BEGIN { print now - begun }'; }

# Ends a step by what its parts were.
conclude() {
  ((failed)) && exit 1
  ((passed)) && exit 0
  exit $left_out
}

lacks() {
  echo "left out: $*"
  exit $left_out
}

on_gpu() { [[ -z ${GPU_SCRIPT_CPU:-} ]]; }
check() { part "$worker" check "$@"; }
smi() { nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits -i 0 2>/dev/null | head -1; }

# The small model of most steps, and the 1.5B's shape of the one that measures speed.
small=(--hidden 896 --layers 6 --intermediate 4864 --heads 14 --kv-heads 2 --vocabulary 65536)
large=(--hidden 1536 --layers 28 --intermediate 8960 --heads 12 --kv-heads 2 --vocabulary 151936)
group=(--completions 16 --prompt 120 --median 200 --longest 640)
long=(--groups 4 --prompt 200 --median 1150 --sigma 0.5 --longest 4096)
if ! on_gpu; then
  small=(--hidden 128 --layers 2 --intermediate 256 --heads 4 --kv-heads 2 --vocabulary 1000)
  large=("${small[@]}")
  group=(--completions 4 --prompt 20 --median 40 --longest 64)
  long=("${group[@]}")
fi

# A model is made once, by whichever step needs it first.
model() {
  local name=$1
  shift
  [[ -e $folder/$name/made ]] && return
  check model --model "$folder/$name" "$@" || conclude
  touch "$folder/$name/made"
}

step_0() {
  uname -a
  nproc
  grep -E 'MemTotal|MemAvailable' /proc/meminfo
  df -h /dev/shm "$folder"
  env | grep -E '^(CUDA|NVIDIA|LD_LIBRARY_PATH)' | sort
  echo "/proc/driver/nvidia: $(ls /proc/driver/nvidia 2>&1 | tr '\n' ' ')"
  echo "/proc/driver/nvidia/gpus: $(ls /proc/driver/nvidia/gpus 2>&1 | tr '\n' ' ')"
  echo "/dev/nvidia*: $(ls /dev/nvidia* 2>/dev/null | tr '\n' ' ')"
  [[ -n ${GPU_SCRIPT_TORCH:-} ]] && ls -l "$GPU_SCRIPT_TORCH" | head -40
  if on_gpu; then
    part nvidia-smi -L
    nvidia-smi -q 2>&1 | head -120
  fi
  if [[ -x $supervisor ]]; then
    # Counts by NVML and by /proc, and says which of them it believes.
    local device=cpu
    on_gpu && device=cuda
    part "$supervisor" --config "$root/config/local.toml" plan --set "proof.device=$device" --set proof.gpu=0 \
      --set "state.folder=$folder/none" | grep -v bucket
  fi
  local gpu=
  on_gpu && gpu=", $(smi name), driver $(smi driver_version)"
  echo "passed: $(nproc) cores$gpu"
  exit "$failed"
}

step_1() {
  local uuid variant want
  if ! on_gpu; then
    check hello --want cpu
    conclude
  fi
  check hello --want cuda
  echo "Without LD_LIBRARY_PATH:"
  env -u LD_LIBRARY_PATH "$worker" check hello </dev/null || echo "exit code $?"
  uuid=$(smi uuid)
  for variant in 0 "$uuid" "${uuid:0:12}" 7 ''; do
    want=cuda
    [[ -z $variant || $variant == 7 ]] && want=cpu
    echo "CUDA_VISIBLE_DEVICES='$variant':"
    part env "CUDA_VISIBLE_DEVICES=$variant" "$worker" check hello --want $want
  done
  conclude
}

step_2() {
  check correctness
  conclude
}

step_3() {
  echo "As proofs are made:"
  check attention
  if on_gpu; then
    echo "As libtorch comes, which may take cuDNN's kernel:"
    check attention --as-it-comes
  fi
  conclude
}

step_4() {
  local device=cpu
  on_gpu && device=cuda
  model small "${small[@]}"
  check fidelity --model "$folder/small" "${group[@]}" --states "$folder/states.safetensors"
  if [[ -z $GPU_SCRIPT_PYTHON ]]; then
    echo "left out: no comparison with transformers, as no --python is named"
  elif [[ -e $folder/states.safetensors ]] && "$GPU_SCRIPT_PYTHON" -c 'import transformers, torch, safetensors' 2>/dev/null; then
    # Its own libraries, not those of the worker.
    part env -u LD_LIBRARY_PATH HF_HUB_OFFLINE=1 "$GPU_SCRIPT_PYTHON" "$root/scripts/gpu_transformers.py" "$folder/small" \
      "$folder/states.safetensors" $device
  else
    echo "left out: no comparison with transformers, which $GPU_SCRIPT_PYTHON does not have"
  fi
  conclude
}

step_5() {
  local level
  model small "${small[@]}"
  for level in 0 1 2; do
    CUBLAS_WORKSPACE_CONFIG=:4096:8 check precision --level $level --model "$folder/small" "${group[@]}"
  done
  conclude
}

# Mean use of the GPU while the passes of a log were timed.
use_between() {
  local times
  times=$(sed -n 's/^timed from \([0-9.]*\) to \([0-9.]*\)$/\1 \2/p' "$1")
  awk -v times="$times" 'BEGIN { split(times, of, " ") } $1 >= of[1] && $1 <= of[2] { sum += $2; count++ }
    END { if (count) printf "the GPU was at work for %.0f %% of the time (%d samples)\n", sum / count, count }' "$2"
}

step_6() {
  local mode sampler
  local name=large
  # On the CPU both are one.
  on_gpu || name=small
  model $name "${large[@]}"
  for mode in exact packed packed-shared; do
    if on_gpu; then
      nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits -i 0 -lms 200 2>/dev/null |
        while read -r use; do echo "$(date +%s.%N) $use"; done >"$folder/use" &
      sampler=$!
    fi
    check speed --mode $mode --model "$folder/$name" "${long[@]}" >"$folder/speed"
    cat "$folder/speed"
    if on_gpu; then
      kill "$sampler" 2>/dev/null
      use_between "$folder/speed" "$folder/use"
    fi
  done
  conclude
}

step_7() {
  on_gpu || lacks "needs a GPU"
  model small "${small[@]}"
  check memory --model "$folder/small" "${group[@]}"
  check memory --at-once --model "$folder/small" "${group[@]}"
  conclude
}

step_8() {
  [[ -x $supervisor && -x ${GPU_SCRIPT_PROGRAMS}/grail-gen-launcher ]] || lacks "needs grail-supervisor and grail-gen-launcher"
  [[ -d $root/demo/checkpoint-a ]] || lacks "needs demo/"
  local device=cpu seconds=0.6 state=$folder/state genesis port
  port=$(free_port)
  on_gpu && device=cuda seconds=0.8
  # Block 30, where the first window opens, comes six seconds from now.
  genesis=$(awk -v now="$(date +%s.%N)" -v block="$seconds" 'BEGIN { printf "%.3f", now + 6 - 30 * block }')
  gs() {
    part "$supervisor" --config "$root/config/local.toml" --set "proof.device=$device" --set proof.gpu=0 --set proof.cpu_slots=1 \
      --set "state.folder=$state" --set "checkpoints.cache=$state/cache" --set "storage.local_folder=$state/buckets" \
      --set "storage.local_address=127.0.0.1:$port" --set "chain.block_seconds=$seconds" --set "chain.genesis=$genesis" \
      --set spool.budget_mib=64 "$@"
  }
  gs publish-checkpoint "$root/demo/checkpoint-a" --max-tokens 64 || conclude
  gs run --windows 1 --plain >"$folder/window" 2>&1
  tail -40 "$folder/window"
  if grep -q 'uploaded and read back' "$folder/window"; then
    echo "passed: $(grep 'uploaded and read back' "$folder/window" | tail -1)"
  else
    echo "FAILED: no window was uploaded"
    failed=1
  fi
  gs check
  # Its exit code tells of rows that are this host's matter, not the GPU's.
  local before=$failed
  gs doctor >"$folder/doctor"
  failed=$before
  cat "$folder/doctor"
  grep -qE '^ok +proof worker' "$folder/doctor" || { echo "FAILED: doctor is not content with the proof worker"; failed=1; }
  on_gpu && memory_after_a_kill
  conclude
}

# A port that nobody listens on, for the local bucket server.
free_port() {
  local try port
  for try in $(seq 100); do
    port=$((19000 + ($$ + try * 7) % 900))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Seconds until the memory of a process that was killed is free again.
memory_after_a_kill() {
  local before pid begun waited=0
  before=$(smi memory.used)
  [[ -n $before ]] || { echo "left out: nvidia-smi does not tell what is used"; return; }
  model small "${small[@]}"
  "$worker" check speed --mode packed --passes 999 --model "$folder/small" "${group[@]}" </dev/null >/dev/null 2>&1 &
  pid=$!
  until (($(smi memory.used) > before + 200)) || ((waited++ > 100)); do sleep 0.1; done
  echo "$(smi memory.used) MiB are used, $before before it"
  begun=$(date +%s.%N)
  kill -9 $pid
  waited=0
  until (($(smi memory.used) <= before + 64)) || ((waited++ > 100)); do sleep 0.1; done
  wait $pid 2>/dev/null
  echo "passed: $(since "$begun") s after kill -9 $(smi memory.used) MiB are used"
}

# Tokens per second of so many processes at once, each by itself.
side_by_side() {
  local number pids=()
  for ((number = 0; number < $1; number++)); do
    "$worker" check speed --mode packed-shared --threads 1 --passes "$2" --model "$folder/small" "${group[@]}" </dev/null >"$folder/side-$number" 2>&1 &
    pids+=($!)
  done
  wait "${pids[@]}" || true
  for ((number = 0; number < $1; number++)); do grep -E '^(passed|FAILED)' "$folder/side-$number" || tail -3 "$folder/side-$number"; done
}

step_9() {
  local passes=3
  on_gpu && passes=60
  model small "${small[@]}"
  echo "One process:"
  side_by_side 1 $passes
  echo "Two processes:"
  side_by_side 2 $passes
  if on_gpu && command -v nvidia-cuda-mps-control >/dev/null; then
    export CUDA_MPS_PIPE_DIRECTORY=$folder/mps CUDA_MPS_LOG_DIRECTORY=$folder/mps
    mkdir -p "$folder/mps"
    if nvidia-cuda-mps-control -d; then
      echo "Two processes through MPS:"
      side_by_side 2 $passes
      echo quit | nvidia-cuda-mps-control
    else
      echo "left out: MPS cannot be started here"
    fi
  else
    echo "left out: no nvidia-cuda-mps-control"
  fi
  grep -q '^passed' "$folder/side-0" "$folder/side-1" || failed=1
  passed=1
  conclude
}

step_10() {
  check sticky
  conclude
}

# ------------------------------------------------------------------------------------------------------------------- the whole

titles=(
  "the host" "loading" "correctness" "attention" "fidelity" "precision levels" "speed" "want of memory" "life" "sharing"
  "an error that stays"
)
limits=(10 30 40 60 60 45 90 30 60 40 20)

usage() {
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"
  exit "$1"
}

main() {
  local out='' programs='' torch='' python='' cpu=''
  while (($#)); do
    case $1 in
      --cpu) cpu=1 ;;
      --out | --programs | --torch | --python)
        (($# > 1)) || { echo "$1 needs a value" >&2; usage 2 >&2; }
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --step) shift; "step_$1"; exit ;;
      -h | --help) usage 0 ;;
      *) echo "what is $1?" >&2; usage 2 >&2 ;;
    esac
    shift
  done
  [[ -n $programs ]] || { programs=$root/target/release; [[ -x $programs/grail-proof-worker ]] || programs=$root/target/debug; }
  programs=$(cd "$programs" 2>/dev/null && pwd) || true
  [[ -x $programs/grail-proof-worker ]] || { echo "there is no grail-proof-worker; build it (make release) or name its folder with --programs" >&2; exit 2; }
  # Without a GPU the comparison with transformers is `make test`'s, and longer than all steps together.
  [[ -n $python || -n $cpu ]] || { python=$root/.venv-reference/bin/python; [[ -x $python ]] || python=python3; }
  [[ -n $torch || -n $cpu ]] || torch=$("$python" -c 'import os, torch; print(os.path.join(torch.__path__[0], "lib"))' 2>/dev/null)
  [[ -n $out ]] || { out=$root/docs/measurements/gpu.md; [[ -z $cpu ]] || out=$root/docs/measurements/gpu-script-cpu.md; }
  folder=$(mktemp -d "${TMPDIR:-/tmp}/grail-gpu.XXXXXX") || exit 2
  trap 'rm -rf "$folder"' EXIT
  export GPU_SCRIPT_PROGRAMS=$programs GPU_SCRIPT_FOLDER=$folder GPU_SCRIPT_PYTHON=$python GPU_SCRIPT_TORCH=$torch GPU_SCRIPT_CPU=$cpu
  export OMP_WAIT_POLICY=passive CUDA_DEVICE_ORDER=PCI_BUS_ID
  [[ -z $torch ]] || export LD_LIBRARY_PATH=$torch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  [[ -z $cpu ]] || export CUDA_VISIBLE_DEVICES=''
  run_steps "$out"
}

run_steps() {
  local out=$1 number limit left code begun took outcome rows='' any_failed=0 log factor=1
  # A machine without a GPU may be busy with other things, and nobody waits for it.
  on_gpu || factor=3
  local end=$((SECONDS + total * factor))
  for number in "${!titles[@]}"; do
    log=$folder/step-$number.log
    left=$((end - SECONDS)) limit=$((limits[number] * factor))
    ((limit <= left)) || limit=$left
    begun=$(date +%s.%N)
    if ((limit > 0)); then
      timeout -k 5 "$limit" "${BASH_SOURCE[0]}" --step "$number" >"$log" 2>&1
      code=$?
    else
      echo "left out: the eight minutes are over" >"$log"
      code=$left_out
    fi
    took=$(printf '%.1f' "$(since "$begun")")
    case $code in
      0) outcome=passed ;;
      "$left_out") outcome="left out" ;;
      124 | 137) outcome="**took longer than $limit s**" any_failed=1 ;;
      *) outcome="**failed** (exit code $code)" any_failed=1 ;;
    esac
    printf '%2d %-20s %6s s  %s\n' "$number" "${titles[number]}" "$took" "${outcome//\*/}"
    rows+="| $number | ${titles[number]} | $took | $outcome | $(findings "$log") |"$'\n'
  done
  page "$out" "$rows"
  echo "The page is $out."
  return $any_failed
}

# What the parts of a step say at last, on one line that a table can hold.
findings() {
  grep -E '^(passed|left out|FAILED): ' "$1" | grep -v ' tensors at ' | sed -E 's/^(passed|left out): //; s/\|/\\|/g' | paste -sd '~' | sed 's/~/; /g'
}

page() {
  local out=$1 rows=$2 number where commit
  where="the CPU; nothing of this page ran on a GPU"
  on_gpu && where="$(smi name), driver $(smi driver_version)"
  commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
  mkdir -p "$(dirname "$out")"
  {
    echo "# What \`scripts/gpu.sh\` found on $where"
    echo
    echo "Made at commit $commit, $(date -u '+%Y-%m-%d %H:%M') UTC, in $SECONDS s. A step that is left out says what it lacks."
    echo
    echo "| # | step | s | outcome | what it found |"
    echo "|---|---|---|---|---|"
    printf '%s' "$rows"
    for number in "${!titles[@]}"; do
      printf '\n## %d %s\n\n```\n' "$number" "${titles[number]}"
      # Nothing may end the block, and no line is endless.
      tail -n 250 "$folder/step-$number.log" | cut -c1-400 | sed "s|$folder|<folder>|g; s|$root|<checkout>|g; s/^\`\`\`/'''/"
      echo '```'
    done
  } >"$out"
}

main "$@"
