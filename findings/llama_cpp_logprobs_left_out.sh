#!/usr/bin/env bash
# llama.cpp's server (xllamacpp 2026.10.11549): tokens that end inside a UTF-8 character have no entry
# among the log-probabilities, on its own route and on the OpenAI-compatible one, so that there are fewer
# of them than tokens were sampled. Which ones are missing is not said.
#
# Where: tools/server/server-context.cpp, process_token: what is sent, and with it a token's
#   probabilities, is skipped as long as the text ends inside a character, and not made up for.
# Why it matters: byte-level tokenizers cut CJK, emoji and accented letters into several tokens. Whoever
#   pairs log-probabilities with tokens by their place, as an importance ratio or a perplexity does,
#   pairs wrong ones from the first such character on. Take token ids by `return_tokens` and ask for one
#   token at a time, or compare the two lengths.
# Seen (a random model over bytes, 24 tokens):
#   llama.cpp in xllamacpp 2026.10.11549, gguf 0.19.0
#   /completion: 24 tokens, 18 entries; /v1/completions: 24 tokens, 18 entries
#   the token 173, not in the entries, is number 4 of the sampled ones
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    gguf==0.19.0 xllamacpp==2026.10.11549 numpy==2.4.6
cp "$here/tiny_gguf.py" "$work"
cd "$work"
PYTHONPATH="$work" venv/bin/python - <<'PY'
from importlib.metadata import version

from tiny_gguf import ask, random_tensors, serve, write_model

print("llama.cpp in xllamacpp " + version("xllamacpp") + ", gguf " + version("gguf"))
write_model("base.gguf", random_tensors())
server, prompt = serve("base.gguf"), [40, 41]
own = ask(server, "/completion", prompt=prompt, n_predict=24, n_probs=1, temperature=0.0, return_tokens=True)
other = ask(server, "/v1/completions", prompt=prompt, max_tokens=24, logprobs=1, temperature=0.0)
entries = [one["id"] for one in own["completion_probabilities"]]
num_other = len(other["choices"][0]["logprobs"]["content"])
num_sampled = other["usage"]["completion_tokens"]
print(
    f"/completion: {len(own['tokens'])} tokens, {len(entries)} entries; "
    f"/v1/completions: {num_sampled} tokens, {num_other} entries"
)
place = next((n for n, token in enumerate(own["tokens"]) if entries[n : n + 1] != [token]), None)
assert place is not None, "changed: each token has its entry"
missing = next(token for token in own["tokens"] if token not in entries)
print(f"the token {missing}, not in the entries, is number {own['tokens'].index(missing) + 1} of the sampled ones")
assert len(entries) < len(own["tokens"]), "changed: there are as many entries as tokens"
assert num_other < num_sampled, "changed: the OpenAI-compatible route lists all"
PY
