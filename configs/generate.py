"""Answer questions with a trained model: a file of them, or one in the terminal.

    python -m empathy_jax.main --config=configs/generate.py --workdir=runs/a \\
        --config.data.questions=questions.jsonl

answers them with the newest model of runs/a (rl, else sft); any other with
--config.model.init=DIRECTORY or a hub id. Writes runs/a/generate/generations.jsonl: chain, answer,
tokens, time, and scores where runs/a/reward_model (or --config.reward_model.init) is. A run that was
killed goes on. --config.data.questions=- reads standard input, a question or a JSON record a line.

    python -m empathy_jax.main --config=configs/generate.py --workdir=runs/a \\
        --config.generate.question="..."

shows the four layers and the answer as they come; "-" reads the question from standard input.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "generate"
    config.data.overlong = "reject"
    config.model.init = ""  # the newest of WORKDIR; the size only sets dtypes
    config.sampling.temperature = 0.7
    config.sampling.top_p = 0.9
    return config
