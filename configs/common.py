"""Every field that the phases read, with the values they share, and the sizes of models.

A phase's file starts from `get_config()` and changes what differs. Fields are locked: a misspelled
one is refused with the nearest name. Lengths are in tokens, unless the name says characters.
"""

from ml_collections import ConfigDict, config_dict


def get_config(size: str = "tiny") -> ConfigDict:
    """All fields; `size` is one of SIZES."""
    if size not in SIZES:
        raise ValueError(f"size {size!r} after the colon is not one of {', '.join(SIZES)}")
    config = _fields(size)
    if size == "small":
        config.data.overlong = "reject"
        config.data.max_prompt_tokens = 640
        config.data.max_completion_tokens = 896
    elif size.startswith("qwen3_"):
        _set_large(config, size)
    return config


def _set_large(config: ConfigDict, size: str) -> None:
    """What the sizes of Qwen3 share; --plan shows what fits where (docs/plan.md)."""
    # Weights and moments over all chips, heads over a few neighbours, which also share the rows.
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.tensor = TENSOR.get(size, 1)
    config.sampling.rows = 512
    config.rl.rows_per_pass = 64
    config.reward_model.update(QWEN3_EMBEDDING_0P6B)
    config.reward_model.max_tokens = 1024
    config.reward_model.compute_dtype = "bfloat16"
    config.reward_model.remat = "full"


