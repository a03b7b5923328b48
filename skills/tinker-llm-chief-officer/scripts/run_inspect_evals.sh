#!/usr/bin/env bash
# Run Inspect tasks on one checkpoint by the cookbook's own command, and keep what they came to.
#
#   MODEL_PATH="tinker://..." MODEL_NAME="..." RENDERER_NAME="..." ./scripts/run_inspect_evals.sh
#
# TASKS are names with commas between them: inspect_evals/gsm8k, or FILE.py@TASK. LIMIT is how many
# samples of each are asked ("all": every one), TEMPERATURE, MAX_TOKENS and SEED how; LOG_DIR is a
# new folder for the logs and summary.json. The service is Tinker, or TINKER_BASE_URL.
set -euo pipefail

scripts="$(cd -P "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$scripts/../../../.venv/bin/python}"

refuse() {
    echo "error: $1" >&2
    exit 2
}

[ -x "$python" ] || refuse "$python: there is no Python of the project. Make it with ./run_tests.sh, or name one in PYTHON."
[ -n "${MODEL_PATH:-}" ] || refuse "MODEL_PATH is not set. Give the sampler path of a checkpoint, tinker://..., as trained.json in the run directory has it."
[ -n "${MODEL_NAME:-}" ] || refuse "MODEL_NAME is not set. Give the base model of the checkpoint, as trained.json has it."
[ -n "${RENDERER_NAME:-}" ] || refuse "RENDERER_NAME is not set. Give the chat format that it was trained with, as trained.json has it."
[ -n "${TINKER_API_KEY:-}" ] || refuse "TINKER_API_KEY is not set. Export it, or start local_tinker for weights of this machine and take the two lines that it prints."

tasks="${TASKS:-inspect_evals/ifeval,inspect_evals/mmlu_0_shot,inspect_evals/gsm8k}"
limit="${LIMIT:-200}"
log_dir="${LOG_DIR:-inspect-logs/$(date -u +%Y%m%d-%H%M%S)}"
[ ! -e "$log_dir" ] || refuse "$log_dir is there already. Name a new folder in LOG_DIR, so that no results are mixed."
case "$limit" in
    all) limit=None ;;
    '' | *[!0-9]*) refuse "LIMIT is $limit. Give a number of samples, or all." ;;
esac
mkdir -p "$log_dir"

"$python" -m tinker_cookbook.eval.run_inspect_evals \
    model_path="$MODEL_PATH" model_name="$MODEL_NAME" renderer_name="$RENDERER_NAME" \
    tasks="$tasks" limit="$limit" temperature="${TEMPERATURE:-0.0}" \
    max_tokens="${MAX_TOKENS:-1024}" seed="${SEED:-0}" log_dir="$log_dir"

IFS=, read -ra names <<<"$tasks"
"$python" "$scripts/read_inspect_logs.py" "$log_dir" "${#names[@]}" | tee "$log_dir/summary.json"
