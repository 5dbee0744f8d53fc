"""The phase `serve`: a model behind HTTP, until SIGTERM or SIGINT.

SIGTERM drains: no new connection is taken, what is being answered is answered, then the process ends
with status 0.
"""

import contextlib
import ipaddress
import math
import os
import socket
import time
from pathlib import Path

import jax
import uvicorn
from ml_collections import ConfigDict

from empathy_jax import resources, sharding
from empathy_jax.compilations import CompilationCounter
from empathy_jax.generation.continuous import ContinuousBatch
from empathy_jax.safety import guard, held_back
from empathy_jax.serving import app as app_lib
from empathy_jax.serving import chat, guarded, limits
from empathy_jax.serving.metrics import Metrics
from empathy_jax.serving.rewards import Rewards
from empathy_jax.serving.worker import Worker
from empathy_jax.training import common, completions
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.scorer import Scorer, find_scorer

BACKLOG = 1024  # connections that wait to be taken
KEEP_ALIVE_SECONDS = 20  # of a connection that asks nothing


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase: loads, compiles, answers; returns how much it did."""
    began = time.monotonic()
    check(config)
    token, region = read_token(config), guarded.region(config)
    listener = _listen(config)
    with listener:
        _keep_programs(workdir)
        layout = sharding.make_layout(config.mesh)
        init = common.model_place(config, workdir)
        model = common.load_policy(config, workdir, layout)
        batch = make_batch(config, model, config.sampling.rows)
        scorer = find_scorer(config, workdir, layout, rows_per_pass=1)
        _warm_up(batch, scorer, region)

        metrics = Metrics()
        worker = Worker(batch, config.serve.max_queue, metrics)
        policy = chat.Policy(
            config.serve.name or Path(init).name,
            model.tokenizer,
            model.form,
            worker,
            completions.sampling(config),
            config.data.max_prompt_tokens,
            config.serve.deadline,
            config.serve.log_texts,
            metrics,
            region,
        )
        rewards = None
        if scorer is not None:
            name = f"{policy.name}-reward"
            rewards = Rewards(name, scorer, worker, config, config.serve.deadline)
        app = app_lib.make_app(policy, rewards, metrics, token, config.serve.max_body_bytes)
        host, port = listener.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        guarded.announce("serve", region)
        print(f"[serve] {policy.name} at http://{address}/v1; page: http://{address}/", flush=True)
        with workdirs.watch_sigterm():
            _serve(app, listener, worker, metrics, config.serve.drain)
        worker.close()
    if worker.failure is not None:
        raise RuntimeError("the server has ended by an error of its own") from worker.failure
    return {
        "phase": "serve",
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": resources.peak_memory_bytes(),
        "figures": [
            {"name": "tokens made", "before": None, "after": metrics.total("completion_tokens")},
            {"name": "requests", "before": None, "after": metrics.total("requests")},
        ],
        "model": init,
    }


def check(config: ConfigDict) -> None:
    """Refuses numbers that no server can keep.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    serve = config.serve
    if not 0 <= serve.port < 2**16:
        raise ValueError(f"config.serve.port is {serve.port}; it must be 0 (any free one) to 65535")
    lowest = {"max_queue": 1, "max_body_bytes": 1, "deadline": 0.001, "drain": 0.0}
    for name, least in lowest.items():
        if not least <= serve[name] < math.inf:
            raise ValueError(f"config.serve.{name} is {serve[name]}; it must be {least} or more")
    if config.sampling.rows < 1:
        raise ValueError(f"config.sampling.rows is {config.sampling.rows}; it must be 1 or more")


def make_batch(config: ConfigDict, model: common.Model, rows: int) -> ContinuousBatch:
    """The batch of a policy, with the lengths and the filters of the config."""
    return ContinuousBatch(
        model.variables["params"],
        model.config,
        key=common.stream(config.seed, "serving"),
        sampling=completions.sampling(config),
        eos_ids=(model.tokenizer.eos_token_id,),
        rows=rows,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_new_tokens=config.data.max_completion_tokens,
        lora=model.variables.get("lora"),
    )


def read_token(config: ConfigDict) -> str:
    """The bearer token of `config.serve.token_env`; empty: none is wanted.

    Raises:
      ValueError: when the variable is empty, or there is no token and others than this machine may
        connect.
    """
    name, host = config.serve.token_env, config.serve.host
    token = os.environ.get(name, "").strip() if name else ""
    if name and not token:
        raise ValueError(
            f"config.serve.token_env is {name!r}, but that variable of the environment is empty; put "
            "the bearer token in it"
        )
    if not token and not _is_loopback(host):
        raise ValueError(
            f"config.serve.host is {host!r}, which others can reach, and no bearer token is asked for; "
            "set config.serve.token_env to a variable that holds one, or serve at 127.0.0.1"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(config: ConfigDict) -> socket.socket:
    host, port = config.serve.host, config.serve.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot listen at {host} port {port}: {error.strerror}; change config.serve.host or "
            "config.serve.port (0: any free one)",
        ) from error


def _keep_programs(workdir: Path) -> None:
    """Compiled programs go to WORKDIR/serve, unless JAX was told another place: restarts are quick."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "serve" / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _warm_up(batch: ContinuousBatch, scorer: Scorer | None, region: str | None) -> None:
    """Compiles all that requests may need, and reads the guard's rules."""
    began, counter = time.monotonic(), CompilationCounter()
    batch.warm_up()
    if region is not None:
        guard.examine([{"role": "user", "content": "a"}], region)
        held_back.find("a")
    if scorer is not None:
        scorer.similarity(["a"], ["a"])
        if scorer.has_head:
            scorer.quality(["a"], ["a"])
    seconds = time.monotonic() - began
    print(f"[serve] {counter.take()} programs made ready in {seconds:.0f} s", flush=True)
    counter.close()


def _serve(
    app: limits.Guarded, listener: socket.socket, worker: Worker, metrics: Metrics, drain: float
) -> None:
    """Runs uvicorn until it is told to end, or the worker has failed."""
    counter = CompilationCounter()

    async def look_around() -> None:
        metrics.compilations.inc(counter.take())
        if worker.failure is not None:
            server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=limits.PatientProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain,
            callback_notify=look_around,
            timeout_notify=1,
        )
    )
    with contextlib.suppress(KeyboardInterrupt):  # after SIGINT has drained as SIGTERM does
        server.run(sockets=[listener])
    counter.close()
