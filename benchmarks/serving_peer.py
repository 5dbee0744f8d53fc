"""The plain way to serve a model: `generate` of torch transformers behind FastAPI, a request at a time.

    python benchmarks/serving_peer.py DIR

Prints "port N" and serves POST /generate {"prompt_ids", "max_tokens", "temperature"} until SIGTERM.
benchmarks/serving_load.py --peer runs it beside the server of this project.
"""

import socket
import sys
import threading

import torch
import transformers
import uvicorn
from fastapi import FastAPI, Request

SEED = 0


def main() -> None:
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.float32
    ).eval()
    device, app = threading.Lock(), FastAPI()
    end = model.generation_config.eos_token_id

    def generate(asked: dict) -> list[int]:
        prompt = torch.tensor([asked["prompt_ids"]])
        sampled = asked["temperature"] > 0
        options = {"temperature": asked["temperature"], "top_k": 0, "top_p": 1.0} if sampled else {}
        with device, torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=sampled,
                max_new_tokens=asked["max_tokens"], pad_token_id=end, **options,
            )  # fmt: skip
        return out[0, prompt.shape[1] :].tolist()

    @app.post("/generate")
    async def answer(request: Request) -> dict:
        from fastapi.concurrency import run_in_threadpool

        return {"ids": await run_in_threadpool(generate, await request.json())}

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print("port", listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
