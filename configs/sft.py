"""Stage one: teach a decoder the Chain of Empathy.

    python -m empathy_jax.main --config=configs/sft.py:qwen3_8b --workdir=runs/a \
        --config.data.chains=chains.jsonl

`:tiny` trains fresh weights on the embedded sample, minutes on two CPU cores; `:small` fine-tunes a
chat model of some 30M parameters (`--config.model.init`) there. The other sizes start from Qwen3's
weights; `--config.model.init` takes any hub id or directory. Learning rate and epochs
follow comparable systems (Psyche-R1, SoulChat2.0): 1e-5 for all weights, 1e-4 for adapters.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "sft"
    if size == "tiny":
        config.steps = 1000
        config.sft.shuffled_every = 2
        config.sft.tag_weight = 100.0
        config.batch_size = 1
        config.sft.row_tokens = 2112
        config.optimizer.learning_rate = 4e-3
        config.optimizer.warmup_steps = 60
        config.optimizer.weight_decay = 0.1
    elif size == "small":
        config.steps = 200
        config.batch_size = 2
        config.sft.row_tokens = 1408
        config.optimizer.learning_rate = 1e-4
        config.optimizer.warmup_steps = 20
    else:
        config.steps = 1000
        config.batch_size = 64
        config.sft.row_tokens = 4096
        config.optimizer.learning_rate = 1e-5
        config.optimizer.warmup_steps = 30
    return config
