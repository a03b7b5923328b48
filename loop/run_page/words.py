"""The words of a run's page that a reader may not know, each in a sentence."""

from __future__ import annotations

from pages.document import Column, Section, Table

WORDS = {
    "round": "some steps of training, then the same questions, then a decision; round 0 asks the "
    "model as it was before",
    "dev questions": "those of eval_tasks, asked after every round; decisions follow them, so "
    "the best round's score is a little too high",
    "sealed test": "other questions, opened once, at the end, that no decision rests on",
    "score": "the mean over the questions, from 0 to 1; n is how many were asked",
    "[a, b]": "the 95% interval: what the score would be over endless such questions lies in such "
    "an interval in 95 of 100 cases",
    "p": "how often chance alone would move a score as much; below 0.05 it is usually taken as "
    "real",
    "threshold, gate": "the score that was asked for (eval_threshold), and the rule by which a "
    "round passes (gate.rule)",
    "guard": "a task on which the model may lose no more than is set (gate.guards)",
    "truncated": "an answer that was cut off at its longest length (evaluation.max_tokens)",
    "malformed": "an answer in which no value of the asked form could be read",
    "failed": "a question that was left without an answer by an error",
    "loss": "how unlikely the right tokens were to the model, a token, as a natural logarithm: 0 "
    "where it was certain of them",
    "blind guess": "the loss of a model to which all tokens of its vocabulary are alike",
    "loss tokens": "the tokens that are trained on: the answers, not the questions",
    "group, reward, advantage": "the answers sampled to one prompt; what each was worth; by how "
    "much more than the group's mean, which makes it more or less likely",
    "reference": "the weights that preference training and KL are held against: those that the run "
    "started from",
    "KL": "how far two models are apart in what they would say, as a natural logarithm; 0 where "
    "they agree",
    "train_file, pool": "the rows of round 1, and the rows that later rounds draw from "
    "(mining.pool_file; without one train_file's)",
    "mining": "choosing a later round's rows by what was answered wrong and by their loss",
    "replay": "rows of train_file in a later round, so that what was learned is kept",
    "seeded shuffle": "a random order, which the same seed makes again",
    "duplicate, contaminated": "a row like one before it; a row that asks a question of an "
    "evaluation: both are left out",
    "similar": "a row near a question, such as one with another number: trained on, and listed",
    "adapter, LoRA": "the small set of weights that is trained beside the model, which stays as it "
    "is",
    "checkpoint": "weights as they were saved after a round",
    "chat format": "how questions and answers become one text for the model (renderer_name)",
}


def words_section() -> Section:
    """What the words mean, folded: who knows them passes by."""
    rows = [[word, meaning] for word, meaning in WORDS.items()]
    table = Table("Words of this page", [Column("word"), Column("meaning")], rows, is_folded=True)
    return Section("Words", [table], anchor="words")
