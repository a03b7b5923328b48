"""What comes back from a service: one message each, an event, and a run that can be resumed."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import httpx
import pytest
import tinker
from tinker.lib.retryable_exception import RetryableException
from tinker.types import RequestErrorCategory

from commands import alerts
from commands.alerts import send_alert
from scores.diagnosis import DIVERGED_STEPS, FEW_STEPS, divergence
from services.faults import explain, is_gone, said_by
from test_loop import Workspace
from trainer_with_eval import main

ADDRESS = "http://127.0.0.1:1"


def status_error(status: int) -> tinker.APIStatusError:
    kinds = {
        400: tinker.BadRequestError,
        401: tinker.AuthenticationError,
        402: tinker.BillingError,
        403: tinker.PermissionDeniedError,
        404: tinker.NotFoundError,
        429: tinker.RateLimitError,
        500: tinker.InternalServerError,
    }
    response = httpx.Response(status, request=httpx.Request("POST", ADDRESS))
    return kinds.get(status, tinker.APIStatusError)("what the server said", response, None)


LOST_RESULT = ValueError("Error retrieving result: Error code: 404 - gone with status 404 for x")


@pytest.mark.parametrize(
    ("error", "fault", "words"),
    [
        (status_error(400), "user_error", "refuses a request as wrong"),
        (status_error(401), "refused_key", "Check that TINKER_API_KEY"),
        (status_error(402), "out_of_quota", "billing or quota"),
        (status_error(403), "refused_key", "Check that TINKER_API_KEY"),
        (status_error(404), "session_lost", "was restarted, or the session expired"),
        (status_error(410), "future_lost", "has lost the result of a request"),
        (status_error(429), "rate_limited", "Wait a while"),
        (status_error(500), "server_error", "failed on its own side"),
        (status_error(503), "server_error", "failed on its own side"),
        (
            tinker.RequestFailedError("no", "r1", RequestErrorCategory("user")),
            "user_error",
            "as wrong",
        ),
        (
            tinker.RequestFailedError("no", "r1", RequestErrorCategory("server")),
            "server_error",
            "on its own side",
        ),
        (RetryableException("promise lost"), "future_lost", "has lost the result"),
        (LOST_RESULT, "session_lost", "was restarted, or the session expired"),
        (
            tinker.APIConnectionError(request=httpx.Request("POST", ADDRESS)),
            "unreachable",
            "cannot be reached any more",
        ),
    ],
)
def test_each_fault_has_one_message_and_a_word(error: Exception, fault: str, words: str) -> None:
    explained = explain(error, ADDRESS)
    assert explained is not None
    assert explained.fault == fault
    assert words in str(explained)
    assert str(explained).startswith(f"The service at {ADDRESS} ")
    assert str(explained).endswith("What was saved before is safe.")
    assert "\n" not in str(explained)


def test_what_exceeds_the_context_is_said_without_the_sdks_internals() -> None:
    text = (
        "Request failed: datum 0: 748 tokens exceed the model's context of 512 for "
        "self.request_id='3468:train:0:1' and expected type self.model_cls=<class "
        "'tinker.ForwardBackwardOutput'>"
    )
    error = tinker.RequestFailedError(text, "r1", RequestErrorCategory("user"))
    explained = explain(error, ADDRESS)
    assert explained is not None
    assert explained.fault == "too_long"
    assert str(explained) == (
        f"The service at {ADDRESS} refuses a request that is longer than the model's context "
        "(RequestFailedError: datum 0: 748 tokens exceed the model's context of 512). --resume "
        "would send it again: start a new run with a lower max_seq_length, or for a question with "
        "a lower evaluation.max_tokens, or without what is so long. What was saved before is safe."
    )
    assert said_by(tinker.RequestFailedError("no", "r1", RequestErrorCategory("user"))) == "no"


def test_an_error_of_ours_is_not_taken_for_the_services() -> None:
    assert explain(ValueError("lr is negative"), ADDRESS) is None
    assert explain(KeyError("x"), None) is None
    assert is_gone(status_error(404)) and is_gone(status_error(400))
    assert not is_gone(status_error(500)) and not is_gone(status_error(401))


# --- divergence -----------------------------------------------------------------------------------


def test_a_loss_worse_than_a_blind_guess_and_twice_the_start_has_diverged() -> None:
    learned = [3.0, 2.5, 2.0, 1.5, 1.0]
    assert divergence([*learned, *[9.0] * 20], vocab_size=1000) is not None  # ln(1000) is 6.9
    # A spike, a rise to what harder rows cost, or a bad start say nothing.
    assert divergence([*learned, *[1.0] * 10, *[9.0] * 10], vocab_size=1000) is None
    assert divergence([*learned, *[6.5] * 20], vocab_size=1000) is None
    assert divergence([8.0] * 5 + [9.0] * 20, vocab_size=1000) is None
    assert divergence([1.0] * 5 + [9.0] * 19, vocab_size=1000) is None


def test_a_start_that_the_explosion_has_spoilt_does_not_hide_it() -> None:
    """A rate that is far too high does its harm in the first step."""
    assert divergence([5.7, 300.0, 900.0, 1500.0, *[400.0, 700.0] * 11], vocab_size=500) is not None
    assert divergence([5.7, 300.0, 900.0, 1500.0, *[4.0, 700.0] * 11], vocab_size=500) is None
    assert divergence([20.0, *[12.0] * 30], vocab_size=500) is None  # it fell, to twice a guess


@pytest.mark.parametrize("batch_noise", [0.1, 0.2])
def test_noise_between_batches_stops_no_run(batch_noise: float) -> None:
    """Rounds that stay just above a blind guess, where a rate is next to nothing."""
    rng = random.Random(5)
    for _ in range(500):
        losses = [1.1 * math.log(500) * (1 + rng.gauss(0, batch_noise)) for _ in range(40)]
        said = [divergence(losses[:n], vocab_size=500) for n in range(1, 41)]
        assert said == [None] * 40


@pytest.mark.trains
def test_a_diverging_run_stops_and_what_was_saved_behind_is_not_used(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    wild = {"learning_rate": 1.0, "steps_per_round": 60, "max_rounds": 1, "lr_decay": 1.0}
    assert workspace.run("run", **wild, batch_size=4) == 1
    error = capsys.readouterr().err
    assert "error: Start a new run with a lower learning_rate than 0.99" in error
    assert "the loss diverges in round 1, step " in error
    assert "a blind guess has " in error
    events = workspace.events("run")
    assert events[-1]["type"] == "failed"
    num_steps = len([event for event in events if event["type"] == "step"])
    assert FEW_STEPS + DIVERGED_STEPS <= num_steps < 60
    assert workspace.store("run").last_checkpoint() is None


# --- the alert command, and limits ----------------------------------------------------------------


def test_an_alert_is_given_what_happened_and_no_keys(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-planted-in-this-test")
    script = workspace.folder / "alert.sh"
    script.write_text(f"#!/bin/sh\n(cat; env) >> {workspace.folder}/alerts\n")
    script.chmod(0o755)
    (workspace.folder / "budget.yaml").write_text("cost: {max_tokens: 5}\n")
    limits = {"evalops_budget_file": "budget.yaml", "max_rounds": 1, "eval_threshold": 0.0}
    assert workspace.run("run", "--local", "--alert", str(script), "--gate", **limits) == 3
    alerts = (workspace.folder / "alerts").read_text()
    assert '"alert": "limits_violated"' in alerts
    assert '"round": 1' in alerts
    assert "target_missed" not in alerts  # the threshold was met
    assert "planted" not in alerts
    (checked,) = workspace.store("run").events("limits_checked")
    assert (checked["passed"], checked["fails"]) == (False, True)
    assert checked["violations"][0]["actual"] > 5
    output = capsys.readouterr()
    assert "  error: " in output.err
    # A command that fails is a warning, and the exit code stays; one that is none is refused.
    assert workspace.run("missed", "--local", "--alert", "false", max_rounds=1) == 0
    assert "warning: the alert command false ended with exit code 1" in capsys.readouterr().err
    # A kill at the very end may have kept it from being told, so a finished run tells it again.
    resume = ["--resume", str(workspace.folder / "missed"), "--alert", str(script)]
    assert main(resume) == 0
    assert '"alert": "target_missed"' in (workspace.folder / "alerts").read_text()
    assert main(["--alert", "/no/such/command", "--config", "x"]) == 2
    assert "no program that can be run" in capsys.readouterr().err
    assert main(["--alert", "'", "--config", "x"]) == 2


def test_an_alert_command_that_hangs_is_stopped_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "LIMIT_S", 1.0)
    script = tmp_path / "alert.sh"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/pid\nwait\n")
    script.chmod(0o755)
    problem = send_alert([str(script)], {"alert": "failed"})
    assert problem is not None and "took longer than 1 s and was stopped" in problem
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    deadline = time.monotonic() + 20
    while child.exists() and child.read_text().split()[2] != "Z":  # until whoever adopts it looks
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_limit_on_what_was_not_measured_is_violated(workspace: Workspace) -> None:
    (workspace.folder / "budget.yaml").write_text(
        "cost: {max_usd: 5}\nperformance: {max_latency_ms: 60000}\nquality_score: {min: 0}\n"
    )
    limits = {"evalops_budget_file": "budget.yaml", "max_rounds": 1}
    assert workspace.run("run", **limits) == 0  # it is no gate without --gate
    (checked,) = workspace.store("run").events("limits_checked")
    assert [one["metric"] for one in checked["violations"]] == ["cost_usd"]  # no prices are given
    assert 0 < (workspace.store("run").mean_latency_ms(1) or 0) < 60_000
