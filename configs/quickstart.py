"""The whole path on the embedded sample, from nothing, on two CPU cores.

    python -m empathy_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

SFT of a fresh 0.5M decoder, a fresh reward model, GRPO, evaluation and export. The model is far too
small to counsel anyone; the point is to see every part work and improve on what it is trained for.
"""

from ml_collections import ConfigDict

from configs import common, reward_model, rl, sft


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phases = ("sft", "reward_model", "rl", "evaluate", "export")
    config.data.overlong = "reject"
    config.data.validation_fraction = 0.15
    config.data.max_prompt_tokens = 896
    config.data.max_completion_tokens = 1536
    config.sampling.temperature = 0.7
    config.sampling.top_p = 0.9
    with config.unlocked():
        config.per_phase = ConfigDict()
        for phase in (sft, reward_model, rl):
            own = phase.get_config(size)
            config.per_phase[own.phase] = ConfigDict(
                {name: own[name] for name in ("steps", "batch_size", "optimizer", "log", "sft")}
            )
        config.per_phase.sft.sft.samples = 60
        config.per_phase.rl.rl = {"group_size": 8, "rows_per_pass": 8, "eval_questions": 30}
        # The policy is judged and changed as it is, not as a filter makes it look.
        config.per_phase.rl.sampling = {"temperature": 1.0, "top_p": 1.0}
    return config
