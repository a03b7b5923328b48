#!/usr/bin/env bash
# Fine-tune the demo model on this machine; with TINKER_API_KEY set, a Llama on Tinker instead.
# --local keeps it on this machine whatever is set; other arguments go to trainer_with_eval.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./ensure_venv.sh
ensure_venv

config=demo_config.json
place=(--local)
if [ -n "${TINKER_API_KEY:-}" ]; then
    case " $* " in
        *" --local "*) echo "TINKER_API_KEY is set; --local keeps this run on this machine, at no cost." >&2 ;;
        *)
            config=demo_config.tinker.json
            place=()
            echo "TINKER_API_KEY is set: this run is paid for. The tokens it takes at most are printed before" >&2
            echo "the first step. ./run_demo.sh --local runs on this machine instead." >&2
            ;;
    esac
fi
exec "$VENV_PYTHON" trainer_with_eval.py --config "$config" ${place[@]+"${place[@]}"} "$@"
