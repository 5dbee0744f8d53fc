"""Raw dumps of counselling questions and answers to one clean corpus with splits and a card.

    python -m empathy_jax.main --config=configs/corpus.py --workdir=runs/a \
        --config.corpus.sources="('DIR','FILE.csv')" --config.corpus.licences="('CC0-1.0','MIT')"

writes runs/a/corpus/: questions.jsonl, rejected.jsonl, splits/, stats.json, card.md, figures/; see
docs/corpus.md. Without sources it builds the embedded sample. English dumps need
--config.corpus.clean.language=en (or any). Topics of questions without a label need
--config.corpus.topic_encoder=BAAI/bge-small-zh-v1.5. Two cores take half a minute for 50,000
dialogues without it.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "corpus"
    config.corpus.sources = ("sample",)
    return config
