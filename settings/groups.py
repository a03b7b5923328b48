"""The nested groups of settings: types, limits, defaults, and one line on each setting.

Each group refuses keys that it does not know. Rules across groups are `TrainingConfig`'s.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

MAX_COUNT = 10**12  # more of anything is a mistake, and too long a number to reckon with

NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Share = Annotated[float, Field(ge=0, le=1)]


def _one_line(text: str) -> str:
    """Names stand in messages, tables and logs, where a control character would do harm, and a
    lone surrogate cannot even be written."""
    if NO_TEXT.search(text):
        what = "input should hold no control character and no lone surrogate"
        raise PydanticCustomError("no_text", what)
    return text


Name = Annotated[str, AfterValidator(_one_line)]

NO_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # of a text of any lines


def _said(text: str) -> str:
    """What a model is to read."""
    if not text.strip() or NO_CHARACTER.search(text):
        what = "input should hold more than blanks, and no control character or lone surrogate"
        raise PydanticCustomError("no_prompt", what)
    return text


Prompt = Annotated[str, AfterValidator(_said)]


class Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class SourceSettings(Settings):
    """One of several sources of rows."""

    file: Name = Field(min_length=1)
    weight: float | None = Field(default=None, gt=0)
    columns: dict[str, str] | None = None
    subset: Name | None = None
    split: Name = "train"
    revision: Name | None = None


def _kind_of_source(value: Any) -> str | None:
    """Which of the kinds below a value is meant to be, so that only its problems are said."""
    kinds = {
        str: "kind-name",
        list: "kind-list",
        dict: "kind-source",
        SourceSettings: "kind-source",
    }
    return kinds.get(type(value))


def _one_of(what: str) -> Discriminator:
    return Discriminator(_kind_of_source, "source_kind", f"input should be {what}")


SourceName = Annotated[Name, Field(min_length=1), Tag("kind-name")]

OneSource = Annotated[
    SourceName | Annotated[SourceSettings, Tag("kind-source")],
    _one_of("the name of a source, or an object with its `file`"),
]

Sources = Annotated[
    SourceName | Annotated[list[OneSource], Field(min_length=1), Tag("kind-list")],
    _one_of("the name of a source, or a list of sources"),
]

ROW_FIELDS = (
    *("messages", "conversations", "instruction", "input", "output", "prompt", "completion"),
    *("system", "topic", "context", "history", "reasoning", "tools", "weight"),
    *("chosen", "rejected", "comparison", "label"),
)


def check_sources(key: str, sources: Sequence[SourceSettings]) -> None:
    """Raise `ValueError` for weights that do not say how the sources of a setting are drawn."""
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        raise ValueError(
            f"{key} gives a weight to some of its sources and none to others. Give one to "
            "each, or to none, which draws by their number of rows."
        )
    if key == "mining.pool_file" and any(weighted):
        raise ValueError(
            "mining.pool_file gives a weight to a source, but what is drawn from the pool "
            "follows from what was failed. Take the weights out."
        )


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise `ValueError` for names of columns that are given to what is no field of a row."""
    unknown = [name for name in columns if name not in ROW_FIELDS]
    if unknown:
        raise ValueError(
            f"data.columns maps {unknown[0]!r}, which is no field of a row; they are "
            f"{', '.join(ROW_FIELDS)}. Write what the row has as what the file calls "
            'it, for example {"completion": "answer"}.'
        )


class DataSettings(Settings):
    """How rows become training steps."""

    columns: dict[str, str] = Field(
        default={},
        description=(
            'what the files call their columns, for example `{"prompt": "question", "completion": '
            '"answer", "topic": "subject"}`'
        ),
    )
    on_bad_row: Literal["stop", "skip"] = Field(
        default="skip",
        description="what rows that cannot be used do: `skip` lists them, `stop` ends with exit 2",
    )
    train_on: (
        Literal[
            "last_assistant_message",
            "last_assistant_turn",
            "all_assistant_messages",
            "all_messages",
            "all_tokens",
            "all_user_and_system_messages",
        ]
        | None
    ) = Field(
        default=None,
        description=(
            "which messages carry loss; null: all of the assistant's, or only the last where the "
            "chat format drops earlier reasoning"
        ),
    )
    min_words: Positive | None = Field(
        default=None, description="fewest words of a conversation; null: no limit"
    )
    max_words: Positive | None = Field(
        default=None, description="most words of a conversation; null: no limit"
    )
    max_repetition: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=(
            "largest share of an answer's three-word phrases that may repeat earlier ones, for "
            "example 0.5; null: no limit"
        ),
    )
    near_duplicates: float | None = Field(
        default=None,
        ge=0.5,
        lt=1,
        description=(
            "drop rows whose three-word phrases overlap with an earlier row's by this share, for "
            "example 0.8; null: only exact duplicates"
        ),
    )
    contamination: Literal["drop", "list", "stop"] = Field(
        default="drop",
        description=(
            "what rows that hold an evaluation question do: `drop` leaves them out and lists them, "
            "`list` trains on near copies and lists them (the same question goes all the same), "
            "`stop` ends with exit 2"
        ),
    )
    val_share: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description=(
            "share of `train_file` that is held out, chosen by the content of its first question, "
            "so that it stays when rows are added; its loss is measured as `nll:split`"
        ),
    )
    accumulate: Positive = Field(
        default=1,
        description=(
            "forward-backward calls that one step's batch is split into before its optimizer step"
        ),
    )
    max_steps_in_flight: int = Field(
        default=64, ge=1, le=1024, description="most steps in flight; measured delay asks for them"
    )


