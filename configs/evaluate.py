"""Answer held-out test questions with a trained model and score them beside what chance gives.

    python -m empathy_jax.main --config=configs/evaluate.py:tiny --workdir=runs/a

evaluates the newest model of runs/a (rl, else sft); any other with --config.model.init=DIRECTORY or
a hub id. Writes runs/a/evaluate/: report.html to read, scores.json, generations.jsonl. A reward
model in runs/a/reward_model, or --config.reward_model.init, adds its similarity; an encoder as
--config.evaluate.bertscore_model and a decoder as --config.evaluate.perplexity_model add theirs.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "evaluate"
    config.data.overlong = "reject"
    config.model.init = ""  # the newest of WORKDIR; the size only sets dtypes
    config.sampling.temperature = 0.7
    config.sampling.top_p = 0.9
    return config
