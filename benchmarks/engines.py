"""Put the demo's scores on two services side by side, with what makes them differ.

    python benchmarks/engines.py SKYRL_RUN SKYRL_CHECKPOINTS EMBEDDED_RUN EMBEDDED_RUN_WITHOUT_HEAD

benchmarks/engines.sh makes the runs and calls this. Prints for each round the score, how many
answers were cut off and the losses; the scale of the adapters, read from what each service wrote;
how the losses are reduced; and how many answers of the untouched model are the same, token for
token, by their number and text. Exits with 1 where those differ, for then the runs asked otherwise.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

from ledger.store import RunStore

REDUCTIONS = """\
loss:    SkyRL divides each row's by the sum of its weights and takes the mean over the rows;
         embedded sums, and the weights of a row sum to 1. Adam hardly sees the difference.
trained: SkyRL attention and MLP, whatever train_* says; embedded what train_* says."""


def main(skyrl: Path, skyrl_checkpoints: Path, *embedded: Path) -> int:
    stores = {"SkyRL": RunStore.open(skyrl), "embedded": RunStore.open(embedded[0])}
    stores["embedded, train_unembed false"] = RunStore.open(embedded[1])
    print(f"{'round':5}  {'service':30}  {'score':>6}  {'cut off':>7}  loss a token")
    for round_no in range(max(store.num_rounds for store in stores.values()) + 1):
        for name, store in stores.items():
            print(line_of(round_no, name, store))
    ours = scale_of(next(embedded[0].rglob("adapter_config.json")).read_text())
    theirs = scale_of_archive(skyrl_checkpoints)
    print(f"\nscale (lora_alpha / r): SkyRL {theirs}, embedded {ours}\n{REDUCTIONS}")
    same, number = same_answers(stores["SkyRL"], stores["embedded"])
    print(f"untouched model: {same} of {number} answers have the same tokens asked and text")
    return int(same != number)


def line_of(round_no: int, name: str, store: RunStore) -> str:
    result = store.result(round_no)
    if result is None:
        return f"{round_no:5}  {name:30}  {'-':>6}"
    cut = sum(task.num_truncated for task in result.tasks)
    losses = [event["nll"] for event in store.events("step", round_no)]
    shown = f"{losses[0]:.3f} -> {losses[-1]:.3f}" if losses else ""
    return f"{round_no:5}  {name:30}  {result.score:6.2f}  {cut:7}  {shown}"


def scale_of(adapter_config: str) -> str:
    read = json.loads(adapter_config)
    return f"{read['lora_alpha']:g} / {read['r']}"


def scale_of_archive(folder: Path) -> str:
    # Of a training state, the folder itself has such a name.
    archive = next(path for path in folder.rglob("*.tar.gz") if path.is_file())
    with tarfile.open(archive) as opened:
        name = next(n for n in opened.getnames() if n.endswith("adapter_config.json"))
        found = opened.extractfile(name)
        assert found is not None, "it is a file"
        return scale_of(found.read().decode())


def same_answers(one: RunStore, other: RunStore) -> tuple[int, int]:
    """How many of round 0's answers are the same in both runs, and of how many."""
    answers = []
    for store in (one, other):
        result = store.result(0)
        assert result is not None, "both runs have a baseline"
        samples = [sample for task in result.tasks for sample in task.samples]
        answers.append(
            {s.id: (s.num_prompt_tokens, s.num_sampled_tokens, s.answer) for s in samples}
        )
    assert answers[0].keys() == answers[1].keys(), "both ask the same questions"
    return sum(answers[0][key] == answers[1][key] for key in answers[0]), len(answers[0])


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
