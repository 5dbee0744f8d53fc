"""Stage two: refine the answers by policy gradients under the reward model.

    python -m empathy_jax.main --config=configs/rl.py:qwen3_8b,dapo --workdir=runs/a \
        --config.data.questions=questions.jsonl

starts from WORKDIR/sft and WORKDIR/reward_model; `--config.model.init` and
`--config.reward_model.init` name others. After the size may stand a preset, one of PRESETS: the choices
of a paper, all of them fields of `config.rl` that can be changed one by one. Without one it is ours: the
advantage and the aggregation of Dr. GRPO (dividing by a group's deviation makes much of small differences
where all chains of a group are valid, dividing by a completion's length favours short ones) and the rewards
of configs/common.py. Learning rate, group size and KL weight follow comparable systems (PERM, MINT,
PrefBERT): 1e-6, 8, 1e-3 to 1e-2. docs/policy_gradient.md has every choice.
"""

from ml_collections import ConfigDict

from configs import common

PRESETS = {
    # https://arxiv.org/abs/2402.03300, section 4.2 (one update a batch)
    "grpo": {
        "advantage": "grpo",
        "aggregation": "sequence_mean",
        "kl_weight": 0.04,
        "kl_estimator": "k3",
    },
    # https://arxiv.org/abs/2503.20783
    "dr_grpo": {
        "advantage": "dr_grpo",
        "aggregation": "constant_length",
        "kl_weight": 0.0,
        "minibatches": 4,
    },
    # https://arxiv.org/abs/2503.14476, section 4.1; the buffer is a fifth of the longest completion
    "dapo": {
        "advantage": "grpo",
        "aggregation": "token_mean",
        "clip_high": 0.28,
        "kl_weight": 0.0,
        "max_refills": 3,
        "minibatches": 4,
    },
    # https://arxiv.org/abs/2507.18071, section 5.1
    "gspo": {
        "advantage": "grpo",
        "ratio": "sequence",
        "aggregation": "sequence_mean",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "kl_weight": 0.0,
        "minibatches": 4,
    },
    # https://arxiv.org/abs/2402.14740, k = 4, β as on TL;DR
    "rloo": {
        "advantage": "rloo",
        "group_size": 4,
        "ratio": "none",
        "aggregation": "constant_length",
        "kl_weight": 0.03,
        "kl_estimator": "k1",
        "kl_placement": "reward",
    },
    # REINFORCE with a mean of earlier rewards as its baseline, as compared in the same paper
    "reinforce": {
        "advantage": "reinforce",
        "ratio": "none",
        "aggregation": "constant_length",
        "kl_weight": 0.03,
        "kl_estimator": "k1",
        "kl_placement": "reward",
    },
    # https://arxiv.org/abs/2509.14851: format and answer, both binary, by GRPO
    "empathy_r1": {
        "advantage": "grpo",
        "aggregation": "sequence_mean",
        "answer_reward": "binary",
        "echo_weight": 0.0,
        "template_weight": 0.0,
        "min_answer_characters": 0,
    },
}


def get_config(argument: str = "tiny") -> ConfigDict:
    """All fields for "size" or "size,preset"."""
    size, _, preset = argument.partition(",")
    if preset and preset not in PRESETS:
        raise ValueError(
            f"preset {preset!r} after the size is not one of {', '.join(PRESETS)}; it is "
            "--config=configs/rl.py:size,preset"
        )
    config = common.get_config(size)
    config.phase = "rl"
    config.log.every = 1
    if size == "tiny":
        config.model.init = ""
        config.steps = 24
        config.batch_size = 4
        config.rl.group_size = 8
        config.rl.rows_per_pass = 8
        # At 1e-3 the noise of 32 samples carries the policy away; at 3e-4 it learns a third as much.
        config.optimizer.learning_rate = 5e-4
        config.optimizer.warmup_steps = 0
        config.optimizer.schedule = "linear"
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
    config.rl.update(PRESETS.get(preset, {}))
    if preset == "dapo":
        config.rl.overlong_buffer = config.data.max_completion_tokens // 5
    return config
