"""The reward model: tell an answer to a question from answers to others.

    python -m empathy_jax.main --config=configs/reward_model.py --workdir=runs/a \
        --config.reward_model.init=BAAI/bge-small-zh-v1.5 --config.reward_model.pooling=cls \
        --config.data.questions=questions.jsonl

Without `reward_model.init` a small encoder is trained from scratch, `:tiny` on the embedded sample;
`:small` fine-tunes an encoder of some 20M parameters on two CPU cores.
The sizes name the policy that the run belongs to; the reward model is an encoder of its own.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "reward_model"
    if size == "tiny":
        config.steps = 60
        config.batch_size = 32
        config.optimizer.learning_rate = 1e-3
    elif size == "small":
        config.steps = 120
        config.batch_size = 32
        config.reward_model.max_tokens = 512
        config.reward_model.pooling = "cls"
        config.reward_model.temperature = 0.03
        config.reward_model.corrupted = 2
        config.reward_model.remat = "dots"
        config.optimizer.learning_rate = 1e-4
    else:
        config.reward_model.init = "Qwen/Qwen3-Embedding-0.6B"
        config.steps = 2000
        config.batch_size = 256
        config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 5 if size == "small" else 20
    return config
