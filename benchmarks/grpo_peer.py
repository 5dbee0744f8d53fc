"""A GRPO step by TRL with generation by torch transformers, at the shapes of benchmarks/grpo_step.py.

    PYTHONPATH=. python benchmarks/grpo_peer.py --tokenizer DIR [--shape qwen3_0p6b]

Random weights of the shape in bfloat16, prompts of random tokens, completions of full length, the reward
and loss of grpo_step.py. Prints one JSON line: the median seconds of a step and of its generation.
`grpo_step.py --peer "python benchmarks/grpo_peer.py ..."` runs it in turns with ours. --shape tiny runs on
CPUs, in float32, to see that all is in place.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time

import torch
import transformers
import trl
from datasets import Dataset

from benchmarks import steps
from benchmarks.grpo_step import LARGE, SMALL
from configs import common as configs

WARMUP, MEASURED = 1, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--tokenizer", required=True, help="directory of any Hugging Face tokenizer"
    )
    parser.add_argument("--shape", choices=steps.SHAPES, default="qwen3_0p6b")
    arguments = parser.parse_args()
    small = arguments.shape == "tiny"
    if not small and not torch.cuda.is_available():
        raise SystemExit(f"no GPU here: --shape {arguments.shape} was not measured")
    shapes = SMALL if small else LARGE
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    prompts = read_prompts(tokenizer, shapes.prompts * (WARMUP + MEASURED), shapes.prompt_tokens)
    generation: list[float] = []
    trainer = make_trainer(arguments.shape, shapes, tokenizer, prompts, generation)
    began: list[float] = []
    trainer.add_callback(Stamps(began))
    trainer.train()
    seconds = [end - begin for begin, end in itertools.pairwise(began)]
    print(
        json.dumps(
            {
                "peer": "trl",
                "versions": {m.__name__: m.__version__ for m in (trl, torch, transformers)},
                "shape": arguments.shape,
                "shapes": list(shapes),
                "step_s": round(statistics.median(seconds[WARMUP:]), 4),
                "generate_s": round(statistics.median(generation[WARMUP:]), 4),
            }
        )
    )


class Stamps(transformers.TrainerCallback):
    """The time when each step begins, and when the last has ended."""

    def __init__(self, times: list[float]):
        self._times = times

    def on_step_begin(self, *_: object, **__: object) -> None:
        self._times.append(now())

    def on_train_end(self, *_: object, **__: object) -> None:
        self._times.append(now())


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def read_prompts(tokenizer, count: int, length: int) -> list[str]:
    """Texts of as many tokens as is asked, made of single tokens that stay themselves."""
    plain = [
        text
        for text in map(tokenizer.decode, range(200, 3000))
        if len(tokenizer.encode(text * 4, add_special_tokens=False)) == 4
    ]
    return ["".join((plain * length)[start : start + length]) for start in range(count)]


def make_trainer(shape: str, shapes, tokenizer, prompts: list[str], generation: list[float]):
    """TRL's trainer over a model of random weights; seconds of each generation are appended."""
    small = shape == "tiny"
    sizes = vars(steps.MODEL) if small else configs.SIZES[shape]
    config = transformers.Qwen3Config(
        vocab_size=max(sizes["vocab_size"], len(tokenizer)),
        hidden_size=sizes["width"],
        intermediate_size=sizes["mlp_width"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_kv_heads"],
        head_dim=sizes["head_dim"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(steps.SEED)
    dtype = torch.float32 if small else torch.bfloat16
    folder = tempfile.mkdtemp(prefix="grpo_peer_")
    # The trainer makes its reference from the same place, so the weights must lie somewhere.
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)

    class Timed(trl.GRPOTrainer):
        def _generate_single_turn(self, *arguments, **keywords):
            start = now()
            out = super()._generate_single_turn(*arguments, **keywords)
            generation.append(now() - start)
            return out

    def reward(completions: list[str], **_: object) -> list[float]:
        return [len(set(text)) / max(len(text), 1) for text in completions]

    return Timed(
        model=folder,
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        args=trl.GRPOConfig(
            output_dir=folder,
            model_init_kwargs={"dtype": str(dtype).removeprefix("torch.")},
            seed=steps.SEED,
            use_cpu=small,
            bf16=not small,
            per_device_train_batch_size=shapes.rows if small else 16,
            gradient_accumulation_steps=1 if small else shapes.rows // 16,
            num_generations=shapes.group,
            max_completion_length=shapes.new_tokens,
            generation_kwargs={"min_new_tokens": shapes.new_tokens},
            beta=0.04,
            loss_type="grpo",
            temperature=1.0,
            top_k=0,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            gradient_checkpointing=not small,
            max_steps=WARMUP + MEASURED,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1000,
        ),
    )


if __name__ == "__main__":
    main()
