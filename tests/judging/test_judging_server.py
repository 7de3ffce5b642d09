"""A judge behind the OpenAI protocol on this machine: slow, overloaded, broken off, garbled. Nothing lost or paid twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from inspect_ai.log import read_eval_log
from inspect_ai.model import _retry

from lib.judging import judges, sessions
from lib.judging.calls import Calls
from lib.judging.questions import questions_about
from lib.judging.sessions import Session
from lib.run.files import PROJECT
from tests.judging.test_tasks import ARMS, PROMPTS, responses_of, session_of

pytest.importorskip("openai", reason="the package openai is what Inspect speaks the OpenAI protocol with")

KEY = "sk-secret-0123456789abcdef"
ASKED = 2 * len(ARMS) * PROMPTS + 2 * 2 * PROMPTS


def completion(text, finish="stop"):
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}


class Server:
    """Counts what it is asked; ``manner(question, attempt)`` says how it answers that attempt at that question."""

    def __init__(self, manner):
        self.attempts, self.answered, self.keys = Counter(), Counter(), set()
        self.held, self.release, self.busy = threading.Event(), threading.Event(), 0
        server, changed = self, threading.Condition()
        self.changed = changed

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def send(self, status, body):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                with changed:
                    server.busy += 1
                try:
                    self.reply()
                finally:
                    with changed:
                        server.busy -= 1
                        changed.notify_all()

            def reply(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = request["messages"][-1]["content"]
                with changed:
                    server.keys.add(self.headers["Authorization"].removeprefix("Bearer "))
                    number = list(server.attempts).index(question) if question in server.attempts else None
                    server.attempts[question] += 1
                    number = len(server.attempts) - 1 if number is None else number
                    how = manner(number, server.attempts[question])
                if how == "slow":
                    time.sleep(0.3)
                if how == "hold":
                    server.held.set()
                    server.release.wait()
                if how == "cut":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif how == "half":
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    self.wfile.write(b'{"id": "x", "cho')
                    self.close_connection = True
                elif how == "malformed":
                    self.send(200, b'{"choices": [{"message": ')
                elif how == "text":
                    self.send(200, b'"I am not an object"')
                elif isinstance(how, int):
                    self.send(how, json.dumps({"error": {"message": f"refused for {KEY}", "code": how}}).encode())
                else:
                    with changed:
                        server.answered[question] += 1
                    text = "VERDICT: 1" if "<first>" in question else "SCORE: 3"
                    self.send(200, json.dumps(completion(text)).encode())

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def rest(self):
        """Wait until every request that arrived has been dealt with."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.busy == 0, timeout=120)


@pytest.fixture
def serve(monkeypatch):
    started = []

    def start(manner):
        server = Server(manner)
        started.append(server)
        # Inspect keeps a model and its address for as long as the process lives, so each server gets a name of its own.
        name = f"loopback{server.http.server_address[1]}"
        monkeypatch.setenv(f"{name.upper()}_BASE_URL", server.url)
        monkeypatch.setenv(f"{name.upper()}_API_KEY", KEY)
        server.judge = f"openai-api/{name}/judge"
        return server

    async def at_once(seconds):
        pass

    monkeypatch.setattr(_retry, "_sleep", at_once)
    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()


def outcomes(responses, folder):
    return Counter(sessions.read_verdicts(session_of(responses, "", folder))["outcome"])


def test_a_slow_overloaded_server_that_breaks_off_loses_nothing_and_counts_nothing_twice(serve, tmp_path):
    faults = ["slow", 429, 500, "cut", "half", 503, "text"]
    server = serve(lambda number, attempt: faults[number % len(faults)] if attempt == 1 else "well")
    responses = responses_of()
    sessions.judge(session_of(responses, server.judge, tmp_path))
    assert outcomes(responses, tmp_path) == {"valid": ASKED}
    assert len(server.answered) == ASKED
    assert set(server.answered.values()) == {1}, "a question that was answered is not asked again"
    assert server.keys == {KEY}
    asked = sum(server.attempts.values())
    sessions.judge(session_of(responses, server.judge, tmp_path))
    assert sum(server.attempts.values()) == asked, "judging again asks nothing"