def _fields(size: str) -> ConfigDict:
    return ConfigDict(
        {
            # corpus | annotate | sft | reward_model | rl | evaluate | export | generate | serve
            "phase": "",
            "phases": (),  # several, run in order; empty: only `phase`
            "per_phase": {},  # per_phase.<phase>.<field>: what differs in one of `phases`
            "seed": 0,
            "steps": 100,  # optimizer updates
            "batch_size": 16,  # sft: packed rows; reward_model: pairs; rl: questions
            "model": {
                "init": "",  # hub id, directory (Hugging Face or WORKDIR/<phase>); empty: fresh
                "tokenizer": "",  # hub id or directory; empty: the one beside the weights
                "param_dtype": "float32",
                "compute_dtype": "float32",
                "remat": "none",  # none | dots | full
                "lora_rank": 0,  # 0: train all weights
                "lora_alpha": 16.0,
                **SIZES[size],  # the shape of fresh weights; ignored when `init` is given
            },
            "reward_model": {
                "init": "",  # as model.init, an encoder or a decoder; empty: see each phase
                "tokenizer": "",
                "param_dtype": "float32",
                "compute_dtype": "float32",
                "remat": "none",
                "lora_rank": 0,
                "lora_alpha": 16.0,
                "pooling": "",  # mean | cls (encoders) | last (decoders); empty: as `init` does
                "max_tokens": 512,  # of a question or an answer, prompt included; rest is cut
                # Put before a question and an answer. None: as `init` does, else a short one in the
                # language of the data, and nothing before an answer.
                "query_prompt": config_dict.placeholder(str),
                "document_prompt": config_dict.placeholder(str),
                # The loss: their weighted sum.
                "info_nce_weight": 1.0,
                "temperature": 0.05,  # of InfoNCE
                "triplet_weight": 0.0,
                "margin": 0.2,  # of the triplet loss on cosine distance
                "triplet_negative": "hardest",  # hardest | any (of the batch)
                "head_weight": 0.0,  # of Bradley-Terry on graded answers; above 0: adds a head
                "graded_pairs": 8,  # pairs of graded answers in a batch, for the head
                "matryoshka_dims": (),  # lengths that vectors may be cut to; empty: whole ones only
                # Negatives.
                "in_batch": "mined",  # random | same_topic | mined: who shares a batch
                "company": 8,  # questions of a batch that are alike; no meaning for random
                "mine_every": 50,  # updates between choices of alike questions
                "corrupted": 1,  # spoilt answers that each question gets as negatives
                # Answers of others are no negatives above the ceiling (1: off), nor above the cosine
                # of the own answer less the margin (below 0: that much above it).
                "negative_ceiling": 1.0,
                "negative_margin": -0.1,
                "rows_per_pass": 0,  # rows of max_tokens with activations at a time; 0: all
                "pass_rate": 0.5,  # share of held-out answers that pass `pass_rate_threshold`
                "eval_questions": 400,  # held-out ones that measure and calibrate; 0: all
                # The shape of fresh weights, ignored when `init` is given.
                "architecture": "encoder",  # encoder (BERT) | decoder (Qwen3)
                "vocab_size": 3072,
                "width": 128,
                "mlp_width": 256,
                "num_layers": 1,
                "num_heads": 2,
                "num_kv_heads": 2,  # of a decoder
                "head_dim": 64,  # of a decoder
                "tie_embeddings": True,  # of a decoder
            },
            "data": {
                # A file, a folder, hub:owner/name, or sample (the embedded corpus); empty: what the
                # phases corpus and annotate have left in this WORKDIR.
                "questions": "sample",
                "chains": "sample",
                "language": "zh",  # zh | en: the system prompt, and which half of the sample
                "format": "chain",  # chain | answer (no chain before it): what the model writes
                "validation_fraction": 0.1,
                "test_fraction": 0.1,
                "max_prompt_tokens": 1024,
                "max_completion_tokens": 2048,
                "overlong": "error",  # error | reject: texts longer than the two fields above
                "max_rejected": 0.1,  # share of unreadable records above which a run stops
            },
            "corpus": {
                "sources": (),  # files, folders, hub:owner/name or sample: all make one corpus
                "licences": (),  # of the sources, in their order, for the card
                "require_answer": True,  # questions without an answer are rejected
                "clean": {  # the rules of corpus/cleaning.py, each on or off
                    "mojibake": True,
                    "markup": True,
                    "invisible": True,
                    "whitespace": True,
                    "script": "keep",  # keep | simplified | traditional
                    "speaker_label": True,
                    "platform_mask": True,
                    "repeated_characters": True,
                    "solicitation": True,
                    "boilerplate": True,
                    # Personal data, replaced by placeholders.
                    "email": True,
                    "user_url": True,
                    "id_card": True,
                    "bank_card": True,
                    "phone": True,
                    "wechat": True,
                    "qq": True,
                    "full_name": True,
                    # Reasons to reject a text.
                    "broken_encoding": True,
                    "advertising": True,
                    "too_short": True,
                    "too_long": True,
                    "symbol_soup": True,
                    "language": "zh",  # zh | en | any
                    "repetition": True,
                    "copied_question": True,
                    "min_question_characters": 6,
                    "min_answer_characters": 100,
                    "max_question_characters": 10_000,
                    "max_answer_characters": 10_000,
                },
                "near_duplicates": True,  # near copies of answers go, of questions stay together
                "near_duplicate_threshold": 0.8,  # Jaccard similarity of character n-grams, in (0, 1]
                "topics": "",  # YAML file of the taxonomy; empty: ours
                "topic_mapping": "",  # YAML file from the sources' labels to topics
                "topic_encoder": "",  # directory or hub id of a sentence encoder; empty: labels only
                "topic_pooling": "cls",  # mean | cls | last, as the encoder was trained
                "topic_max_tokens": 256,  # of a question, for its topic
                "topic_threshold": 0.56,  # cosine below which a question stays unassigned
                "workers": 0,  # processes; 0: one per core
            },
            "annotate": {
                "base_url": "",  # of the teacher, up to and without /chat/completions
                "model": "",  # as the endpoint names it
                "api_key_env": "OPENAI_API_KEY",  # variable with the key; empty: none is wanted
                "timeout": 300.0,  # seconds for one request
                "max_completion_tokens": 4096,  # of one reply, reasoning included
                "token_limit_field": "max_tokens",  # or max_completion_tokens
                "extra_body": "{}",  # JSON of further fields, such as {"temperature": 0.7}
                "prompt_price": -1.0,  # money for a million tokens; 0: free; must be given
                "completion_price": -1.0,
                "max_tokens": 10_000_000,  # the budget of the folder, earlier runs included
                "max_money": 1.0,
                "questions": 0,  # only the first so many; 0: all
                "concurrency": 8,  # requests in flight
                "retries": 5,  # of a request that failed for a passing reason
                "backoff": 1.0,  # seconds before the first of them, then doubled
                "max_failures": 10,  # questions in a row without any reply before it stops
                "min_layer_characters": 10,  # of each of L1..L4
                "max_layer_characters": 1500,
                "min_answer_characters": 100,
                "max_answer_characters": 4000,
                "max_echo": 0.5,  # share of the answer's 4-grams that stand in the question
            },
            "optimizer": {
                "learning_rate": 1e-5,
                "warmup_steps": 10,
                "schedule": "cosine",  # constant | linear | cosine
                "final_fraction": 0.1,  # of the peak, where the decay ends
                "weight_decay": 0.01,
                "clip_norm": 1.0,
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "mu_dtype": "float32",  # of the first moment: float32 | bfloat16
                "nu_dtype": "float32",  # of the second; bfloat16 wants b2 of 0.98 or less
            },
            "sampling": {
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": 0,  # 0: off
                "min_p": 0.0,  # share of the likeliest token's probability; 0: off
                "rows": 64,  # completions decoded side by side
            },
            "sft": {
                "row_tokens": 2048,  # of a packed row
                "rows_per_pass": 0,  # packed rows whose activations are held at a time; 0: all
                "tag_weight": 0.0,  # of the question "which tag?" where one stands; 0: off
                "shuffled_every": 0,  # every so many updates, one on shuffled sentences; 0: never
                "sample_every": 100,  # updates between printed sample completions; 0: never
                "samples": 16,  # completions per measurement of chain validity
            },
            "rl": {  # docs/policy_gradient.md has the choices and their papers
                "group_size": 8,  # completions per question
                "max_refills": 0,  # rounds that replace groups without signal; 0: off
                # The reward.
                "answer_reward": "continuous",  # continuous | binary (the paper's)
                "threshold": "balanced",  # of binary: balanced (accuracy) | pass_rate, as calibrated
                "format_weight": 1.0,
                "answer_weight": 1.0,
                "echo_weight": 0.5,  # charged for copying the question
                "template_weight": 0.5,  # charged for words that answer other questions too
                "min_answer_characters": 100,  # below, a charge grows to 1; 0: off
                "quality_weight": 0.0,  # of the reward model's head; 0: off
                "overlong_buffer": 0,  # last tokens over which a charge grows to 1; 0: off
                "overlong_filter": False,  # leave completions that were cut off out of the loss
                # The loss.
                "advantage": "dr_grpo",  # grpo | dr_grpo | rloo | batch_scaled | reinforce | gdpo
                "baseline_decay": 0.9,  # of reinforce, in [0, 1)
                "ratio": "token",  # token | sequence | none
                "surrogate": "clip",  # clip | cispo
                "clip_low": 0.2,
                "clip_high": 0.2,
                "clip_ceiling": 0.0,  # of the ratio where the advantage is negative; 0: off
                "aggregation": "constant_length",  # sequence_mean | token_mean | constant_length
                "kl_weight": 0.01,  # 0: no reference is computed
                "kl_estimator": "k3",  # k1 (reward only) | k2 | k3
                "kl_placement": "loss",  # loss | reward
                "reference_every": 0,  # steps after which the policy is the reference; 0: never
                "mismatch": "none",  # none | truncated | masked: weights of sampler and trainer
                "mismatch_level": "token",  # token | sequence
                "mismatch_ceiling": 2.0,  # of the weights, 1 or more
                "entropy_target": 0.0,  # nats a token below which a bonus grows; 0: off
                # The updates.
                "minibatches": 1,  # of a rollout batch, one update each
                "passes": 1,  # over a rollout batch
                "rows_per_pass": 16,  # completions whose activations are held at a time
                # What ends a run early; 0: off.
                "max_kl": 0.0,  # nats a token, from the reference
                "min_validity": 0.0,  # share of valid chains, once it was above
                "max_overlap_rise": 0.0,  # of echo or template overlap, while the reward rises
                "stop_window": 20,  # steps over which these are smoothed
                # What is written and measured.
                "rollout_examples": 2,  # whole rollouts written to rollouts.jsonl per step
                "eval_questions": 16,  # held-out questions, before and after
                "eval_samples": 4,  # completions of each
            },
            "evaluate": {
                "questions": 32,  # of the test split; 0: all
                "samples": 1,
                # As model.init; empty: the measure is left out.
                "bertscore_model": "",  # an encoder (BERT)
                "bertscore_layer": 0,  # whose states are compared, from 1; 0: the last
                "perplexity_model": "",  # a decoder
            },
            "export": {
                "dtype": "",  # float32 | bfloat16 | float16; empty: as trained
                "max_shard_bytes": 5_000_000_000,
                "adapter": False,  # of a run with lora_rank: adapters for PEFT as well
                "weight_only": "",  # int8 | int4: rounded weights as well; needs torch
                "license": "",  # as the hub spells it (apache-2.0), for the card; empty: not stated
                "verify": False,  # load it with torch and compare the outputs with ours
                "upload": "",  # owner/name on the hub; empty: nowhere
                "upload_part": "hf",  # hf | adapter | int8 | int4
                "dry_run": False,  # upload: show what would be sent
            },
            "generate": {
                "question": "",  # answered in the terminal; "-": standard input; empty: data.questions
                "samples": 1,  # completions of each question
            },
            "serve": {
                "host": "127.0.0.1",  # this machine alone; others want a token
                "port": 8000,  # 0: any free one
                "token_env": "",  # variable with the bearer token; empty: none is wanted
                "name": "",  # of the model for clients; empty: that of its folder
                "max_queue": 64,  # completions that may wait for a row; more are answered 429
                "deadline": 300.0,  # seconds that a request may take, its waiting included
                "drain": 60.0,  # seconds that requests may go on after SIGTERM
                "max_body_bytes": 262_144,  # of a request
                "log_texts": False,  # whether what people write and read goes to the log
            },
            "guard": {  # of generate and serve; docs/serving.md
                "on": True,  # False: no risk is graded, nothing is held back
                "region": "cn",  # whose numbers are given: cn | hk | tw | us | uk | int
            },
            "mesh": {
                "data": -1,  # -1: all devices that the other axes leave
                "fsdp": 1,  # parameters and moments, and rows of the batch
                "sequence": 1,  # tokens of a row, for long ones
                "tensor": 1,  # heads, mlp, vocabulary
                "rules": (
                    ("vocab", ("tensor", "fsdp")),
                    ("heads", "tensor"),
                    ("kv_heads", "tensor"),
                    ("mlp", "tensor"),
                    ("embed", "fsdp"),
                ),
            },
            "checkpoint": {"every": 100, "keep": 2},  # updates; newest ones kept
            "log": {"every": 10, "validate_every": 50},  # updates
        },
    ).lock()