class EvaluationSettings(Settings):
    """What is asked of a checkpoint, and how. Maps are keyed by the task's name in `eval_tasks`."""

    temperature: float = Field(
        default=0.0, ge=0, le=10, description="sampling temperature of every task; 0 is greedy"
    )
    max_tokens: Positive | None = Field(
        default=None,
        description=(
            "longest answer in tokens; null: 64 for question files, an Inspect task's own or "
            "else 1024"
        ),
    )
    system_prompt: Prompt | None = Field(
        default=None,
        description=(
            "put before every question as a system message, before a system message of its own in "
            "one with it; not before held-out rows; null: none"
        ),
    )
    num_repeats: Positive = Field(
        default=1,
        description="times that each question is asked; its score is their mean",
    )
    concurrency: Positive = Field(default=128, description="samples in flight at once")
    every: dict[str, Positive | Literal["end"]] = Field(
        default={},
        description=(
            "task -> every how many rounds it is measured, or `end`; only for tasks that do not "
            "enter the score"
        ),
    )
    held_out_every_steps: Positive | None = Field(
        default=None,
        description=(
            "inside a round, measure held-out losses every so many steps too; null: only after it"
        ),
    )
    layers: dict[str, Literal[2, 3]] = Field(
        default={},
        description=(
            "task -> 2 (public benchmark) or 3 (the application's own), where its name misleads"
        ),
    )
    task_args: dict[str, dict[str, Any]] = Field(
        default={}, description="Inspect task -> its arguments"
    )
    limit: dict[str, Positive] = Field(
        default={}, description="Inspect task -> only its first so many samples"
    )
    score_key: dict[str, str] = Field(
        default={},
        description="Inspect task whose scorer gives several values -> the one that counts",
    )
    cluster_key: dict[str, str] = Field(
        default={},
        description=(
            "Inspect task -> metadata key of samples that belong together; default `cluster`"
        ),
    )
    grader_model: Name | None = Field(
        default=None, description="base model, on the same service, that grades model-graded tasks"
    )
    test_tasks: list[Name] = Field(
        default=[],
        description="sealed test: asked once, at the end, of the chosen checkpoint only",
    )
    test_on: Literal["end", "pass", "winner"] = Field(
        default="end",
        description=(
            "when the sealed test is opened: at the `end` of the run however that is, only when "
            "the gate has passed (`pass`), or only when a study names the run its winner "
            "(`winner`); a run whose test is sealed can be extended"
        ),
    )


class GateSettings(Settings):
    """When a round passes, and when a run gives up or goes back."""

    rule: Literal["mean", "lower_bound", "paired"] = Field(
        default="mean",
        description=(
            "`mean`: the score reaches `eval_threshold`; `lower_bound`: its one-sided lower bound "
            "does; `paired`: the score does, and the gain on the baseline exceeds `margin` beyond "
            "noise"
        ),
    )
    alpha: float = Field(
        default=0.05,
        ge=1e-6,
        lt=0.5,
        description="error allowed to a run, spread over `max_rounds`",
    )
    margin: float = Field(
        default=0.0, ge=0, lt=1, description="gain on the baseline that `paired` asks for"
    )
    guards: dict[str, Share] = Field(
        default={},
        description="task -> how far it may fall below the baseline; guards never enter the score",
    )
    patience: Positive | None = Field(
        default=None,
        description="stop when so many rounds in a row brought nothing beyond noise; null: off",
    )
    rollback: bool = Field(
        default=True,
        description="go back to the best evaluated round, the baseline included, when one is worse "
        "beyond noise or breaks a guard",
    )
    stop: bool = Field(
        default=True,
        description="stop at a round that passes; false: train all rounds whatever they score",
    )


def _real_day(text: str) -> str:
    """A day that the calendar has; a table of prices says how old it is."""
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        raise PydanticCustomError(
            "no_day", "input should be a day of the calendar as YYYY-MM-DD"
        ) from None
    return text


class ModelPrices(Settings):
    """US dollars for a million tokens of one model.

    `cached_prefill` is kept and shown; no service tells a run how many of the tokens that it read
    were cached, so all of them cost `prefill` here, which is at most what they do.
    """

    train: float = Field(ge=0)
    prefill: float = Field(ge=0)
    cached_prefill: float | None = Field(default=None, ge=0)
    sample: float = Field(ge=0)


class PriceTable(Settings):
    """Prices as the user read them, when, and where."""

    as_of: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_real_day)]
    source: Name | None = None
    usd_per_million_tokens: dict[str, ModelPrices]


