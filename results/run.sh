#!/bin/bash
# All that results/README.md shows, on two CPU cores. A second call resumes a stopped one.
#
#     bash results/run.sh                            # settings and ablation, into runs/results; then tables and figures
#     PARTS="settings rivals" SETTINGS="default epochs-2 unlikeliness-2" bash results/run.sh runs/rivals results/rivals
#                                                    # other estimators of the advantage, beside three of the settings
#     PARTS="settings rivals temperature" SEEDS=0 bash results/run.sh runs/temperature results/temperature
#                                                    # all of them, sampled at four temperatures
#     DOMAIN=nat TUNING=400 STEPS=600 PARTS=rates SEEDS=0 RATES="2.5e-5 5e-5 1e-4" bash results/run.sh runs/nat-rates    # GRPO-Default at these rates
#     DOMAIN=nat TUNING=400 STEPS=600 LR=2.5e-5 PARTS="settings rivals" bash results/run.sh runs/nat results/nat     # numbers
#     LR=5e-5 PARTS=settings bash results/run.sh runs/results-lr-5e-5 results/lr-5e-5         # half the learning rate
#     STEPS=2 SHORT=1 SAMPLES=4 FEWER=4 SEEDS=0 bash results/run.sh /tmp/short /tmp/short     # the first line in minutes
#
# Two jobs at a time, each on one core: that takes less time than one after the other on two. They share Lean's verdicts
# (--verdicts), since many completions are sampled by several of them. A run goes once through its problems, the first of
# train.jsonl in the folder DOMAIN; temperatures are chosen on the last ones there, which no run trains on.
set -euo pipefail
export OUT=${1:-runs/results} STEPS=${STEPS:-150} SHORT=${SHORT:-50} LR=${LR:-1e-4} SAMPLES=${SAMPLES:-256} FEWER=${FEWER:-64}
export DOMAIN=${DOMAIN:-toy} HELD_OUT
PARTS=${PARTS:-settings ablation} SEEDS=${SEEDS:-0 1 2} RATES=${RATES:-5e-5 1e-4 2e-4} TUNING=${TUNING:-100}
SETTINGS=${SETTINGS:-default high-kl epochs-2 epochs-3 unlikeliness-1 unlikeliness-2}
export OMP_NUM_THREADS=1
REPORT=${2:-results}
mkdir -p "$OUT" "$REPORT"
OUT=$(realpath "$OUT") REPORT=$(realpath "$REPORT")
cd "$(dirname "$0")/.."
head -n $((16 * STEPS)) "$DOMAIN/train.jsonl" > "$OUT/train.jsonl"
tail -n "$TUNING" "$DOMAIN/train.jsonl" > "$OUT/tuning.jsonl"
HELD_OUT=$DOMAIN/val.jsonl
if [ "$PARTS" = rates ]; then HELD_OUT=$OUT/tuning.jsonl; fi

judged() {  # FOLDER FLAGS: samples of a model, and Lean's verdicts on them
    test -e "$OUT/$1/verified.jsonl" && return
    mkdir -p "$OUT/$1"
    test -e "$OUT/$1/samples.jsonl" || python sample.py --max-new-tokens 200 --out "$OUT/$1/samples.jsonl" "${@:2}" || return
    python verify.py "$OUT/$1/samples.jsonl" --out "$OUT/$1/verified.jsonl" --project "$DOMAIN" --workers 1 --verify-batch 128 --verdicts "$OUT/verdicts.sqlite"
}

run() {  # NAME SEED STEPS SAMPLES FLAGS: a training run, then the model after these steps on the held-out problems
    local last=checkpoints/step_$(printf %05d "$3")
    test -d "$OUT/$1-seed$2/$last" || python train.py --model "$DOMAIN/base" --problems "$OUT/train.jsonl" --project "$DOMAIN" --out "$OUT/$1-seed$2" --resume --seed "$2" \
        --lr "$LR" --steps "$3" --eval-samples 0 --save-every $((SHORT > 0 ? SHORT : 50)) --workers 1 --verdicts "$OUT/verdicts.sqlite" "${@:5}" || return
    judged "$1-seed$2/$([ "$3" = "$SHORT" ] && echo short || echo val)" --model "$OUT/$1-seed$2/$last" --problems "$HELD_OUT" --num-samples "$4" || return
    if [[ $SHORT -gt 0 && $3 -gt $SHORT && $1 =~ -2$ ]]; then  # the ablation has epochs-2 and unlikeliness-2 too, after fewer steps
        judged "$1-seed$2/short" --model "$OUT/$1-seed$2/checkpoints/step_$(printf %05d "$SHORT")" --problems "$HELD_OUT" --num-samples "$FEWER"
    fi
}

