"""Chains of Empathy for questions, by a teacher behind any OpenAI-compatible endpoint.

    export OPENAI_API_KEY=...
    python -m empathy_jax.main --config=configs/annotate.py --workdir=runs/a \
        --config.data.questions=questions.jsonl \
        --config.annotate.base_url=https://HOST/v1 --config.annotate.model=NAME \
        --config.annotate.prompt_price=0.5 --config.annotate.completion_price=2 \
        --config.annotate.max_money=5

writes runs/a/annotate/: chains.jsonl, rejected.jsonl, report.json. Without data.questions
(--config.data.questions=) it takes the train and validation splits of runs/a/corpus. Try it with
--config.annotate.questions=20 first and read chains.jsonl and report.json; the same command with 0
then goes on with the rest and asks nothing twice. A server of one's own (vLLM, SGLang) needs
--config.annotate.api_key_env= (empty) and prices of 0. Killed or out of budget, the same command
goes on where it stopped. A chain takes about 2,000 tokens, most of them the instructions.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "annotate"
    return config