class BudgetSettings(Settings):
    """How much a run may use, beside `max_rounds` and `max_steps`; checked after each round."""

    tokens: Positive | None = Field(
        default=None, description="tokens trained, read and sampled; null: no limit"
    )
    minutes: float | None = Field(
        default=None, gt=0, description="minutes of running, pauses not counted; null: no limit"
    )
    usd: float | None = Field(
        default=None, gt=0, description="dollars by the table in `budget.prices`; null: no limit"
    )
    prices: PriceTable | None = Field(
        default=None,
        description=(
            '`{"as_of": "YYYY-MM-DD", "source", "usd_per_million_tokens": {MODEL: {"train", '
            '"prefill", "cached_prefill", "sample"}}}`, or the path of a JSON file with that; '
            "`source` and `cached_prefill` may be left out"
        ),
    )


def check_prices(key: str, budget: BudgetSettings, models: Sequence[str]) -> None:
    """Raise `ValueError` for a bound in dollars without the prices of all models that are used."""
    if budget.usd is None:
        return
    if budget.prices is None:
        raise ValueError(
            f"{key}.usd is set but {key}.prices is not, and no prices are built in, because "
            "they change. Give the dated table of your service's prices."
        )
    for model in models:
        if model not in budget.prices.usd_per_million_tokens:
            raise ValueError(
                f"{key}.prices.usd_per_million_tokens has no entry for {model!r}. Add its "
                "train, prefill and sample prices."
            )


class MiningSettings(Settings):
    """What later rounds train on."""

    pool_file: Sources | None = Field(
        default=None,
        description="further examples, like `train_file`, to draw new ones from after round 1",
    )
    strategy: Literal["uniform", "topics", "similar", "loss", "hybrid"] = Field(
        default="hybrid",
        description=(
            "how hard rows are drawn: by chance, from failed topics, by their likeness to failed "
            "questions, by their loss, or from failed topics without what looks wrong by its loss"
        ),
    )
    replay_share: Share = Field(
        default=0.2,
        description=(
            "share of a later round that goes on through `train_file`; 1: in its order, so that "
            "several rounds train on what one of as many steps does"
        ),
    )
    new_share: Share = Field(
        default=0.0, description="share of a later round that is drawn from the pool by chance"
    )
    noise_cap: float = Field(
        default=0.3,
        ge=0,
        lt=1,
        description=(
            "share of the measured rows, those with the highest losses (of each topic, with "
            "`hybrid`), that is not drawn, because wrong answers are among them"
        ),
    )
    num_candidates: Positive | None = Field(
        default=None,
        description=(
            "rows that are measured before each round; null: 8 for each one that is drawn by "
            "its loss, all for likeness"
        ),
    )


PROJECT = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
# Trackio keeps a project's tables in files beside its own, under these endings.
_TRACKIOS_OWN = re.compile(
    r"^registry-|_(system|configs|traces|artifacts|artifact_versions|artifact_aliases"
    r"|run_artifact_links|external_run_artifact_links)$"
)
_STORE = re.compile(r"^(https?|sqlite|postgresql|mysql|mssql)(\+[a-z0-9]+)?://[^\s]+$")


def _project(name: str) -> str:
    if _TRACKIOS_OWN.search(name):
        what = "input should not be a name that Trackio keeps files of its own under"
        raise PydanticCustomError("taken_project", what)
    return name


def _store(address: str) -> str:
    """An address stands in the run directory and in messages, where no password may."""
    if "@" in address or "?" in address:
        what = (
            "input should hold no user, password or query, which would be written down; MLflow "
            "takes them from MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and "
            "MLFLOW_TRACKING_TOKEN, or the whole address from MLFLOW_TRACKING_URI"
        )
        raise PydanticCustomError("secret_in_address", what)
    if not _STORE.match(address):
        what = "input should be like http://HOST:PORT or sqlite:////FOLDER/mlflow.db"
        raise PydanticCustomError("no_store", what)
    return address


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise PydanticCustomError("named_twice", "input should name each of them once")
    return names


class TrackingSettings(Settings):
    """Which trackers are told of the run."""

    trackers: Annotated[list[Literal["trackio", "mlflow"]], AfterValidator(_each_once)] = Field(
        default=[],
        description=(
            "`trackio`, `mlflow` or both, which are told of the run beside it; each needs its "
            "package, of requirements-tracking.txt"
        ),
    )
    project: Annotated[str, Field(pattern=PROJECT), AfterValidator(_project)] = Field(
        default="finetuning", description="project (Trackio) or experiment (MLflow) of the run"
    )
    run_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = Field(
        default=None,
        description="name of the run there, before its id; null: `run_name`",
    )
    mlflow_uri: Annotated[Name, AfterValidator(_store)] | None = Field(
        default=None,
        description=(
            "address of MLflow's server or database; null: `MLFLOW_TRACKING_URI`, else "
            "`mlflow.db` in the folder of the run directory"
        ),
    )
