"""The phase serve as a process: from a run's folder to answers, a drain, and exit status 0."""

import concurrent.futures
import http.client
import json
import re
import signal
import subprocess
import time

import openai
import pytest

from empathy_jax import files
from empathy_jax.chain_of_empathy import system_prompt
from empathy_jax.serving import server
from tests.conftest import ROOT
from tests.training import run_folders, tiny_runs

FIELDS = {
    "data.max_prompt_tokens": 90,
    "data.max_completion_tokens": 100,
    "sampling.rows": 4,
    "sampling.top_p": 1.0,
    "serve.port": 0,
    "serve.name": "tiny",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    config = run_folders.tiny_config("serve")
    config.model.vocab_size = 512  # short prompts: the system prompt has few tokens
    texts = [system_prompt("zh"), "user assistant 我很累"] * 20
    policy = run_folders.make_policy_run(root, config, texts)
    run_folders.make_reward_run(root, config, policy.tokenizer)
    files.write_json(root / "reward_model" / "calibration.json", run_folders.CALIBRATION)
    return root


@pytest.fixture(scope="module")
def process(workdir):
    command = tiny_runs.command("serve", workdir, FIELDS)
    environment = tiny_runs.environment()
    environment["XLA_FLAGS"] += (
        " --xla_backend_optimization_level=0"  # it compiles much, runs little
    )
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        for line in running.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                running.port = int(found.group(1))
                break
        else:
            raise AssertionError(running.communicate())
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def ask(process, question, seed, stream=False, tokens=40, **fields):
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{process.port}/v1", api_key="x", max_retries=0
    ) as client:
        made = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": question}], seed=seed,
            max_tokens=tokens, temperature=1.0, stream=stream, **fields,
        )  # fmt: skip
        if not stream:
            return [choice.message.content for choice in made.choices]
        return ["".join(part.choices[0].delta.content or "" for part in made)]


def test_a_seed_gives_the_same_whatever_else_is_asked(process):
    asked = [(f"我很累，第{n}天", n) for n in range(10)]
    alone = [ask(process, *one) for one in asked]
    assert len({text for (text,) in alone}) == 10
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        jobs = [pool.submit(ask, process, *one, stream=n % 2 == 0) for n, one in enumerate(asked)]
        assert [job.result() for job in jobs] == alone
    pair = ask(process, *asked[0], n=2)
    assert pair[0] == alone[0][0] and pair[1] != pair[0]


def test_texts_are_embedded_and_scored(process):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{process.port}/v1", api_key="x") as client:
        names = [model.id for model in client.models.list()]
        assert names == ["tiny", "tiny-reward"]
        made = client.embeddings.create(model="tiny-reward", input=["我很累", "天气"])
        assert len(made.data) == 2 and len(made.data[0].embedding) == 32
        assert sum(x * x for x in made.data[0].embedding) == pytest.approx(1, abs=1e-5)
    connection = http.client.HTTPConnection("127.0.0.1", process.port)
    raw = json.dumps({"question": "我很累", "answers": ["我在"]})
    connection.request("POST", "/score", raw, {"Content-Type": "application/json"})
    (scored,) = json.loads(connection.getresponse().read())["data"]
    assert -1 <= scored["similarity"] <= 1 and {"answer", "echo"} <= scored["terms"].keys()
    time.sleep(2)  # counted once a second
    connection.request("GET", "/metrics")
    assert b"empathy_compilations_total 0.0" in connection.getresponse().read()
    connection.close()


def test_sigterm_ends_it_once_all_is_answered(process):
    (whole,) = ask(process, "我很累", 1, tokens=100)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{process.port}/v1", api_key="x") as client:
        streams = [
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "我很累"}], seed=1,
                max_tokens=100, temperature=1.0, stream=True,
            )
            for _ in range(6)
        ]  # fmt: skip
        process.send_signal(signal.SIGTERM)  # two of them wait for a row
        for stream in streams:
            assert "".join(part.choices[0].delta.content or "" for part in stream) == whole
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert {line["status"] for line in lines if "route" in line} == {200}
    assert "我很累" not in out + err
    assert "tokens made" in out
    with pytest.raises(OSError):
        http.client.HTTPConnection("127.0.0.1", process.port).connect()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"host": "0.0.0.0"}, "which others can reach"),
        ({"token_env": "NO_SUCH_VARIABLE"}, "that variable of the environment is empty"),
        ({"port": 70_000}, r"config\.serve\.port is 70000"),
        ({"max_queue": 0}, r"config\.serve\.max_queue is 0; it must be 1 or more"),
        ({"deadline": float("inf")}, r"config\.serve\.deadline is inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    config = run_folders.tiny_config("serve")
    config.serve.update(values)
    with pytest.raises(ValueError, match=message):
        server.check(config)
        server.read_token(config)


def test_a_token_lets_others_in(monkeypatch):
    config = run_folders.tiny_config("serve")
    config.serve.update({"host": "0.0.0.0", "token_env": "SERVED_TOKEN"})
    monkeypatch.setenv("SERVED_TOKEN", " abc\n")
    assert server.read_token(config) == "abc"
    config.serve.host = "::1"
    config.serve.token_env = ""
    assert server.read_token(config) == ""