def _qwen3(name: str, width: int, mlp: int, layers: int, heads: int, tied: bool) -> dict:
    return {
        "init": f"Qwen/{name}",
        "vocab_size": 151_936,
        "width": width,
        "mlp_width": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": 8,
        "head_dim": 128,
        "tie_embeddings": tied,
        "max_positions": 40_960,
        "rope_theta": 1e6,
        "compute_dtype": "bfloat16",
        "remat": "full",
    }


SIZES = {
    "tiny": {
        "vocab_size": 352,
        "width": 128,
        "mlp_width": 384,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 64,
        "tie_embeddings": True,
        "max_positions": 4096,
        "rope_theta": 1e4,
    },
    # A shape that two CPU cores can fine-tune; meant for `init`, such as a small chat model.
    "small": {
        "vocab_size": 6400,
        "width": 512,
        "mlp_width": 1408,
        "num_layers": 8,
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 64,
        "tie_embeddings": True,
        "max_positions": 4096,
        "rope_theta": 1e6,
    },
    # The published shapes of Qwen3 (https://arxiv.org/abs/2505.09388).
    "qwen3_0p6b": _qwen3("Qwen3-0.6B", 1024, 3072, 28, 16, True),
    "qwen3_1p7b": _qwen3("Qwen3-1.7B", 2048, 6144, 28, 16, True),
    "qwen3_4b": _qwen3("Qwen3-4B", 2560, 9728, 36, 32, True),
    "qwen3_8b": _qwen3("Qwen3-8B", 4096, 12288, 36, 32, False),
    "qwen3_14b": _qwen3("Qwen3-14B", 5120, 17408, 40, 40, False),
    "qwen3_32b": _qwen3("Qwen3-32B", 5120, 25600, 64, 64, False),
}
TENSOR = {"qwen3_8b": 4, "qwen3_14b": 8, "qwen3_32b": 8}
# The shape of Qwen3-Embedding-0.6B (https://arxiv.org/abs/2506.05176), for plans.
QWEN3_EMBEDDING_0P6B = {
    "architecture": "decoder",
    "vocab_size": 151_669,
    "width": 1024,
    "mlp_width": 3072,
    "num_layers": 28,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
}