tempered() {  # NAME SEED TEMPERATURE: samples of a trained model, or of the base model, at this temperature
    local folder=$1-seed$2 model=$OUT/$1-seed$2/checkpoints/step_$(printf %05d "$STEPS")
    if [ "$1" = base ]; then folder=base model=$DOMAIN/base; fi
    judged "$folder/tune-$3" --model "$model" --problems "$OUT/tuning.jsonl" --num-samples "$SAMPLES" --temperature "$3" || return
    if [ "$3" = 1.0 ]; then
        ln -sfn val "$OUT/$folder/val-1.0"  # they are there already
    else
        judged "$folder/val-$3" --model "$model" --problems "$HELD_OUT" --num-samples "$SAMPLES" --temperature "$3"
    fi
}

job() {  # one of the three, with its words in a log
    local start=$SECONDS log="$OUT/${2/\//-}.log"
    if [ "$1" != judged ]; then log="$OUT/$2-seed$3.log"; fi
    "$@" >> "$log" 2>&1 || { echo "failed, see $log: $*" >&2; exit 255; }
    echo "$((SECONDS - start)) s: $*"
}
export -f judged run tempered job

settings() {  # the paper's (Table 1), and the base model
    echo "judged base/val --model $DOMAIN/base --problems $HELD_OUT --num-samples $((2 * SAMPLES))"  # all are compared with it
    echo "judged base-train --model $DOMAIN/base --problems $DOMAIN/train.jsonl --limit 200 --num-samples $FEWER"
    for seed in $SEEDS; do
        echo "run default $seed $STEPS $SAMPLES --kl 0.02"
        echo "run high-kl $seed $STEPS $SAMPLES --kl 0.1"
        echo "run epochs-2 $seed $STEPS $SAMPLES --kl 0.1 --ppo-epochs 2"
        echo "run epochs-3 $seed $STEPS $SAMPLES --kl 0.1 --ppo-epochs 3"
        echo "run unlikeliness-1 $seed $STEPS $SAMPLES --kl 0.1 --unlikeliness 0.25"
        echo "run unlikeliness-2 $seed $STEPS $SAMPLES --kl 0.1 --ppo-epochs 2 --unlikeliness 0.25"
    done | grep -E "run (${SETTINGS// /|}) "
}

rates() {  # GRPO-Default at some learning rates, judged on the tuning problems
    echo "judged base/val --model $DOMAIN/base --problems $HELD_OUT --num-samples $FEWER"
    for seed in $SEEDS; do
        for rate in $RATES; do echo "run lr-$rate $seed $STEPS $FEWER --kl 0.02 --lr $rate"; done
    done
}

ablation() {  # unlikeliness-2 with one thing changed, and fewer steps; its beta_rank 0 is epochs-2
    for seed in $SEEDS; do
        echo "run beta-0.1 $seed $SHORT $FEWER --kl 0.1 --ppo-epochs 2 --unlikeliness 0.1"
        echo "run beta-0.5 $seed $SHORT $FEWER --kl 0.1 --ppo-epochs 2 --unlikeliness 0.5"
        echo "run beta-1 $seed $SHORT $FEWER --kl 0.1 --ppo-epochs 2 --unlikeliness 1"
        echo "run token-mean $seed $SHORT $FEWER --kl 0.1 --ppo-epochs 2 --unlikeliness 0.25 --rank-by token-mean"
    done
}

rivals() {  # the three estimators that gain most at N = 512 in the synthetic setting
    for seed in $SEEDS; do
        echo "run f-grpo $seed $STEPS $SAMPLES --estimator f-grpo --kl 0.1 --ppo-epochs 2"
        echo "run pass-at-k $seed $STEPS $SAMPLES --estimator pass-at-k --kl 0.02"
        echo "run w-reinforce $seed $STEPS $SAMPLES --estimator w-reinforce --kl 0.1 --ppo-epochs 2"
    done
}

temperature() {  # each model, sampled cooler and hotter
    for T in 0.8 1.0 1.25 1.5; do
        echo "tempered base - $T"
        for seed in $SEEDS; do
            for name in $SETTINGS f-grpo pass-at-k w-reinforce; do echo "tempered $name $seed $T"; done
        done
    done
}

if [[ ! " $PARTS " =~ " ablation " ]]; then export SHORT=0; fi
for part in $PARTS; do "$part"; done | xargs -P 2 -I{} bash -euo pipefail -c 'job {}'

if [ "$PARTS" = rates ]; then
    for run in "$OUT"/lr-*-seed*/; do
        echo "$run: KL a token, mean of the last 10 steps: $(tail -n 10 "$run/metrics.jsonl" | grep -oE '"kl": [0-9.e-]+' | awk '{sum += $2} END {print sum / NR}')"
    done
    exec python evaluate.py "$OUT"/base/val/verified.jsonl "$OUT"/lr-*/val/verified.jsonl
fi
python results/report.py "$OUT" --out "$REPORT"
