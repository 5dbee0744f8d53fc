"""The runs of the paper's ablation; `launch/ablation.py` starts them, docs/evaluation.md says what differs.

    python -m launch.ablation --config=configs/ablation.py:tiny --workdir=runs/ablation --seeds=3

By itself it is the full system with its reward model:

    python -m empathy_jax.main --config=configs/ablation.py --workdir=runs/a

Each phase has the values of its own file where they differ from the shared ones, as `per_phase`.
"""

from ml_collections import ConfigDict

from configs import common, evaluate, reward_model, rl, sft


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phases = ("reward_model", "sft", "rl", "evaluate")
    config.reward_model.init = reward_model.get_config(size).reward_model.init
    config.data.overlong = "reject"
    config.evaluate.questions = 0  # all of the test split
    if size == "tiny":
        config.data.validation_fraction = 0.15
        config.data.test_fraction = 0.15
        config.data.max_prompt_tokens = 896
        config.data.max_completion_tokens = 1536
        config.sft.samples = 60
        config.rl.eval_questions = 30
    with config.unlocked():
        config.per_phase = ConfigDict()
        for phase in (reward_model, sft, rl, evaluate):
            own = phase.get_config(size)
            config.per_phase[own.phase] = _differences(own, common.get_config(size))
    return config


def _differences(own: ConfigDict, shared: ConfigDict) -> ConfigDict:
    """The fields of `own` that differ from `shared`; data and what is begun with are the chain's."""
    found = ConfigDict()
    for name, value in own.items():
        if name in ("phase", "init", "data"):
            continue
        if isinstance(value, ConfigDict):
            if part := _differences(value, shared[name]):
                found[name] = part
        elif value != shared[name]:
            found[name] = value
    return found