def test_what_stays_broken_is_a_counted_failure(serve, tmp_path):
    server = serve(lambda number, attempt: "malformed" if number % 3 == 0 else "well")
    responses = responses_of()
    sessions.judge(session_of(responses, server.judge, tmp_path))
    found = outcomes(responses, tmp_path)
    assert set(found) == {"valid", "failed"}
    assert found["failed"] + found["valid"] == ASKED
    assert found["valid"] == sum(server.answered.values()) == len(server.answered)
    assert found["failed"] == pytest.approx(ASKED / 3, abs=2)


@pytest.mark.parametrize("status", [401, 403])
def test_keys_reach_no_log_and_no_error(serve, tmp_path, capfd, status):
    server = serve(lambda number, attempt: status)
    few = responses_of().groupby("arm").head(1)
    error = ""
    try:
        sessions.judge(session_of(few, server.judge, tmp_path))
        assert set(outcomes(few, tmp_path)) <= {"failed", "refused", "invalid"}
    except judges.JudgingError as raised:
        error = str(raised)
    printed = "".join(capfd.readouterr())
    assert KEY not in error + printed
    for path in tmp_path.rglob("*"):
        if path.suffix == ".eval":
            assert KEY not in read_eval_log(str(path)).model_dump_json(), path
        elif path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_killed_judging_goes_on_and_pays_for_what_was_in_flight_at_most(serve, tmp_path):
    server = serve(lambda number, attempt: "well" if number < ASKED // 2 or server.release.is_set() else "hold")
    code = (
        "from pathlib import Path; from tests.judging.test_tasks import responses_of, session_of;"
        "from lib.judging import sessions;"
        f"sessions.judge(session_of(responses_of(), {server.judge!r}, Path({str(tmp_path)!r})))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, env=environment)
    # Half of the questions are answered and the server holds the next: judging cannot end before it is killed.
    while not server.held.wait(timeout=1):
        assert process.poll() is None, "judging ended before half of its questions were asked"
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What was in flight is answered, and so paid for, though nobody is there to hear it.
    server.release.set()
    server.rest()
    before, known = Counter(server.answered), verdicts_in(tmp_path)
    assert len(known) >= ASKED // 2 - judges.CONFIG.max_connections
    assert ASKED // 2 < sum(before.values()) < ASKED
    responses = responses_of()
    sessions.judge(session_of(responses, server.judge, tmp_path))
    assert outcomes(responses, tmp_path) == {"valid": ASKED}
    server.rest()
    again = sum(count - 1 for count in server.answered.values())
    with Calls(tmp_path) as calls:
        assert again <= calls.calls - ASKED <= judges.CONFIG.max_connections, (
            "a call that the kill cut off may have been paid for, and counts"
        )
    assert again <= judges.CONFIG.max_connections, f"{again} of {sum(before.values())} answers were paid twice"


def verdicts_in(folder):
    calls = Calls(folder)
    calls.read()
    return calls.verdicts


def test_a_budget_stops_before_asking(serve, tmp_path):
    server = serve(lambda number, attempt: "well")
    responses = responses_of()
    with pytest.raises(judges.JudgingError, match="budget is 10: nobody was asked"):
        sessions.judge(session_of(responses, server.judge, tmp_path, judge_calls=10))
    assert not server.attempts
    estimated = sessions.estimate(session_of(responses, server.judge, tmp_path))
    assert estimated["calls"].sum() == ASKED
    tokens = int(estimated[["input_tokens", "output_tokens"]].sum().sum())
    with pytest.raises(judges.JudgingError, match=rf"about {tokens:,} tokens"):
        sessions.judge(session_of(responses, server.judge, tmp_path, judge_tokens=tokens - 1))
    assert not server.attempts


def test_a_budget_that_is_used_up_loses_no_reply_that_was_paid_for(serve, tmp_path, monkeypatch):
    server = serve(lambda number, attempt: "well")
    responses = responses_of()
    monkeypatch.setattr(Calls, "refuse", lambda self, pending, tokens: None)
    with pytest.raises(judges.JudgingError, match=f"used up after 50 calls and 5,500 tokens; {ASKED - 50} questions"):
        sessions.judge(session_of(responses, server.judge, tmp_path, judge_calls=50))
    assert sum(server.attempts.values()) == 50
    with pytest.raises(judges.JudgingError, match="used up after 50 calls"):
        sessions.judge(session_of(responses, server.judge, tmp_path, judge_calls=50))
    assert sum(server.attempts.values()) == 50, "what was spent before counts"
    sessions.judge(session_of(responses, server.judge, tmp_path, judge_calls=ASKED))
    assert sum(server.attempts.values()) == ASKED
    assert set(server.answered.values()) == {1}
    assert outcomes(responses, tmp_path) == {"valid": ASKED}


def test_thirty_calls_are_thirty_calls_for_answers_and_sweep_together(serve, tmp_path, monkeypatch):
    server = serve(lambda number, attempt: "well")
    monkeypatch.setattr(Calls, "refuse", lambda self, pending, tokens: None)
    few = responses_of().groupby("arm").head(2)
    asked = [questions_about(few), questions_about(few, series="sweep", rubrics=["pairwise"])]
    session = session_of(few, server.judge, tmp_path, judge_calls=22)
    session = Session(pd.concat(asked), session.judge, session.log_dir, session.parameters)
    assert len(session.questions) == 28
    for _ in range(3):
        with pytest.raises(judges.JudgingError, match="used up after 22 calls"):
            sessions.judge(session)
    assert sum(server.attempts.values()) == 22


def test_an_outage_is_not_for_ever_and_no_stage_ends_in_one(serve, tmp_path):
    down = {"now": True}
    server = serve(lambda number, attempt: "malformed" if down["now"] and number % 3 == 0 else "well")
    responses = responses_of()
    with pytest.raises(
        judges.JudgingError, match=r"questions have no verdict \(\d+ failed\), more than `max_failed_share` = 0.05"
    ):
        sessions.judge(session_of(responses, server.judge, tmp_path, max_failed_share=0.05, judge_retries=1))
    assert max(server.attempts.values()) == 2, "asked again as often as stated"
    valid = sum(verdict.outcome == "valid" for verdict in verdicts_in(tmp_path).values())
    assert 0 < valid < ASKED
    down["now"] = False
    before = sum(server.attempts.values())
    sessions.judge(session_of(responses, server.judge, tmp_path, max_failed_share=0.05, judge_retries=1))
    assert sum(server.attempts.values()) - before == ASKED - valid, "those alone are asked again"
    assert outcomes(responses, tmp_path) == {"valid": ASKED}


def test_a_judge_that_is_not_there_is_asked_one_rubric_and_no_more(serve, tmp_path):
    server = serve(lambda number, attempt: 401)
    with pytest.raises(judges.JudgingError, match="The last error"):
        sessions.judge(session_of(responses_of(), server.judge, tmp_path, max_failed_share=0.1, judge_retries=3))
    assert len(server.attempts) == len(ARMS) * PROMPTS


def test_judging_goes_on_after_the_second_judge_has_begun(serve, tmp_path):
    stop = {"now": False}
    server = serve(lambda number, attempt: 401 if stop["now"] else "well")
    few = responses_of().groupby("arm").head(2)
    first = session_of(few, server.judge, tmp_path / "judge", max_failed_share=0)
    half = Session(first.questions.iloc[::2], first.judge, first.log_dir, first.parameters)
    sessions.judge(half)
    sessions.judge(session_of(few, "offline", tmp_path / "second"))
    asked = sum(server.attempts.values())
    sessions.judge(first)
    assert sum(server.attempts.values()) == len(first.questions) == 2 * asked
    assert outcomes(few, tmp_path / "judge") == outcomes(few, tmp_path / "second") == {"valid": 20}


def test_half_a_line_is_cut_off_and_tokens_in_flight_count_against_the_budget(tmp_path):
    request = "问" * 120
    with Calls(tmp_path, max_tokens=500) as calls:
        assert [calls.admit(key, request) for key in "abc"] == [True, True, False]
        calls.settle("a", request, tokens=90, outcome="valid", said="1")
        assert calls.admit("c", request)
        assert (calls.calls, calls.tokens, calls.reserved, calls.refused) == (3, 90, 400, 1)
    whole = (tmp_path / "calls.jsonl").read_bytes()
    (tmp_path / "calls.jsonl").write_bytes(whole + b'{"key": "b", "reser')
    with Calls(tmp_path, max_tokens=500) as calls:
        # Two calls were cut off. They may have been paid for.
        assert (calls.calls, calls.tokens, calls.reserved) == (3, 90, 400)
        assert not calls.admit("d", request)
        assert calls.verdicts == {"a": ("valid", "1")}
    assert (tmp_path / "calls.jsonl").read_bytes() == whole
