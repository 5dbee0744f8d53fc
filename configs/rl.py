"""Stage two: refine the answers by GRPO under the reward model.

    python -m empathy_jax.main --config=configs/rl.py:qwen3_8b --workdir=runs/a \
        --config.data.questions=questions.jsonl

starts from WORKDIR/sft and WORKDIR/reward_model; `--config.model.init` and
`--config.reward_model.init` name others. The paper's own reward is `--config.rl.answer_reward=binary
--config.rl.echo_weight=0 --config.rl.template_weight=0`. Learning rate, group size and KL weight follow
comparable systems (PERM, MINT, PrefBERT): 1e-6, 8, 1e-3 to 1e-2.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "rl"
    config.log.every = 1
    if size == "tiny":
        config.model.init = ""
        config.steps = 12
        config.batch_size = 4
        config.rl.group_size = 8
        config.rl.rows_per_pass = 8
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_steps = 0
        config.optimizer.schedule = "constant"
        config.data.max_completion_tokens = 1536
    elif size == "small":
        config.steps = 12
        config.batch_size = 3
        config.rl.group_size = 8
        config.rl.rows_per_pass = 2
        config.rl.eval_questions = 40
        config.rl.eval_samples = 2
        config.optimizer.learning_rate = 1e-5
        config.optimizer.warmup_steps = 2
        config.optimizer.schedule = "constant"
    else:
        config.model.init = ""  # WORKDIR/sft
        config.steps = 500
        config.batch_size = 64
        config.optimizer.learning_rate = 1e-6
        config.optimizer.warmup_steps = 10
        config.optimizer.schedule = "constant"
    return config
