"""Serve a trained model over HTTP, with the protocol of OpenAI's clients; docs/serving.md.

    python -m empathy_jax.main --config=configs/serve.py --workdir=runs/a

serves the newest model of runs/a (rl, else sft) at http://127.0.0.1:8000/v1; any other with
--config.model.init=DIRECTORY or a hub id. A reward model in runs/a/reward_model, or
--config.reward_model.init, adds /v1/embeddings and /score. Ends by SIGTERM, once what is being
answered is answered.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "serve"
    config.model.init = ""  # the newest of WORKDIR; the size only sets dtypes
    config.sampling.rows = 32
    config.sampling.temperature = 0.7
    config.sampling.top_p = 0.9
    return config
