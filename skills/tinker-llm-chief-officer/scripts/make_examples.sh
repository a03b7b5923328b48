#!/usr/bin/env bash
# Make examples.md again: three runs of the demo model on this machine, documented from their
# directories. About two minutes on two free cores; ids and dates of runs change.
#
#   ./scripts/make_examples.sh [FOLDER]    # FOLDER keeps the runs (default: a temporary one)
set -euo pipefail

scripts="$(cd -P "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
project="$(cd "$scripts/../../.." && pwd)"
python="${PYTHON:-$project/.venv/bin/python}"
folder="${1:-$(mktemp -d)}"
mkdir -p "$folder/data"
cd "$folder"

tail -n +101 "$project/demo_pool.jsonl" >data/rows.jsonl
head -n 100 "$project/demo_pool.jsonl" >data/questions.jsonl
cat >training-config.yaml <<YAML
base_model: $project/demo_model
run_name: supervised
train_file: data/rows.jsonl
val_file: data/questions.jsonl
lora_rank: 32
train_batch_size: 16
num_steps: 60
eval_every: 20
learning_rate: 0.003
renderer_name: llama3
YAML
"$python" "$scripts/sl_trainer.py" --config training-config.yaml --local --run-dir runs/supervised
"$python" "$project/trainer_with_eval.py" --config "$project/examples/dpo/dpo.json" --local \
    --set run_name=preferences --set max_rounds=2 --set start_from="$folder/runs/supervised" \
    --set base_model="$project/demo_model" --set lora_rank=32 --run-dir runs/preferences
"$python" "$project/trainer_with_eval.py" --config "$project/examples/rl/rl.json" --local \
    --set run_name=rewards --set max_rounds=2 --set start_from="$folder/runs/supervised" \
    --set base_model="$project/demo_model" --set lora_rank=32 --run-dir runs/rewards

{
    cat <<'HEAD'
# Examples: three documented runs

What a run's document has to say, by step 9 of [SKILL.md](SKILL.md): base model and LoRA, data and what
was dropped, learning rate, batch and steps, what was asked and what came of it, and the failures that
are known. The runs are of the demo model, a million parameters, on this machine: supervised training on
facts, then preferences and rewards on its weights. `scripts/make_examples.sh` makes this file again.

HEAD
    "$python" "$scripts/document_run.py" runs/supervised runs/preferences runs/rewards
} >"$scripts/../examples.md"
echo "Wrote examples.md of this skill; the runs are in $folder" >&2
