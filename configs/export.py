"""Write a trained model as a Hugging Face directory that transformers, vLLM and SGLang load.

    python -m empathy_jax.main --config=configs/export.py --workdir=runs/a

exports the newest model of runs/a (rl, else sft) to runs/a/export/hf; any other with
--config.model.init=WORKDIR/<phase>, a directory or a hub id. Imported weights that were not trained
go through byte for byte. --config.export.dtype=bfloat16 halves float32 weights. Adapters, 8 and 4 bits,
the comparison with transformers and the upload to a hub: docs/export.md.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    config = common.get_config(size)
    config.phase = "export"
    config.model.init = ""  # the newest of WORKDIR; the size only sets dtypes
    config.mesh.update({"data": 1, "fsdp": -1})  # each device holds its part of the weights
    return config
